"""What is read beside a difference between arms: dead groups, certainty, calibration and time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from threefold.report.arms import Arm, Entry


@dataclass(frozen=True)
class Beside:
    """What is read beside a difference: means over an arm's runs, None where not recorded."""

    arm: str
    runs: int
    seeds: tuple[int | None, ...]
    noise: str | None
    scores: dict[str, float]
    """"mode: score" -> mean over runs of the score after training."""
    figures: dict[str, float | None]
    """By name, see `FIGURES`; shares and probabilities from 0 to 1, entropies in nats."""


FIGURES = {
    "dead groups": "signal/dead_outcome",
    "weight of dead groups": "signal/gradient_share_dead",
    "entropy, right": "certainty/entropy_all_right",
    "entropy, wrong": "certainty/entropy_all_wrong",
    "confidence, right": "certainty/confidence_right",
    "confidence, wrong": "certainty/confidence_wrong",
    "Brier": "certainty/brier",
    "ECE": "certainty/ece",
}
"""Metrics of training that stand beside the scores. Dead groups are means over the whole run, the others over
its last tenth."""


def stands_beside(arm: Arm) -> Beside:
    """The scores and figures of an arm."""
    scores: dict[str, list[float]] = {}
    for entry in arm.entries:
        for results in entry.results:
            for name, by_problem in results.values.items():
                if by_problem:
                    mean = math.fsum(by_problem.values()) / len(by_problem)
                    scores.setdefault(f"{results.mode}: {name}", []).append(mean)
    figures = {
        name: _mean(_end(entry, metric, whole="dead" in name) for entry in arm.entries)
        for name, metric in FIGURES.items()
    }
    figures["Brier, held out"] = _mean(_calibration(entry, "brier") for entry in arm.entries)
    figures["ECE, held out"] = _mean(_calibration(entry, "ece_width") for entry in arm.entries)
    figures["seconds a step"] = _mean(_seconds(entry) for entry in arm.entries)
    figures["hours"] = _mean(_hours(entry) for entry in arm.entries)
    return Beside(
        arm=arm.name,
        runs=len(arm.entries),
        seeds=arm.seeds,
        noise=arm.noise,
        scores={name: math.fsum(values) / len(values) for name, values in scores.items()},
        figures=figures,
    )


def _end(entry: Entry, metric: str, *, whole: bool) -> float | None:
    values = list(entry.run.metrics.columns.get(metric, {}).values())
    if not whole:
        values = values[-max(1, len(values) // 10) :]
    return math.fsum(values) / len(values) if values else None


def _calibration(entry: Entry, name: str) -> float | None:
    for evaluation in reversed(entry.run.evaluations):
        if evaluation.when == "after" and evaluation.mode == "sampled" and evaluation.calibration:
            return float(evaluation.calibration[name])
    return None


def _seconds(entry: Entry) -> float | None:
    values = list(entry.run.metrics.columns.get("step_time", {}).values())
    return median(values) if values else None


def _hours(entry: Entry) -> float | None:
    started, ended = entry.run.metrics.started, entry.run.metrics.ended
    return None if started is None or ended is None else (ended - started) / 3600


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
