"""`environment.workers`: a run in processes is the run in one, and a killed process costs episodes alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli import main
from threefold.envs.toy import EchoThenNext
from threefold.trajectory import read_jsonl

SETTINGS: dict[str, Any] = {
    "environment": {"name": "toy", "turns": 2, "turn_tokens": 4, "completion_tokens": 40},
    "training": {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-3},
    "evaluation": {"problems": 2, "samples": 2, "before": False},
}


class KilledOnce(EchoThenNext):
    """Somebody kills the process of a group's first member in its second turn, once."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = Path(mark)

    def reset(self, task, seed, member):
        self.member = member
        return super().reset(task, seed, member)

    def step(self, action_text):
        if self._turn == 1 and self.member == 0 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action_text)


@pytest.fixture
def train(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))

    def train(folder: str, **environment: Any) -> Path:
        run = tmp_path / folder
        data = {
            **SETTINGS,
            "environment": {**SETTINGS["environment"], **environment},
            "model": {"name": str(model_folder)},
            "run": {"dir": str(run), "threads": 1},
        }
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        assert main(["train", str(path), "--quiet"]) == 0
        return run

    return train


def test_a_run_with_workers_is_the_run_without(train: Callable[..., Path]) -> None:
    one, two = (list(read_jsonl(train(f"w{w}", workers=w) / "rollouts.jsonl")) for w in (0, 2))
    assert len(one) == 16
    assert [(e.trajectory, e.advantages) for e in one] == [(e.trajectory, e.advantages) for e in two]
    assert {e.trajectory.environment for e in two} == {"EchoThenNext"}


def test_a_killed_process_costs_no_step(train: Callable[..., Path], tmp_path: Path) -> None:
    options = {"mark": str(tmp_path / "mark")}
    run = train("killed", name=f"{__name__}:KilledOnce", options=options, workers=2)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    failed = [row["episodes/failed"] for row in metrics if "episodes/failed" in row]
    assert failed == [0.5, 0.0]  # every second episode of the first step was played in that process
    ended = [e.trajectory.ended.partition(":")[0] for e in read_jsonl(run / "rollouts.jsonl")]
    assert ended == ["error", "terminated"] * 4 + ["terminated"] * 8
