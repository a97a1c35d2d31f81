"""Household games as an environment: what a recipe names `household`.

The agent reads a room and a goal and says one command a turn: "go to fridge 1", "open fridge 1", "take mug 2
from fridge 1", "clean mug 2 with sinkbasin 1", "move mug 2 to shelf 1". What is not admissible is answered
"Nothing happens." and costs a turn. The episode ends when the goal is reached or the turns are used up.

With the official game files of ALFWorld ($ALFWORLD_DATA, or the option `data`) those are played, and the
record says ALFWorld. Without them games are generated (`games`); figures on those are not ALFWorld's.
"""

from __future__ import annotations

import difflib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast, get_args

from threefold.envs.base import EpisodeScore, Message, Observation, Task
from threefold.envs.household import official
from threefold.envs.household.games import FAMILIES, TYPES, Goal, Split, data, goals, make
from threefold.envs.household.rooms import require
from threefold.envs.text_game import answered, in_turn, parse, scored, told
from threefold.trajectory import Trajectory

if TYPE_CHECKING:
    from threefold.envs.household.engine import Loaded

Shown = Literal["all", "near", "none"]
"""Which admissible commands an observation lists: all; those that concern what is here, for the places to go
to stand in the opening; none."""
GENERATED = "generated"
TURNS = 30
LOADED = 24
"""Translated games that are kept; each takes a few megabytes."""
PLAYED = 8
"""Demonstrations of one game."""
_PLAIN = ("go to ", "examine ", "look", "inventory", "help")
_WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"


class Household:
    """One household game. Reward channels: "valid" in each turn (was the command admissible?); for the
    episode "success" and "valid" (share of valid turns)."""

    def __init__(self, load: Callable[[Task], Loaded], turns: int, actions: Shown) -> None:
        self._load, self._limit, self._shown = load, turns, actions
        self._turn = 0

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        from threefold.envs.household.engine import Play

        self._play, self._turn = Play(self._load(task)), 0
        text = self._play.opening.removeprefix(_WELCOME).strip()
        return Observation(messages=told(text, self._listed), state={"turn": 0.0})

    def step(self, action_text: str) -> Observation:
        action = parse(action_text)
        valid = action in self._play.admissible
        self._turn += 1
        text = self._play.step(action).strip()
        won = self._play.won
        return answered(
            text,
            action,
            rewards={"valid": float(valid)},
            state={"turn": float(self._turn)},
            success=True if won else None,
            out_of_turns=self._turn >= self._limit,
            actions=self._listed,
        )

    @property
    def admissible(self) -> tuple[str, ...]:
        """The commands that do something now."""
        return self._play.admissible

    @property
    def _listed(self) -> list[str]:
        """The commands that an observation names."""
        if self._shown == "none":
            return []
        listed = [
            command
            for command in self._play.admissible
            if self._shown == "all" or not command.startswith(_PLAIN)
        ]
        if self._shown == "near":
            listed.append("go to another place")
        return listed

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return [scored(episode) for episode in episodes]

    def close(self) -> None:
        self._turn = 0


class ALFWorld(Household):
    """One official game of ALFWorld (arXiv 2010.03768)."""


class HouseholdGames:
    """The source of household games: made once of a recipe's options, called for each episode."""

    channels = ("success", "valid")
    """Reward channels of whole episodes."""
    splits = ("seen", "unseen")
    """Held-out splits; "test" is another name of "unseen"."""

    def __init__(
        self,
        turns: int = TURNS,
        types: Sequence[str] | None = None,
        receptacles: int | None = None,
        things: int | None = None,
        actions: Shown = "near",
        data: str | None = None,
    ) -> None:
        """
        Args:
            turns: Turns before an episode is cut off.
            types: Types of goal, by ALFWorld's names; None for all six.
            receptacles: Most receptacles in a generated room; None for all that its plan has (6 to 54).
            things: Most kinds of things in a generated room; None for all that its plan has (9 to 28).
            actions: Which admissible commands an observation lists: "all", "near" or "none".
            data: Folder of the official games (it holds json_2.1.1), or "generated". None takes
                $ALFWORLD_DATA where that holds games, else generates.

        Raises:
            MissingPackage: The engine is not installed (an ImportError; says what to install).
            ValueError: An option that cannot be.
            OSError: There are no games in `data`.
        """
        require()
        self._types = _types(types)
        if actions not in get_args(Shown):
            raise ValueError(f"actions = {actions!r} is none of {', '.join(get_args(Shown))}")
        if receptacles is not None and receptacles < 4:
            raise ValueError(f"receptacles = {receptacles}: a goal needs up to 3, so at least 4 are needed")
        if things is not None and things < 1:
            raise ValueError(f"things = {things}: there must be something to find")
        if turns < 1:
            raise ValueError(f"turns = {turns}: an episode needs at least one")
        self._turns, self._actions = turns, actions
        self._size = (receptacles, things)
        self._folder = None if data == GENERATED else official.folder(data)
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    @property
    def scope(self) -> str:
        """What figures on these games are for."""
        if self._folder is not None:
            return "ALFWorld: the official game files."
        return (
            "Household games: generated with ALFWorld's engine, layouts and goals. These are not the "
            "official games: figures cannot be compared with ALFWorld's."
        )

    def __call__(self) -> Household:
        kind = Household if self._folder is None else ALFWorld
        return kind(self.load, self._turns, self._actions)

    def tasks(self, split: str, size: int, seed: int) -> list[Task]:
        """Up to `size` games in an order that depends on the seed; types take turns."""
        name = cast(Split, "unseen" if split == "test" else split)
        if self._folder is not None:
            return _in_turn(official.tasks(self._folder, name, self._types), f"{name}/{seed}")[:size]
        found = goals(name, self._types, *self._size)
        result: list[Task] = []
        for batch in _numbered(found, f"{name}/{seed}"):
            result += batch
            if len(result) >= size or not batch:
                break
        return result[:size]

    @staticmethod
    def groups(task: Task) -> tuple[str, ...]:
        """The family that ReSkill's tables show, and the type."""
        type_ = str(task.fields["type"])
        return (FAMILIES[type_], type_)

    def load(self, task: Task) -> Loaded:
        """The translated game of a task, from the few that are kept. A generated game is walked through by
        its plan when it is translated, so what cannot be solved is never played.

        Raises:
            ValueError: The task is no game, or it cannot be solved.
        """
        from threefold.envs.household import engine

        if task.id in self._loaded:
            self._loaded.move_to_end(task.id)
            return self._loaded[task.id]
        if self._folder is not None:
            loaded = engine.load(official.data(self._folder, task))
        else:
            game = make(Goal(**task.fields))
            loaded = engine.load(data(game))
            engine.walk(loaded, game.plan)
        self._loaded[task.id] = loaded
        if len(self._loaded) > LOADED:
            self._loaded.popitem(last=False)
        return loaded

    def demonstrations(self, split: str, size: int, seed: int) -> list[list[Message]]:
        """Dialogues of one who searches the room place by place, and often does something else instead
        (`threefold.envs.household.player`)."""
        from threefold.envs.household.player import dialogue

        chance = random.Random(f"demonstrations/{seed}")
        # Several dialogues a game, one after the other: a game is translated once.
        pool = self.tasks(split, -(-size // PLAYED), seed)
        result = [dialogue(self(), task, chance) for task in pool for _ in range(PLAYED)][:size]
        chance.shuffle(result)
        return result


def _types(types: Sequence[str] | None) -> tuple[str, ...]:
    if types is None:
        return TYPES
    for name in types:
        if name not in TYPES:
            nearest = difflib.get_close_matches(name, TYPES, n=1, cutoff=0.3)
            raise ValueError(
                f"types: {name!r} is none of {', '.join(TYPES)}"
                + (f"; did you mean {nearest[0]!r}?" if nearest else "")
            )
    if not types:
        raise ValueError("types is empty; leave it out for all six")
    return tuple(types)


def _in_turn(tasks: Sequence[Task], seed: str) -> list[Task]:
    """Shuffled, one task of each type after the other."""
    chance = random.Random(seed)
    columns: dict[str, list[Task]] = {}
    for task in tasks:
        columns.setdefault(str(task.fields["type"]), []).append(task)
    for column in columns.values():
        chance.shuffle(column)
    return in_turn([columns[name] for name in sorted(columns)])


def _numbered(found: Sequence[Goal], seed: str) -> Iterator[list[Task]]:
    """All goals in an order, then all again with things in other places, and so on."""
    number = 0
    while True:
        again = [replace(goal, number=number) for goal in found]
        yield _in_turn([Task(goal.id, goal.fields) for goal in again], f"{seed}/{number}")
        number += 1
