"""One who plays household games by searching, knowing no more than the agent does.

It reads the goal and what it sees: it looks where it has not looked yet, opens what is closed, takes the
thing when it sees it, treats it where the goal says so, and brings it where it belongs. For a warm start it
is made clumsy: with some probability a command is drawn from the admissible ones instead. It is not
ALFWorld's hand-coded expert, which reads the engine's facts.
"""

from __future__ import annotations

import random
import re

from threefold.envs.base import Message, Task
from threefold.envs.household.environment import Household
from threefold.envs.household.rooms import can_be, constants

CLUMSY = 0.25
"""How often a demonstration does something else."""
_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "hot": "microwave", "cool": "fridge"}


class Searcher:
    """Plays one game. `chance` decides the order of the search."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._seen: set[str] = set()
        self._at, self._held = "", ""
        self._treated = False
        self._done: set[str] = set()
        """Things that are where they belong."""
        self._places: list[str] = []

    def begin(self, opening: str) -> None:
        """Read the room and the goal."""
        goal = opening.split("Your task is to: ")[1].split("\n")[0].strip(" .")
        listed = opening.split("you see ", 1)[1].split(".", 1)[0]
        self._places = re.findall(r"\b([a-z]+ \d+)\b", listed)
        self._chance.shuffle(self._places)
        words = goal.split()
        self._light = words[0] in ("look", "examine")
        self._tool = next((_TOOLS[word] for word in words if word in _TOOLS), "")
        kinds = {place.split()[0] for place in self._places}
        if self._light:
            self._thing = words[2]
            self._target = words[-1]
        else:
            self._target = words[-1]
            skipped = {"put", "a", "some", "clean", "hot", "cool", "heat", "two", "find", "and", "in", "on"}
            self._thing = next(word for word in words if word not in skipped)
        if self._tool == "sinkbasin" and "sinkbasin" not in kinds:
            self._tool = "bathtubbasin"

    def act(self, admissible: tuple[str, ...]) -> str:
        """The next command, of those that do something now."""
        here = [f"open {self._at}"] if f"open {self._at}" in admissible else []
        takes = [a for a in admissible if re.match(rf"take {self._thing} \d+ from ", a)]
        takes = [a for a in takes if a.split(" from ")[0][5:] not in self._done]
        if not self._held:
            if takes:
                return takes[0]
            if here:
                return here[0]
            return self._search()
        if self._light:
            uses = [a for a in admissible if a.startswith(f"use {self._target} ")]
            return uses[0] if uses else self._search(anew=True)
        if self._tool and not self._treated:
            treats = [
                a for a in admissible if a.split()[0] in _TOOLS and a.split()[0] != "hot" and self._held in a
            ]
            return treats[0] if treats else self._go(self._tool)
        puts = [a for a in admissible if re.match(rf"move {self._held} to {self._target} \d+$", a)]
        if puts:
            return puts[0]
        return here[0] if here and self._at.split()[0] == self._target else self._go(self._target)

    def done(self, action: str, valid: bool) -> None:
        """Remember what was said and whether anything came of it."""
        if not valid:
            return
        verb, _, rest = action.partition(" ")
        if action.startswith("go to "):
            self._at = action[6:]
            self._seen.add(self._at)
        elif verb == "take":
            self._held, self._treated = rest.split(" from ")[0], False
        elif verb == "move":
            thing, _, place = rest.partition(" to ")
            if place.split()[0] == self._target and (self._treated or not self._tool):
                self._done.add(thing)
            self._held = ""
        elif verb in _TOOLS:
            self._treated = True

    def _search(self, anew: bool = False) -> str:
        """Somewhere it has not looked; everywhere again where it has looked at all."""
        open_places = [p for p in self._places if p not in self._seen]
        if not open_places or (anew and self._seen >= set(self._places)):
            self._seen = {self._at}
            open_places = [p for p in self._places if p != self._at]
        return f"go to {open_places[0]}" if open_places else "look"

    def _go(self, kind: str) -> str:
        places = [p for p in self._places if p.split()[0] == kind and p != self._at]
        return f"go to {places[0]}" if places else "look"


def sentences() -> list[str]:
    """What these games say, with every kind of thing and place: what the tokens of a small model can be
    learnt from without playing."""
    tables = constants()
    places = [kind.lower() for kind in sorted(tables.RECEPTACLES - set(tables.MOVABLE_RECEPTACLES))]
    held = {thing for things in tables.VAL_RECEPTACLE_OBJECTS.values() for thing in things}
    things = [kind.lower() for kind in sorted(held | can_be("Toggleable")) if not kind.endswith("Sliced")]
    said = [
        "You are in the middle of a room. Looking quickly around you, you see a {p} 2, and a {p} 1.",
        "You arrive at {p} 1. On the {p} 1, you see a {t} 3, a {t} 2, and a {t} 1.",
        "You arrive at {p} 1. The {p} 1 is closed.\nActions: open {p} 1, go to another place",
        "You open the {p} 1. The {p} 1 is open. In it, you see nothing.\nActions: close {p} 1",
        "You pick up the {t} 1 from the {p} 1.\nActions: move {t} 1 to {p} 1, go to another place",
        "You move the {t} 1 to the {p} 1. Nothing happens. You turn on the {t} 1. use {t} 1",
        "Your task is to: put a {t} in {p}.\nActions: go to another place",
        "Your task is to: find two {t} and put them in {p}. look at {t} under the {t}. put some {t} on {p}.",
        "clean some {t} and put it in {p}. put a hot {t} in {p}. examine the {t} with the {t}. cool, heat",
        "You clean the {t} 1 using the {p} 1. heat {t} 1 with {p} 1. You are carrying: a {t} 1. inventory",
        "You are facing the {p} 1. Next to it, you see nothing. There's nothing special about {t} 1. look",
        "take {t} 1 from {p} 1. take {t} 2 from {p} 2. go to {p} 1. examine {p} 1. examine {t} 1. help",
    ]
    pairs = max(len(places), len(things))
    return [
        text.format(p=places[i % len(places)], t=things[i % len(things)])
        for i in range(pairs)
        for text in said
    ]


def dialogue(game: Household, task: Task, chance: random.Random, clumsy: float = CLUMSY) -> list[Message]:
    """A dialogue of the searcher, who does something else with probability `clumsy` a turn."""
    seen = game.reset(task, chance.randrange(2**31), 0)
    messages = list(seen.messages)
    searcher = Searcher(chance)
    searcher.begin(messages[-1]["content"])
    while not seen.done:
        planned = searcher.act(game.admissible)
        action = chance.choice(game.admissible) if chance.random() < clumsy else planned
        seen = game.step(action)
        searcher.done(action, bool(seen.rewards["valid"]))
        messages += [{"role": "assistant", "content": action}, *(() if seen.done else seen.messages)]
    return messages
