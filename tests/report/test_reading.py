"""A run directory is read as far as it got, and what is missing is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from threefold.report.reading import Interval, read_run


def test_finished_run_is_read_whole_and_without_notes(finished_run: Path) -> None:
    run = read_run(finished_run)
    assert run.notes == ()
    assert run.config["method"] == {"name": "ispo", "lambda1": 0.1}
    assert run.environment["seed"] == 7
    assert run.metrics.last_step == 60
    assert run.metrics.started == 1_760_000_031.5
    assert run.metrics.ended == 1_760_001_890.0
    assert list(run.metrics.columns["reward"]) == list(range(1, 61))
    assert len(run.metrics.words) == 60
    assert run.evaluations[0].scores["strict"] == Interval(0.412, 0.412 - 0.04, 0.412 + 0.04)
    assert run.gains[0].value == Interval(0.12, 0.083, 0.157)
    assert run.episodes.episodes == 60 * 4 * 4


def test_run_of_a_config_alone_names_every_other_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    notes = " ".join(read_run(tmp_path).notes)
    for name in ("environment.json", "metrics.jsonl", "evaluation.json", "rollouts.jsonl"):
        assert f"{name} is missing" in notes


def test_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("shopping", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"holds no run: none of config\.yaml"):
        read_run(tmp_path)


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a run directory"):
        read_run(tmp_path / "nowhere")


def test_cut_last_line_of_metrics_is_left_out_and_said(finished_run: Path) -> None:
    path = finished_run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    run = read_run(finished_run)
    assert run.metrics.last_step == 59
    assert any("metrics.jsonl" in note and "line 60" in note for note in run.notes)


def test_step_logged_twice_keeps_the_later_value(tmp_path: Path) -> None:
    lines = [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}, {"step": 1, "reward": 0.7}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    assert read_run(tmp_path).metrics.columns["reward"] == {1: 0.7, 2: 0.2}


def test_values_that_cannot_be_drawn_are_said_and_other_splits_are_kept_apart(tmp_path: Path) -> None:
    lines = [
        {"step": 3, "loss": float("nan"), "reward": 0.5, "flag": True, "name": "text", "nothing": None},
        {"step": 3, "split": "eval", "reward": 0.9},
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    run = read_run(tmp_path)
    assert run.metrics.columns == {"reward": {3: 0.5}, "eval: reward": {3: 0.9}}
    assert any("loss at step 3" in note for note in run.notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "a: [1, 2"),
        ("config.yaml", "- 1\n- 2\n"),
        ("environment.json", "{"),
        ("environment.json", "[1]"),
        ("evaluation.json", '{"evaluations": [{"when": "before"}]}'),
        ("evaluation.json", '{"gains": [{"score": "strict", "mode": "greedy", "mean": null}]}'),
        ("evaluation.json", '{"evaluations": 3}'),
        ("metrics.jsonl", '[1]\n"text"\n{"step": "one"}\n'),
        ("rollouts.jsonl", '{"trajectory": 3, "step": 1}\nnull\n'),
    ],
)
def test_unreadable_file_becomes_a_note(finished_run: Path, name: str, text: str) -> None:
    (finished_run / name).write_text(text, encoding="utf-8")
    run = read_run(finished_run)
    assert any(note.startswith(name) for note in run.notes)


def test_bytes_that_are_not_utf8_do_not_stop_the_reading(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "run", steps=2)
    for name in ("config.yaml", "metrics.jsonl", "rollouts.jsonl"):
        with open(run_dir / name, "ab") as file:
            file.write(b"\xff\xfe\n")
    run = read_run(run_dir)
    assert run.metrics.last_step == 2
    assert run.episodes.episodes == 2 * 4 * 4
