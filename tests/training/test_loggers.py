"""Loggers get every figure of metrics.jsonl, in its group: real event files, a real offline run."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli import main
from threefold.recipe import RecipeError, parse_recipe
from threefold.training.loggers import logger_options, wandb_trouble

RECIPE = {
    "model": {"name": "tiny-words"},
    "environment": {"name": "errands", "turns": 2, "turn_tokens": 2, "completion_tokens": 200},
    "training": {"steps": 3, "prompts_per_step": 2, "group_size": 2},
    "evaluation": {"before": False, "after": False},
}
NEVER_CHARTED = {"step", "split", "time", "words", "warnings", "time/update"}
"""What metrics.jsonl adds to what TRL logs."""


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    def run(*overrides: str, loggers: list[str], alone: bool = False) -> Path:
        """Train, `alone` in a process of its own: some loggers read their folder when they are imported, and
        write to it until the process ends."""
        data = {**RECIPE, "run": {"dir": str(tmp_path / "run"), "loggers": loggers}}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        words = ["train", str(path), "--quiet", *overrides]
        if alone:
            subprocess.run([sys.executable, "-m", "threefold.cli", *words], env=os.environ, check=True)
        else:
            assert main(words) == 0
        return tmp_path / "run"

    return run


def charted(run: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The lines of metrics.jsonl, and the name that each of their figures has in a logger."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line} - NEVER_CHARTED
    return lines, {name: name if "/" in name else f"train/{name}" for name in names}


def test_tensorboard_holds_every_figure_in_its_group(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run = train(loggers=["tensorboard"])
    events = event_accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    lines, names = charted(run)
    assert {"signal/dead_outcome", "episodes/failed", "train/reward", "time/generate"} <= set(names.values())
    for ours, theirs in names.items():
        wanted = [(line["step"], line[ours]) for line in lines if ours in line]
        found = [(event.step, event.value) for event in events.Scalars(theirs)]
        # transformers logs the epoch once more at the end
        assert found[: len(wanted)] == [(step, pytest.approx(value)) for step, value in wanted], theirs
    assert not any(tag.startswith("train/signal") for tag in events.Tags()["scalars"])


def test_held_out_figures_in_between_are_sent_too(train: Callable[..., Path]) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(
        "evaluation.every=1", "evaluation.problems=2", "evaluation.greedy=false", loggers=["tensorboard"]
    )
    lines = [line for line in charted(run)[0] if line["split"] == "held_out"]
    events = event_accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("held_out/sampled/success")]
    assert found == [(line["step"], pytest.approx(line["sampled/success"])) for line in lines]
    assert [step for step, _ in found] == [1, 2, 3]


def test_a_resumed_run_goes_on_in_the_same_folder(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(loggers=["tensorboard"])
    run = train("--resume", "training.steps=5", loggers=["tensorboard"])
    events = event_accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("signal/outcome")] == [1, 2, 3, 4, 5]


def test_weights_and_biases_offline(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install threefold[loggers]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    run = train(loggers=["wandb"], alone=True)
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    written, (_, names) = file.read_bytes(), charted(run)
    assert [name for name in names.values() if name.encode() not in written] == []
    assert b"train/signal" not in written


def test_trackio_without_a_network(train: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    run = train(loggers=["trackio"], alone=True)
    with sqlite3.connect(tmp_path / "trackio" / "threefold.db") as database:
        rows = [json.loads(row) for (row,) in database.execute("select metrics from metrics")]
    assert set(charted(run)[1].values()) <= {name for row in rows for name in row}


def test_loggers_are_off_unless_named() -> None:
    assert logger_options(parse_recipe({})) == {"report_to": "none"}
    options = logger_options(parse_recipe({"run": {"loggers": ["tensorboard"], "dir": "runs/mine"}}))
    assert options == {"report_to": ["tensorboard"], "run_name": "mine", "project": "threefold"}


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="'tensorboard', 'wandb' or 'trackio'"):
        parse_recipe({"run": {"loggers": ["tensorbord"]}})
    twice = {"run": {"loggers": ["tensorboard"]}, "training": {"trl": {"report_to": "wandb"}}}
    with pytest.raises(RecipeError, match="both name loggers"):
        logger_options(parse_recipe(twice))
    # The folder that wandb writes is no installed wandb.
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()
    with pytest.raises(RecipeError, match="wandb, which is not installed: run `pip install wandb`"):
        logger_options(parse_recipe({"run": {"loggers": ["wandb"]}}))


def test_weights_and_biases_needs_a_key_or_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "WANDB_MODE=offline" in (wandb_trouble({}) or "")
    assert wandb_trouble({"WANDB_MODE": "offline"}) is None
    assert wandb_trouble({"WANDB_API_KEY": "k"}) is None
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n", encoding="utf-8")
    assert wandb_trouble({}) is None
    assert "http://ours" in (wandb_trouble({"WANDB_BASE_URL": "http://ours"}) or "")
