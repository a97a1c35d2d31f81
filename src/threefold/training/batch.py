"""Batch arithmetic: users set prompts per step and group size, TRL's numbers follow.

TRL counts in episodes per device: a generation batch is per_device_train_batch_size x processes x
steps_per_generation episodes, and one optimizer update takes gradient_accumulation_steps of those
micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from threefold.recipe import RecipeError, Training


@dataclass(frozen=True)
class BatchPlan:
    """The numbers of one step, in plain words and in TRL's."""

    prompts_per_step: int
    group_size: int
    processes: int
    micro_batch: int
    """Episodes forwarded at once on one process (TRL: per_device_train_batch_size)."""
    micro_batches: int
    """Micro-batches of one optimizer update on one process (TRL: gradient_accumulation_steps)."""
    updates_per_step: int
    max_completion_tokens: int

    @property
    def episodes(self) -> int:
        """Episodes of one generation step, on all processes."""
        return self.prompts_per_step * self.group_size

    @property
    def steps_per_generation(self) -> int:
        """TRL's name for all micro-batches of a generation batch on one process."""
        return self.micro_batches * self.updates_per_step

    @property
    def max_new_tokens(self) -> int:
        """Upper bound of the tokens that one step generates."""
        return self.episodes * self.max_completion_tokens

    def table(self) -> list[tuple[str, int, str]]:
        """Rows of (what, number, meaning) for `--dry-run`."""
        return [
            ("prompts per step", self.prompts_per_step, "different problems in a step"),
            ("group size", self.group_size, "episodes of each problem"),
            ("episodes per step", self.episodes, "prompts x group size"),
            ("processes", self.processes, "from the launcher"),
            ("micro-batch", self.micro_batch, "episodes forwarded at once on a process"),
            ("micro-batches per update", self.micro_batches, "gradient accumulation on a process"),
            ("updates per step", self.updates_per_step, "optimizer updates on a generation batch"),
            ("new tokens per step, at most", self.max_new_tokens, "episodes x max_completion_tokens"),
        ]


def plan_batch(training: Training, processes: int = 1) -> BatchPlan:
    """Derive TRL's batch sizes.

    The micro-batch is the largest number up to `training.micro_batch` that divides a process's share of an
    update.

    Raises:
        RecipeError: The episodes of a step do not divide by processes and updates.
    """
    episodes = training.prompts_per_step * training.group_size
    shares = processes * training.updates_per_step
    if episodes % shares:
        raise RecipeError(
            f"training.prompts_per_step x training.group_size = {episodes} episodes do not divide by "
            f"{processes} process(es) x training.updates_per_step {training.updates_per_step}; "
            f"the nearest prompts_per_step that works is {_nearest(training.group_size, episodes, shares)}"
        )
    share = episodes // shares
    micro = max(n for n in range(1, min(training.micro_batch, share) + 1) if share % n == 0)
    return BatchPlan(
        prompts_per_step=training.prompts_per_step,
        group_size=training.group_size,
        processes=processes,
        micro_batch=micro,
        micro_batches=share // micro,
        updates_per_step=training.updates_per_step,
        max_completion_tokens=training.max_completion_tokens,
    )


def _nearest(group_size: int, episodes: int, shares: int) -> int:
    wanted = episodes // group_size
    candidates = [n for n in range(1, wanted + shares + 1) if n * group_size % shares == 0]
    return min(candidates, key=lambda n: abs(n - wanted))
