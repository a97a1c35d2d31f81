"""Who may import whom: the table in docs/architecture.md is read and held against the code."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "threefold"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
HEAVY = {"torch", "transformers", "trl"}


def room(path: Path) -> str:
    """The first part of a module's path below the package: a folder, or a file of its own."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it: lazy imports and those for types count too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the arrow"
            assert node.module is not None
            found.add(node.module)
            if node.module == "threefold":
                found |= {f"threefold.{alias.name}" for alias in node.names}
    return found


def arrows() -> dict[str, set[str]]:
    """Room -> the other rooms of ours that its files import."""
    rooms = {room(path) for path in FILES}
    result: dict[str, set[str]] = {name: set() for name in sorted(rooms)}
    for path in FILES:
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("threefold.")}
        result[room(path)] |= ours & rooms - {room(path)}
    return result


def outside(path: Path) -> set[str]:
    """Top-level names of everything a file imports."""
    return {name.partition(".")[0] for name in imports(path)}


def documented() -> dict[str, set[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("<!-- arrows -->")[2].partition("<!-- end arrows -->")[0]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", table, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}


def test_the_page_knows_every_room() -> None:
    assert documented().keys() == arrows().keys()


@pytest.mark.parametrize("name", sorted(arrows()))
def test_a_room_imports_only_what_the_page_says(name: str) -> None:
    assert arrows()[name] <= documented()[name]


def test_there_is_no_circle_between_rooms() -> None:
    assert list(graphlib.TopologicalSorter(arrows()).static_order())


# The walls that must stand whatever the page says.


def test_credit_sees_trajectories_and_nothing_else_of_ours() -> None:
    assert arrows()["credit"] <= {"trajectory"}
    assert arrows()["trajectory"] == set()


def test_signals_see_answers_and_credit() -> None:
    assert arrows()["signals"] <= {"answers", "credit"}


@pytest.mark.parametrize("name", ["trajectory", "answers", "chat", "envs", "skills", "report"])
def test_rooms_free_of_deep_learning(name: str) -> None:
    heavy = {path.name: outside(path) & HEAVY for path in FILES if room(path) == name}
    assert heavy
    assert not any(heavy.values()), heavy


def test_nothing_trains_but_training() -> None:
    """But the benches, which measure it beside TRL's own trainer."""
    assert {room(path) for path in FILES if "trl" in outside(path)} == {"training", "bench"}
    assert not {name for name, targets in arrows().items() if "training" in targets} - {"cli", "bench"}
    assert not {
        path.name for path in FILES if room(path) in ("credit", "signals") and "transformers" in outside(path)
    }


def test_the_inside_of_trl_is_touched_in_one_folder() -> None:
    touching = {path.parent.name for path in FILES if any(name.startswith("trl.") for name in imports(path))}
    assert touching == {"trl_seam"}


def test_the_command_line_starts_without_heavy_imports() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    at_start = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    at_start |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name for name in at_start if name.partition(".")[0] in HEAVY | {"numpy", "rich"}}
    assert {name for name in at_start if name.partition(".")[0] == "threefold"} == {"threefold.arguments"}
    assert outside(PACKAGE / "arguments.py") <= {*sys.stdlib_module_names, "threefold"}
