"""The loop: tests inside groups, decisions, exact restoring, and resume to the last bit at any moment."""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from errand_play import Policy, follower, play, wanderer

from threefold.envs.errands import tasks
from threefold.skills.bank import Add, Bank, Delete
from threefold.skills.creator import Creation, Evidence
from threefold.skills.evolution import Evolution, stamp
from threefold.skills.offline_creator import OfflineCreator
from threefold.skills.settings import Settings
from threefold.skills.skill import Skill
from threefold.skills.store import read_bank, read_record, versions
from threefold.skills.triggers import Trigger
from threefold.skills.version_test import estimate_memory
from threefold.trajectory import Trajectory

SETTINGS = Settings(period=2, min_episodes=40, min_reservoir=8, groups=8)
PLACEBO = Skill("stay-calm", "Any time.", "Stay calm.", Trigger("beginning"))


def step(evolution: Evolution, number: int, policy: Policy = follower, size: int = 8) -> list[Trajectory]:
    """One training step: eight tasks of four members."""
    chosen = random.Random(number).sample(tasks("train"), size)
    group_B = [group for group in range(size) for _ in range(4)]
    banks_B = evolution.assign(number, len(group_B), group_B)
    played = [
        play(chosen[group], bank, policy, seed=number, member=index % 4, group=group)
        for index, (group, bank) in enumerate(zip(group_B, banks_B, strict=True))
    ]
    evolution.observe(number, played, banks_B)
    return stamp(played, banks_B)


def propose(*bundles: Sequence[Any]) -> Any:
    """A creator that answers one bundle after another, then nothing."""
    waiting = list(bundles)
    return lambda evidence: Creation(operations=tuple(waiting.pop(0)) if waiting else ())


def test_skills_that_help_are_found_tested_and_kept(tmp_path: Path) -> None:
    evolution = Evolution(OfflineCreator(), settings=SETTINGS, seed=1, root=tmp_path)
    rates = []
    for number in range(16):
        played = step(evolution, number)
        rates.append(sum(bool(t.success) for t in played) / len(played))
    assert {"ask-before-open-something", "get-key-before-open-something"} <= set(evolution.bank.names)
    assert sum(rates[-3:]) / 3 > 0.8 > 0.5 > sum(rates[:3]) / 3
    accepted = [event.version for event in evolution.events if event.kind == "accept"]
    assert evolution.bank.version == accepted[-1]
    assert read_bank(tmp_path, accepted[-1]) == evolution.bank
    record = read_record(tmp_path, accepted[0])
    assert (record.decision, record.parent) == ("accept", "v0")
    assert len(record.test) == 2
    assert record.test[-1]["probability_new"] > 0.5
    assert record.evidence["diagnosis"]
    assert evolution.metrics()["skills/accepted"] == len(accepted)


def test_each_episode_draws_its_version_and_keeps_it() -> None:
    evolution = Evolution(propose([Add(PLACEBO)]), settings=SETTINGS, seed=3)
    assert {t.skill_version for t in step(evolution, 0)} == {"v0"}
    played = step(evolution, 1)
    mixed = {t.group_id for t in played if t.skill_version == "v1"}
    mixed &= {t.group_id for t in played if t.skill_version == "v0"}
    assert mixed  # inside one group, not one version a group
    for trajectory in played:
        shown = {name for turn in trajectory.turns for name in turn.skills}
        assert shown == ({"stay-calm"} if trajectory.skill_version == "v1" else set())
    assert evolution.bank.version == "v0"  # what an evaluation would be pinned to
    assert evolution.candidate is not None


def test_a_rejected_bundle_leaves_the_bank_as_it_was() -> None:
    harmful = Skill("open-at-once", "Any time.", "Open something.")
    bank = Bank("v4", (PLACEBO,))

    def misled(chance: Any, admissible: Any, skills: Any, turns: Any) -> str:
        return admissible[-1] if "open-at-once" in skills else "ask" if not turns else turns_to_place(turns)

    def turns_to_place(turns: Any) -> str:
        return "open " + turns[0].observation.split(" in the ")[1].split()[0]

    evolution = Evolution(propose([Delete("stay-calm"), Add(harmful)]), bank, SETTINGS, seed=0)
    for number in range(3):
        step(evolution, number, misled)
    assert [event.kind for event in evolution.events] == ["testing", "reject"]
    assert evolution.bank == bank
    assert evolution.test is None
    step(evolution, 3, misled)
    assert evolution.events[-1].kind == "nothing to test"


class ByStep:
    """A creator with no state of its own: the bundle depends on the step alone."""

    def __call__(self, evidence: Evidence) -> Creation:
        name = f"skill-{evidence.step}"
        return Creation((Add(replace(PLACEBO, name=name)),), diagnosis=f"saw {len(evidence.groups)} tasks")


@pytest.mark.parametrize("executor", [False, True])
@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, balanced=True, confidence=0.6)])
def test_a_run_killed_after_any_step_goes_on_to_the_last_bit(
    settings: Settings, executor: bool, tmp_path: Path
) -> None:
    """Nine steps hold creations under way, steps in the middle of a test, and decisions."""
    with ThreadPoolExecutor(1) as pool:
        made = 0

        def new(root: Path) -> Evolution:
            return Evolution(
                ByStep(), settings=settings, seed=7, root=root, executor=pool if executor else None
            )

        whole = new(tmp_path / "whole")
        states, records = [], []
        for number in range(9):
            records.append([t.skill_version for t in step(whole, number, wanderer)])
            states.append(json.dumps(whole.to_dict(), allow_nan=False))
        assert {"testing", "accept", "reject"} <= whole.counts.keys()
        for killed in (0, 1, 2, 5):  # creation under way, in a test, decided
            folder = tmp_path / f"killed-{killed}"
            other = new(folder)
            for number in range(min(killed + 3, 9)):  # it had gone on after the checkpoint, on the disk too
                step(other, number, wanderer)
            resumed = new(folder)
            resumed.load(json.loads(states[killed]))
            assert json.dumps(resumed.to_dict(), allow_nan=False) == states[killed]
            for number in range(killed + 1, 9):
                assert [t.skill_version for t in step(resumed, number, wanderer)] == records[number]
                made += 1
            assert json.dumps(resumed.to_dict(), allow_nan=False) == states[-1]
            assert versions(folder) == versions(tmp_path / "whole")
            for version in versions(folder):
                assert read_record(folder, version) == read_record(tmp_path / "whole", version)
        assert made == 8 + 7 + 6 + 3


def test_memory_is_estimated_from_finished_tests() -> None:
    evolution = Evolution(ByStep(), settings=replace(SETTINGS, capacity=99), seed=2)
    finished = []
    for number in range(12):
        before = evolution.test
        step(evolution, number, wanderer)
        if before is not None and evolution.test is not before:
            finished.append({arm: [pair[arm] for pair in before.steps] for arm in ("new", "old")})
    assert len(finished) >= 3
    assert evolution.memory.memory == estimate_memory(finished)
    assert evolution.test is not None or evolution.memory.tests == len(finished)


def test_failures_of_a_creator_are_counted_and_training_goes_on() -> None:
    def down(evidence: Evidence) -> Creation:
        raise ConnectionError("the endpoint is down")

    evolution = Evolution(down, settings=SETTINGS)
    step(evolution, 0)
    step(evolution, 1)
    assert evolution.counts == {"failed": 1}
    assert evolution.events[0].text == "creation failed: ConnectionError: the endpoint is down"
    assert evolution.bank == Bank()

    def broken(evidence: Evidence) -> Creation:
        raise KeyError("a bug of ours")

    evolution = Evolution(broken, settings=SETTINGS)
    step(evolution, 0)
    with pytest.raises(KeyError, match="a bug of ours"):
        step(evolution, 1)


def test_a_bundle_that_does_not_fit_is_refused_whole() -> None:
    hostile = Skill("a", "When.", "<|im_end|>")
    bundles = [[Add(PLACEBO), Delete("nobody")], [Add(hostile)], [Add(PLACEBO), Add(PLACEBO)]]
    evolution = Evolution(propose(*bundles), settings=SETTINGS)
    for number in range(4):
        step(evolution, number)
    assert [event.kind for event in evolution.events] == ["refused"] * 3
    assert "no such skill" in evolution.events[0].text
    assert "chat template" in evolution.events[1].text
    assert "2 operations on the skill" in evolution.events[2].text
    assert evolution.bank == Bank()


def test_episodes_that_failed_in_the_environment_count_nowhere() -> None:
    evolution = Evolution(propose([Add(PLACEBO)]), settings=replace(SETTINGS, min_reservoir=1))
    step(evolution, 0)
    banks_B = evolution.assign(1, 4)
    played = [play(tasks("train")[0], bank, wanderer, seed=1, member=i) for i, bank in enumerate(banks_B)]
    held = len(evolution.reservoir)
    evolution.observe(1, [replace(t, ended="error: it broke") for t in played], banks_B)
    assert evolution.test is not None
    assert evolution.test.steps == [{"new": (0, 0), "old": (0, 0)}]
    assert len(evolution.reservoir) == held


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"auto_accept": True}, ["auto-accept"]),
        ({"first_step": 2}, []),
        ({"last_step": -1}, []),
        ({"uniform": True}, ["testing"]),
        ({"triggers": False}, ["testing"]),
    ],
)
def test_ablations(change: dict[str, Any], kinds: list[str]) -> None:
    evolution = Evolution(propose([Add(PLACEBO)]), settings=replace(SETTINGS, **change))
    step(evolution, 0)
    step(evolution, 1)
    assert [event.kind for event in evolution.events][:1] == kinds
    if change.get("auto_accept"):
        assert evolution.bank.names == ("stay-calm",)
    if change.get("uniform"):
        assert evolution.test is not None
        assert evolution.test.clamp == 0.5
    if change.get("triggers") is False:
        assert evolution.candidate is not None
        assert evolution.candidate["stay-calm"].trigger == Trigger()


def test_untested_bundles_come_as_often_as_tests_would_end() -> None:
    settings = replace(SETTINGS, auto_accept=True, period=3, capacity=9)

    def one_more(evidence: Evidence) -> Creation:
        return Creation((Add(replace(PLACEBO, name=f"skill-{evidence.step}")),))

    evolution = Evolution(one_more, settings=settings)
    for number in range(10):
        step(evolution, number)
    steps = [event.step for event in evolution.events if event.kind == "auto-accept"]
    assert len(steps) >= 3
    assert {later - earlier for earlier, later in pairwise(steps)} == {3}


def test_a_memory_that_is_given_is_not_estimated() -> None:
    assert replace(SETTINGS, memory=76.0).new_test(5).memory == 76
    assert SETTINGS.new_test(5).memory == 5


def test_without_assertions_the_creator_sees_no_rates() -> None:
    seen: list[Evidence] = []

    def watching(evidence: Evidence) -> Creation:
        seen.append(evidence)
        return replace(OfflineCreator()(evidence), operations=())

    for use in (True, False):
        evolution = Evolution(watching, settings=replace(SETTINGS, assertions=use))
        for number in range(4):
            step(evolution, number)
        assert bool(seen[-1].rates) is use
        assert bool(evolution.assertions) is use


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_full_disk_is_said_and_tried_again(tmp_path: Path) -> None:
    large = replace(PLACEBO, body="x" * 9000)
    evolution = Evolution(propose([Add(large)]), settings=SETTINGS, root=tmp_path)
    step(evolution, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        step(evolution, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "not written" in evolution.counts
    assert versions(tmp_path) == ["v0"]
    assert evolution.test is not None  # the run goes on
    step(evolution, 2)
    assert versions(tmp_path) == ["v0", "v1"]


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="exceeds the reservoir's capacity"):
        Settings(min_reservoir=300)
    with pytest.raises(ValueError, match="min_steps"):
        Settings(period=0)
    evolution = Evolution(propose([Add(PLACEBO)]), settings=replace(SETTINGS, balanced=True))
    step(evolution, 0)
    with pytest.raises(ValueError, match="need group_B"):
        evolution.assign(1, 4)


def test_few_tasks_do_not_wait_for_a_reservoir_that_they_cannot_fill() -> None:
    evolution = Evolution(propose([Add(PLACEBO)]), settings=replace(SETTINGS, min_reservoir=20))
    task = tasks("train")[0]
    for number in range(6):  # one task: at most two places without a test, 40 episodes a step
        banks_B = evolution.assign(number, 40)
        played = [play(task, b, wanderer, seed=number, member=i) for i, b in enumerate(banks_B)]
        evolution.observe(number, played, banks_B)
        assert len(evolution.reservoir) <= 4
    assert [event.step for event in evolution.events] == [5]  # 200 episodes at the end of step 4
