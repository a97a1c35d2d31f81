"""The official games of ALFWorld, where the user has them.

`alfworld-download` puts them below $ALFWORLD_DATA (by default ~/.cache/alfworld): json_2.1.1/train,
valid_seen and valid_unseen, a folder a game with `game.tw-pddl` and `traj_data.json`. As ALFWorld itself
does, games with movable receptacles or slices are left out, and those marked unsolvable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from threefold.envs.base import Task

GAMES = "json_2.1.1"
SPLITS = {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}


def folder(given: str | None) -> Path | None:
    """Where the games are: below `given`, else below $ALFWORLD_DATA; None where neither is said to hold any.

    Raises:
        OSError: `given` holds none.
    """
    place = given or os.environ.get("ALFWORLD_DATA")
    if not place:
        return None
    found = Path(os.path.expandvars(place)).expanduser()
    if found.name != GAMES:
        found = found / GAMES
    if (found / "train").is_dir():
        return found
    if given:
        raise OSError(
            f"data = {given!r} holds no {GAMES}/train; run alfworld-download, or set data to generated"
        )
    return None


@lru_cache(maxsize=8)
def tasks(games: Path, split: str, types: Sequence[str]) -> tuple[Task, ...]:
    """The games of a split, by path.

    Raises:
        ValueError: No such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; ALFWorld has train, seen and unseen")
    result = []
    for description in sorted((games / SPLITS[split]).glob("**/traj_data.json")):
        path = description.parent.relative_to(games).as_posix()
        if "movable" in path or "Sliced" in path or not (description.parent / "game.tw-pddl").exists():
            continue
        type_ = json.loads(description.read_text())["task_type"]
        if type_ in types and _read(description.parent).get("solvable"):
            result.append(Task(path, {"type": type_, "game": path}))
    return tuple(result)


def data(games: Path, task: Task) -> Mapping[str, Any]:
    """The content of a game file.

    Raises:
        ValueError: The task is none of these games.
    """
    path = games / str(task.fields.get("game", ""))
    if "game" not in task.fields or games not in path.resolve().parents:
        raise ValueError(f"task {task.id!r} is no game of {games}")
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads((path / "game.tw-pddl").read_text())
