"""What the tests of care recipes share: a small recipe, and what a run left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli import main
from threefold.recipe import parse_recipe

SETTINGS = {
    "environment.name": "caregiver",
    "environment.turns": 2,
    "environment.turn_tokens": 8,
    "environment.completion_tokens": 700,
    "environment.options": {"short_prompt": True},
    "credit.method": "t2grpo",
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "training.group_size": 4,
    "training.learning_rate": 1e-3,
    "evaluation.problems": 4,
    "evaluation.before": False,
    "run.threads": 1,
}


def loaded(path: Path) -> Any:
    return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err
