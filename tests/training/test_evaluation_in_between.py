"""`evaluation.every`: held-out figures over training, which cost nothing but time."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from threefold.cli import main
from threefold.report import write_report
from threefold.training.held_out import InBetween

HERE = {
    "training.steps": 5,
    "training.learning_rate": 1e-2,
    "evaluation.before": True,
    "evaluation.after": True,
    "evaluation.problems": 3,
    "evaluation.greedy": False,
}


def lines(run: Path, split: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def trained(row: dict[str, Any]) -> dict[str, Any]:
    """A line without what the clock says."""
    return {name: value for name, value in row.items() if "time" not in name}


@pytest.fixture
def whole(recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """A run of five steps that is measured before, after steps 2 and 4, and after the last."""
    assert main(["train", str(recipe(**HERE, **{"evaluation.every": 2}))]) == 0
    return tmp_path / "run"


def test_figures_stand_in_the_metrics_with_their_intervals(whole, tmp_path):
    rows = lines(whole, "held_out")
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    for row in rows:
        assert row["sampled/violation/low"] <= row["sampled/violation"] <= row["sampled/violation/high"]
    entries = json.loads((whole / "evaluation.json").read_text())["evaluations"]
    for entry, row in zip(entries, (rows[0], rows[-1]), strict=True):
        for name, interval in entry["scores"].items():
            assert row[f"sampled/{name}"] == interval["mean"]


def test_training_is_the_same_with_and_without(whole, recipe, tmp_path):
    assert main(["train", str(recipe(**HERE, **{"run.dir": str(tmp_path / "plain")}))]) == 0
    assert lines(tmp_path / "plain", "held_out") == []
    with_, without = lines(whole, "train"), lines(tmp_path / "plain", "train")
    assert list(map(trained, with_)) == list(map(trained, without))


def test_a_resumed_run_measures_again_what_came_after_its_checkpoint(whole, recipe, tmp_path, monkeypatch):
    cut = tmp_path / "cut"
    path = recipe(**HERE, **{"evaluation.every": 2, "training.save_every": 3, "run.dir": str(cut)})
    measured = InBetween.on_step_end

    def interrupted(self: InBetween, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        measured(self, args, state, control, **kwargs)
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(InBetween, "on_step_end", interrupted)
    assert main(["train", str(path)]) == 0
    assert [row["step"] for row in lines(cut, "held_out")] == [0, 2, 4]
    shutil.rmtree(cut / "checkpoints/checkpoint-4")  # as if it had been killed before
    monkeypatch.undo()
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))
    assert main(["train", str(path), "--resume"]) == 0
    assert list(map(trained, lines(cut, "held_out"))) == list(map(trained, lines(whole, "held_out")))


@pytest.mark.parametrize(
    "since",
    [{"evaluation.problems": 2}, {"evaluation.greedy": True}, {"training.temperature": 0.7}],
    ids=["other tasks", "one mode more", "another temperature"],
)
def test_a_resumed_run_that_is_measured_otherwise_gains_where_it_can_be_compared(recipe, tmp_path, since):
    first = {**HERE, "training.steps": 2, "training.save_every": 1, "evaluation.every": 1}
    assert main(["train", str(recipe(**first))]) == 0
    assert main(["train", str(recipe(**{**first, "training.steps": 4, **since})), "--resume"]) == 0
    summary = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert {entry["mode"] for entry in summary["evaluations"] if entry["when"] == "after"} >= {"sampled"}
    compared = "evaluation.greedy" in since
    assert {gain["mode"] for gain in summary["gains"]} == ({"sampled"} if compared else set())


def test_problems_that_were_changed_since_have_no_gain(tmp_path, model_folder):
    data, run, path = tmp_path / "sums.jsonl", tmp_path / "run", tmp_path / "recipe.yaml"
    rows = [{"question": f"{i}+{j}=", "answer": str(i + j)} for i in range(3) for j in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path.write_text(
        f"model: {{name: {model_folder}}}\ndata: {{train: {data}, test: {data}}}\n"
        "prompt: {style: generic}\n"
        "training: {steps: 1, prompts_per_step: 2, group_size: 4, max_completion_tokens: 8}\n"
        f"run: {{dir: {run}, threads: 1}}\n",
        encoding="utf-8",
    )
    assert main(["train", str(path), "--quiet", "evaluation.problems=3"]) == 0
    words = ["training.steps=2", "evaluation.problems=2", "--resume"]
    assert main(["train", str(path), "--quiet", *words]) == 0
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert [entry["problems"] for entry in summary["evaluations"]] == [3, 3, 2, 2]
    assert summary["gains"] == []


def test_the_report_draws_a_curve_a_score_with_its_band(whole):
    page = write_report(whole).read_text(encoding="utf-8")
    assert "Held out, over training" in page
    section = page[page.index("Held out, over training") :]
    assert "violation" in section[: section.index("</section>")]
    assert "held_out: " not in page  # neither drawn a second time among all metrics, nor named so


def test_each_measurement_is_a_line_and_an_event(recipe, tmp_path, capsys):
    path = recipe(**HERE, **{"evaluation.every": 2})
    assert main(["train", str(path)]) == 0
    said = capsys.readouterr().out
    assert [int(step) for step in re.findall(r"held out after step (\d)", said)] == [2, 4]
    assert main(["train", str(path), "--json", "--overwrite"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    between = [event for event in events if event["event"] == "held_out"]
    assert [event["step"] for event in between] == [2, 4]
    assert between[0]["evaluations"][0]["scores"].keys() == {g["score"] for g in between[0]["gains"]}


def test_steps_are_counted_and_not_updates_and_the_last_is_measured_where_nothing_else_does(recipe, tmp_path):
    settings = {"evaluation.every": 2, "evaluation.before": False, "evaluation.after": False}
    path = recipe(**{**HERE, **settings, "training.steps": 4, "training.updates_per_step": 2})
    assert main(["train", str(path)]) == 0
    assert [row["step"] for row in lines(tmp_path / "run", "held_out")] == [4, 8]  # of eight updates


def test_a_negative_interval_is_refused(recipe, capsys):
    assert main(["train", str(recipe(**{"evaluation.every": -1}))]) == 2
    assert "evaluation.every" in capsys.readouterr().err
