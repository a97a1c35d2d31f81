"""How often the test of a bank version is wrong, and what options beyond the paper's rule buy.

Simulated tests of five steps: independent Bernoulli episodes, the old bank succeeding with 0.6. "drift" lets
both rates rise by 0.03 a step, as a policy that learns.

    python benchmarks/version_test.py                # 1,000 tests a cell, some minutes
    python benchmarks/version_test.py --tests 100

Writes results/skills/version-test.json and .md, which docs/skills.md quotes.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from threefold.skills.version_test import VersionTest

ROOT = Path(__file__).resolve().parents[1]
OLD_RATE, STEPS, DRIFT = 0.6, 5, 0.03
EFFECTS = (0.0, 0.02, 0.05, 0.10, -0.05)
RULES: dict[str, dict[str, Any]] = {
    "paper (mean_new > mean_old)": {},
    "paper, M = 76": {"memory": 76},
    "paper, uniform draws": {"clamp": 0.5},
    "margin 0.03": {"margin": 0.03},
    "confidence 0.80": {"confidence": 0.80},
    "confidence 0.95": {"confidence": 0.95},
    "confidence 0.95, uniform draws": {"confidence": 0.95, "clamp": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="False and true accepts of the within-group test.")
    parser.add_argument("--tests", type=int, default=1000, help="simulated tests a cell (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cells = []
    for episodes in (128, 1280):
        for rule, settings in RULES.items():
            for effect in EFFECTS:
                cells.append(measure(rule, settings, episodes, effect, 0.0, options))
    cells += [measure(rule, RULES[rule], 128, effect, DRIFT, options) for rule in RULES for effect in EFFECTS]
    write(cells, options)


def measure(
    rule: str,
    settings: dict[str, Any],
    episodes: int,
    effect: float,
    drift: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Share of tests that accept, with its standard error, and the share of episodes under the new bank."""
    rng = np.random.default_rng([options.seed, episodes, round(1000 * (1 + effect)), round(1000 * drift)])
    accepted, new_share = 0, 0.0
    for _ in range(options.tests):
        test = VersionTest(min_steps=STEPS, **settings)
        for step in range(STEPS):
            rate = OLD_RATE + drift * step
            new = int(test.assign(rng, episodes).sum())
            test.record(
                new=(int(rng.binomial(new, rate + effect)), new),
                old=(int(rng.binomial(episodes - new, rate)), episodes - new),
            )
            new_share += new / episodes / STEPS
        accepted += test.decide() == "accept"
    share = accepted / options.tests
    return {
        "rule": rule,
        "episodes": episodes,
        "effect": effect,
        "drift": drift,
        "accepted": share,
        "error": math.sqrt(share * (1 - share) / options.tests),
        "new_share": new_share / options.tests,
    }


def write(cells: list[dict[str, Any]], options: argparse.Namespace) -> None:
    folder = ROOT / "results" / "skills"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "version-test.json").write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# How often the test of a bank version is wrong",
        "",
        f"`python benchmarks/version_test.py --tests {options.tests} --seed {options.seed}`: simulated "
        f"tests of {STEPS} steps, independent episodes, the old bank succeeds with {OLD_RATE}. Entries are "
        "the share of tests that accept the new bank; standard errors are at most "
        f"{max(c['error'] for c in cells):.3f}.",
    ]
    for episodes, drift in ((128, 0.0), (1280, 0.0), (128, DRIFT)):
        title = f"{episodes} episodes a step" + (f", both rates rise by {drift} a step" if drift else "")
        lines += ["", f"## {title}", "", f"| rule | {' | '.join(f'{e:+.2f}' for e in EFFECTS)} |"]
        lines.append("|---|" + "---|" * len(EFFECTS))
        for rule in RULES:
            row = {
                c["effect"]: c["accepted"]
                for c in cells
                if (c["rule"], c["episodes"], c["drift"]) == (rule, episodes, drift)
            }
            lines.append(f"| {rule} | {' | '.join(f'{row[e]:.2f}' for e in EFFECTS)} |")
    lines += [
        "",
        "Columns are true differences of the success rate; +0.00, bundles that do nothing, is the false-"
        "accept rate. The paper's rule is the default; `confidence` and `margin` are options.",
        "",
    ]
    text = "\n".join(lines)
    (folder / "version-test.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
