"""ScienceWorld, the real engine: tasks can be done, splits are its own, a dead process is survived."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pytest

from engines import java_processes, needs
from threefold.environments import named_environment
from threefold.envs import Environment, Task
from threefold.envs.base import Message
from threefold.envs.java import EngineDied
from threefold.envs.pool import EnvironmentPool
from threefold.envs.scienceworld import (
    ELECTRICITY,
    KINDS,
    NOT_UNDERSTOOD,
    UNSEEN_KINDS,
    VARIATIONS,
    ScienceTask,
    ScienceWorld,
)
from threefold.recipe import RecipeError, parse_recipe

pytestmark = needs("scienceworld", "scienceworld")

LIVING = Task("find-living-thing-0", {"kind": "find-living-thing", "variation": 0})
WAY = (
    "go to kitchen",
    "go to outside",
    "Focus on butterfly egg",
    "pick up butterfly egg",
    "go to kitchen",
    "move butterfly egg to red box",
)
"""Does it."""


@pytest.fixture(scope="module")
def source() -> Iterator[ScienceWorld]:
    source = ScienceWorld(turns=12)
    yield source
    source.close()


@pytest.fixture
def task(source: ScienceWorld) -> Iterator[ScienceTask]:
    task = source()
    yield task
    task.close()


def test_a_task_can_be_done(task: ScienceTask) -> None:
    assert isinstance(task, Environment)
    opening = task.reset(LIVING, 0, 0)
    text = opening.messages[0]["content"]
    assert text.startswith("Your task is to find a(n) living thing.")
    assert "This room is called the hallway." in text
    assert "Actions (OBJ is the name of a thing): activate OBJ, " in text
    *seen, end = [task.step(action) for action in WAY]
    assert not any(o.done for o in seen)
    assert (end.terminated, end.success, end.state["score"]) == (True, True, 1.0)
    assert all(o.rewards["valid"] == 1.0 for o in [*seen, end])
    gains = sum(o.rewards["gain"] for o in [*seen, end])
    assert opening.state["score"] + gains == pytest.approx(1.0)
    assert seen[2].action == "focus on butterfly egg"


def test_focusing_on_the_wrong_thing_ends_the_task_at_nothing(task: ScienceTask) -> None:
    task.reset(LIVING, 0, 0)
    assert task.step("go to kitchen").state["score"] > 0
    lost = task.step("focus on fridge")
    assert (lost.terminated, lost.success, lost.state["score"]) == (True, False, 0.0)
    assert lost.rewards["gain"] < 0


def test_what_is_not_understood_costs_a_turn_and_nothing_else(task: ScienceTask) -> None:
    task.reset(LIVING, 0, 0)
    for said in ("fly", "", "open", "\x00 ünï 🦋\n" * 50, "go to mars"):
        seen = task.step(said)
        assert seen.rewards == {"gain": 0.0, "valid": 0.0}
        assert seen.messages[0]["content"] == NOT_UNDERSTOOD
    for _ in range(6):
        assert not task.step("look around").done
    last = task.step("look around")
    assert (last.truncated, last.success) == (True, False)


def test_admissible_actions_are_understood(task: ScienceTask) -> None:
    task.reset(LIVING, 0, 0)
    actions = task.admissible
    assert {"look around", "go to kitchen"} <= {*actions}
    assert task.step(actions[0]).rewards["valid"] == 1.0


def test_kinds_and_variations_are_the_engines(source: ScienceWorld) -> None:
    engine = source._engine
    world = engine.game()
    assert set(engine.call(world, "getTaskNames")) == set(VARIATIONS)
    assert sum(sum(parts) for parts in VARIATIONS.values()) == 7207
    for kind in ("boil", "identify-life-stages-2", "power-component", "find-plant"):
        engine.call(world, "load", kind, 0, "easy", False)
        found = [
            list(engine.call(world, method))
            for method in ("getVariationsTrain", "getVariationsDev", "getVariationsTest")
        ]
        assert tuple(map(len, found)) == VARIATIONS[kind]
        assert [*chain.from_iterable(found)] == [*range(sum(VARIATIONS[kind]))]


def test_splits_share_no_variation_and_the_unseen_one_has_other_kinds(source: ScienceWorld) -> None:
    tasks = {split: source.tasks(split, 10_000, 0) for split in ("train", "dev", "seen", "unseen")}
    kinds = {split: {t.fields["kind"] for t in found} for split, found in tasks.items()}
    assert kinds["train"] == kinds["dev"] == kinds["seen"] == set(KINDS)
    assert kinds["unseen"] == set(UNSEEN_KINDS)
    assert len(KINDS) + len(UNSEEN_KINDS) == 30
    ids = [t.id for found in tasks.values() for t in found]
    assert len(ids) == len(set(ids))
    assert len(tasks["train"]) == sum(VARIATIONS[kind][0] for kind in KINDS)
    assert len({t.fields["kind"] for t in source.tasks("train", 19, 3)}) == 19
    assert source.tasks("test", 7, 0) == source.tasks("unseen", 7, 0)
    paper = ScienceWorld(**ELECTRICITY)
    assert {t.fields["kind"] for t in paper.tasks("unseen", 99, 0)} == set(ELECTRICITY["unseen_kinds"])


def test_members_play_the_same_task_and_leave_each_other_alone(source: ScienceWorld) -> None:
    others = (
        "go to kitchen",
        "open fridge",
        "go to outside",
        "pick up butterfly egg",
        "eat butterfly egg",
        "wait",
    )
    one = source()
    alone = [one.reset(LIVING, 0, 0), *(one.step(action) for action in WAY)]
    first, second = source(), source()
    beside = [first.reset(LIVING, 1, 0)]
    assert second.reset(LIVING, 9, 5) == alone[0]
    for action, other in zip(WAY, others, strict=True):
        second.step(other)
        beside.append(first.step(action))
    assert beside == alone


def solutions(cases: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    """The engine's own, played through in a Java process of their own."""
    source = ScienceWorld(turns=200)
    game = source()
    try:
        tasks = [Task(f"{kind}-{number}", {"kind": kind, "variation": number}) for kind, number in cases]
        return {case: game.solution(task) for case, task in zip(cases, tasks, strict=True)}
    finally:
        source.close()


@pytest.mark.slow
def test_actions_have_the_same_answers_in_every_play_and_process() -> None:
    """Of kinds in which they had not: by what is listed first, when a lamp lights, what is measured."""
    cases = [
        ("inclined-plane-determine-angle", 0),
        ("chemistry-mix-paint-tertiary-color", 19),
        ("test-conductivity-of-unknown-substances", 0),
        ("use-thermometer", 271),
    ]
    one = solutions(cases)
    assert all(success for success, _ in one.values())
    assert solutions(cases[::-1]) == one


def test_demonstrations_are_the_engines_solutions() -> None:
    source = ScienceWorld(kinds=("find-non-living-thing", "power-component"), turns=15)
    shown = source.demonstrations("train", 2, 0)
    assert source._engine.process is None  # it was not running before
    tasks = source.tasks("train", 2, 0)
    assert len(shown) == len(tasks)
    game = source()
    for dialogue, task in zip(shown, tasks, strict=True):
        seen = game.reset(task, 5, 3)
        assert [*seen.messages] == dialogue[:1]
        heard: list[Message] = []
        for message in dialogue[1:]:
            if message["role"] == "assistant":
                assert heard in ([], [*seen.messages])
                seen, heard = game.step(message["content"]), []
            else:
                heard.append(message)
        assert (seen.success, heard) == (True, [])
    source.close()


@pytest.mark.slow
def test_demonstrations_are_the_same_in_another_process_and_none_is_cut_off() -> None:
    kinds = ("find-non-living-thing", "grow-plant")  # of 5 to 7 actions, and of 29 and more
    shown = ScienceWorld(kinds=kinds, turns=12).demonstrations("train", 4, 0)
    assert ScienceWorld(kinds=kinds, turns=12).demonstrations("train", 4, 0) == shown
    assert all("non-living thing" in dialogue[0]["content"] for dialogue in shown)
    with pytest.raises(ValueError, match=r"no solution of a train task of grow-plant ends within 12 turns"):
        ScienceWorld(kinds=["grow-plant"], turns=12).demonstrations("train", 4, 0)


def test_a_dead_java_process_ends_its_tasks_and_the_next_ones_play_in_a_new_one() -> None:
    before = set(java_processes())
    source = ScienceWorld()
    task = source()
    task.reset(LIVING, 0, 0)
    (old,) = set(java_processes()) - before
    os.kill(old, signal.SIGKILL)
    with pytest.raises(EngineDied, match="the Java process of ScienceWorld has died"):
        task.step("look around")
    task.reset(LIVING, 0, 0)
    assert task.step("look around").rewards["valid"] == 1.0
    source.close()
    assert set(java_processes()) == before


def test_a_recipe_names_it() -> None:
    recipe = parse_recipe({"environment": {"name": "scienceworld", "turns": 7, "options": ELECTRICITY}})
    environment = named_environment(recipe)
    assert isinstance(environment.make, EnvironmentPool)
    assert environment.turn_channels == ("gain",)
    (task,) = environment.tasks("unseen", 1, 0)
    assert environment.groups(task) == ("power-component-renewable-vs-nonrenewable-energy",)
    environment.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ["boiling"]}, "kinds: there is no kind of task 'boiling'; did you mean 'boil'"),
        ({"kinds": ["boil"], "unseen_kinds": ["boil"]}, "boil is in kinds and in unseen_kinds"),
        ({"success_score": 70}, r"success_score in \(0, 1\]"),
        ({"kinds": []}, "kinds must name one at least"),
    ],
)
def test_what_cannot_be_played_is_refused(options: dict[str, Any], said: str) -> None:
    recipe = parse_recipe({"environment": {"name": "scienceworld", "options": options}})
    with pytest.raises(RecipeError, match=said):
        named_environment(recipe)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scienceworld", None)
    with pytest.raises(RecipeError, match=r"pip install 'threefold\[scienceworld\]'"):
        named_environment(parse_recipe({"environment": {"name": "scienceworld"}}))
