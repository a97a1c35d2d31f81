"""The rooms that ALFWorld's wheel ships: floor plans, what stands in them, what fits where.

120 floor plans of AI2-THOR, 30 of each kind: kitchens 1 to 30, living rooms 201 to 230, bedrooms 301 to 330,
bathrooms 401 to 430. A plan lists its receptacles with coordinates (`FloorPlan7-openable.json`) and the kinds
of everything in it (`FloorPlan7-objects.json`). ALFRED's own split holds the first six of each kind out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata, resources
from types import ModuleType
from typing import Any

REPEATED = {"StoveBurner": 4}
"""Receptacles of which a plan names the kind alone, and there are usually several."""


class MissingPackage(ImportError):
    """The packages of the household games are not installed."""


def require() -> None:
    """Raises MissingPackage, with what to install, where the engine is not there."""
    for package in ("alfworld", "textworld", "fast-downward-textworld"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise MissingPackage(
                f"the household games need the package {package}: pip install 'threefold[household]'"
            ) from None


@lru_cache(maxsize=1)
def constants() -> ModuleType:
    """ALFWorld's tables: kinds of things, what holds what, what can be heated."""
    require()
    from alfworld.gen import constants

    return constants


@dataclass(frozen=True)
class Room:
    """A floor plan."""

    number: int
    kind: str
    """Kitchen, LivingRoom, Bedroom or Bathroom."""
    receptacles: Mapping[str, str]
    """Kind by id ("Cabinet|+00.68|+00.50|-02.20"), in the order of ids."""
    objects: tuple[str, ...]
    """Kinds of things that can be carried, and of lamps; each at least once in the room."""

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the unseen split."""
        return self.number in constants().TEST_SCENE_NUMBERS


def rooms(held_out: bool) -> tuple[Room, ...]:
    """The 24 held-out rooms, or the 96 others, by number."""
    found = constants()
    return tuple(
        room(number) for number in (found.TEST_SCENE_NUMBERS if held_out else found.TRAIN_SCENE_NUMBERS)
    )


@cache
def room(number: int) -> Room:
    """The room of a floor plan.

    Raises:
        ValueError: There is no such plan.
    """
    tables = constants()
    kind = next((kind for kind, numbers in tables.SCENE_TYPE.items() if number in numbers), None)
    if kind is None:
        raise ValueError(f"there is no floor plan {number}; see threefold.envs.household.rooms")
    folder = resources.files("alfworld.gen") / "layouts"
    located = json.loads((folder / f"FloorPlan{number}-openable.json").read_text(encoding="utf-8"))
    names: list[str] = json.loads((folder / f"FloorPlan{number}-objects.json").read_text(encoding="utf-8"))
    standing = tables.RECEPTACLES - set(tables.MOVABLE_RECEPTACLES)
    found = {identity: _kind(identity) for identity in located}
    found = {identity: kind for identity, kind in found.items() if kind in standing}
    for name in sorted(set(names) & standing - set(found.values())):
        for copy in range(REPEATED.get(name, 1)):
            basin = f"|{name}" if name.endswith("Basin") else ""
            found[f"{name.removesuffix('Basin')}|+0{copy}.00|+00.90|+00.00{basin}"] = name
    carried = {thing for things in tables.VAL_RECEPTACLE_OBJECTS.values() for thing in things}
    lamps = tables.VAL_ACTION_OBJECTS["Toggleable"]
    objects = tuple(sorted(name for name in set(names) if name in carried | lamps and name not in standing))
    return Room(number, kind, dict(sorted(found.items())), objects)


def _kind(identity: str) -> str:
    """Kind of a receptacle by its id; a basin has that of its last part."""
    first, *_, last = identity.split("|")
    if last.endswith("Basin"):
        return last
    return {"Sink": "SinkBasin", "Bathtub": "BathtubBasin"}.get(first, first)


def holds(kind: str) -> frozenset[str]:
    """Kinds of things that a receptacle of a kind can hold."""
    return frozenset(constants().VAL_RECEPTACLE_OBJECTS.get(kind, ()))


def can_be(state: str) -> frozenset[str]:
    """Kinds of things that can be "Heatable", "Coolable", "Cleanable", "Toggleable" or "Sliceable"."""
    return frozenset(constants().VAL_ACTION_OBJECTS[state])


def openable(kind: str) -> bool:
    return kind in constants().OPENABLE_CLASS_SET


def logic() -> Mapping[str, Any]:
    """The engine's domain (PDDL) and grammar, as the wheel ships them."""
    require()
    folder = resources.files("alfworld") / "data"
    return {
        "pddl_domain": (folder / "alfred.pddl").read_text(),
        "grammar": (folder / "alfred.twl2").read_text(),
    }
