"""The ReSkill study: does a bank that is tested and revised inside the groups help on unseen errands?

A cell is one (arm, seed): what `threefold train recipes/errands.yaml` does with the overrides of its arm,
then what `threefold eval` does on the seen and the unseen split, under the bank that the run ended with and
without any. Its run directory is whole, so `threefold skills history` and the report work on it. Cells run
one after the other, each in a process that is forked off one that has loaded everything; the warm start of a
seed is made once, and all its arms begin with it. A cell that is complete is skipped, so an interrupted study
goes on where it stopped; one whose recipe or overrides have changed is made again (not one whose code has
changed: delete its folder). Arms are run in the order given, all seeds of one before the next.

    python benchmarks/reskill_study.py                              # 5 seeds, every arm
    python benchmarks/reskill_study.py --arms grpo reskill --seeds 0 1
    python benchmarks/reskill_study.py --report-only
    python benchmarks/reskill_study.py --seeds 0 --runs runs/smoke --results runs/smoke \\
        --override training.steps=2 warm_start.dialogues=64

All arms of a seed start from the same warm-started weights (all seeds do with `--weights FOLDER`), see the
same tasks in the same order with equally many episodes, and are measured on the same episodes. Intervals are
bootstrapped over seeds: with five of them they are wide, and honest. Writes study.json and study.md into
results/skills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from threefold import cli
from threefold.evaluation.intervals import Interval, bootstrap, paired_bootstrap

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/errands.yaml"
OFF = "skills.creator=none"

ARMS: dict[str, list[str]] = {
    "grpo": [OFF],
    "reskill": [],
    "placebo": ["skills.creator=placebo"],
    "static": [OFF, f"skills.bank={ROOT / 'recipes/banks/errands'}"],
    "retrieval": [
        "skills.creator=memory",
        "skills.auto_accept=true",
        "skills.retrieve=1",
        "skills.period=1",
        "skills.capacity=64",
    ],
    "add-only": ["skills.auto_accept=true", "skills.deletions=false", "skills.capacity=6"],
    "auto-accept": ["skills.auto_accept=true"],
    "uniform": ["skills.uniform=true"],
    "reskill-paper": ["skills.confidence=null"],
    "placebo-paper": ["skills.creator=placebo", "skills.confidence=null"],
    "no-triggers": ["skills.triggers=false"],
    "no-assertions": ["skills.assertions=false"],
    "frozen": ["skills.frozen_steps=all"],
    "skill-first": ["skills.frozen_steps=20", "skills.last_step=20"],
    "policy-first": ["skills.first_step=20"],
    "period-10": ["skills.period=10"],
    "period-20": ["skills.period=20"],
}
"""Overrides by arm. "static" is a bank written by hand that never changes; "reskill" asks for a confidence of
0.8, "reskill-paper" is the paper's rule; "add-only" adds untested skills and deletes none, as SkillRL does
(with our offline creator in place of its language model); the placebos say nothing and go through the same
tests; "retrieval" shows the remembered success of the task that is most alike; "frozen" lets skills evolve
and weights not, "skill-first" and "policy-first" one after the other; the last two test a version for longer
(K_e, 5 elsewhere). "no-assertions" changes little by construction: the
offline creator decides by contrasts, and keeps assertions for the record."""
SPLITS = ("seen", "unseen")
BESIDE = ("grpo", "placebo", "auto-accept")
"""Arms that the others are compared with: no skills, skills that say nothing through the same test, and
skills that go untested."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    failed: list[tuple[str, int]] = []
    command = " ".join(["python benchmarks/reskill_study.py", *(sys.argv[1:] if argv is None else argv)])
    if not options.report_only:
        _load_everything()
        for arm, seed in [(arm, seed) for arm in options.arms for seed in options.seeds]:
            if not run_cell(arm, seed, options):
                failed.append((arm, seed))
            write(options, command)
    print(write(options, command))
    for arm, seed in failed:
        print(f"failed: {arm}, seed {seed}; see {folder(options, arm, seed)}.log")
    return 1 if failed else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The ReSkill study; resumable.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=8, help="episodes of each held-out task")
    parser.add_argument("--weights", type=Path, help="one warm-started model for every seed")
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
    """What the cell adds to the recipe. The evaluations are made afterwards, on both splits."""
    own = begin_with(str(options.weights)) if options.weights else []
    own += [
        "evaluation.before=false",
        "evaluation.after=false",
        "run.threads=1",
        "training.save_every=0",
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
    log, began = Path(f"{run}.log"), options.runs / f"begin-{seed}.json"
    log.unlink(missing_ok=True)
    if options.weights is None:
        if not forked(lambda: _begin(words, began), log):
            print(f"warm start, seed {seed}: FAILED, see {log}", flush=True)
            return False
        words += begin_with(json.loads(began.read_text(encoding="utf-8"))["weights"])
    started = time.perf_counter()
    fine = forked(lambda: _cell(run, words, options.samples), log)
    seconds = time.perf_counter() - started
    print(f"{arm}, seed {seed}: {'done' if fine else 'FAILED'} in {seconds:.0f} s", flush=True)
    if fine:
        cell = {"arm": arm, "seed": seed, "seconds": seconds, "fingerprint": fingerprint}
        cell |= {"success": _measured(run), **_life(run)}
        record.write_text(json.dumps(cell) + "\n", encoding="utf-8")
    return fine


def begin_with(weights: str) -> list[str]:
    """Overrides that start a cell from weights that are warm already."""
    return [f"model.name={weights}", "warm_start.dialogues=0"]


def forked(work: Callable[[], None], log: Path) -> bool:
    """Whether `work` came to its end in a process of its own, which writes into `log`."""

    def quietly() -> None:
        with open(log, "a", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        work()

    child = multiprocessing.get_context("fork").Process(target=quietly)
    child.start()
    child.join()
    return child.exitcode == 0


def _load_everything() -> None:
    """Import here what every cell needs, once; nothing that starts a thread."""
    import torch

    torch.set_num_threads(1)
    import threefold.evaluation.command
    import threefold.training.run
    import threefold.training.trainer
    import threefold.training.warm_start  # noqa: F401


def _begin(words: Sequence[str], record: Path) -> None:
    """Make the warm start of a seed, or find it, and note where it lies."""
    import torch

    from threefold.recipe import load_recipe
    from threefold.training.warm_start import warm_started
    from threefold.training.work import work_of

    recipe = load_recipe(RECIPE, words)
    asked = hashlib.sha256(
        json.dumps([recipe.warm_start.model_dump(), recipe.model.name]).encode()
    ).hexdigest()
    if record.exists():
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["asked"] == asked and Path(known["weights"]).is_dir():
            return
    weights = warm_started(recipe, work_of(recipe), torch.float32, print)
    record.write_text(json.dumps({"asked": asked, "weights": str(weights)}) + "\n", encoding="utf-8")


def _cell(run: Path, words: Sequence[str], samples: int) -> None:
    """Train, then play the held-out tasks."""
    _threefold(["train", str(RECIPE), *words, "--overwrite", "--quiet"])
    for split in SPLITS:
        for bank in ("own", "none"):
            command = ["eval", str(run), "--split", split, "--samples", str(samples), "--k", "1", "--quiet"]
            command += ["--problems", "36", "--output", str(run / f"{split}-{bank}.json")]
            if bank == "none":
                if not (run / "bank").is_dir():
                    continue  # without a bank both are the same
                command += ["--bank", "none"]
            _threefold(command)


def _threefold(words: Sequence[str]) -> None:
    if status := cli.main(words):
        sys.exit(status)


def _measured(run: Path) -> dict[str, Any]:
    """Success of the sampled episodes by split and bank."""
    found = {}
    for split in SPLITS:
        for bank, name in (("own", "own bank"), ("none", "no bank")):
            path = run / f"{split}-{bank}.json"
            path = path if path.exists() else run / f"{split}-own.json"
            last = json.loads(path.read_text(encoding="utf-8"))["evaluations"][-1]
            kinds = {kind: scores["success"]["mean"] for kind, scores in last["by_group"].items()}
            found[f"{split}, {name}"] = {**last["scores"]["success"], "by_group": kinds}
    return found


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


# What the cells say


def write(options: argparse.Namespace, command: str) -> str:
    """study.json and study.md of the cells that are there; those that are missing are named. The page."""
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
    page = _page(cells, missing, command)
    (options.results / "study.md").write_text(page, encoding="utf-8")
    return page


def _page(cells: dict[str, dict[int, Any]], missing: list[str], command: str) -> str:
    names = [f"{split}, {bank}" for split in SPLITS for bank in ("own bank", "no bank")]
    lines = ["# ReSkill on errands", "", f"`{command}`", ""]
    made = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    lines += [f"A CPU, one thread; {made}. What the arms are is in the script.", "", *_findings(cells), ""]
    lines += ["Success on held-out tasks at the last step, mean over seeds with a 95 % interval bootstrapped"]
    lines += ["over seeds; versions accepted and rejected, and skills in the bank at the end, are means.", ""]
    heads = ["arm", "seeds", *names, "accepted", "rejected", "skills"]
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
            lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "Where all seeds agree to the last digit the interval is a wide one on purpose, of five trials.",
    ]
    lines += ["", f"Missing cells: {', '.join(missing) or 'none'}."]
    return "\n".join(lines) + "\n"


def _findings(cells: dict[str, dict[int, Any]]) -> list[str]:
    """What held and what did not: every arm beside no skills, skills that say nothing, and untested ones."""
    heads = ["arm, under its own bank", *(f"beside {other}, {split}" for other in BESIDE for split in SPLITS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm in cells:
        gains = [_gain(cells, arm, other, split) for other in BESIDE for split in SPLITS]
        if any(gains):
            lines.append(f"| {' | '.join([arm, *map(_told, gains)])} |")
    return [
        *lines,
        "",
        "Paired by seed; in bold what is beyond its interval. Nothing is corrected for so many looks.",
    ]


def _told(gain: Interval | None) -> str:
    if gain is None:
        return ""
    text = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    return f"**{text}**" if gain.low > 0 or gain.high < 0 else text


def _gain(cells: dict[str, dict[int, Any]], arm: str, other: str, split: str) -> Interval | None:
    """Success of a split under the own bank, over the seeds that both arms have; None for fewer than two."""
    common = sorted(cells.get(arm, {}).keys() & cells.get(other, {}).keys())
    if arm == other or len(common) < 2:
        return None
    name = f"{split}, own bank"
    pair = [[cells[a][seed]["success"][name]["mean"] for seed in common] for a in (other, arm)]
    return paired_bootstrap(*pair, bounds=(-1.0, 1.0))


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    found = bootstrap(values, bounds=(0.0, 1.0))
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
