"""The harness of the ReSkill study: every arm is a recipe that can run, and gains are paired by seed."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import reskill_study  # noqa: E402

from threefold.recipe import load_recipe  # noqa: E402
from threefold.training.skills import check_skills, initial_bank  # noqa: E402


def options(tmp_path: Path, **fields: Any) -> Namespace:
    given = {"override": [], "weights": None, "runs": tmp_path, "results": tmp_path, "seeds": [0, 1]}
    return Namespace(**{**given, "arms": ["grpo", "reskill"], **fields})


@pytest.mark.parametrize("arm", reskill_study.ARMS)
def test_every_arm_is_a_recipe_that_can_run_and_differs_in_its_skills_alone(arm: str, tmp_path: Path) -> None:
    words = reskill_study.overrides(options(tmp_path), arm, 3)
    recipe = load_recipe(reskill_study.RECIPE, words)
    check_skills(recipe)
    plain = load_recipe(reskill_study.RECIPE, reskill_study.overrides(options(tmp_path), "grpo", 3))
    for section in ("model", "environment", "warm_start", "credit", "training", "evaluation"):
        assert getattr(recipe, section) == getattr(plain, section)
    assert recipe.skills.on is (arm != "grpo")
    assert len(initial_bank(recipe).skills) == (2 if arm == "static" else 0)


def cell(mean: float) -> str:
    names = [f"{split}, {bank}" for split in reskill_study.SPLITS for bank in ("own bank", "no bank")]
    success = {name: {"mean": mean / (1 + ("unseen" in name)), "low": 0.0, "high": 1.0} for name in names}
    life: dict[str, Any] = {"accepted": 1.0, "rejected": 2.0, "bank_size": 1.0, "step_seconds": 2.0}
    return json.dumps({"success": success, "fingerprint": "", **life})


def test_gains_are_paired_by_seed_and_missing_cells_are_named(tmp_path: Path) -> None:
    for arm, means in {"grpo": (0.2, 0.6), "reskill": (0.3, 0.8)}.items():
        for seed, mean in enumerate(means):
            run = reskill_study.folder(options(tmp_path), arm, seed)
            run.mkdir()
            (run / "cell.json").write_text(cell(mean))
    reskill_study.write(options(tmp_path, seeds=[0, 1, 2]), "the command")
    page = (tmp_path / "study.md").read_text()
    assert "| reskill | **+0.150 [+0.100, +0.200]** | **+0.075 [+0.050, +0.100]** |" in page
    assert "| reskill | 2 | 0.550 [0.300, 0.800] | 0.550 [0.300, 0.800] | 0.275 [0.150, 0.400]" in page
    assert "Missing cells: grpo 2, reskill 2." in page
