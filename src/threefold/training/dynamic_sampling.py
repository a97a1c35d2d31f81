"""DAPO's dynamic sampling: groups whose outcomes are all equal give way to groups of other prompts.

"DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv 2503.14476, section 3.2: sample until
the batch holds prompts with 0 < right answers < G alone. Here a step generates its batch as always; then, at
most `max_rounds` times, every dead group is replaced by a group of the next prompt of a stream (which may be
one of the batch's: with few problems it soon is). What is still dead after that stays in the batch, with
advantage 0 under GRPO.

Where we deviate: DAPO over-samples prompts and may drop surplus live groups; here exactly the dead ones are
replaced, so none is wasted. A group is dead where its outcomes are *equal*, fractional ones included, and
where none of it was scored.

The prompts come from a stream of their own: the training problems in an order that the seed decides, again
and again. So the batches of a run with and without dynamic sampling begin with the same prompts, and a
resumed run goes on where the stream stood. Every episode is counted, also those thrown away:
`dynamic_sampling/generated`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threefold.credit.normalise import dead_groups


@dataclass(frozen=True)
class DynamicSampling:
    """The policy's settings.

    Raises:
        ValueError: A setting is below 1.
    """

    max_rounds: int = 3
    """How often the dead groups of a step are replaced at most: it generates up to 1 + `max_rounds` times."""
    max_episodes: int | None = None
    """Stop training after the step in which so many episodes were generated, those thrown away included: the
    budget of a comparison at equal episodes. None is no limit."""

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ValueError(f"dynamic sampling needs max_rounds of at least 1, got {self.max_rounds}")
        if self.max_episodes is not None and self.max_episodes < 1:
            raise ValueError(f"dynamic sampling needs max_episodes of at least 1, got {self.max_episodes}")


@dataclass
class PromptStream:
    """Row numbers of a data set of `size` rows: every row once in a random order, then again in another."""

    size: int
    seed: int
    drawn: int = 0
    """Rows taken so far: all that a checkpoint has to keep."""

    def take(self, count: int) -> list[int]:
        """The next `count` rows."""
        rows = [self._row(place) for place in range(self.drawn, self.drawn + count)]
        self.drawn += count
        return rows

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, self.size)
        return int(_order(self.seed, epoch, self.size)[index])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The rows of one pass over the data."""
    return np.random.default_rng((seed, epoch)).permutation(size)


@dataclass(frozen=True)
class Candidates:
    """Episodes of whole groups, with all that was made of them."""

    inputs: list[dict[str, Any]]
    """The data set's row of each episode."""
    generated: tuple[list[Any] | None, ...]
    """What the generation answered, a list with an entry for each episode or None."""
    rewards_BF: Tensor
    """(B, F), a column for each reward function, NaN where one gave no score."""

    def with_groups(self, groups: Sequence[int], others: Candidates, group_size: int) -> Candidates:
        """The same episodes with those of `groups` replaced by the groups of `others`, in order."""
        order = list(range(len(self.inputs)))
        for place, group in enumerate(groups):
            first = len(self.inputs) + place * group_size
            order[group * group_size : (group + 1) * group_size] = range(first, first + group_size)
        columns = [
            None if mine is None or theirs is None else [(mine + theirs)[i] for i in order]
            for mine, theirs in zip(self.generated, others.generated, strict=True)
        ]
        return replace(
            self,
            inputs=[(self.inputs + others.inputs)[i] for i in order],
            generated=tuple(columns),
            rewards_BF=torch.cat([self.rewards_BF, others.rewards_BF])[order],
        )


def dead(outcome_B: Tensor, group_size: int) -> list[int]:
    """The groups whose outcomes are all equal, or which have no outcome."""
    group_B = torch.arange(len(outcome_B), device=outcome_B.device) // group_size
    return torch.nonzero(dead_groups(outcome_B, group_B)[::group_size]).flatten().tolist()


def replace_dead(
    first: Candidates,
    generate: Callable[[list[dict[str, Any]]], Candidates],
    rows: Callable[[int], list[dict[str, Any]]],
    *,
    outcome: int,
    group_size: int,
    max_rounds: int,
) -> tuple[Candidates, dict[str, float]]:
    """Replace dead groups until none is left or `max_rounds` are over.

    Args:
        first: The batch as it was generated.
        generate: Makes episodes of these data set rows, one for each.
        rows: The next so many prompts of the stream.
        outcome: Column of the rewards that says right or wrong.
        group_size: Episodes of each prompt.
        max_rounds: See `DynamicSampling`.

    Returns:
        As many episodes as `first` has, and the figures of docs/metrics.md.
    """
    batch, rounds, replaced, generated = first, 0, 0, len(first.inputs)
    groups = at_first = dead(batch.rewards_BF[:, outcome], group_size)
    while groups and rounds < max_rounds:
        inputs = [dict(row) for row in rows(len(groups)) for _ in range(group_size)]
        batch = batch.with_groups(groups, generate(inputs), group_size)
        rounds, replaced, generated = rounds + 1, replaced + len(groups), generated + len(inputs)
        groups = dead(batch.rewards_BF[:, outcome], group_size)
    return batch, {
        "dynamic_sampling/rounds": float(rounds),
        "dynamic_sampling/generated": float(generated),
        "dynamic_sampling/replaced": float(replaced),
        "dynamic_sampling/dead_first": len(at_first) * group_size / len(first.inputs),
        "dynamic_sampling/dead_left": len(groups) * group_size / len(first.inputs),
    }
