"""The harness of the ISPO study: which cells, what is compared, and a whole small study."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import study_ispo  # noqa: E402
import study_report  # noqa: E402

from threefold.recipe import load_recipe  # noqa: E402


def options(tmp_path: Path, **fields: Any) -> Namespace:
    return Namespace(**{"split": "test", "override": [], "runs": tmp_path, **fields})


def test_dynamic_sampling_is_charged_for_what_it_generates(tmp_path: Path) -> None:
    words = study_ispo.overrides(options(tmp_path), "dapo", 3)
    training = load_recipe(study_ispo.RECIPE, words).training
    plain = load_recipe(study_ispo.RECIPE, study_ispo.overrides(options(tmp_path), "grpo", 3)).training
    assert training.dynamic_sampling.max_episodes == plain.steps * plain.prompts_per_step * plain.group_size
    shorter = study_ispo.overrides(options(tmp_path, override=["training.steps=5"]), "dapo", 3)
    assert load_recipe(study_ispo.RECIPE, shorter).training.dynamic_sampling.max_episodes == 5 * 64


def cell(success: list[float], **changes: Any) -> dict[str, Any]:
    curves = {name: {"first": None, "last": None} for name in study_report.CURVES}
    return {"_success_N": success, "_problems": ["a", "b"], "curves": {**curves, **changes}}


def test_differences_are_paired_by_seed_and_problem() -> None:
    cells = {
        ("grpo", 0): cell([0.0, 0.5]),
        ("grpo", 1): cell([0.5, 0.5]),
        ("ispo", 0): cell([0.5, 1.0]),
        ("ispo", 1): cell([0.5, 1.0]),
        ("ispo-noise", 0): cell([0.5, 0.5]),
    }
    arms = ["grpo", "ispo", "ispo-noise"]
    found = {(c["arm"], c["against"]): c for c in study_report.compare(cells, arms, [0, 1])}
    assert found["ispo", "grpo"]["by_seed"] == [0.5, 0.25]
    assert found["ispo", "grpo"]["mean"] == 0.375
    assert found["ispo", "ispo-noise"]["seeds"] == [0]  # the seeds that both have
    assert {c["comparisons"] for c in found.values()} == {3}
    low, high = found["ispo", "grpo"]["interval_95"]
    strict = found["ispo", "grpo"]["interval_bonferroni"]
    assert strict[0] <= low <= 0.375 <= high <= strict[1]


def test_the_first_question_is_answered_from_the_figures() -> None:
    ends = {
        "signal/dead_outcome": {"first": 0.4, "last": 0.8},
        "signal/dead_all_right": {"first": 0.1, "last": 0.7},
        "signal/dead_all_wrong": {"first": 0.3, "last": 0.1},
        "certainty/entropy_all_wrong": {"first": 0.5, "last": 0.1},
        "certainty/entropy_all_right": {"first": 0.4, "last": 0.2},
        "certainty/entropy_top_wrong": {"first": 0.5, "last": 0.6},
        "certainty/entropy_top_right": {"first": 0.4, "last": 0.2},
    }
    words = "\n".join(study_report._failure_modes({("grpo", 0): {**cell([1.0], **ends), "arm": "grpo"}}))
    assert "40% of the groups were dead" in words
    assert "in the last tenth 80%" in words
    assert "the share grew" in words
    everywhere, top, critical = (
        words.partition(f"certainty, {name}")[2] for name in study_report.TOKENS.values()
    )
    assert "fell in 1 of 1" in everywhere.split("\n")[0]
    assert "claim, in 1 of 1" in everywhere.split("\n")[0]
    assert "fell in 0 of 1" in top.split("\n")[0]
    assert "not measured" in critical.split("\n")[0]


@pytest.mark.slow
def test_a_whole_small_study_and_again_without_running_anything(tmp_path: Path, capsys: Any) -> None:
    from threefold.tiny import tokenizer
    from threefold.tiny.warm_start import untrained

    model = tmp_path / "model"
    untrained(hidden=16, layers=1).save_pretrained(model)
    tokenizer.build().save_pretrained(model)
    small = [
        f"model.name={model}",
        "training.steps=2",
        "training.signals_every=1",
        "training.prompts_per_step=2",
        "training.max_completion_tokens=12",
        "evaluation.problems=10",
    ]
    where = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    words = ["--arms", "grpo", "dapo", "--seeds", "0", *where, "--override", *small]
    assert study_ispo.main(words) == 0
    study = json.loads((tmp_path / "results/study.json").read_text())
    grpo, dapo = study["cells"]
    assert grpo["episodes_generated"] == grpo["episodes_trained"] == 2 * 2 * 8
    assert dapo["episodes_generated"] >= 2 * 2 * 8
    assert (
        dapo["steps"] == 1
    )  # its random model's groups are dead, so one step generates more than the budget
    assert [c["against"] for c in study["comparisons"]] == ["grpo"]
    page = (tmp_path / "results/study.md").read_text()
    assert "Zero-advantage collapse" in page
    assert (tmp_path / "results/dead.svg").read_text().startswith("<svg")
    capsys.readouterr()
    assert study_ispo.main(words) == 0
    assert "done in" not in capsys.readouterr().out  # every cell was complete
