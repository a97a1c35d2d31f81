"""Care dialogues on one budget: what T²-GRPO, GDPO and GRPO do to distress, resistance and violations.

Every cell is a whole `threefold train` of a recipe with the overrides of its arm: one (arm, seed), one run
directory. A complete cell is skipped, so an interrupted study goes on where it stopped. All arms of a
seed start from the same warm-started weights, see the same scenarios in the same order with the same patient,
and are measured at their last step on the same held-out scenarios with the same random numbers. The page
says what was found, whichever way it fell.

    python benchmarks/caregiver_curves.py                                # 5 seeds, two cells at a time
    python benchmarks/caregiver_curves.py --recipe recipes/caregiver-tiny.yaml
    python benchmarks/caregiver_curves.py --arms t2grpo grpo --seeds 0 1
    python benchmarks/caregiver_curves.py --report-only

Research and training simulation, not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cells
import numpy as np
import study_plots

from threefold.evaluation.intervals import Interval, crossed_bootstrap
from threefold.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/caregiver.yaml"
UNBIASED = [
    "credit.normalise=leave_one_out",
    "credit.turn_credit=return_to_go",
    "credit.ended=zero",
    "credit.veto=null",
]

ARMS: dict[str, list[str]] = {
    "t2grpo": ["credit.method=t2grpo"],
    "t2grpo-unbiased": ["credit.method=t2grpo", *UNBIASED],
    "gdpo": ["credit.method=gdpo"],
    "grpo": ["credit.method=summed_grpo"],
    "t2grpo-quarter": ["credit.method=t2grpo", "credit.alpha=0.25"],
    "t2grpo-no-veto": ["credit.method=t2grpo", "credit.veto=null"],
    "t2grpo-turn-noise": ["credit.method=t2grpo", "credit.noise_control=turns", "credit.noise_seed={seed}"],
    "t2grpo-all-noise": ["credit.method=t2grpo", "credit.noise_control=all", "credit.noise_seed={seed}"],
}
"""Overrides by arm. "t2grpo" is the paper's (alpha 1, veto 16); "t2grpo-unbiased" the option of
docs/turn-credit.md, whose expectation is the gradient of the plain sum; "grpo" is GRPO on that sum less
5 x violation."""
DEFAULT = ("t2grpo", "t2grpo-unbiased", "gdpo", "grpo")

CURVES = {
    "episodes/last/D": "distress after the last turn",
    "episodes/last/R": "resistance after the last turn",
    "episodes/violations": "share of dialogues with a violation",
    "signal/outcome": "share of dialogues that succeed",
    "turns/per_episode": "turns of a dialogue",
}
"""What is followed over training; docs/metrics.md defines each."""
SCORES = (
    "distress, summed over turns",
    "resistance, summed over turns",
    "D, last turn",
    "R, last turn",
    "violation",
    "success",
    "goal",
    "fit",
    "term",
    "left",
    "turns",
)
"""What is compared on held-out scenarios, sampled; the first two are drops from first to last."""
BETTER = {
    "distress, summed over turns": ("the fall in distress", 1),
    "resistance, summed over turns": ("the fall in resistance", 1),
    "violation": ("violations", -1),
    "success": ("success", 1),
    "turns": ("turns of a dialogue", 0),
}
"""What the page's first sentences speak of: its name, and which way is better (0: neither)."""
AGAINST = {"grpo": "GRPO", "t2grpo": "T²-GRPO"}
"""Arms that the others are compared with, and how sentences call them."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    failed: list[tuple[str, int]] = []
    if not options.report_only:
        for batch in batches(options.arms, options.seeds, options.at_once):
            with ThreadPoolExecutor(options.at_once) as pool:
                done = list(pool.map(lambda cell: run_cell(cell[0], cell[1], options), batch))
                failed += [cell for cell, fine in zip(batch, done, strict=True) if not fine]
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--report-only"]
    command = " ".join(["python benchmarks/caregiver_curves.py", *words])  # the one that made the cells
    write(options, command)
    for arm, seed in failed:
        print(f"failed: {arm}, seed {seed}; see {options.runs / f'{arm}-{seed}.log'}")
    return 1 if failed else 0


def batches(arms: Sequence[str], seeds: Sequence[int], at_once: int) -> Iterator[list[tuple[str, int]]]:
    """Cells that may run side by side, seed after seed, so that a study that is stopped holds whole seeds.

    The first arm of a seed learns and keeps the warm start that the others begin with.
    """
    first, *rest = arms
    for start in range(0, len(seeds), at_once):
        together = seeds[start : start + at_once]
        yield [(first, seed) for seed in together]
        yield [(arm, seed) for seed in together for arm in rest]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Care dialogues: methods on one budget; resumable.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(DEFAULT), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="what every cell trains")
    parser.add_argument("--at-once", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--runs", type=Path, help="run directories; default runs/ and the page's name")
    parser.add_argument("--results", type=Path, default=ROOT / "results/caregiver")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the page again")
    parser.add_argument("--override", nargs="*", default=[], metavar="key=value", help="for every cell")
    options = parser.parse_args(argv)
    options.page = f"curves{options.recipe.stem.removeprefix('caregiver')}"
    options.runs = options.runs or ROOT / f"runs/caregiver-{options.page}"
    options.runs.mkdir(parents=True, exist_ok=True)
    return options


def overrides(arm: str, seed: int) -> list[str]:
    """What an arm sets in the recipe; a noise control is dealt anew with every seed."""
    return [word.format(seed=seed) for word in ARMS[arm]]


def run_cell(arm: str, seed: int, options: argparse.Namespace) -> bool:
    """Train and measure one cell, unless it is complete; True where it is now."""
    run = options.runs / f"{arm}-{seed}"
    before = str(arm == options.arms[0]).lower()  # the weights before training are the same for all arms
    common = [f"evaluation.before={before}", "evaluation.greedy=false", "run.threads=1", *options.override]
    words = [*common, *overrides(arm, seed), f"run.seed={seed}", f"run.dir={run}"]
    return cells.run_cell(arm, seed, options.recipe, words, run)


# The page


def write(options: argparse.Namespace, command: str) -> None:
    """Read every complete cell and write the page, its figures as JSON and its plots."""
    runs, results, name = options.runs, options.results, options.page
    wanted = [(arm, seed) for arm in options.arms for seed in options.seeds]
    done = [cell for cell in wanted if (runs / "{}-{}".format(*cell) / "cell.json").exists()]
    found = {(arm, seed): read_cell(runs / f"{arm}-{seed}") for arm, seed in done}
    if not found:
        print(f"no complete cell below {runs}: nothing to report")
        return
    study = {
        "command": command,
        "budget": budget(load_recipe(options.recipe, options.override)),
        "missing": [f"{arm}-{seed}" for arm, seed in wanted if (arm, seed) not in found],
        "environment": next(iter(found.values()))["environment"],
        "comparisons": compare(found, options.arms),
        "cells": [
            {"arm": arm, "seed": seed, **{k: v for k, v in cell.items() if k != "environment"}}
            for (arm, seed), cell in found.items()
        ],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    arms = [arm for arm in options.arms if any(arm == other for other, _ in found)]
    page = page_text(study, found, arms, name)
    (results / f"{name}.md").write_text(page, encoding="utf-8")
    for metric, label in CURVES.items():
        series = {arm: band([c["curves"][metric] for (a, _), c in found.items() if a == arm]) for arm in arms}
        path = results / f"{name}-{metric.replace('/', '-')}.svg"
        study_plots.lines(path, f"{label} (band: seeds)", series, x_label="step", y_label=label)
    print(page)


def read_cell(run: Path) -> dict[str, Any]:
    """Curves and held-out scores of one run directory."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "seconds": _read(run / "cell.json")["seconds"],
        "steps": len(steps),
        "curves": {name: [step.get(name) for step in steps] for name in CURVES},
        "before": _sampled(run / "before.json"),
        "after": _sampled(run / "after.json"),
        "environment": _read(run / "environment.json"),
    }


def _sampled(path: Path) -> dict[str, list[float]] | None:
    """Mean over its episodes of each task by score; a score that some task lacks is left out."""
    if not path.exists():
        return None
    evaluation = next(e for e in _read(path)["evaluations"] if e["mode"] == "sampled")
    rows = {name: evaluation["values"].get(name, []) for name in SCORES}
    whole = {name: row for name, row in rows.items() if row and all(None not in task for task in row)}
    return {name: [statistics.fmean(task) for task in row] for name, row in whole.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def compare(found: Mapping[tuple[str, int], Mapping[str, Any]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Each arm less those of `AGAINST`, and less where it began, by seed and scenario."""
    comparisons = []
    for arm in arms:
        for score in SCORES:
            mine = [(seed, cell) for (a, seed), cell in found.items() if a == arm]
            pairs = {
                other: [(cell, found.get((other, seed))) for seed, cell in mine]
                for other in AGAINST
                if other != arm
            }
            pairs["before"] = [(cell, _start(found, seed)) for seed, cell in mine]
            for other, sides in pairs.items():
                base = "before" if other == "before" else "after"
                rows = [
                    np.subtract(cell["after"][score], against[base][score])
                    for cell, against in sides
                    if against and score in cell["after"] and score in (against[base] or {})
                ]
                if rows:
                    value = crossed_bootstrap(rows)
                    comparisons.append(
                        {
                            "arm": arm,
                            "against": other,
                            "score": score,
                            "seeds": len(rows),
                            "mean": value.mean,
                            "interval_95": [value.low, value.high],
                            "by_seed": [float(row.mean()) for row in rows],
                        }
                    )
    return comparisons


def _start(found: Mapping[tuple[str, int], Mapping[str, Any]], seed: int) -> Mapping[str, Any] | None:
    """The cell of a seed that was measured before training."""
    return next((cell for (_, s), cell in found.items() if s == seed and cell["before"]), None)


def band(curves: Sequence[Sequence[float | None]]) -> list[study_plots.Point]:
    """(step, mean, lowest and highest seed) over the steps that any seed measured."""
    points = []
    for step in range(max((len(curve) for curve in curves), default=0)):
        values = [curve[step] for curve in curves if step < len(curve)]
        known = [value for value in values if value is not None]
        if known:
            points.append((step + 1.0, statistics.fmean(known), min(known), max(known)))
    return points


def page_text(
    study: Mapping[str, Any],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    arms: Sequence[str],
    name: str,
) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in study["environment"]["versions"].items())
    parts = [
        "# Care dialogues: T²-GRPO, GDPO and GRPO on one budget",
        "\n".join(f"* {sentence}" for sentence in verdict(study["comparisons"], arms)),
        f"`{study['command']}`",
        study["environment"].get("scope", ""),
        f"{study['budget']} {_cost(found)} {study['environment']['machine']['processor']}; {versions}.",
        "Intervals are 95 %, resampled over seeds and scenarios; with few seeds they are too narrow, so the "
        f"seeds' own values are in {name}.json. Nothing is corrected for the number of comparisons. A drop "
        "is better when larger, D, R, violation and left when smaller.",
    ]
    if study["missing"]:
        parts.append(f"**Not complete:** {', '.join(study['missing'])} are missing.")
    parts += ["## Held-out scenarios, after training", _levels(found, arms)]
    for other, called in {**AGAINST, "before": "the start"}.items():
        parts += [f"## Against {called}, paired", _differences(study["comparisons"], other)]
    parts += ["## Over training, first and last fifth of the steps", _ends(found, arms)]
    parts += [f"![{label}]({name}-{metric.replace('/', '-')}.svg)" for metric, label in CURVES.items()]
    parts.append(
        "Known before these runs: where going on pays only later, T²-GRPO with alpha = 1 learns to stop "
        "early (docs/turn-credit.md). Read distress and resistance beside the turns of a dialogue and "
        "`left`: a patient who walks off has no more bad turns."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(comparisons: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[str]:
    """What training did to each arm, and each arm beside those of `AGAINST`, whichever way it fell."""
    sentences = []
    for arm in arms:
        for other, against in {"before": "From its start", **AGAINST}.items():
            against = against if other == "before" else f"Beside {against}"
            mine = {c["score"]: c for c in comparisons if (c["arm"], c["against"]) == (arm, other)}
            said: dict[str, list[str]] = {"better": [], "worse": [], "more": [], "fewer": [], "": []}
            for score, (name, better) in BETTER.items():
                if score in mine:
                    said[_way(mine[score]["interval_95"], better)].append(name)
            clear = [f"{' and '.join(names)} {way}" for way, names in said.items() if way and names]
            open_ = f"no clear change in {', '.join(said[''])}" if said[""] else ""
            if mine:
                sentences.append(f"{against}, {arm}: {'; '.join([*clear, open_] if open_ else clear)}.")
    return sentences


def _way(interval: Sequence[float], better: int) -> str:
    low, high = interval
    if low <= 0 <= high:
        return ""
    up = low > 0
    if better == 0:
        return "more" if up else "fewer"
    return "better" if up == (better > 0) else "worse"


def budget(recipe: Recipe) -> str:
    """What every arm had."""
    training, environment, measured = recipe.training, recipe.environment, recipe.evaluation
    unsafe = environment.options.get("unsafe_share", 0.2)
    return (
        f"Each arm of a seed starts from the same weights ({recipe.model.name}, warmed up on "
        f"{recipe.warm_start.dialogues} scripted dialogues, of which "
        f"{unsafe:.0%} end unsafely), and has {training.steps} steps of "
        f"{training.prompts_per_step} scenarios x {training.group_size} dialogues of at most "
        f"{environment.turns} turns, learning rate {training.learning_rate:g}. Measured on "
        f"{measured.problems} held-out scenarios x {measured.samples} sampled dialogues."
    )


def _cost(found: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    seconds = sorted(cell["seconds"] for cell in found.values())
    return (
        f"{len(found)} cells, {seconds[0]:.0f} to {seconds[-1]:.0f} s each (one thread, a shared machine; "
        "the first of a seed learns the warm start)."
    )


def _levels(found: Mapping[tuple[str, int], Mapping[str, Any]], arms: Sequence[str]) -> str:
    rows = []
    starts = {seed: _start(found, seed) for _, seed in found}
    sides = {"before training": [cell["before"] for cell in starts.values() if cell]}
    sides |= {arm: [cell["after"] for (a, _), cell in found.items() if a == arm] for arm in arms}
    present = {name: scores for name, scores in sides.items() if scores}
    for score in SCORES:
        values = (_cell([s[score] for s in scores if score in s]) for scores in present.values())
        rows.append(f"| {score} | {' | '.join(values)} |")
    return "\n".join([f"| score | {' | '.join(present)} |", "|---" * (len(present) + 1) + "|", *rows])


def _cell(rows: Sequence[Sequence[float]]) -> str:
    return _text(crossed_bootstrap(rows)) if rows else "not measured"


def _text(value: Interval, *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _differences(comparisons: Sequence[Mapping[str, Any]], other: str) -> str:
    mine = [c for c in comparisons if c["against"] == other]
    if not mine:
        return "Not measured."
    rows = []
    for c in mine:
        low, high = c["interval_95"]
        clear = "" if low <= 0 <= high else "more" if low > 0 else "less"
        text = _text(Interval(c["mean"], low, high), signed=True)
        rows.append(f"| {c['arm']} | {c['score']} | {text} | {clear} | {c['seeds']} |")
    return "\n".join(
        ["| arm | score | difference | beyond the interval | seeds |", "|---|---|---|---|---|", *rows]
    )


def _ends(found: Mapping[tuple[str, int], Mapping[str, Any]], arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        mine = [cell["curves"] for (a, _), cell in found.items() if a == arm]
        cells_ = []
        for metric in CURVES:
            first, last = (_mean_of_part(mine, metric, end=end) for end in (False, True))
            cells_.append("not measured" if first is None or last is None else f"{first:.3f}, {last:.3f}")
        if mine:
            rows.append(f"| {arm} | {' | '.join(cells_)} |")
    head = f"| arm | {' | '.join(CURVES.values())} |"
    return "\n".join([head, "|---" * (len(CURVES) + 1) + "|", *rows])


def _mean_of_part(curves: Sequence[Mapping[str, Any]], metric: str, *, end: bool) -> float | None:
    means = []
    for curve in curves:
        width = max(1, len(curve[metric]) // 5)
        part = curve[metric][-width:] if end else curve[metric][:width]
        known = [value for value in part if value is not None]
        means += [statistics.fmean(known)] if known else []
    return statistics.fmean(means) if means else None


if __name__ == "__main__":
    sys.exit(main())
