"""Household games: generated from the floor plans, goals, containment tables and grammar in ALFWorld's wheel.

A game is a room with things in it and a goal. ALFWorld (arXiv 2010.03768) has six types of goal, and so have
we; the official games were made by placing things in AI2-THOR, ours by drawing a place for each thing from
the table of what holds what. **They are not the ALFWorld benchmark**: no figure on them may be compared with
one on its games.

Everything about a game follows from its `Goal`, so a task carries a few words and the game is made again
where it is played. Splits never meet, by construction:

    train    rooms 7 to 30 of each kind, three quarters of the goals
    seen     the same rooms, the last quarter of the goals: no room has a goal in both
    unseen   the six rooms of each kind that ALFRED holds out

Each game comes with a plan of actions that solves it. `engine.walk` walks it in the engine.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, cast, get_args

from threefold.envs.household.rooms import Room, can_be, constants, holds, logic, openable, room, rooms

Type = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]
TYPES: tuple[Type, ...] = get_args(Type)
"""Types of goal, by ALFWorld's names."""
FAMILIES: Mapping[str, str] = {
    "pick_and_place_simple": "place",
    "pick_two_obj_and_place": "place",
    "look_at_obj_in_light": "examine",
    "pick_clean_then_place_in_recep": "transform",
    "pick_heat_then_place_in_recep": "transform",
    "pick_cool_then_place_in_recep": "transform",
}
"""The three families that ReSkill's tables show."""
TREATMENT: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "pick_clean_then_place_in_recep": ("clean", "Cleanable", ("SinkBasin",)),
    "pick_heat_then_place_in_recep": ("heat", "Heatable", ("Microwave",)),
    "pick_cool_then_place_in_recep": ("cool", "Coolable", ("Fridge",)),
}
"""Type -> (verb, what the thing must be, kinds of receptacle that do it)."""

Split = Literal["train", "seen", "unseen"]
COPIES = 3
"""Most things of one kind in a room, as in ALFRED."""
SEEN_SHARE = 4
"""One goal in so many belongs to the seen split."""


@dataclass(frozen=True)
class Goal:
    """What a game is made from."""

    type: Type
    room: int
    thing: str
    """Kind of the thing: "Mug"."""
    target: str
    """Kind of receptacle where it must end; of lamp for "look_at_obj_in_light"."""
    number: int = 0
    """Games with the same goal differ in where things lie."""
    receptacles: int | None = None
    """Most receptacles in the room; None for all that its plan has."""
    things: int | None = None
    """Most kinds of things in the room; None for all that its plan has."""

    @property
    def id(self) -> str:
        size = f"-{self.receptacles or ''}x{self.things or ''}" if self.receptacles or self.things else ""
        return f"{self.type}-{self.thing}-{self.target}-{self.room}{size}-{self.number}"

    @property
    def fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Game:
    """A game as the engine reads it."""

    id: str
    type: str
    text: str
    """The goal in words: "put a clean mug in coffeemachine"."""
    problem: str
    """PDDL: objects, initial state, goal."""
    plan: tuple[str, ...]
    """Actions that solve it, with ids for names: "take {mug_bar_...} from {cabinet_bar_...}"."""


@lru_cache(maxsize=16)
def goals(
    split: Split,
    types: tuple[str, ...] = TYPES,
    receptacles: int | None = None,
    things: int | None = None,
) -> tuple[Goal, ...]:
    """All goals of a split, game number 0 of each, by type and room; the last two bound the rooms.

    Raises:
        ValueError: No such split.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; household games have train, seen and unseen")
    found = (
        Goal(cast(Type, type_), place.number, thing, target, 0, receptacles, things)
        for type_ in types
        for place in rooms(held_out=split == "unseen")
        for thing, target in _pairs(type_, place)
    )
    return tuple(goal for goal in found if split == "unseen" or _is_seen(goal) == (split == "seen"))


def _is_seen(goal: Goal) -> bool:
    name = f"{goal.type}/{goal.room}/{goal.thing}/{goal.target}"
    return zlib.crc32(name.encode()) % SEEN_SHARE == 0


def _pairs(type_: str, place: Room) -> list[tuple[str, str]]:
    """(thing, target) of a type's goals in a room."""
    if place.kind not in constants().GOALS_VALID[type_]:
        return []
    kinds = set(place.receptacles.values())
    lamps = can_be("Toggleable")
    things = [thing for thing in place.objects if thing not in lamps]
    if type_ == "look_at_obj_in_light":
        shown = [lamp for lamp in place.objects if lamp in lamps]
        return [(thing, lamp) for thing in things for lamp in shown if _places(thing, place, ())]
    apart: tuple[str, ...] = ()
    if type_ in TREATMENT:
        _, state, apart = TREATMENT[type_]
        if not kinds & set(apart):
            return []
        things = [thing for thing in things if thing in can_be(state)]
    return [
        (thing, target)
        for thing in things
        for target in sorted(kinds - set(apart))
        if thing in holds(target) and _places(thing, place, (target, *apart))
    ]


def _places(thing: str, place: Room, without: Iterable[str]) -> list[str]:
    """Receptacles of a room that can hold a thing, less those of some kinds."""
    return [
        identity
        for identity, kind in place.receptacles.items()
        if kind not in without and thing in holds(kind)
    ]


@lru_cache(maxsize=512)
def make(goal: Goal) -> Game:
    """The game of a goal, the same for the same goal.

    Raises:
        ValueError: The room cannot have this goal.
    """
    place = room(goal.room)
    if (goal.thing, goal.target) not in _pairs(goal.type, place):
        raise ValueError(
            f"floor plan {goal.room} has no goal {goal.type} with {goal.thing} and {goal.target}; "
            "threefold.envs.household.games.goals lists those it has"
        )
    chance = random.Random(goal.id)
    apart = TREATMENT[goal.type][2] if goal.type in TREATMENT else ()
    light = goal.type == "look_at_obj_in_light"
    without = () if light else (goal.target, *apart)
    standing = _standing(goal, place, chance, without, apart)
    shown = Room(place.number, place.kind, standing, place.objects)
    lies: dict[str, str] = {}
    for kind in _kept(goal, place, chance):
        needed = 2 if goal.type == "pick_two_obj_and_place" else 1
        copies = chance.randint(needed if kind == goal.thing else 1, COPIES)
        spots = (
            _lamp_places(shown)
            if kind in can_be("Toggleable")
            else _places(kind, shown, without if kind == goal.thing else ())
        )
        if kind in can_be("Toggleable"):
            copies = 1
        if spots:
            lies |= {f"{kind}|+0{copy}.00|+00.90|+00.00": chance.choice(spots) for copy in range(copies)}
    lies = dict(sorted(lies.items()))
    text = chance.choice(_library(goal.type)["templates"]).format(
        obj=goal.thing.lower(), recep=goal.target.lower(), toggle=goal.target.lower()
    )
    return Game(goal.id, goal.type, text, _problem(goal, standing, lies), _named(_plan(goal, standing, lies)))


def _kept(goal: Goal, place: Room, chance: random.Random) -> list[str]:
    """Kinds of things that are in the game: all, or as many as asked for, those of the goal among them."""
    if goal.things is None or goal.things >= len(place.objects):
        return list(place.objects)
    needed = {goal.thing, goal.target} & set(place.objects)
    others = [kind for kind in place.objects if kind not in needed]
    kept = needed | set(chance.sample(others, max(0, goal.things - len(needed))))
    return [kind for kind in place.objects if kind in kept]


def _library(type_: str) -> Mapping[str, Any]:
    from alfworld.gen.goal_library import gdict

    return gdict[type_]


def _lamp_places(place: Room) -> list[str]:
    """Where a lamp may stand: on something flat; anywhere in a room without."""
    flat = ("Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "Shelf", "TVStand")
    found = [identity for identity, kind in place.receptacles.items() if kind in flat]
    return found or [identity for identity, kind in place.receptacles.items() if not openable(kind)]


def _standing(
    goal: Goal, place: Room, chance: random.Random, without: Sequence[str], apart: Sequence[str]
) -> dict[str, str]:
    """The receptacles of the game: all, or as many as asked for, those that the goal needs among them."""
    if goal.receptacles is None or goal.receptacles >= len(place.receptacles):
        return dict(place.receptacles)
    needed = {chance.choice(_places(goal.thing, place, without))}
    wanted = [(goal.target,), tuple(apart)] if goal.type != "look_at_obj_in_light" else []
    for kinds in wanted:
        if kinds:
            needed.add(chance.choice([i for i, kind in place.receptacles.items() if kind in kinds]))
    if goal.type == "look_at_obj_in_light":
        needed.add(chance.choice(_lamp_places(place)))
    others = [identity for identity in place.receptacles if identity not in needed]
    kept = needed | set(chance.sample(others, max(0, goal.receptacles - len(needed))))
    return {identity: kind for identity, kind in place.receptacles.items() if identity in kept}


def _plan(goal: Goal, standing: Mapping[str, str], lies: Mapping[str, str]) -> tuple[str, ...]:
    """The shortest way, known to one who knows where everything lies."""
    plan: list[str] = []
    opened: set[str] = set()

    def go(place: str, inside: bool = True) -> None:
        plan.append(f"go to {{{place}}}")
        if inside and openable(standing[place]) and place not in opened:
            plan.append(f"open {{{place}}}")
            opened.add(place)

    things = [thing for thing in lies if thing.split("|")[0] == goal.thing]
    if goal.type == "look_at_obj_in_light":
        lamp = next(thing for thing in lies if thing.split("|")[0] == goal.target)
        go(lies[things[0]])
        plan.append(f"take {{{things[0]}}} from {{{lies[things[0]]}}}")
        if lies[lamp] != lies[things[0]]:
            go(lies[lamp], inside=False)
        plan.append(f"use {{{lamp}}}")
        return tuple(plan)
    target = next(identity for identity, kind in standing.items() if kind == goal.target)
    for thing in things[: 2 if goal.type == "pick_two_obj_and_place" else 1]:
        go(lies[thing])
        plan.append(f"take {{{thing}}} from {{{lies[thing]}}}")
        if goal.type in TREATMENT:
            verb, _, kinds = TREATMENT[goal.type]
            tool = next(identity for identity, kind in standing.items() if kind in kinds)
            go(tool, inside=False)
            plan.append(f"{verb} {{{thing}}} with {{{tool}}}")
        go(target)
        plan.append(f"move {{{thing}}} to {{{target}}}")
    return tuple(plan)


def _problem(goal: Goal, standing: Mapping[str, str], lies: Mapping[str, str]) -> str:
    """The game in PDDL. The order of sections counts: the engine's translator wants objects, init, goal,
    metric."""
    kinds = {thing: thing.split("|")[0] for thing in lies}
    otypes = sorted(set(kinds.values()) | {"Knife", "ButterKnife"})
    rtypes = sorted(set(standing.values()) | {"SinkBasin", "Microwave", "Fridge"})
    spot = {identity: f"loc|{number}" for number, identity in enumerate(standing, start=1)}
    objects = [
        "agent1 - agent",
        *(f"{mangled(i)} - receptacle" for i in standing),
        *(f"{mangled(i)} - object" for i in lies),
        *(f"{mangled(i)} - location" for i in ("loc|0", *spot.values())),
        *(f"{kind}Type - otype" for kind in otypes),
        *(f"{kind}Type - rtype" for kind in rtypes),
    ]
    facts = ["atLocation agent1 loc|0"]
    for identity, kind in standing.items():
        facts += [
            f"receptacleType {identity} {kind}Type",
            f"receptacleAtLocation {identity} {spot[identity]}",
        ]
        facts += [f"openable {identity}"] if openable(kind) else []
    for thing, place in lies.items():
        kind = kinds[thing]
        facts += [f"objectType {thing} {kind}Type", f"inReceptacle {thing} {place}"]
        facts += [f"objectAtLocation {thing} {spot[place]}"]
        facts += [f"pickupable {thing}"] if kind not in can_be("Toggleable") else []
        for state in ("Cleanable", "Heatable", "Coolable", "Toggleable"):  # none of the goals needs a slice
            facts += [f"{state.lower()} {thing}"] if kind in can_be(state) else []
    facts += [
        f"canContain {rtype}Type {otype}Type" for rtype in rtypes for otype in otypes if otype in holds(rtype)
    ]
    wanted = _library(goal.type)["pddl"].format(obj=goal.thing, recep=goal.target, toggle=goal.target)
    wanted = wanted.replace("#", "-").strip().removesuffix(")")  # the last one closes the whole definition
    lines = "\n  ".join(f"({mangled(fact)})" for fact in facts)
    return (
        f"(define (problem household)\n (:domain alfred)\n (:objects\n  {chr(10).join(objects)})\n"
        f" (:init\n  (= (total-cost) 0)\n  {lines})\n {wanted}\n (:metric minimize (total-cost))\n)\n"
    )


def mangled(identity: str) -> str:
    """An id as PDDL can write it; the engine's own names are made from these."""
    for mark, word in (("-", "_minus_"), ("|", "_bar_"), ("+", "_plus_"), (".", "_dot_")):
        identity = identity.replace(mark, word)
    return identity


def _named(plan: Sequence[str]) -> tuple[str, ...]:
    """A plan with ids as the engine has them."""
    return tuple(re.sub(r"\{[^}]*\}", lambda found: mangled(found[0]).lower(), action) for action in plan)


def data(game: Game) -> dict[str, Any]:
    """The game file: what `textworld.envs.PddlEnv.load` takes and official `.tw-pddl` files hold."""
    found = logic()
    return {
        "pddl_domain": found["pddl_domain"],
        "grammar": found["grammar"].replace("UNKNOWN GOAL", game.text),
        "pddl_problem": game.problem,
        "solvable": True,
        "walkthrough": None,
    }
