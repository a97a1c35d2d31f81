"""The ReSkill study: does a bank that is tested and revised inside the groups help on unseen errands?

Every cell is a whole `threefold train recipes/errands.yaml` with the overrides of its arm: one (arm, seed),
one run directory; then `threefold eval` measures it on the seen and the unseen split, under the bank that it
ended with and without any. A cell that is complete is skipped, so an interrupted study goes on where it
stopped; one whose recipe or overrides have changed is made again (not one whose code has changed: delete its
folder).

    python benchmarks/reskill_study.py                              # 5 seeds, two cells at a time
    python benchmarks/reskill_study.py --arms grpo reskill --seeds 0 1
    python benchmarks/reskill_study.py --report-only
    python benchmarks/reskill_study.py --seeds 0 --runs runs/smoke --results runs/smoke \\
        --override training.steps=2 warm_start.dialogues=64

All arms of a seed start from the same warm-started weights, see the same tasks in the same order with equally
many episodes, and are measured on the same episodes. Intervals are bootstrapped over seeds: with five of them
they are wide, and honest. Writes results/skills/study.json and study.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from threefold.evaluation.intervals import bootstrap, paired_bootstrap

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/errands.yaml"
OFF = "skills.creator=none"

ARMS: dict[str, list[str]] = {
    "grpo": [OFF],
    "static": [OFF, f"skills.bank={ROOT / 'recipes/banks/errands'}"],
    "reskill": [],
    "reskill-paper": ["skills.confidence=null"],
    "add-only": ["skills.auto_accept=true", "skills.deletions=false", "skills.capacity=16"],
    "placebo": ["skills.creator=placebo"],
    "placebo-paper": ["skills.creator=placebo", "skills.confidence=null"],
    "auto-accept": ["skills.auto_accept=true"],
    "uniform": ["skills.uniform=true"],
}
"""Overrides by arm. "static" is a bank written by hand that never changes; "reskill" asks for a confidence of
0.8, "reskill-paper" is the paper's rule; "add-only" adds untested skills and deletes none, as SkillRL does
(with our offline creator in place of its language model); the placebos say nothing and go through the same
tests."""
SPLITS = ("seen", "unseen")


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    cells = [(arm, seed) for seed in options.seeds for arm in options.arms]
    failed: list[tuple[str, int]] = []
    if not options.report_only:
        first = cells[0]  # alone, so that the warm start of its seed is made once
        done = [run_cell(*first, options)]
        with ThreadPoolExecutor(options.at_once) as pool:
            done += pool.map(lambda cell: run_cell(*cell, options), cells[1:])
        failed = [cell for cell, fine in zip(cells, done, strict=True) if not fine]
    command = " ".join(["python benchmarks/reskill_study.py", *(sys.argv[1:] if argv is None else argv)])
    write(options, command)
    for arm, seed in failed:
        print(f"failed: {arm}, seed {seed}; see {folder(options, arm, seed)}.log")
    return 1 if failed else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The ReSkill study; resumable.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--at-once", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--samples", type=int, default=8, help="episodes of each held-out task")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/study-reskill")
    parser.add_argument("--results", type=Path, default=ROOT / "results/skills")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the report again")
    parser.add_argument("--override", nargs="*", default=[], metavar="key=value", help="for every cell")
    options = parser.parse_args(argv)
    options.runs.mkdir(parents=True, exist_ok=True)
    return options


def folder(options: argparse.Namespace, arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return options.runs / f"{arm}-{seed}"


def overrides(options: argparse.Namespace, arm: str, seed: int) -> list[str]:
    """What the cell's command adds to the recipe. The evaluations are made afterwards, on both splits."""
    own = [
        "evaluation.before=false",
        "evaluation.after=false",
        "run.threads=1",
        *options.override,
        *ARMS[arm],
    ]
    return [*own, f"run.seed={seed}", f"run.dir={folder(options, arm, seed)}"]


def run_cell(arm: str, seed: int, options: argparse.Namespace) -> bool:
    """Train and measure one cell, unless it is complete; True where it is now."""
    run, words = folder(options, arm, seed), overrides(options, arm, seed)
    asked = [RECIPE.read_text(encoding="utf-8"), str(options.samples), *words]
    fingerprint = hashlib.sha256("\n".join(asked).encode()).hexdigest()
    record = run / "cell.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
        return True
    started, log = time.perf_counter(), Path(f"{run}.log")
    fine = _threefold(["train", str(RECIPE), *words, "--overwrite", "--quiet"], log) == 0
    seconds = time.perf_counter() - started
    measured: dict[str, Any] = {}
    for split in SPLITS:
        for bank in ("own", "none"):
            output = run / f"{split}-{bank}.json"
            command = ["eval", str(run), "--split", split, "--samples", str(options.samples), "--k", "1"]
            command += ["--problems", "36", "--quiet", "--output", str(output)]
            fine = fine and _threefold([*command, *(["--bank", "none"] if bank == "none" else [])], log) == 0
            if fine:
                sampled = json.loads(output.read_text(encoding="utf-8"))["evaluations"][-1]
                measured[f"{split}, {'own bank' if bank == 'own' else 'no bank'}"] = sampled["scores"][
                    "success"
                ]
    print(f"{arm}, seed {seed}: {'done' if fine else 'FAILED'} in {seconds:.0f} s", flush=True)
    if fine:
        cell = {"arm": arm, "seed": seed, "seconds": seconds, "fingerprint": fingerprint, "success": measured}
        record.write_text(json.dumps({**cell, **_life(run)}) + "\n", encoding="utf-8")
    return fine


def _life(run: Path) -> dict[str, Any]:
    """What the run's metrics say: success by step, seconds a step, and what became of the versions."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "training": [line["signal/outcome"] for line in lines],
        "step_seconds": statistics.median(line["step_time"] for line in lines),
        "accepted": lines[-1].get("skills/accepted", 0.0),
        "rejected": lines[-1].get("skills/rejected", 0.0),
        "bank_size": lines[-1].get("skills/bank_size", 0.0),
    }


def _threefold(words: list[str], log: Path) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "a", encoding="utf-8") as output:
        command = [sys.executable, "-m", "threefold.cli", *words]
        return subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode


# What the cells say


def write(options: argparse.Namespace, command: str) -> None:
    """study.json and study.md of the cells that are there; those that are missing are named."""
    cells: dict[str, dict[int, Any]] = {arm: {} for arm in options.arms}
    missing = []
    for arm in options.arms:
        for seed in options.seeds:
            record = folder(options, arm, seed) / "cell.json"
            if record.exists():
                cells[arm][seed] = json.loads(record.read_text(encoding="utf-8"))
            else:
                missing.append(f"{arm} {seed}")
    options.results.mkdir(parents=True, exist_ok=True)
    study = {"command": command, "cells": cells, "missing": missing}
    (options.results / "study.json").write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    (options.results / "study.md").write_text(_page(cells, missing, command), encoding="utf-8")
    print(_page(cells, missing, command))


def _page(cells: dict[str, dict[int, Any]], missing: list[str], command: str) -> str:
    names = [f"{split}, {bank}" for split in SPLITS for bank in ("own bank", "no bank")]
    lines = ["# ReSkill on errands", "", f"`{command}`", ""]
    lines += ["Success on held-out tasks at the last step, mean over seeds with a 95 % interval bootstrapped"]
    lines += ["over seeds; versions accepted and rejected, and skills in the bank at the end, are means.", ""]
    heads = ["arm", "seeds", *names, "accepted", "rejected", "skills", "s a step"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm, by_seed in cells.items():
        if by_seed:
            every = list(by_seed.values())
            row = [arm, str(len(every))]
            row += [_interval([c["success"][name]["mean"] for c in every]) for name in names]
            row += [
                f"{statistics.mean(c[key] for c in every):.1f}"
                for key in ("accepted", "rejected", "bank_size")
            ]
            lines.append(f"| {' | '.join([*row, _step(every)])} |")
    lines += ["", "Paired with GRPO by seed, unseen under the own bank:", ""]
    for arm, by_seed in cells.items():
        common = sorted(by_seed.keys() & cells.get("grpo", {}).keys())
        if arm != "grpo" and len(common) > 1:
            unseen = [
                [cells[a][seed]["success"]["unseen, own bank"]["mean"] for seed in common]
                for a in ("grpo", arm)
            ]
            gain = paired_bootstrap(*unseen, bounds=(-1.0, 1.0))
            lines.append(
                f"* {arm}: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], {len(common)} seeds"
            )
    lines += ["", f"Missing cells: {', '.join(missing) or 'none'}."]
    return "\n".join(lines) + "\n"


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    found = bootstrap(values, bounds=(0.0, 1.0))
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _step(cells: list[Any]) -> str:
    return f"{statistics.median(c['step_seconds'] for c in cells):.2f}"


if __name__ == "__main__":
    sys.exit(main())
