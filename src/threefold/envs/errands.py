"""Errands: a small text environment whose tasks need a strategy that can be said in one sentence.

A thing lies in one of three containers, and one of them may be opened, once. Three kinds of task:

    find      nobody says where it lies: `ask` first, then open what was named
    locked    the place is told, but opening without the key breaks the lock: `get key` first
    both      hidden and locked: ask, get the key, then open

The words of an action are few and short, so a model of a few million parameters can act here, and one without
the strategy succeeds by luck alone: a third of `find`, none of the others. Splits:

    train     find and locked, with the things and containers of the first list
    seen      the same kinds and words in combinations that training does not have
    unseen    other words, and the kind `both`, which training does not have: the same strategies solve it

Where the thing lies depends on the task and the seed, never on the member, and cannot be read off the task.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, cast

from threefold.envs.base import EpisodeScore, Message, Observation, Task
from threefold.envs.text_game import answered, parse, scored, told
from threefold.trajectory import Trajectory

Split = Literal["train", "seen", "unseen"]
COLOURS = ("red", "blue", "green", "white", "black", "grey")
THINGS = ("apple", "book", "coat", "lamp", "map", "cup", "hat", "pen")
CONTAINERS = ("box", "chest", "locker", "drawer")
OTHER_THINGS = ("ring", "clock", "flute", "coin")
OTHER_CONTAINERS = ("trunk", "cabinet", "safe")
TURNS = 6
"""Turns before an episode is cut off; the longest task needs three."""


def tasks(split: Split) -> list[Task]:
    """All tasks of a split, in a fixed order: 48 for train, 16 seen, 36 unseen."""
    if split == "unseen":
        return [
            _task(kind, thing, container)
            for kind in ("find", "locked", "both")
            for thing in OTHER_THINGS
            for container in OTHER_CONTAINERS
        ]
    if split not in ("train", "seen"):
        raise ValueError(f"unknown split {split!r}; errands have train, seen and unseen")
    # a Latin square: every word occurs in training, a quarter of the combinations does not
    return [
        _task(kind, thing, container)
        for kind in ("find", "locked")
        for i, thing in enumerate(THINGS)
        for j, container in enumerate(CONTAINERS)
        if ((i + j) % 4 == 0) == (split == "seen")
    ]


def _task(kind: str, thing: str, container: str) -> Task:
    return Task(f"{kind}-{thing}-{container}", {"kind": kind, "thing": thing, "container": container})


class Errands:
    """One errand. Reward channels: "valid" in each turn (was the action one of those offered?); for the
    episode "success" and "valid" (share of valid turns)."""

    channels = ("success", "valid")
    """Reward channels of whole episodes."""
    splits = ("seen", "unseen")
    """Held-out splits; "test" is another name of "unseen"."""

    def __init__(self, turns: int = TURNS) -> None:
        self._limit = turns
        self._reset("find", "apple", "box", random.Random(0))

    def _reset(self, kind: str, thing: str, container: str, chance: random.Random) -> None:
        self._kind, self._thing, self._container = kind, thing, container
        self._colours = chance.sample(COLOURS, 3)
        self._place = chance.choice(self._colours)
        self._turn = 0
        self._has_key = False

    @property
    def admissible(self) -> tuple[str, ...]:
        """The actions that are understood."""
        return ("ask", "get key", "look", *(f"open {colour}" for colour in self._colours))

    @property
    def solution(self) -> tuple[str, ...]:
        """The shortest way to success from the start."""
        ask = ("ask",) if self._kind != "locked" else ()
        key = ("get key",) if self._kind != "find" else ()
        return (*ask, *key, f"open {self._place}")

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        kind, thing, container = (str(task.fields[key]) for key in ("kind", "thing", "container"))
        if kind not in ("find", "locked", "both"):
            raise ValueError(f"task {task.id!r} is of kind {kind!r}; errands are find, locked or both")
        self._reset(kind, thing, container, random.Random(f"{task.id}/{seed}"))
        where = f"from the {self._place} {container}" if kind == "locked" else f"from one of the {container}s"
        state = "locked" if kind != "find" else "closed"
        colours = ", ".join(self._colours)
        return Observation(
            messages=told(
                f"Errand: fetch the {thing} {where} ({colours}). They are {state}.", self.admissible
            ),
            state={"turn": 0.0, "key": 0.0},
        )

    def step(self, action_text: str) -> Observation:
        action = parse(action_text)
        valid = action in self.admissible
        self._turn += 1
        text, success = self._act(action) if valid else ("Nothing happens.", None)
        return answered(
            text,
            action,
            rewards={"valid": float(valid)},
            state={"turn": float(self._turn), "key": float(self._has_key)},
            success=success,
            out_of_turns=self._turn >= self._limit,
            actions=self.admissible,
        )

    def _act(self, action: str) -> tuple[str, bool | None]:
        """What the errand answers to a valid action, and success where it ends."""
        if action == "ask":
            return f"The {self._thing} is in the {self._place} {self._container}.", None
        if action == "get key":
            self._has_key = True
            return "You have the key.", None
        if action == "look":
            return f"You see three {self._container}s.", None
        colour = action.removeprefix("open ")
        if self._kind != "find" and not self._has_key:
            return "The lock breaks.", False
        if colour != self._place:
            return f"The {colour} {self._container} is empty. You may not open another.", False
        return f"You have the {self._thing}.", True

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return [scored(episode) for episode in episodes]

    def close(self) -> None:
        self._turn = 0

    @staticmethod
    def tasks(split: str, size: int, seed: int) -> list[Task]:
        """Up to `size` tasks of a split in an order that depends on the seed, so that the first few are of
        all kinds."""
        name: Split = "unseen" if split == "test" else cast(Split, split)
        found = tasks(name)
        random.Random(f"{name}/{seed}").shuffle(found)
        return found[:size]

    @staticmethod
    def demonstrations(split: str, size: int, seed: int) -> list[list[Message]]:
        """Dialogues of an agent that says valid actions at random: the words, not the strategy."""
        chance = random.Random(f"demonstrations/{seed}")
        pool = Errands.tasks(split, size, seed)
        return [wandering(Errands(), pool[i % len(pool)], chance) for i in range(size)]


def wandering(errand: Errands, task: Task, chance: random.Random) -> list[Message]:
    """A dialogue in which every action is drawn from those that are offered."""
    seen = errand.reset(task, chance.randrange(2**31), 0)
    messages = list(seen.messages)
    while not seen.done:
        action = chance.choice(errand.admissible)
        seen = errand.step(action)
        messages += [{"role": "assistant", "content": action}, *(() if seen.done else seen.messages)]
    return messages
