"""Environments: what an agent acts in. Plain Python, no torch; see `base` for the protocol."""

from threefold.envs.base import Environment, EpisodeScore, Observation, Task

__all__ = ["Environment", "EpisodeScore", "Observation", "Task"]
