"""Care dialogues on one budget: what T²-GRPO, GDPO and GRPO do to distress, resistance and violations.

Every cell is a whole `threefold train` of a recipe with the overrides of its arm: one (arm, seed), one run
directory. A complete cell is skipped, so an interrupted study goes on where it stopped. All arms of a
seed start from the same warm-started weights, see the same scenarios in the same order with the same patient,
and are measured at their last step on the same held-out scenarios with the same random numbers. The page
says what was found, whichever way it fell.

    python benchmarks/caregiver_curves.py                                # 5 seeds, two cells at a time
    python benchmarks/caregiver_curves.py --recipe recipes/caregiver-tiny.yaml
    python benchmarks/caregiver_curves.py --arms t2grpo grpo --seeds 0 1
    python benchmarks/caregiver_curves.py --arms t2grpo t2grpo-turn-noise --published gdpo grpo
    python benchmarks/caregiver_curves.py --report-only

Arms whose run directories are gone can stay on the page: `--published` takes their cells from its JSON, if
they were made on the same budget and began with the same weights.

Research and training simulation, not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import caregiver_page
import cells
import study_plots

from threefold.envs.caregiver import safety
from threefold.envs.caregiver.environment import dialogue_of
from threefold.recipe import Recipe, load_recipe
from threefold.trajectory import read_jsonl

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
5 x violation. The two last are T²-GRPO's noise controls: its turn rewards, or all its rewards and vetoes,
dealt out at random."""
DEFAULT = ("t2grpo", "t2grpo-unbiased", "gdpo", "grpo")


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    failed: list[tuple[str, int]] = []
    if not options.report_only:
        for batch in batches(options.arms, options.seeds, options.at_once):
            with ThreadPoolExecutor(options.at_once) as pool:
                done = list(pool.map(lambda cell: run_cell(cell[0], cell[1], options), batch))
                failed += [cell for cell, fine in zip(batch, done, strict=True) if not fine]
    write(options, command_of(sys.argv[1:] if argv is None else argv))
    for arm, seed in failed:
        print(f"failed: {arm}, seed {seed}; see {options.runs / f'{arm}-{seed}.log'}")
    return 1 if failed else 0


def command_of(argv: Sequence[str]) -> str:
    """What makes the page again, runs included, without the places of files."""
    words = [word for word in argv if word != "--report-only"]
    for place in ("--runs", "--results"):
        if place in words:
            at = words.index(place)
            del words[at : at + 2]
    return " ".join(["python benchmarks/caregiver_curves.py", *words])


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
    parser.add_argument(
        "--published", nargs="*", choices=ARMS, default=[], metavar="ARM", help="cells of the page's JSON"
    )
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


def write(options: argparse.Namespace, command: str) -> None:
    """Read every complete cell and write the page, its figures as JSON and its plots."""
    runs, results, name = options.runs, options.results, options.page
    wanted = [(arm, seed) for arm in options.arms for seed in options.seeds]
    done = [cell for cell in wanted if (runs / "{}-{}".format(*cell) / "cell.json").exists()]
    found = {(arm, seed): read_cell(runs / f"{arm}-{seed}") for arm, seed in done}
    if not found:
        print(f"no complete cell below {runs}: nothing to report")
        return
    environment = next(iter(found.values()))["environment"]
    shared = budget(load_recipe(options.recipe, options.override))
    found |= published(results / f"{name}.json", options.published, shared, found)
    arms = [arm for arm in ARMS if any(arm == other for other, _ in found)]
    study = {
        "command": command,
        "budget": shared,
        "missing": [f"{arm}-{seed}" for arm, seed in wanted if (arm, seed) not in found],
        "environment": environment,
        "comparisons": caregiver_page.compare(found, arms),
        "cells": [
            {"arm": arm, "seed": seed, **{k: v for k, v in cell.items() if k != "environment"}}
            for (arm, seed), cell in found.items()
        ],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    page = caregiver_page.page_text(study, found, arms, name)
    (results / f"{name}.md").write_text(page, encoding="utf-8")
    for metric, label in caregiver_page.CURVES.items():
        series = {
            arm: caregiver_page.band([c["curves"][metric] for (a, _), c in found.items() if a == arm])
            for arm in arms
        }
        path = results / f"{name}-{metric.replace('/', '-')}.svg"
        study_plots.lines(path, f"{label} (band: seeds)", series, x_label="step", y_label=label)
    print(page)


def read_cell(run: Path) -> dict[str, Any]:
    """Curves and held-out scores of one run directory."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    environment = _read(run / "environment.json")
    return {
        "seconds": _read(run / "cell.json")["seconds"],
        "steps": len(steps),
        "curves": {name: [step.get(name) for step in steps] for name in caregiver_page.CURVES},
        "before": _sampled(run / "before.json"),
        "after": _sampled(run / "after.json"),
        "safety": environment.get("made_with", {}).get("safety"),
        "judged_again": judged_again(run),
        "environment": environment,
        "commit": environment.get("commit"),
    }


def judged_again(run: Path) -> dict[str, int]:
    """Training dialogues, those that were called a violation when they were played, those that today's safety
    rules call one, and those of which the two say the same."""
    counts = {"dialogues": 0, "then": 0, "now": 0, "alike": 0}
    for rollouts in sorted(run.glob("rollouts*.jsonl")):
        for record in read_jsonl(rollouts):
            then = record.trajectory.violation is not None
            now = safety.find(dialogue_of(record.trajectory)).first is not None
            for name, value in (("dialogues", True), ("then", then), ("now", now), ("alike", then == now)):
                counts[name] += value
    return counts


def published(
    path: Path, arms: Sequence[str], shared: str, found: caregiver_page.Cells
) -> dict[tuple[str, int], dict[str, Any]]:
    """Cells that the page has already and that were not run again.

    Raises:
        SystemExit: The page has none of an arm, was made on another budget, or a seed of it began with other
            weights, so that its cells are no pairs for the new ones.
    """
    if not arms:
        return {}
    study = _read(path) if path.exists() else {"budget": None, "cells": []}
    if study["budget"] != shared:
        raise SystemExit(f"{path} was made on another budget ({study['budget']}), and this is {shared}")
    every = {(cell["arm"], cell["seed"]): cell for cell in study["cells"]}
    if missing := [arm for arm in arms if not any(arm == other for other, _ in every)]:
        raise SystemExit(f"{path} has no cell of {', '.join(missing)}: give them to --arms")
    for seed in {seed for _, seed in every}:
        mine, theirs = caregiver_page.start(found, seed), caregiver_page.start(every, seed)
        if mine and theirs and mine["before"] != theirs["before"]:
            raise SystemExit(f"seed {seed} of {path} began with other weights: give its arms to --arms")
    commit = study["environment"].get("commit")
    return {
        key: {"commit": commit, **cell} for key, cell in every.items() if key[0] in arms and key not in found
    }


def _sampled(path: Path) -> dict[str, list[float]] | None:
    """Mean over its episodes of each task by score; a score that some task lacks is left out."""
    if not path.exists():
        return None
    evaluation = next(e for e in _read(path)["evaluations"] if e["mode"] == "sampled")
    rows = {name: evaluation["values"].get(name, []) for name in caregiver_page.SCORES}
    whole = {name: row for name, row in rows.items() if row and all(None not in task for task in row)}
    return {name: [statistics.fmean(task) for task in row] for name, row in whole.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
