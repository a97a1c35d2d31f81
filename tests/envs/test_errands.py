"""Errands: the strategy wins every task, luck does not, and splits share no task."""

from __future__ import annotations

import random

import pytest

from threefold.envs import Environment, Task
from threefold.envs.errands import TURNS, Errands, parse, tasks
from threefold.trajectory import Opening, Trajectory, Turn

ALL = [task for split in ("train", "seen", "unseen") for task in tasks(split)]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.id)
def test_the_strategy_wins_every_task(task: Task) -> None:
    environment = Errands()
    assert isinstance(environment, Environment)
    for seed in range(4):
        environment.reset(task, seed, 0)
        *before, last = environment.solution
        assert not any(environment.step(action).done for action in before)
        end = environment.step(last)
        assert end.success is True
        assert end.terminated


def test_splits_are_disjoint_and_the_unseen_one_has_other_words_and_a_new_kind() -> None:
    train, seen, unseen = (
        {(t.fields["kind"], t.fields["thing"], t.fields["container"]) for t in tasks(split)}
        for split in ("train", "seen", "unseen")
    )
    assert (len(train), len(seen), len(unseen)) == (48, 16, 36)
    assert not train & seen
    assert {word for _, *words in train for word in words} == {w for _, *words in seen for w in words}
    assert not {word for _, *words in train for word in words} & {w for _, *ws in unseen for w in ws}
    assert {kind for kind, *_ in train} == {"find", "locked"}
    assert {kind for kind, *_ in unseen} == {"find", "locked", "both"}
    with pytest.raises(ValueError, match="train, seen and unseen"):
        tasks("test")  # type: ignore[arg-type]


def test_luck_wins_a_third_of_find_and_nothing_else() -> None:
    wins = {"find": 0, "locked": 0, "both": 0}
    chance = random.Random(0)
    environment = Errands()
    for kind in wins:
        for seed in range(600):
            environment.reset(Task("t", {"kind": kind, "thing": "ring", "container": "safe"}), seed, 0)
            opening = [a for a in environment.admissible if a.startswith("open")]
            wins[kind] += bool(environment.step(chance.choice(opening)).success)
    assert wins["locked"] == wins["both"] == 0
    assert abs(wins["find"] / 600 - 1 / 3) < 0.08


def test_members_begin_alike_and_the_place_is_not_in_the_opening() -> None:
    task = tasks("train")[0]
    one, two = Errands(), Errands()
    assert one.reset(task, 5, 0) == two.reset(task, 5, 7)
    assert one.step("ask") == two.step("ask")
    places = {(e := Errands()).reset(task, seed, 0) and e.solution[-1] for seed in range(40)}
    assert len(places) >= 5


def test_actions_outside_those_offered_cost_a_turn_and_nothing_else() -> None:
    environment = Errands()
    environment.reset(tasks("train")[0], 0, 0)
    answer = environment.step("dance\nwildly")
    assert answer.rewards == {"valid": 0.0}
    assert answer.messages[0]["content"].startswith("Nothing happens.\nActions: ask, get key, look, open ")
    for _ in range(TURNS - 2):
        assert not environment.step("look").done
    last = environment.step("")
    assert last.truncated
    assert last.success is False


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("ask", "ask"),
        ("  Get   Key.\nand more", "get key"),
        ("I think so. <action>open red</action>", "open red"),
        ("<action>look</action> no, <ACTION>ask</ACTION>", "ask"),
        ("Action: 'open blue'", "open blue"),
        ("", ""),
        ("x" * 5000, "x" * 100),
    ],
)
def test_what_the_agent_said_is_read(text: str, action: str) -> None:
    assert parse(text) == action


def test_scores_of_whole_episodes() -> None:
    turns = (Turn("ask", rewards={"valid": 1.0}), Turn("?", rewards={"valid": 0.0}))
    won, lost = (Trajectory("t", 0, 0, 0, "e", Opening(""), (), turns, success=s) for s in (True, None))
    scores = Errands().score([won, lost])
    assert [dict(s.rewards) for s in scores] == [
        {"success": 1.0, "valid": 0.5},
        {"success": 0.0, "valid": 0.5},
    ]
