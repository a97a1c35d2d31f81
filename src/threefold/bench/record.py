"""What a bench measured, where, and whether it has become slower than a baseline."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
TOLERANCE = 0.10
"""A ratio that has grown by more than this share is a regression."""


@dataclass(frozen=True)
class Options:
    """What is measured; a bench reads what concerns it."""

    model: str = "embedded"
    """"embedded" (135M parameters), or random weights: "tiny" (1M), "small" (10M), "medium" (49M)."""
    prompt: int = 512
    """Tokens of a prompt, P."""
    completion: int = 128
    """Tokens of the longest completion, R."""
    groups: int = 2
    group: int = 8
    """Episodes of a prompt, G."""
    micro_batch: int | None = None
    """Rows of TRL's micro-batches; None for the episodes of one prompt. Halve it where memory runs out."""
    turns: int = 4
    """Turns of a dialogue."""
    dead: float = 0.0
    """Share of groups whose rewards are equal."""
    rounds: int = 3
    """Turns of each arm that count."""
    warm_up: int = 1
    """Turns before that, which do not."""
    seed: int = 0
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""
    gradient_checkpointing: bool = False

    def differences(self, others: Mapping[str, Any]) -> list[str]:
        """What these options measure that others, as a bench's file has them, do not, in words: all but how
        often, on how many threads and with which seed."""
        mine = asdict(self)
        names = mine.keys() - {"rounds", "warm_up", "threads", "seed"}
        return [
            f"{name}={others[name]}, not {mine[name]}"
            for name in sorted(names & others.keys())
            if others[name] != mine[name]
        ]

    def __post_init__(self) -> None:
        counts = ("prompt", "completion", "groups", "group", "micro_batch", "turns", "rounds", "threads")
        least = {**dict.fromkeys(counts, 1), "warm_up": 0, "seed": 0}
        for name, at_least in least.items():
            value = getattr(self, name)
            if value is not None and value < at_least:
                raise ValueError(f"{name} must be at least {at_least}, got {value}")
        if self.group < 2:
            raise ValueError(f"group must be at least 2, got {self.group}: advantages compare its members")
        if self.micro_batch is not None and self.groups * self.group % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide a step's {self.groups * self.group} episodes"
            )
        if not 0 <= self.dead <= 1:
            raise ValueError(f"dead is a share from 0 to 1, got {self.dead}")


QUICK: dict[str, Any] = {
    "model": "tiny",
    "prompt": 48,
    "completion": 16,
    "groups": 2,
    "group": 4,
    "turns": 2,
    "rounds": 1,
}
"""Options of `--quick`: seconds on one core, to see that everything runs; its ratios mean little."""


@dataclass(frozen=True)
class Cell:
    """One comparison: arms that took turns. The first is what the others are compared with."""

    name: str
    seconds: Mapping[str, Sequence[float]]
    """By arm, one figure a round."""
    parts: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """By arm, the seconds of its parts, one figure a round each."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else was measured, such as how far gradients are apart."""

    def ratios(self, arm: str) -> list[float]:
        """Seconds of an arm by those of the first, round by round."""
        first = next(iter(self.seconds.values()))
        return [mine / theirs for mine, theirs in zip(self.seconds[arm], first, strict=True)]

    @property
    def others(self) -> list[str]:
        """The arms that are compared with the first."""
        return list(self.seconds)[1:]


def write(
    folder: Path, bench: str, cells: Sequence[Cell], options: Options, command: str, before: str
) -> Path:
    """Write a bench's figures with what they were measured on.

    Args:
        before: The machine's load average when the bench began.
    """
    from threefold.training.run_directory import describe_environment

    facts = describe_environment()
    facts["machine"]["load"] = {"before": before, "after": load_average()}
    payload = {
        "schema": SCHEMA,
        "bench": bench,
        "command": command,
        **facts,
        "options": asdict(options),
        "cells": [asdict(cell) for cell in cells],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench}.json"
    path.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    """A bench's file, with its cells as `Cell`.

    Raises:
        ValueError: It is no such file, or of a newer version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no file that `threefold bench` wrote: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or "cells" not in data:
        raise ValueError(f"{path} is no file that `threefold bench` wrote")
    if schema > SCHEMA:
        raise ValueError(f"{path} has version {schema}, this threefold reads up to {SCHEMA}: upgrade")
    return {**data, "cells": [Cell(**cell) for cell in data["cells"]]}


def load_average() -> str:
    """Processes that wanted a core in the last 1, 5 and 15 minutes; empty where the system does not say."""
    try:
        return " ".join(f"{value:.2f}" for value in os.getloadavg())
    except OSError:
        return ""


def in_both(old: Sequence[Cell], new: Sequence[Cell]) -> tuple[list[tuple[Cell, Cell, str]], list[str]]:
    """What can be compared.

    Returns:
        (the old cell, the new one, an arm that both hold against their first), and those that only the old
        ones have, in words.
    """
    now = {cell.name: cell for cell in new}
    compared, missing = [], []
    for cell in old:
        for arm in cell.others:
            new_cell = now.get(cell.name)
            if new_cell and list(new_cell.seconds)[:1] == list(cell.seconds)[:1] and arm in new_cell.others:
                compared.append((cell, new_cell, arm))
            else:
                missing.append(f"{cell.name}, {arm}")
    return compared, missing


def regressions(old: Sequence[Cell], new: Sequence[Cell], tolerance: float = TOLERANCE) -> list[str]:
    """The arms whose median ratio to the first arm has grown by more than `tolerance`, in words.

    Cells and arms that are not in both are not compared. Where arms are batches of different sizes, a ratio
    of at most that of their tokens is no regression: it says that the cost is linear, not how high it is.
    """
    found = []
    for before, cell, arm in in_both(old, new)[0]:
        was = statistics.median(before.ratios(arm))
        now = statistics.median(cell.ratios(arm))
        if now > max(was, cell.figures.get("times_as_many_tokens", 0.0)) * (1 + tolerance):
            first = next(iter(cell.seconds))
            found.append(
                f"{cell.name}, {arm}: {now:.3f} of {first}'s seconds, the baseline has {was:.3f} "
                f"({now / was - 1:+.0%})"
            )
    return found
