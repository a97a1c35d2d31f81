"""The figures on the page are those of the results file, and the results are of the rules that ship."""

from __future__ import annotations

import json
from pathlib import Path

from threefold.envs.caregiver.labels import default_lookup, tiers
from threefold.envs.caregiver.rules import default_rules
from threefold.envs.caregiver.scenarios import generate

ROOT = Path(__file__).parents[3]
MEASURED = json.loads((ROOT / "results/caregiver/calibration.json").read_text(encoding="utf-8"))


def test_the_page_quotes_the_results() -> None:
    results = (ROOT / "results/caregiver/calibration.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/caregiver.md").read_text(encoding="utf-8")
    quoted = page.partition("<!-- calibration -->")[2].partition("<!-- end calibration -->")[0].strip()
    assert quoted
    assert quoted in results


def test_the_results_are_of_the_shipped_tables() -> None:
    assert MEASURED["versions"] == {"labels": default_lookup().version, "rules": default_rules().version}
    assert set(MEASURED["sensitivity"]) == set(default_rules().coefficients())
    openings = [tiers(s.opening_labels, s.opening) for s in generate()]
    for index, axis in enumerate("DR"):
        assert MEASURED["opening"][axis]["mean"] == sum(o[index] for o in openings) / len(openings)


def test_the_targets_were_met() -> None:
    """Within the sources' intervals; figures read off a plot only within a tenth of a tier or two."""
    assert 0.22 < MEASURED["probes"]["ordinary"]["mean"] < 0.30
    assert 0.51 < MEASURED["probes"]["elderspeak"]["mean"] < 0.59
    curves = MEASURED["curves"]
    last = {name: (curve["D"][-1]["mean"], curve["R"][-1]["mean"]) for name, curve in curves.items()}
    assert all(abs(tier - 1.3) < 0.15 for tier in last["ordinary"])
    assert all(tier < 0.5 for tier in last["expert"])
