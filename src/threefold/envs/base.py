"""The contract between an environment and the rollout that drives it.

An environment object plays one episode at a time; the rollout makes as many as it needs side by side and
closes each one in a `finally`. The start of an episode depends on (task, seed) alone, so all members of a
group begin alike; later chance may depend on the member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from threefold.trajectory import Trajectory, Violation

Message = Mapping[str, str]
"""A chat message: {"role": "system" | "user" | "assistant", "content": text}."""


@dataclass(frozen=True)
class Task:
    """What is to be done: an id and the fields that the environment understands."""

    id: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """What the environment answers to a reset or to an action."""

    messages: tuple[Message, ...] = ()
    """Messages to append to the agent's context."""
    action: str = ""
    """The action as the environment understood it; empty after a reset."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Reward of the turn by channel."""
    state: Mapping[str, float] = field(default_factory=dict)
    terminated: bool = False
    """The task has come to its end."""
    truncated: bool = False
    """The environment's limit on turns has been reached."""
    success: bool | None = None
    violation: Violation | None = None
    skills: tuple[str, ...] = ()
    """Names of the skills that stand in the agent's next prompt because they apply to it."""

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated or self.violation is not None


@dataclass(frozen=True)
class EpisodeScore:
    """An episode's scores for the whole trajectory, given after the batch has been rolled out."""

    rewards: Mapping[str, float | None]
    success: bool | None = None
    violation: Violation | None = None
    void: bool = False
    """Nothing in the episode may be credited, what its turns earned included: it is not known, say, whether
    a safety rule was broken. The rewards of its turns are taken out of the record."""


@runtime_checkable
class Environment(Protocol):
    """Implement these to train on something new; `envs.toy` is a complete example."""

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        """Begin an episode. What is observed here must depend on (task, seed) alone."""
        ...

    def step(self, action_text: str) -> Observation:
        """Take what the agent said in this turn and answer it. Never raises for anything an agent may say."""
        ...

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        """Reward whole trajectories, once a batch after the rollouts: the place where judges live."""
        ...

    def close(self) -> None:
        """Give back what the episode holds (processes, files)."""
        ...


Split = Literal["train", "test"]
"""Tasks to learn from, or held-out ones."""


class TaskSource(Protocol):
    """`tasks` of an environment that recipes can name: a static or class method, or a function in its
    module."""

    def __call__(self, split: Split, size: int, seed: int) -> Sequence[Task]:
        """Up to `size` tasks of a split with different ids, fewer only where there are no more.

        The same arguments give the same tasks, and no task is in both splits. Held-out tasks are asked for
        with seed 0, whatever the run's seed.
        """
        ...


class EnvironmentSource(Protocol):
    """What a recipe may name in place of an environment's class, where episodes share something.

    Made once of the recipe's options, before the first step, so that it can open files and clients and refuse
    what cannot work (ValueError, OSError); called for each episode. `tasks` and the optional hooks of
    docs/environments.md are looked for on it.
    """

    def __call__(self) -> Environment:
        """An environment for one episode at a time."""
        ...

    def tasks(self, split: Split, size: int, seed: int) -> Sequence[Task]:
        """As `TaskSource`."""
        ...


def is_source(kind: Any) -> bool:
    """Whether this is a class of sources: its objects are called for an environment, and are none."""
    return isinstance(kind, type) and any("__call__" in vars(base) for base in kind.__mro__)


class DemonstrationSource(Protocol):
    """`demonstrations`, found like `tasks`: what a warm start learns from. Optional."""

    def __call__(self, split: Split, size: int, seed: int) -> Sequence[Sequence[Message]]:
        """Up to `size` whole dialogues. Each begins with the messages of an opening, as `reset` gives them;
        only what has the role "assistant" is learnt."""
        ...
