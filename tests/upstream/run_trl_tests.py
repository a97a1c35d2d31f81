"""Runs TRL's own trainer tests with TRL's class and with ours, and compares them test by test.

    python tests/upstream/run_trl_tests.py PATH_TO_A_TRL_CHECKOUT [--report results/trl-suite.md]

The checkout gives the tests only; the code under test is the installed TRL. Nothing is downloaded: tests
whose tiny models and data sets are made by `local_hub` run, the others fail alike with either class.

Exit status: 0 when no test that passes with TRL's class fails with one of ours, else 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import local_hub

HERE = Path(__file__).resolve().parent
TRAINERS = ("trl", "threefold", "recorded")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of TRL, for its tests")
    parser.add_argument("--report", type=Path, help="write the comparison there as Markdown")
    parser.add_argument("--workers", type=int, default=2, help="test processes (default 2)")
    parser.add_argument("-k", dest="keyword", help="only tests that match, as in pytest")
    arguments = parser.parse_args()
    if not (arguments.checkout / "tests" / "test_grpo_trainer.py").is_file():
        parser.error(f"{arguments.checkout} holds no tests/test_grpo_trainer.py; give a checkout of TRL")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(arguments.checkout / "tests", folder / "tests")
        local_hub.build(folder)
        outcomes, seconds = {}, {}
        for trainer in TRAINERS:
            started = time.perf_counter()
            outcomes[trainer] = _run(folder, trainer, arguments.workers, arguments.keyword)
            seconds[trainer] = time.perf_counter() - started
            print(f"{trainer}: {dict(Counter(outcomes[trainer].values()))} in {seconds[trainer]:.0f} s")
    lost = {trainer: _lost(outcomes["trl"], outcomes[trainer]) for trainer in TRAINERS[1:]}
    for trainer, tests in lost.items():
        for test in tests:
            print(f"passes with TRL's class, not with {trainer}: {test} ({outcomes[trainer].get(test)})")
    if arguments.report:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        arguments.report.write_text(_report(arguments, outcomes, lost), encoding="utf-8")
    return int(any(lost.values()))


def _run(folder: Path, trainer: str, workers: int, keyword: str | None) -> dict[str, str]:
    """Outcome of each test: "passed", "failed", "error" or "skipped"."""
    results = folder / f"{trainer}.xml"
    environment = {
        **os.environ,
        "THREEFOLD_UPSTREAM": trainer,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "swapped_trainer", "-m", "not slow", "-q", "--tb=line"]
    command += ["--rootdir", str(folder), "-n", str(workers), f"--junitxml={results}"]
    command += ["-k", keyword] if keyword else []
    answer = subprocess.run(
        [*command, "tests/test_grpo_trainer.py"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not results.exists():
        raise RuntimeError(f"pytest did not run with {trainer}:\n{answer.stdout[-4000:]}")
    return {
        f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}": _outcome(case)
        for case in ElementTree.parse(results).iter("testcase")
    }


def _outcome(case: ElementTree.Element) -> str:
    kinds = {"failure": "failed", "error": "error", "skipped": "skipped"}
    return next((kinds[child.tag] for child in case if child.tag in kinds), "passed")


def _lost(reference: dict[str, str], ours: dict[str, str]) -> list[str]:
    return sorted(
        test for test, outcome in reference.items() if outcome == "passed" and ours.get(test) != "passed"
    )


def _report(
    arguments: argparse.Namespace,
    outcomes: dict[str, dict[str, str]],
    lost: dict[str, list[str]],
) -> str:
    version_file = arguments.checkout / "VERSION"
    version = version_file.read_text(encoding="utf-8").strip() if version_file.exists() else "unknown"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("trl", "transformers", "torch"))
    options = f"-k {arguments.keyword!r} " if arguments.keyword else ""
    meaning = {
        "trl": "`trl.GRPOTrainer`",
        "threefold": "`ThreefoldTrainer`",
        "recorded": "`ThreefoldTrainer` with a run directory",
    }
    lines = [
        "# TRL's own trainer tests",
        "",
        f"`tests/test_grpo_trainer.py` of a TRL checkout (version {version}), slow tests left out, run "
        f"against {versions}, Python {sys.version.split()[0]}, on a CPU and without a network. Models and "
        "data sets that the tests name are made locally (`tests/upstream/local_hub.py`); tests that need "
        "others, such as those of vision models, fail with every class.",
        "",
        f"    python tests/upstream/run_trl_tests.py PATH_TO_A_TRL_CHECKOUT {options}"
        "--report results/trl-suite.md",
        "",
        "| class | passed | failed | error | skipped |",
        "|---|---|---|---|---|",
    ]
    for trainer, results in outcomes.items():
        counts = Counter(results.values())
        cells = [str(counts[kind]) for kind in ("passed", "failed", "error", "skipped")]
        lines.append(f"| {meaning[trainer]} | {' | '.join(cells)} |")
    lines += ["", "## Tests that pass with TRL's class and not with ours", ""]
    found = [f"- {meaning[trainer]}: `{test}`" for trainer, tests in lost.items() for test in tests]
    lines += found or ["None."]
    failing = sorted(test for test, outcome in outcomes["trl"].items() if outcome in ("failed", "error"))
    lines += ["", "## Tests that fail with TRL's class here", "", *[f"- `{test}`" for test in failing], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
