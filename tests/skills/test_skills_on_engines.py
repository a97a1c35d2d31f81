"""Skills on the transcripts of real engines: triggers on parsed actions, a creator, and a training run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engines import needs
from threefold.cli import main
from threefold.envs.base import Environment, Observation, Task
from threefold.envs.gymnasium_text import GymnasiumText
from threefold.envs.scienceworld import ScienceWorld
from threefold.envs.textworld_express import TextWorldExpress
from threefold.skills.bank import Add, Bank, apply
from threefold.skills.creator import Evidence
from threefold.skills.offline_creator import OfflineCreator
from threefold.skills.placement import SkilledEnvironment
from threefold.skills.reservoir import Experience, Reservoir, experience
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger
from threefold.trajectory import Opening, Trajectory, Turn, read_jsonl
from tiny_parts import tiny_model, tiny_tokenizer

COIN = {"games": ["coin"], "parameters": {"coin": {"numLocations": 2, "numDistractorItems": 0}}, "turns": 8}
LAKE = {
    "id": "FrozenLake-v1",
    "kwargs": {"is_slippery": False, "render_mode": "ansi"},
    "actions": ["left", "down", "right", "up"],
}


def skill(name: str, pattern: str = "", kind: Any = "action_pattern") -> Skill:
    return Skill(name, "You have just acted.", "Go on.", trigger=Trigger(kind, pattern))


@pytest.mark.parametrize(
    ("kind", "options", "said", "pattern", "invalid"),
    [
        pytest.param(
            TextWorldExpress,
            COIN,
            "I look. <action>Look around.</action>",
            "look .*",
            "look under the bed",
            marks=needs("textworld_express", "textworld"),
        ),
        pytest.param(
            ScienceWorld,
            {"turns": 8},
            "<action>Go to Kitchen</action>",
            "go to .*",
            "go to mars",
            marks=needs("scienceworld", "scienceworld"),
        ),
        pytest.param(
            GymnasiumText,
            LAKE,
            "Action: Right.",
            "^right$",
            "right turn",
            marks=needs("gymnasium", "gymnasium", runs_on_java=False),
        ),
    ],
)
def test_a_skill_fires_on_the_action_that_was_read(
    kind: Any, options: dict[str, Any], said: str, pattern: str, invalid: str
) -> None:
    source = kind(**options)
    bank = Bank("v1", (skill("at-first", kind="beginning"), skill("after-it", pattern)))
    environment = SkilledEnvironment(source(), bank)
    opening = environment.reset(source.tasks("train", 1, 0)[0], 0, 0)
    assert opening.skills == ("at-first",)
    assert 'skill name="at-first"' in opening.messages[0]["content"]
    other = environment.step("wait wait")
    assert other.skills == ()
    seen = environment.step(said)
    assert seen.skills == ("after-it",)
    assert 'skill name="after-it"' in seen.messages[-1]["content"]
    # what was said counts, whether it could be done or not, as long as the pattern finds it
    assert environment.step(invalid).skills == (() if pattern.endswith("$") else ("after-it",))
    environment.close()
    getattr(source, "close", lambda: None)()


def episode(game: Environment, task: Task, bank: Bank, chance: random.Random, member: int) -> Trajectory:
    """A player who chooses at random."""
    environment = SkilledEnvironment(game, bank)
    seen: Observation = environment.reset(task, 0, member)
    opening, turns = Opening(seen.messages[0]["content"]), []
    while not seen.done:
        action = chance.choice(game.admissible)  # type: ignore[attr-defined]
        skills, seen = seen.skills, environment.step(action)
        text = seen.messages[-1]["content"]
        turns.append(Turn(action, seen.action, text, dict(seen.rewards), dict(seen.state), skills=skills))
    return Trajectory(task.id, 0, member, 0, "t", opening, (), tuple(turns), success=seen.success)


@pytest.fixture(scope="module")
def met() -> list[Experience]:
    """What a random player meets who looks for a coin behind doors: 20 houses, 12 times each."""
    source, chance = TextWorldExpress(**COIN), random.Random(0)
    game = source()
    entries = [
        experience(episode(game, task, Bank(), chance, member), step=member, arm="old", version="v0")
        for task in source.tasks("train", 20, 0)
        for member in range(12)
    ]
    game.close()
    source.close()
    return entries


def evidence(entries: list[Experience]) -> Evidence:
    reservoir = Reservoir()
    for entry in entries:
        reservoir.add(entry)
    return Evidence(4, Bank(), tuple(entries), tuple(reservoir.sample_groups(np.random.default_rng(0))))


@needs("textworld_express", "textworld")
def test_the_offline_creator_writes_a_skill_in_the_games_own_words(met: list[Experience]) -> None:
    wins = sum(entry.success for entry in met)
    assert 0 < wins < len(met)
    creation = OfflineCreator()(evidence(met))
    assert creation == OfflineCreator()(evidence(met))
    (added,) = [operation for operation in creation.operations if isinstance(operation, Add)]
    said = {action.split()[0] for entry in met for action in entry.actions}
    words = {
        word for word in ("move", "open", "close", "look", "take", "inventory") if word in added.skill.body
    }
    assert words
    assert words <= said
    bank = apply(Bank(), creation.operations, "v1")
    source, chance = TextWorldExpress(**COIN), random.Random(1)
    played = [episode(source(), task, bank, chance, 0) for task in source.tasks("seen", 4, 0)]
    source.close()
    assert any(added.skill.name in turn.skills for e in played for turn in e.turns)


@needs("textworld_express", "textworld")
def test_a_training_run_with_skills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles are tested inside the groups of games that are played in two processes."""
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))
    tiny_model(max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    simon = {"gameLength": 2, "numDistractors": 2}
    recipe = {
        "model": {"name": str(tmp_path / "model")},
        "environment": {
            "name": "textworld",
            "turns": 2,
            "turn_tokens": 4,
            "completion_tokens": 400,
            "options": {"games": ["simonsays"], "parameters": {"simonsays": simon}},
        },
        "skills": {"creator": "placebo", "min_reservoir": 4, "period": 2, "min_episodes": 8, "capacity": 2},
        "training": {"steps": 4, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-3},
        "evaluation": {"before": False, "after": False},
        "run": {"dir": str(tmp_path / "run"), "threads": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(path), "--quiet"]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("episodes/failed", 0.0) for row in metrics) == 0
    episodes = [record.trajectory for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl")]
    assert len(episodes) == 32
    assert {e.environment for e in episodes} == {"TextWorldGame"}
    assert all(e.opening.text.count("Simon says") for e in episodes)
    for group in range(8):
        assert len({e.task_id for e in episodes[4 * group : 4 * group + 4]}) == 1
    assert any(turn.skills for e in episodes for turn in e.turns)  # a bundle is being tried
