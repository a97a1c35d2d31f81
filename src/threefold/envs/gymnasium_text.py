"""Any Gymnasium environment, told in text and acted in by text (Towers et al., arXiv 2407.17032).

An observation becomes a sentence, a sentence becomes an action:

    environment:
      name: gymnasium
      options:
        id: FrozenLake-v1
        kwargs: {is_slippery: false, render_mode: ansi}
        instruction: Walk from S to G over the frozen lake. You drown in a hole H.
        actions: [left, down, right, up]

`describe(observation) -> str` and `parse(text) -> action` are functions, or "package.module:function".
Without them an observation is the picture of an environment that renders as "ansi", with what is coloured in
square brackets (so of Taxi not which colour), else it is written out: a text as it is, numbers and their
containers in figures. An action is read as one of `actions`, the names of a Discrete space in order, or as a
number. A text space takes what was said.

A task is a seed of the environment's `reset`, so all members of a group begin alike; what chance does later
differs between members. Training has seeds below 1,000,000, the held-out splits those from there on:
"test" and "seen" are the same environment, "unseen" is the one that `unseen_kwargs` make (a larger map, say).

Gymnasium knows rewards and no success. Success is that the last reward is at least `success_reward`, or,
where `success_return` is given, that the sum of rewards is at least that.

Installed with `threefold[gymnasium]` (MIT).
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from threefold.envs.base import EpisodeScore, Message, Observation, Task
from threefold.envs.text_game import parse as read
from threefold.trajectory import Trajectory

HELD_OUT = 1_000_000
"""First seed of the held-out splits."""

Describe = Callable[[Any], str]
Parse = Callable[[str], Any]


class GymnasiumText:
    """Implements `envs.base.EnvironmentSource`."""

    channels = {"return": 1.0, "success": 0.0, "valid": 0.0}  # noqa: RUF012
    """Weight by reward channel of an episode: the sum of rewards, success, the share of valid actions."""
    turn_channels = ("reward",)

    def __init__(
        self,
        *,
        id: str,
        kwargs: Mapping[str, Any] | None = None,
        unseen_kwargs: Mapping[str, Any] | None = None,
        instruction: str = "",
        describe: Describe | str | None = None,
        parse: Parse | str | None = None,
        actions: Sequence[str] = (),
        success_reward: float = 1.0,
        success_return: float | None = None,
        turns: int = 50,
    ) -> None:
        """Make one environment, to see that it can be made and told in text.

        Args:
            id: Registered name, as for `gymnasium.make`; "module:id" imports the module first.
            kwargs: Further arguments of `gymnasium.make`.
            unseen_kwargs: Those of the unseen split; without them there is none.
            instruction: What the agent reads first.
            describe: Makes a text of an observation.
            parse: Makes an action of what the agent said; ValueError or KeyError say that it is none.
            actions: Names of the actions of a Discrete space, in order.
            success_reward: Least last reward of a success.
            success_return: Least sum of rewards of a success, in place of the last reward.
            turns: Actions before an episode is cut off; of a recipe `environment.turns`.

        Raises:
            ModuleNotFoundError: Gymnasium is missing.
            ValueError: There is no such environment, an argument does not fit it, or its actions cannot be
                read without `parse`.
        """
        if importlib.util.find_spec("gymnasium") is None:
            raise ModuleNotFoundError(
                "Gymnasium environments need the package gymnasium, which is not installed: "
                "pip install 'threefold[gymnasium]'"
            )
        self._id, self._kwargs = id, {"seen": dict(kwargs or {})}
        if unseen_kwargs is not None:
            self._kwargs["unseen"] = dict(unseen_kwargs)
        self.splits = tuple(self._kwargs)
        self._describe, self._parse = _function(describe, "describe"), _function(parse, "parse")
        self._instruction, self._actions, self._turns = instruction, tuple(actions), turns
        self._success = (success_reward, success_return)
        for name in self._kwargs:
            self._check(name)

    def _check(self, name: str) -> None:
        import gymnasium

        try:
            environment = gymnasium.make(self._id, **self._kwargs[name])
        except (gymnasium.error.Error, TypeError, ImportError) as error:
            raise ValueError(f"gymnasium.make({self._id!r}, **{self._kwargs[name]}): {error}") from error
        space = environment.action_space
        environment.close()
        size = getattr(space, "n", None) if isinstance(space, gymnasium.spaces.Discrete) else None
        if self._actions and size != len(self._actions):
            raise ValueError(
                f"actions names {len(self._actions)} actions, but the action space of {self._id} is {space}"
            )
        if self._parse is None and size is None and not isinstance(space, gymnasium.spaces.Text):
            raise ValueError(
                f"the actions of {self._id} are {space}, which no word names; give parse= a function of the "
                "agent's text that answers an action"
            )

    def __call__(self) -> GymnasiumEpisode:
        """The environment of one episode at a time."""
        return GymnasiumEpisode(
            self._id,
            self._kwargs,
            instruction=self._instruction,
            describe=self._describe,
            parse=self._parse,
            actions=self._actions,
            success=self._success,
            turns=self._turns,
        )

    def tasks(self, split: str, size: int, seed: int) -> list[Task]:
        """`size` seeds of a split; those of training are drawn by `seed`."""
        if split == "train":
            numbers: Sequence[int] = random.Random(f"train/{seed}").sample(range(HELD_OUT), size)
        else:
            numbers = range(HELD_OUT, HELD_OUT + size)
        variant = "unseen" if split == "unseen" else "seen"
        label = "train" if split == "train" else variant
        return [Task(f"{label}-{number}", {"seed": number, "variant": variant}) for number in numbers]


class GymnasiumEpisode:
    """One episode. Reward channels of a turn: "reward" (Gymnasium's) and "valid"."""

    def __init__(
        self,
        id: str,
        kwargs: Mapping[str, Mapping[str, Any]],
        *,
        instruction: str,
        describe: Describe | None,
        parse: Parse | None,
        actions: Sequence[str],
        success: tuple[float, float | None],
        turns: int,
    ) -> None:
        self._id, self._kwargs, self._instruction = id, kwargs, instruction
        self._describe, self._parse, self._names = describe, parse, tuple(actions)
        self._success, self._limit = success, turns
        self._environment: Any = None
        self._variant = ""
        self._turn, self._return = 0, 0.0
        self._info: Mapping[str, Any] = {}

    @property
    def admissible(self) -> tuple[str, ...]:
        """Names of the actions that can be taken now; empty where actions have no names."""
        return tuple(self._named())

    def _named(self) -> dict[str, int]:
        """The actions that can be taken now by name, of a Discrete space without a reader of its own."""
        space = self._environment.action_space
        if self._parse is not None or not hasattr(space, "n"):
            return {}
        numbers = range(int(space.start), int(space.start + space.n))
        names = self._names or tuple(map(str, numbers))
        allowed = self._info.get("action_mask", [1] * len(names))  # Taxi says which make sense
        return {name: number for name, number, may in zip(names, numbers, allowed, strict=True) if may}

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        import gymnasium
        import numpy as np

        number, variant = int(task.fields["seed"]), str(task.fields["variant"])
        if self._environment is None or variant != self._variant:
            self.close()
            self._environment = gymnasium.make(self._id, **self._kwargs[variant])
            self._variant = variant
        observation, self._info = self._environment.reset(seed=number)
        self._environment.unwrapped.np_random = np.random.default_rng([number, member])
        self._turn, self._return = 0, 0.0
        text = self._tell(observation)
        opening = f"{self._instruction}\n\n{text}" if self._instruction else text
        return Observation(messages=self._say(opening), state=self._state())

    def step(self, action_text: str) -> Observation:
        self._turn += 1
        said = read(action_text)
        action = self._action(action_text)
        reward, terminated, truncated = 0.0, False, False
        if action is None:
            text = "That is not one of the actions."
        else:
            observation, reward, terminated, truncated, self._info = self._environment.step(action)
            text = self._tell(observation)
        self._return += float(reward)
        truncated = not terminated and (bool(truncated) or self._turn >= self._limit)
        done = bool(terminated) or truncated
        least_reward, least_return = self._success
        won = float(reward) >= least_reward if least_return is None else self._return >= least_return
        return Observation(
            messages=({"role": "user", "content": text},) if done else self._say(text),
            action=said,
            rewards={"reward": float(reward), "valid": float(action is not None)},
            state=self._state(),
            terminated=bool(terminated),
            truncated=truncated,
            success=won if done else None,
        )

    def _action(self, text: str) -> Any:
        """The action that a text names, None where it names none."""
        space = self._environment.action_space
        if self._parse is not None:
            try:
                action = self._parse(text)
            except (ValueError, KeyError):
                return None
        elif hasattr(space, "n"):
            action = {read(name): number for name, number in self._named().items()}.get(read(text))
        else:
            action = text
        return action if action is not None and space.contains(action) else None

    def _tell(self, observation: Any) -> str:
        if self._describe is not None:
            return self._describe(observation)
        drawn = self._environment.render_mode == "ansi"
        return picture(self._environment.render()) if drawn else written_out(observation)

    def _say(self, text: str) -> tuple[Message, ...]:
        actions = f"\nActions: {', '.join(self.admissible)}" if self.admissible else ""
        return ({"role": "user", "content": text + actions},)

    def _state(self) -> dict[str, float]:
        return {"turn": float(self._turn), "return": self._return}

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return [
            EpisodeScore(
                rewards={
                    "return": sum(turn.rewards.get("reward", 0.0) for turn in e.turns),
                    "success": float(bool(e.success)),
                    "valid": sum(turn.rewards.get("valid", 0.0) for turn in e.turns) / max(1, len(e.turns)),
                },
                success=bool(e.success),
            )
            for e in episodes
        ]

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None


def written_out(observation: Any) -> str:
    """An observation in words and figures: numbers are cut to four digits."""
    if isinstance(observation, str):
        return observation
    if isinstance(observation, Mapping):
        return ", ".join(f"{name}: {written_out(value)}" for name, value in observation.items())
    if hasattr(observation, "tolist"):
        return written_out(observation.tolist())
    if isinstance(observation, (tuple, list)):
        return f"({', '.join(written_out(value) for value in observation)})"
    return f"{observation:.4g}" if isinstance(observation, float) else str(observation)


def picture(text: str) -> str:
    """An "ansi" rendering without escape codes; what is coloured stands in square brackets."""
    marked = re.sub(r"\x1b\[[1-9][\d;]*m(.*?)\x1b\[0m", r"[\1]", text, flags=re.DOTALL)
    return re.sub(r"\x1b\[[\d;]*m", "", marked).strip("\n")


def _function(found: Any, key: str) -> Any:
    if not isinstance(found, str):
        return found
    module, _, name = found.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key} = {found!r} is not a function package.module:name: {error}") from error
    if not callable(function):
        raise ValueError(f"{key} = {found!r} is no function")
    return function
