"""What `evaluation.json` says of held-out problems or tasks, and what `threefold eval --swap` left beside
it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threefold.report.intervals import Interval, is_number

SWAP_BYTES = 20_000_000
"""A larger JSON file in the run directory is not looked at."""


@dataclass(frozen=True)
class Evaluation:
    """One pass over the held-out problems or tasks."""

    when: str
    """"before", "after", or in a swap "own" and "swapped"."""
    mode: str
    step: int | None = None
    temperature: float | None = None
    problems: int | None = None
    samples: int | None = None
    scores: Mapping[str, Interval] = field(default_factory=dict)
    by_difficulty: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Mean by score, by difficulty."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """Confidence against correctness, as evaluation.json has it; empty where it was not measured."""
    in_own_units: frozenset[str] = frozenset()
    """Scores that are no shares: an environment's reward channels."""
    by_group: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """Scores by group of tasks, such as a subtype."""
    group_sizes: Mapping[str, int] = field(default_factory=dict)
    courses: Mapping[str, tuple[Interval, ...]] = field(default_factory=dict)
    """By state: its mean at the opening and after each turn, over the episodes that got so far."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """Episodes by why they ended."""
    bank: str | None = None
    """Version of the skill bank that was played with."""

    @property
    def name(self) -> str:
        return f"{self.when}, {self.mode}"


@dataclass(frozen=True)
class Gain:
    """Difference after minus before (or swapped minus own), paired by problem."""

    score: str
    mode: str
    value: Interval


@dataclass(frozen=True)
class Swap:
    """The same tasks from the same seeds in a changed environment."""

    file: str
    overrides: tuple[str, ...]
    own: tuple[Evaluation, ...]
    swapped: tuple[Evaluation, ...]
    changes: tuple[Gain, ...]


def evaluations_of(
    data: Mapping[str, Any], notes: list[str], source: str = "evaluation.json"
) -> tuple[tuple[Evaluation, ...], tuple[Gain, ...]]:
    """The evaluations and gains of a file; an entry of an unknown form becomes a sentence in `notes`."""
    evaluations: list[Evaluation] = []
    gains: list[Gain] = []
    try:
        for entry in data.get("evaluations", ()):
            evaluations.append(_evaluation(entry))
        for entry in data.get("gains", ()):
            gains.append(_gain(entry))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        notes.append(
            f"{source} has an entry of an unknown form ({type(error).__name__}: {error}); "
            "the entries before it are shown."
        )
    return tuple(evaluations), tuple(gains)


def read_swaps(run_dir: Path, notes: list[str]) -> tuple[Swap, ...]:
    """The swaps in the JSON files that `threefold eval RUN --swap ... --output RUN/NAME.json` wrote there."""
    swaps: list[Swap] = []
    for path in sorted(run_dir.glob("*.json")):
        if path.name in ("evaluation.json", "environment.json", "before.json", "after.json"):
            continue
        try:
            if path.stat().st_size > SWAP_BYTES:
                notes.append(f"{path.name} is larger than {SWAP_BYTES // 10**6} MB and was not read.")
                continue
            data = json.loads(path.read_text(encoding="utf-8", errors="replace"))
            entries = data.get("swaps") if isinstance(data, dict) else None
            swaps += [_swap(path.name, data, entry) for entry in entries or ()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{path.name} holds no swap that can be read ({type(error).__name__}: {error}).")
    return tuple(swaps)


def _swap(file: str, data: Mapping[str, Any], entry: Mapping[str, Any]) -> Swap:
    return Swap(
        file,
        tuple(map(str, entry["overrides"])),
        tuple(_evaluation({**e, "when": "own"}) for e in data["evaluations"]),
        tuple(_evaluation({**e, "when": "swapped"}) for e in entry["evaluations"]),
        tuple(map(_gain, entry["changes"])),
    )


def _evaluation(entry: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        when=str(entry["when"]),
        mode=str(entry["mode"]),
        step=entry.get("step"),
        temperature=entry.get("temperature"),
        problems=entry.get("problems"),
        samples=entry.get("samples"),
        scores=_scores(entry.get("scores", {})),
        by_difficulty={
            name: {score: float(mean) for score, mean in scores.items() if is_number(mean)}
            for name, scores in entry.get("by_difficulty", {}).items()
        },
        calibration=_calibration(entry.get("calibration") or {}),
        in_own_units=frozenset(map(str, entry.get("in_own_units", ()))),
        by_group={str(name): _scores(scores) for name, scores in entry.get("by_group", {}).items()},
        group_sizes={str(name): int(size) for name, size in entry.get("group_sizes", {}).items()},
        courses={
            str(name): tuple(map(_interval, course)) for name, course in entry.get("courses", {}).items()
        },
        ended={str(why): int(count) for why, count in entry.get("ended", {}).items()},
        bank=None if entry.get("bank") is None else str(entry["bank"]),
    )


def _gain(entry: Mapping[str, Any]) -> Gain:
    return Gain(str(entry["score"]), str(entry["mode"]), _interval(entry))


def _scores(scores: Mapping[str, Any]) -> dict[str, Interval]:
    return {str(name): _interval(value) for name, value in scores.items()}


def _calibration(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures, each checked to be a number that can be drawn."""
    if not value:
        return {}
    rows = [value, *value["by_difficulty"].values()]
    for name in ("confidence", "accuracy", "brier", "ece_width", "ece_mass", "samples", "no_answer"):
        if not all(is_number(row[name]) for row in rows):
            raise ValueError(f"calibration has a {name} that is not a finite number")
    for row in value["table"]:
        if not all(is_number(row[name]) for name in ("low", "high", "samples", "confidence", "accuracy")):
            raise ValueError("the reliability table has a value that is not a finite number")
    return value


def _interval(value: Mapping[str, Any]) -> Interval:
    if not is_number(value["mean"]):
        raise ValueError(f"mean {value['mean']!r} is not a finite number")
    ends = {name: float(value[name]) for name in ("low", "high") if is_number(value.get(name))}
    return Interval(float(value["mean"]), **ends)
