"""The harness of the care study: what is compared with what, and a whole small study."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_parts import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import caregiver_curves  # noqa: E402

from threefold.recipe import load_recipe  # noqa: E402
from threefold.recipe_credit import build_credit  # noqa: E402


@pytest.mark.parametrize("arm", caregiver_curves.ARMS)
def test_an_arm_changes_the_credit_and_nothing_of_the_budget(arm: str) -> None:
    plain = load_recipe(caregiver_curves.RECIPE)
    recipe = load_recipe(caregiver_curves.RECIPE, caregiver_curves.ARMS[arm])
    assert recipe.model_copy(update={"credit": plain.credit}) == plain
    assert build_credit(recipe.credit) is not None


def test_differences_are_paired_by_seed_and_scenario() -> None:
    def cell(after: list[float], before: list[float] | None = None) -> dict[str, Any]:
        return {"after": {"success": after}, "before": before and {"success": before}}

    found = {
        ("t2grpo", 0): cell([1.0, 0.5], before=[0.0, 0.5]),
        ("t2grpo", 1): cell([0.5, 0.5]),
        ("grpo", 0): cell([0.5, 0.5]),
        ("grpo", 1): cell([0.5, 1.0]),
    }
    seen = {(c["arm"], c["against"]): c for c in caregiver_curves.compare(found, ["t2grpo", "grpo"])}
    assert seen["t2grpo", "grpo"]["by_seed"] == [0.25, -0.25]
    assert seen["t2grpo", "grpo"]["mean"] == 0.0
    assert seen["t2grpo", "before"]["by_seed"] == [0.5]  # seed 1 was not measured before training
    assert seen["grpo", "before"]["by_seed"] == [0.25]  # all arms of a seed start from the same weights
    assert ("grpo", "grpo") not in seen


@pytest.mark.slow
def test_a_whole_small_study_and_again_without_running_anything(tmp_path: Path, capsys: Any) -> None:
    model = tmp_path / "model"
    tiny_model(max_position_embeddings=2048).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    small = {
        "model.name": model,
        "training.steps": 2,
        "training.prompts_per_step": 2,
        "environment.turns": 2,
        "environment.turn_tokens": 8,
        "environment.completion_tokens": 700,
        "warm_start.dialogues": 4,
        "evaluation.problems": 4,
    }
    where = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    override = [f"{key}={value}" for key, value in small.items()]
    words = ["--arms", "t2grpo", "grpo", "--seeds", "0", *where, "--at-once", "1", "--override", *override]
    assert caregiver_curves.main(words) == 0
    study = json.loads((tmp_path / "results/curves.json").read_text())
    assert study["missing"] == []
    assert [cell["steps"] for cell in study["cells"]] == [2, 2]
    page = (tmp_path / "results/curves.md").read_text()
    assert "not for clinical use" in page
    assert "learns to stop early" in page
    assert (tmp_path / "results/curves-episodes-last-D.svg").exists()
    capsys.readouterr()
    assert caregiver_curves.main(words) == 0
    assert "done in" not in capsys.readouterr().out  # every cell was complete
