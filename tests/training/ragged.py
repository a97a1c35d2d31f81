"""An environment whose episodes differ in length and safety by member: what turn credit has to cope with."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.envs.base import EpisodeScore, Observation, Task
from threefold.trajectory import Trajectory, Violation


class Ragged:
    """Member m plays m + 1 turns; member 1 breaks a rule in its second. D falls from 3 by the digits said.

    Turn rewards are "D", how far the level fell, and the state "D" the level; it stays in [0, 3].
    """

    channels = ("goal", "length")

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self.member, self.turn, self.level = member, 0, 3.0
        return Observation(messages=({"role": "user", "content": "go"},), state={"D": self.level})

    def step(self, action_text: str) -> Observation:
        before, self.level = self.level, max(0.0, self.level - sum(map(str.isdigit, action_text)))
        violation = Violation("second turn", self.turn) if (self.member, self.turn) == (1, 1) else None
        self.turn += 1
        return Observation(
            messages=({"role": "user", "content": "on"},),
            rewards={"D": before - self.level},
            state={"D": self.level},
            terminated=self.turn > self.member,
            violation=violation,
        )

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return [
            EpisodeScore(rewards={"goal": float(e.turns[-1].state["D"] == 0), "length": float(len(e.turns))})
            for e in episodes
        ]

    def close(self) -> None:
        self.turn = 0
