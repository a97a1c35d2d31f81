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
import caregiver_page  # noqa: E402

from threefold.recipe import load_recipe  # noqa: E402
from threefold.recipe_credit import build_credit  # noqa: E402


@pytest.mark.parametrize("name", ["caregiver", "caregiver-tiny"])
@pytest.mark.parametrize("arm", caregiver_curves.ARMS)
def test_an_arm_changes_the_credit_and_nothing_of_the_budget(arm: str, name: str) -> None:
    plain = load_recipe(ROOT / f"recipes/{name}.yaml")
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml", caregiver_curves.overrides(arm, 3))
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
    seen = {(c["arm"], c["against"]): c for c in caregiver_page.compare(found, ["t2grpo", "grpo"])}
    assert seen["t2grpo", "grpo"]["by_seed"] == [0.25, -0.25]
    assert seen["t2grpo", "grpo"]["mean"] == 0.0
    assert seen["t2grpo", "before"]["by_seed"] == [0.5]  # seed 1 was not measured before training
    assert seen["grpo", "before"]["by_seed"] == [0.25]  # all arms of a seed start from the same weights
    assert ("grpo", "grpo") not in seen


def test_the_method_is_compared_with_its_noise_controls_and_they_with_grpo() -> None:
    arms = ["t2grpo", "grpo", "gdpo", "t2grpo-turn-noise", "t2grpo-all-noise"]
    found = {(arm, 0): {"after": {"success": [0.5, 0.5]}, "before": None} for arm in arms}
    pairs = {(c["arm"], c["against"]) for c in caregiver_page.compare(found, arms)}
    assert pairs == {
        ("t2grpo", "grpo"),
        ("t2grpo", "t2grpo-turn-noise"),
        ("t2grpo", "t2grpo-all-noise"),
        ("grpo", "t2grpo"),
        ("gdpo", "grpo"),
        ("gdpo", "t2grpo"),
        ("t2grpo-turn-noise", "grpo"),
        ("t2grpo-all-noise", "grpo"),
    }


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "T²-GRPO is better in success, and not told apart in violations."),
        (
            -0.3,
            -0.1,
            "T²-GRPO is better in nothing that is measured, worse in success, and not told apart in",
        ),
        (-0.1, 0.1, "T²-GRPO is better in nothing that is measured, and not told apart in"),
    ],
)
def test_more_than_noise_says_what_fell_which_way(low: float, high: float, said: str) -> None:
    pair = {"arm": "t2grpo", "against": "t2grpo-turn-noise"}
    rows = [
        {**pair, "score": "success", "interval_95": [low, high]},
        {**pair, "score": "violation", "interval_95": [-0.1, 0.1]},
        {**pair, "score": "goal", "interval_95": [1.0, 2.0]},  # the sentence is about the main scores
    ]
    text = caregiver_page.more_than_noise(rows)
    assert text.startswith("**More than noise?** Beside the same method with its turns as noise, ")
    assert said in text
    assert caregiver_page.more_than_noise([]) == ""


def test_an_arm_whose_runs_are_gone_stays_on_the_page(tmp_path: Path) -> None:
    def cell(arm: str, before: list[float] | None = None) -> dict[str, Any]:
        return {"arm": arm, "seed": 0, "before": before and {"success": before}, "after": {}}

    page = tmp_path / "curves.json"
    study = {"budget": "so much", "environment": {"commit": "abc"}, "cells": [cell("t2grpo", [0.5])]}
    study["cells"].append(cell("gdpo"))
    page.write_text(json.dumps(study), encoding="utf-8")
    found = {("t2grpo", 0): cell("t2grpo", [0.5])}
    kept = caregiver_curves.published(page, ["gdpo"], "so much", found)
    assert list(kept) == [("gdpo", 0)]
    assert kept["gdpo", 0]["commit"] == "abc"
    assert caregiver_curves.published(tmp_path / "none.json", [], "so much", found) == {}
    for arms, budget, start, message in (
        (["gdpo"], "more", [0.5], "made on another budget"),
        (["gdpo", "grpo"], "so much", [0.5], "has no cell of grpo: give them to --arms"),
        (["gdpo"], "so much", [0.4], "seed 0 of .* began with other weights"),
    ):
        with pytest.raises(SystemExit, match=message):
            caregiver_curves.published(page, arms, budget, {("t2grpo", 0): cell("t2grpo", start)})
    # A cell that was run again takes the place of the published one.
    assert list(caregiver_curves.published(page, ["gdpo", "t2grpo"], "so much", found)) == [("gdpo", 0)]
    assert len(caregiver_curves.published(page, ["gdpo", "t2grpo"], "so much", {})) == 2


def test_a_seed_is_whole_before_the_next_begins_and_its_first_arm_goes_ahead() -> None:
    one_by_one = [cell for batch in caregiver_curves.batches("abc", [0, 1], 1) for cell in batch]
    assert one_by_one == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1)]
    two = [*caregiver_curves.batches("ab", [0, 1, 2], 2)]
    assert two == [[("a", 0), ("a", 1)], [("b", 0), ("b", 1)], [("a", 2)], [("b", 2)]]


def test_the_page_s_command_names_no_place_of_files() -> None:
    words = [
        "--arms",
        "grpo",
        "--report-only",
        "--runs",
        "/tmp/runs",
        "--seeds",
        "0",
        "--results",
        "/tmp/out",
    ]
    assert caregiver_curves.command_of(words) == "python benchmarks/caregiver_curves.py --arms grpo --seeds 0"


def test_the_first_sentences_say_what_held_and_what_did_not() -> None:
    def row(arm: str, score: str, low: float, high: float, against: str = "grpo") -> dict[str, Any]:
        return {"arm": arm, "against": against, "score": score, "interval_95": [low, high]}

    said = caregiver_page.verdict(
        [
            row("t2grpo", "violation", 0.01, 0.05),
            row("t2grpo", "distress, summed over turns", 0.1, 0.4),
            row("t2grpo", "success", -0.1, 0.1),
            row("t2grpo", "turns", -0.9, -0.2),
            row("grpo", "violation", -0.1, -0.02, against="before"),
        ],
        ["t2grpo", "grpo"],
    )
    assert said == [
        "Beside GRPO, t2grpo: the fall in distress better; violations worse; turns of a dialogue fewer; no "
        "clear change in success.",
        "From its start, grpo: violations better.",
    ]


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
    for cell in study["cells"]:  # by the rules that they were played with
        assert cell["judged_again"]["alike"] == cell["judged_again"]["dialogues"] == 2 * 2 * 6
    page = (tmp_path / "results/curves.md").read_text()
    assert "not for clinical use" in page
    assert "learns to stop early" in page
    assert (tmp_path / "results/curves-episodes-last-D.svg").exists()
    capsys.readouterr()
    assert caregiver_curves.main(words) == 0
    assert "done in" not in capsys.readouterr().out  # every cell was complete


def test_a_page_of_older_safety_rules_says_what_today_s_would_have_said() -> None:
    counts = {"dialogues": 50, "then": 6, "now": 4, "alike": 48}
    cells = [{"safety": "rules 1", "judged_again": counts}, {"safety": "rules 1", "judged_again": counts}]
    said = caregiver_page._safety(cells)
    assert "Violations are those of safety rules version 1" in said
    assert "of 100 training dialogues" in said
    assert "they call 8 a violation, where 12 were" in said
    assert said.endswith("the same of 96.0%.")
    today = {"safety": f"rules {caregiver_page.safety_lexicon.VERSION}", "judged_again": counts}
    assert caregiver_page._safety([today]) == ""
    assert caregiver_page._safety([{"arm": "t2grpo"}]) == ""  # a cell from before this was kept
