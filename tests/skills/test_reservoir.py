"""The reservoir: bounded, one place a (task, arm, outcome), oldest out first, mixed tasks sampled first."""

from __future__ import annotations

import json

import numpy as np
from errand_play import experiences, play, wanderer

from threefold.envs.errands import tasks
from threefold.skills.bank import Bank
from threefold.skills.reservoir import Experience, Reservoir, experience
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger
from threefold.trajectory import Turn


def entry(task: str, success: bool, step: int = 0, arm: str = "old") -> Experience:
    return Experience(task, "Do it.", arm, "v0", step, success, (Turn("x", "x", skills=("s",)),))  # type: ignore[arg-type]


def test_a_newer_episode_takes_the_place_and_the_turn_of_the_older() -> None:
    reservoir = Reservoir(capacity=2)
    reservoir.add(entry("a", True, 1))
    reservoir.add(entry("b", True, 2))
    reservoir.add(entry("a", True, 3))  # replaces the first, and is now the newest
    assert [(e.task_id, e.step) for e in reservoir.experiences] == [("b", 2), ("a", 3)]
    reservoir.add(entry("a", True, 4, arm="new"))
    assert [(e.task_id, e.step) for e in reservoir.experiences] == [("a", 3), ("a", 4)]


def test_tasks_with_both_outcomes_come_first() -> None:
    reservoir = Reservoir()
    for e in (entry("won", True), entry("lost", False), entry("both", True), entry("both", False)):
        reservoir.add(e)
    groups = reservoir.sample_groups(np.random.default_rng(0))
    assert [group[0].task_id for group in groups] == ["both", "lost", "won"]
    assert len(groups[0]) == 2
    assert len(reservoir.sample_groups(np.random.default_rng(0), groups=1)) == 1


def test_plain_json_loses_nothing() -> None:
    reservoir = Reservoir(capacity=50)
    for e in experiences(steps=1):
        reservoir.add(e)
    copy = Reservoir.from_dict(json.loads(json.dumps(reservoir.to_dict())))
    assert copy.experiences == reservoir.experiences
    draws = [[g[0].task_id for g in r.sample_groups(np.random.default_rng(3))] for r in (reservoir, copy)]
    assert draws[0] == draws[1]


def test_an_experience_keeps_what_was_parsed_and_what_was_shown_then() -> None:
    bank = Bank(
        "v2",
        (
            Skill("always", "Any time.", "Take care."),
            Skill("opened", "You looked.", "Ask.", Trigger("action_pattern", "look")),
        ),
    )
    trajectory = play(tasks("train")[0], bank, lambda c, a, s, t: "look", seed=1, member=0)
    kept = experience(trajectory, step=9, arm="new", version="v2")
    assert kept.actions == ["look"] * 6
    assert [turn.skills for turn in kept.turns] == [("always",)] + [("always", "opened")] * 5
    assert kept.showed("opened")
    assert not kept.showed("other")
    # the skills' own text is not taken for what the environment said
    assert kept.task.startswith("Errand: fetch")
    assert not any("skill" in turn.observation for turn in kept.turns)
    assert any("available_skills" in turn.observation for turn in trajectory.turns)


def test_random_play_is_the_same_every_time() -> None:
    assert experiences(steps=1) == experiences(steps=1, policy=wanderer)
