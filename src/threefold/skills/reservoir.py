"""The experience that skills are made from: a bounded memory of episodes, by task, arm and outcome.

ReSkill (arXiv 2606.01619, section 3.2): at most 200 episodes, the oldest leaves first. A task has at most
four places, (new | old) x (success | failure); a newer episode takes the place of the older one and counts as
new. An entry keeps what was parsed: actions, observations, and which skills entered each prompt *then*, under
the bank that the episode ran with (the reference release asks the current bank instead).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from threefold.skills.placement import without_skills
from threefold.trajectory import Trajectory, Turn

ArmName = Literal["new", "old"]
TEXT_KEPT = 400
"""Characters of what the agent said that are kept of a turn, the last ones."""
OBSERVATION_KEPT = 2_000


@dataclass(frozen=True)
class Experience:
    """One episode, as the creator sees it."""

    task_id: str
    task: str
    """The opening that the agent saw, without the skills in it."""
    arm: ArmName
    version: str
    """Bank version under which it was played."""
    step: int
    success: bool
    turns: tuple[Turn, ...]

    @property
    def actions(self) -> list[str]:
        return [turn.action for turn in self.turns]

    @property
    def key(self) -> tuple[str, str, bool]:
        return self.task_id, self.arm, self.success

    def showed(self, skill: str) -> bool:
        """Whether a skill entered one of its prompts."""
        return any(skill in turn.skills for turn in self.turns)


def experience(trajectory: Trajectory, *, step: int, arm: ArmName, version: str) -> Experience:
    """Keep of a trajectory what skills are made from; token ids and log-probabilities are left out."""
    turns = tuple(
        Turn(
            text=turn.text[-TEXT_KEPT:],
            action=turn.action,
            observation=without_skills(turn.observation)[:OBSERVATION_KEPT],
            rewards=dict(turn.rewards),
            skills=turn.skills,
        )
        for turn in trajectory.turns
    )
    return Experience(
        task_id=trajectory.task_id,
        task=without_skills(trajectory.opening.text)[-OBSERVATION_KEPT:],
        arm=arm,
        version=version,
        step=step,
        success=bool(trajectory.success),
        turns=turns,
    )


class Reservoir:
    """First in, first out, one place for each (task, arm, outcome).

    Args:
        capacity: Most episodes held.
    """

    def __init__(self, capacity: int = 200) -> None:
        if capacity < 1:
            raise ValueError(f"a reservoir of capacity {capacity} holds nothing; give at least 1")
        self.capacity = capacity
        self._entries: dict[tuple[str, str, bool], Experience] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def experiences(self) -> tuple[Experience, ...]:
        """Oldest first."""
        return tuple(self._entries.values())

    def add(self, entry: Experience) -> None:
        self._entries.pop(entry.key, None)
        self._entries[entry.key] = entry
        while len(self._entries) > self.capacity:
            del self._entries[next(iter(self._entries))]

    def sample_groups(self, rng: np.random.Generator, groups: int = 30) -> list[tuple[Experience, ...]]:
        """Episodes by task: tasks with both outcomes first, then those that always failed, then the rest;
        inside each kind in random order."""
        by_task: dict[str, list[Experience]] = {}
        for entry in self._entries.values():
            by_task.setdefault(entry.task_id, []).append(entry)

        def rank(entries: Sequence[Experience]) -> int:
            outcomes = {entry.success for entry in entries}
            return 0 if len(outcomes) == 2 else 1 if outcomes == {False} else 2

        tasks = list(by_task)
        shuffled = [tasks[i] for i in rng.permutation(len(tasks))]
        shuffled.sort(key=lambda task: rank(by_task[task]))  # stable: the random order stays inside a kind
        return [tuple(by_task[task]) for task in shuffled[:groups]]

    def to_dict(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "entries": [asdict(entry) for entry in self._entries.values()]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reservoir:
        """Read what `to_dict` wrote, in the same order."""
        reservoir = cls(data["capacity"])
        for entry in data["entries"]:
            turns = tuple(
                Turn(**{**turn, "skills": tuple(turn["skills"]), "answer_span": None})
                for turn in entry["turns"]
            )
            reservoir.add(Experience(**{**entry, "turns": turns}))
        return reservoir
