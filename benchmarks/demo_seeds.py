"""The demo with several seeds: does it learn right answers, and not only the format?

Each seed is a whole `threefold train recipes/demo.yaml`: other training problems, other samples, the same 200
held-out problems. Writes results/demo/<name>.json and prints the table that the README quotes.

    python benchmarks/demo_seeds.py                                  # the recipe as it is, seeds 0 to 4
    python benchmarks/demo_seeds.py --name ispo credit.method=ispo   # the same with an override
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo with several seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--name", default="grpo", help="name of the result file")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/demo.yaml")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/demo-seeds")
    parser.add_argument("overrides", nargs="*", help="dotted.key=value")
    options = parser.parse_args()
    results = [_run(options, seed) for seed in options.seeds]
    command = " ".join(["python benchmarks/demo_seeds.py", *sys.argv[1:]])
    target = ROOT / "results/demo" / f"{options.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    first = options.runs / f"{options.name}-{options.seeds[0]}"
    environment = json.loads((first / "environment.json").read_text(encoding="utf-8"))
    target.write_text(
        json.dumps(
            {
                "command": command,
                "machine": environment["machine"],
                "versions": environment["versions"],
                "seeds": results,
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    page = "\n".join(
        [
            f"# The demo with {len(results)} seeds: {options.name}",
            "",
            f"`{command}`",
            "",
            f"{environment['machine']['processor']}, {environment['machine']['threads']} threads; "
            + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
            "",
            "The held-out problems are the same for every seed. Intervals are bootstrapped over problems. "
            "Minutes are of the whole command: loading, four evaluations, training, report.",
            "",
            table(results),
            "",
            levels(results),
            "",
        ]
    )
    target.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


def _run(options: argparse.Namespace, seed: int) -> dict:
    """Train one seed, unless its run is already complete."""
    run = options.runs / f"{options.name}-{seed}"
    done = run / "evaluation.json"
    if not (done.exists() and (run / "model").exists()):
        started = time.perf_counter()
        command = [sys.executable, "-m", "threefold.cli", "train", str(options.recipe), "--overwrite"]
        subprocess.run([*command, *options.overrides, f"run.seed={seed}", f"run.dir={run}"], check=True)
        (run / "seconds").write_text(str(time.perf_counter() - started), encoding="utf-8")
    evaluation = json.loads(done.read_text(encoding="utf-8"))
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "seed": seed,
        "seconds": round(float((run / "seconds").read_text(encoding="utf-8"))),
        "gains": evaluation["gains"],
        "evaluations": [
            {key: e[key] for key in ("when", "mode", "problems", "scores", "by_difficulty")}
            for e in evaluation["evaluations"]
        ],
        "right_by_step": [step.get("signal/outcome") for step in steps],
        "dead_by_step": [step.get("signal/dead_outcome") for step in steps],
    }


def table(results: list[dict]) -> str:
    """Markdown: success by the last number before and after, and the paired gain, a row a seed."""
    lines = [
        "| seed | decoding | right by the last number, before | after | gain, paired 95 % interval | "
        "right in the format, before | after | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for mode in ("sampled", "greedy"):
            scores = {e["when"]: e["scores"] for e in result["evaluations"] if e["mode"] == mode}
            gain = next(g for g in result["gains"] if (g["score"], g["mode"]) == ("last_number", mode))
            lines.append(
                f"| {result['seed']} | {mode} | {scores['before']['last_number']['mean']:.1%} "
                f"| {scores['after']['last_number']['mean']:.1%} "
                f"| {gain['mean']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}] "
                f"| {scores['before']['strict']['mean']:.1%} | {scores['after']['strict']['mean']:.1%} "
                f"| {result['seconds'] / 60:.1f} |"
            )
    gains = [g for r in results for g in r["gains"]]
    sampled = [g for g in gains if (g["score"], g["mode"]) == ("last_number", "sampled")]
    above = sum(g["low"] > 0 for g in sampled)
    lines.append("")
    lines.append(
        f"The interval of the sampled gain in right answers lies above 0 in {above} of {len(sampled)} seeds."
    )
    return "\n".join(lines)


def levels(results: list[dict]) -> str:
    """Markdown: greedy success by the last number at each level, mean over seeds, before and after."""
    lines = [
        "| level | greedy, before | after, mean of seeds | after, lowest and highest seed |",
        "|---|---|---|---|",
    ]
    greedy = [
        {e["when"]: e["by_difficulty"] for e in r["evaluations"] if e["mode"] == "greedy"} for r in results
    ]
    for level in greedy[0]["before"]:
        before = statistics.mean(e["before"][level]["last_number"] for e in greedy)
        after = [e["after"][level]["last_number"] for e in greedy]
        mean = statistics.mean(after)
        lines.append(f"| {level} | {before:.0%} | {mean:.0%} | {min(after):.0%}, {max(after):.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
