"""What stands around an environment: everything is passed on that a wrapper does not change."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.envs.base import Environment, EpisodeScore, Observation, Task
from threefold.trajectory import Trajectory


class EnvironmentWrapper:
    """An environment in another; change what a subclass overrides."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    @property
    def unwrapped(self) -> Environment:
        """The innermost environment, whose name the record gives."""
        return getattr(self.environment, "unwrapped", self.environment)

    @property
    def concurrency(self) -> int:
        """As the environment's own: wrappers share nothing between episodes."""
        return getattr(self.environment, "concurrency", 1)

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        return self.environment.reset(task, seed, member)

    def step(self, action_text: str) -> Observation:
        return self.environment.step(action_text)

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return self.environment.score(episodes)

    def close(self) -> None:
        self.environment.close()
