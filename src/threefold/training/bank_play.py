"""A skill bank inside a training step: which version each episode is played under, and what it taught.

The trainer asks this three times a step. Before the rollouts `environments` joins the creation of the step
before and draws a version for each episode; after them `stamped` writes it into their record; before the
update `observe` counts successes, decides a test where it is time, and begins the next creation, which runs
beside the update. Groups stay whole: the advantages never hear of versions.

On several processes the first one's `Evolution` leads: it draws for the episodes of all, learns from them
all and writes to the disk, and the others are told, of whose evolutions only the `bank` in use is kept. So a
run's bank does not depend on how many play for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from threefold.envs.base import Environment
from threefold.rollout.driver import Start
from threefold.skills.bank import Bank
from threefold.skills.evolution import Event, Evolution, stamp
from threefold.skills.placement import skilled
from threefold.training.diagnostics import skill_use
from threefold.training.gathering import gather_list
from threefold.trajectory import Trajectory

Answer = TypeVar("Answer")

STATE_FILE = "threefold_skills.json"
_WORDS = 1_000
"""Characters of a step's news; all of it is in the version's record."""


class BankPlay:
    """One trainer's episodes under the versions of an `Evolution`.

    Args:
        evolution: The bank and its tests; that of the first process counts.
        accelerator: Joins the processes.
    """

    def __init__(self, evolution: Evolution, accelerator: Accelerator) -> None:
        self.evolution = evolution
        self._accelerator = accelerator
        self._banks_B: list[Bank] = []  # of all processes' episodes
        self._own_B: list[Bank] = []  # of this process's
        self._told = len(evolution.events)
        self._seconds = 0.0

    def environments(
        self, make: Callable[[], Environment], starts: Sequence[Start], *, step: int, training: bool
    ) -> Callable[[], Environment]:
        """A maker of environments for the driver, one a start in order.

        Args:
            make: Makes the environment without skills.
            starts: Where this process's episodes start, as many on each process.
            step: Number of the optimizer update that follows.
            training: False plays the version in use alone, and draws nothing.
        """
        begun = time.perf_counter()
        groups = gather_list(self._accelerator, [start.group_id for start in starts])
        size = len(groups)
        if training:
            drawn = self._led(lambda: (self.evolution.assign(step, size, groups), self.evolution.bank))
            self._banks_B, self.evolution.bank = drawn
        else:
            self._banks_B = [self.evolution.bank] * size
        first = self._accelerator.process_index * len(starts)
        self._own_B = self._banks_B[first : first + len(starts)]
        self._seconds = time.perf_counter() - begun
        return skilled(make, self._own_B, self.evolution.settings.retrieve)

    def stamped(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """This process's episodes with the version that each was played under."""
        return stamp(trajectories, self._own_B)

    def observe(self, step: int, trajectories: Sequence[Trajectory]) -> tuple[dict[str, float], str]:
        """Learn from the step's episodes.

        Args:
            step: Number of the optimizer update that follows.
            trajectories: This process's episodes.

        Returns:
            The step's figures, and what happened to the bank in words.
        """
        played = gather_list(self._accelerator, list(trajectories))
        answer, self.evolution.bank = self._led(lambda: (self._observe(step, played), self.evolution.bank))
        return answer

    def _observe(self, step: int, trajectories: Sequence[Trajectory]) -> tuple[dict[str, float], str]:
        begun = time.perf_counter()
        tested = self.evolution.candidate
        self.evolution.observe(step, trajectories, self._banks_B)
        self._seconds += time.perf_counter() - begun
        news, self._told = self.evolution.events[self._told :], len(self.evolution.events)
        figures = {**self.evolution.metrics(), **skill_use(trajectories), "skills/seconds": self._seconds}
        if tested is not None:
            drawn = sum(bank.version == tested.version for bank in self._banks_B)
            figures["skills/share_new"] = drawn / len(self._banks_B)
        return figures, in_words(self.evolution, news)

    def _led(self, ask: Callable[[], Answer]) -> Answer:
        """The first process's answer, or its error, on every process."""
        if self._accelerator.num_processes == 1:
            return ask()
        told: list = [None, None]
        if self._accelerator.is_main_process:
            try:
                told[0] = ask()
            except Exception as error:  # raised below, on every process: the others must not wait for ever
                told[1] = error
        answer, problem = broadcast_object_list(told)
        if problem is not None:
            raise problem
        return answer

    def save(self, checkpoint: Path) -> None:
        """Write everything into a checkpoint's folder: banks, a test under way, reservoir, chance."""
        (checkpoint / STATE_FILE).write_text(json.dumps(self.evolution.to_dict()), encoding="utf-8")

    def load(self, checkpoint: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: The checkpoint was made without skills.
        """
        path = checkpoint / STATE_FILE
        if not path.exists():
            raise ValueError(
                f"{checkpoint} holds no skill bank: the run was started without skills; resume it without "
                "them, or start a new one"
            )
        state = json.loads(path.read_text(encoding="utf-8"))
        if self._accelerator.is_main_process:
            self.evolution.load(state)
        self.evolution.bank = self._led(lambda: self.evolution.bank)
        self._told = len(state["events"])  # what loading found is news


def in_words(evolution: Evolution, news: Sequence[Event]) -> str:
    """What happened to the bank in a step, and where a test under way stands; "" where there is nothing."""
    decided = ("accept", "reject")  # their text says so itself
    said = [event.text if event.kind in decided else f"{event.kind}: {event.text}" for event in news]
    test, new = evolution.test, evolution.candidate
    if test is not None and new is not None and test.steps:
        (won_new, n_new), (won_old, n_old) = test.steps[-1]["new"], test.steps[-1]["old"]
        said.append(
            f"bank {new.version} tested against {evolution.bank.version}, step {len(test.steps)} of at least "
            f"{evolution.settings.period}: P(new) = {test.probability_new():.2f} (now {won_new}/{n_new} and "
            f"{won_old}/{n_old})"
        )
    return "; ".join(said)[:_WORDS]
