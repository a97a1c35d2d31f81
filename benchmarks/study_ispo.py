"""The ISPO study: does its intrinsic signal help where outcomes give none, and is it more than noise?

Every cell is a whole `threefold train recipes/study-ispo.yaml` with the overrides of its arm: one (arm,
seed), one run directory. A cell that is complete is skipped, so an interrupted study goes on where it
stopped; a cell whose recipe or overrides have changed is made again (not one whose code has changed: delete
its folder). All arms of a seed see the same training problems in the same order, start from the same weights,
and are measured at their last step on the same held-out problems with the same random numbers.
`study_report.py` reads the cells and writes results/ispo/study.json, study.md and plots.

    python benchmarks/study_ispo.py                              # 5 seeds, two cells at a time
    python benchmarks/study_ispo.py --arms grpo ispo --seeds 0 1
    python benchmarks/study_ispo.py --split validation --seeds 100 101     # to choose settings; never on test
    python benchmarks/study_ispo.py --report-only
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cells
import study_report
import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/study-ispo.yaml"
SAMPLING = "training.dynamic_sampling.max_rounds=3"
NOISE = ["credit.noise_control=shuffle", "credit.noise_seed={seed}"]

ARMS: dict[str, list[str]] = {
    "grpo": [],
    "dr_grpo": ["credit.method=dr_grpo", "training.loss=dr_grpo"],
    "dapo": [SAMPLING, "training.dynamic_sampling.max_episodes={episodes}"],
    "dapo-steps": [SAMPLING],
    "rl_zvp": ["credit.method=rl_zvp"],
    "ngrpo": ["credit.method=ngrpo"],
    "lens": ["credit.method=lens"],
    "ispo-paper": ["credit.method=ispo-paper"],
    "ispo-paper-noise": ["credit.method=ispo-paper", *NOISE],
    "ispo": ["credit.method=ispo"],
    "ispo-noise": ["credit.method=ispo", *NOISE],
}
"""Overrides by arm. "dapo" is GRPO with dynamic sampling until it has generated as many episodes as the other
arms (so it makes fewer updates), "dapo-steps" the same for as many updates (so it generates more)."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    wanted = [(arm, seed) for seed in options.seeds for arm in options.arms]
    failed: list[tuple[str, int]] = []
    if not options.report_only:
        _initial(options)
        with ThreadPoolExecutor(options.at_once) as pool:
            done = pool.map(lambda cell: run_cell(*cell, options), wanted)
            failed = [cell for cell, fine in zip(wanted, done, strict=True) if not fine]
    command = " ".join(["python benchmarks/study_ispo.py", *(sys.argv[1:] if argv is None else argv)])
    study_report.write(options.runs, options.results, options.arms, options.seeds, command)
    for arm, seed in failed:
        print(f"failed: {arm}, seed {seed}; see {folder(options, arm, seed)}.log")
    return 1 if failed else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The ISPO study; resumable.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--at-once", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--runs", type=Path, help="default: runs/study-ispo, or ...-validation")
    parser.add_argument("--results", type=Path, help="default: results/ispo, or the runs' folder")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the report again")
    parser.add_argument("--override", nargs="*", default=[], metavar="key=value", help="for every cell")
    options = parser.parse_args(argv)
    held_out = options.split == "test"
    options.runs = options.runs or ROOT / "runs" / ("study-ispo" if held_out else "study-ispo-validation")
    options.results = options.results or (ROOT / "results/ispo" if held_out else options.runs)
    options.runs.mkdir(parents=True, exist_ok=True)
    return options


def folder(options: argparse.Namespace, arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return options.runs / f"{arm}-{seed}"


def overrides(options: argparse.Namespace, arm: str, seed: int) -> list[str]:
    """What the cell's command adds to the recipe."""
    common = [f"data.test_split={options.split}", *options.override]
    settings = dict(word.split("=", 1) for word in common)
    training = {**yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["training"]}
    for key in ("steps", "prompts_per_step", "group_size"):
        training[key] = int(settings.get(f"training.{key}", training[key]))
    episodes = training["steps"] * training["prompts_per_step"] * training["group_size"]
    own = [word.format(episodes=episodes, seed=seed) for word in ARMS[arm]]
    return [*common, *own, f"run.seed={seed}", f"run.dir={folder(options, arm, seed)}"]


def run_cell(arm: str, seed: int, options: argparse.Namespace) -> bool:
    """Train and measure one cell, unless it is complete; True where it is now."""
    return cells.run_cell(arm, seed, RECIPE, overrides(options, arm, seed), folder(options, arm, seed))


def _initial(options: argparse.Namespace) -> None:
    """Measure the weights that every cell starts from, once; it also fills the cache before cells need it."""
    target = options.runs / "initial.json"
    if target.exists():
        return
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    settings = dict(word.split("=", 1) for word in options.override)
    measured = recipe["evaluation"]
    words = ["eval", settings.get("model.name", recipe["model"]["name"]), "--data", recipe["data"]["train"]]
    for name in ("problems", "samples"):
        words += [f"--{name}", str(settings.get(f"evaluation.{name}", measured[name]))]
    words += ["--k", "1", "--split", options.split, "--max-tokens", "64", "--quiet", "--output", str(target)]
    if cells.threefold(words, options.runs / "initial.log") != 0:
        raise SystemExit(f"the initial model could not be measured; see {options.runs / 'initial.log'}")


if __name__ == "__main__":
    sys.exit(main())
