"""Recipes of errands with skills for a tiny model, and a language model behind HTTP that writes skills."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chat_server import Reply
from threefold.skills.bank import Bank
from threefold.skills.skill import Skill
from threefold.skills.store import VersionRecord, write_version
from tiny_parts import tiny_model, tiny_tokenizer

SETTING = {
    "environment.name": "errands",
    "environment.turns": 3,
    "environment.turn_tokens": 8,
    "environment.completion_tokens": 500,
    "environment.rewards": {"success": 1.0, "valid": 0.2},
    "training.steps": 3,
    "training.prompts_per_step": 2,
    "training.group_size": 4,
    "skills.creator": "placebo",
    "skills.period": 1,
    "skills.min_episodes": 4,
    "skills.min_reservoir": 4,
    "skills.capacity": 2,
    "evaluation.problems": 2,
    "evaluation.greedy": False,
    "run.threads": 1,
}
QUIET = {"evaluation.before": False, "evaluation.after": False}


def recipe_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a recipe of errands with a placebo; keywords are dotted keys."""
    monkeypatch.setenv("THREEFOLD_CACHE", str(folder / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tiny_model(max_position_embeddings=4096).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")

    def write(**changes: Any) -> Path:
        paths = {"model.name": str(folder / "model"), "run.dir": str(folder / "run")}
        data: dict[str, Any] = {}
        for key, value in {**SETTING, **paths, **changes}.items():
            section, _, name = key.partition(".")
            data.setdefault(section, {})[name] = value
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def hand_made(folder: Path) -> Path:
    """A bank of two versions; v1, with one skill, is in use."""
    skill = Skill("ask-first", "You do not know where it is.", "Ask, then open what was named.")
    write_version(folder, Bank("v0"), VersionRecord("v0"))
    write_version(folder, Bank("v1", (skill,), "v0"), VersionRecord("v1", "v0", decision="accept"))
    return folder


def figures(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clocks = ("step_time", "skills/seconds")
    return [{k: v for k, v in line.items() if not k.startswith("time") and k not in clocks} for line in lines]


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def state(run: Path, step: int) -> dict[str, Any]:
    """What a checkpoint holds of the skills."""
    return json.loads((run / "checkpoints" / f"checkpoint-{step}" / "threefold_skills.json").read_text())


STAGES = {
    "analyst": "You study",
    "diagnoser": "You diagnose",
    "recommender": "You decide",
    "author": "You write",
}
"""How the system message of each stage of a creation begins."""


class Writer:
    """Answers of a language model that writes skills: `cycles[n]` is what goes wrong in the n-th creation, an
    answer by stage; all else is answered well. An answer is JSON, a `Reply`, or a list, one a question of
    that creation. A creation begins with a new question of its one analyst: `skills.groups: 1`."""

    def __init__(self, *cycles: dict[str, Any]) -> None:
        self.cycles = cycles
        self.number = -1
        self.first = ""
        self.asked: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any]) -> Reply | str:
        messages = body["messages"]
        stage = next((s for s, start in STAGES.items() if messages[0]["content"].startswith(start)), None)
        if stage is None:
            return "yes"
        if stage == "analyst" and len(messages) == 2 and messages[1]["content"] != self.first:
            self.number, self.first = self.number + 1, messages[1]["content"]
            self.asked.clear()
        answers = self.cycles[min(self.number, len(self.cycles) - 1)].get(stage, self.well(stage))
        answers = answers if isinstance(answers, list) else [answers]
        answer = answers[min(self.asked[stage], len(answers) - 1)]
        self.asked[stage] += 1
        return answer if isinstance(answer, Reply | str) else json.dumps(answer)

    def well(self, stage: str) -> dict[str, Any]:
        change = {"op": "modify", "name": "ask-first", "action": f"Ask, then open it. ({self.number})"}
        return {
            "analyst": {"insight": f"Nobody asks ({self.number})."},
            "diagnoser": {"diagnosis": "Few ask.", "assertions": []},
            "recommender": {"operations": [{"op": "modify", "target": "ask-first", "intent": "ask"}]},
            "author": {"operations": [change]},
        }[stage]
