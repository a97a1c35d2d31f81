"""What a finished run left of its evaluation problem by problem (`after.json`), ready to be paired.

A problem is known by its id, and ids mean something only within one set of held-out problems. So every run
carries its held-out set's settings along, and runs whose sets differ are not paired, whatever their ids say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARES = ("strict", "last_number", "format", "success", "violation")
"""Scores that are shares of samples; every other one is a reward channel in its own units."""

_DATA_KEYS = ("test_split", "config", "test_question_column", "test_answer_column", "mix")
_ENVIRONMENT_KEYS = ("name", "options", "turns", "turn_tokens", "completion_tokens")


@dataclass(frozen=True)
class Results:
    """One evaluation: by score and problem the mean over the problem's samples."""

    mode: str
    temperature: float
    unit: str
    """"problems" or "tasks"."""
    samples: int
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def read_results(run_dir: Path, notes: list[str]) -> tuple[Results, ...]:
    """The evaluations of `after.json`; what cannot be read becomes a sentence in `notes`."""
    path = run_dir / "after.json"
    if not path.is_file():
        notes.append(
            f"{run_dir} has no after.json (the run has not finished, or did not evaluate after training), so "
            "it cannot be paired with another run."
        )
        return ()
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["evaluations"]
        return tuple(_results(record) for record in records)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"{path} has an unknown form ({type(error).__name__}: {error}); it is left out.")
        return ()


def _results(record: Mapping[str, Any]) -> Results:
    episodes = "task_ids" in record
    ids: Sequence[str] = record["task_ids"] if episodes else record["problem_ids"]
    if len(set(ids)) < len(ids):
        raise ValueError("two problems have one id")
    # Task number i starts from the seed plus i: the same task in another place is another start.
    keys = [f"{place}: {name}" for place, name in enumerate(ids)] if episodes else list(ids)
    table: Mapping[str, Sequence[Sequence[float | None]]] = record["values" if episodes else "outcomes"]
    values = {score: _means(keys, rows) for score, rows in table.items()}
    return Results(
        mode=str(record["mode"]),
        temperature=float(record["temperature"]),
        unit="tasks" if episodes else "problems",
        samples=int(record["samples"]),
        values=values,
    )


def _means(keys: Sequence[str], rows: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """Mean over the scored samples of each problem that has any."""
    means = {}
    for key, row in zip(keys, rows, strict=True):
        scored = [float(value) for value in row if value is not None and math.isfinite(value)]
        if scored:
            means[key] = math.fsum(scored) / len(scored)
    return means


def held_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say which held-out problems or tasks a run was measured on.

    Two runs that agree in them were asked the same; where a setting differs, equal ids may name different
    problems.
    """
    environment = config.get("environment") or {}
    if environment.get("name"):
        seed = (config.get("evaluation") or {}).get("seed", 0)
        chosen = {f"environment.{key}": environment.get(key) for key in _ENVIRONMENT_KEYS}
        return {**chosen, "evaluation.seed": seed}
    data = config.get("data") or {}
    source = data.get("test") or data.get("train")
    return {"held-out data": source, **{f"data.{key}": data.get(key) for key in _DATA_KEYS}}
