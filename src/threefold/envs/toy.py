"""A two-turn environment small enough to read at a glance: repeat a digit, then its neighbour.

Turn 1 shows a digit and asks for it; turn 2 asks for its successor (9 is followed by 0). It exists for tests
and as the worked example of the protocol; a model of a few thousand parameters can learn it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from threefold.envs.base import EpisodeScore, Message, Observation, Split, Task
from threefold.trajectory import Trajectory

HELD_OUT = (3, 7)
"""Digits that no training task shows."""


class EchoThenNext:
    """Reward channel "echo" in each turn: 1 where the digit asked for is the first thing said, else 0."""

    channels = ("echo",)
    """Reward channels of whole episodes."""

    def __init__(self) -> None:
        self._digit = 0
        self._turn = 0
        self._right = 0

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self._digit = int(task.fields.get("digit", random.Random(seed).randrange(10)))
        self._turn = self._right = 0
        return Observation(
            messages=({"role": "user", "content": str(self._digit)},), state={"digit": float(self._digit)}
        )

    def step(self, action_text: str) -> Observation:
        wanted = (self._digit + self._turn) % 10
        said = action_text.strip()[:1]
        reward = float(said == str(wanted))
        self._right += int(reward)
        self._turn += 1
        done = self._turn == 2
        return Observation(
            messages=() if done else ({"role": "user", "content": "+"},),
            action=said,
            rewards={"echo": reward},
            state={"digit": float(self._digit)},
            terminated=done,
            success=self._right == 2 if done else None,
        )

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return [
            EpisodeScore(
                rewards={"echo": sum(turn.rewards["echo"] for turn in e.turns) / 2}, success=e.success
            )
            for e in episodes
        ]

    def close(self) -> None:
        self._turn = 0

    @staticmethod
    def tasks(split: Split, size: int, seed: int) -> list[Task]:
        """Digits drawn at random; 3 and 7 are held out."""
        digits = [digit for digit in range(10) if (digit in HELD_OUT) == (split == "test")]
        if split == "test":
            return [Task(f"test-{digit}", {"digit": digit}) for digit in digits[:size]]
        chance = random.Random(seed)
        return [Task(f"train-{i}", {"digit": chance.choice(digits)}) for i in range(size)]

    @staticmethod
    def demonstrations(split: Split, size: int, seed: int) -> list[list[Message]]:
        """Both turns said right."""
        return [
            [
                {"role": "user", "content": str(digit)},
                {"role": "assistant", "content": str(digit)},
                {"role": "user", "content": "+"},
                {"role": "assistant", "content": str((digit + 1) % 10)},
            ]
            for digit in (task.fields["digit"] for task in EchoThenNext.tasks(split, size, seed))
        ]
