"""A healthy run is silent; each trouble is named once, with its figures and a remedy."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.training.callbacks import MetricsWriter
from threefold.training.diagnostics import skill_use
from threefold.training.run_directory import RunDirectory
from threefold.training.warnings import WINDOW, Watch, alarms
from threefold.trajectory import Opening, Trajectory, Turn

HEALTHY = {
    "reward": 0.5,
    "entropy": 0.5,
    "kl": 0.01,
    "certainty/confidence_right": 0.9,
    "certainty/confidence_wrong": 0.5,
    "turns/violations": 0.05,
    "skills/bank_size": 3.0,
    "skills/fired": 0.5,
    "completions/clipped_ratio": 0.1,
    "signal/dead_all_right": 0.3,
    "signal/dead_all_wrong": 0.2,
    "rewards/accuracy/std": 0.4,
    "rewards/format/std": 0.2,
}


def course(name: str, start: float, end: float, steps: int = 20) -> list[dict[str, float]]:
    """A healthy run in which one figure goes from one value to another, in a straight line."""
    return [{**HEALTHY, name: start + (end - start) * i / (steps - 1)} for i in range(steps)]


def causes(history: list[dict[str, float]], **weights: float) -> list[str]:
    return [alarm.cause for alarm in alarms(history, weights)]


@pytest.mark.parametrize(
    ("name", "start", "end", "cause"),
    [
        ("entropy", 1.0, 0.05, "entropy collapse"),
        ("certainty/confidence_wrong", 0.5, 1.0, "hallucinated certainty"),
        ("turns/violations", 0.05, 0.4, "vetoes rising"),
        ("skills/fired", 0.0, 0.0, "skills never fire"),
        ("kl", 0.0, 0.5, "KL drift"),
        ("signal/kl_initial", 0.0, 0.5, "KL drift"),
        ("completions/clipped_ratio", 0.5, 0.5, "truncation"),
        ("signal/dead_all_wrong", 1.0, 0.95, "all wrong"),
        ("signal/dead_all_right", 0.5, 1.0, "all right"),
        ("rewards/accuracy/std", 40.0, 40.0, "one reward dominates"),
    ],
)
def test_each_trouble_is_named_alone(name: str, start: float, end: float, cause: str) -> None:
    (alarm,) = alarms(course(name, start, end))
    assert alarm.cause == cause
    assert alarm.text
    assert alarm.remedy
    assert alarms(course(name, start, end)[: WINDOW - 1]) == []


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("entropy", 1.0, 0.4),  # sharpening is what learning looks like
        ("entropy", 0.05, 1.0),
        ("certainty/confidence_wrong", 0.95, 0.91),  # above that of right answers, but falling
        ("certainty/confidence_wrong", 0.3, 0.8),  # rising, but below
        ("turns/violations", 0.5, 0.1),
        ("kl", 0.3, 0.35),  # far, but it stays there
        ("kl", 0.001, 0.05),
        ("completions/clipped_ratio", 0.6, 0.0),
        ("signal/dead_all_wrong", 1.0, 0.1),
    ],
)
def test_what_is_no_trouble_is_not_warned_of(name: str, start: float, end: float) -> None:
    assert causes(course(name, start, end)) == []


def test_figures_are_the_means_of_the_first_and_the_newest_steps() -> None:
    history = [{"entropy": 1.0}] * 5 + [{"entropy": 9.0}] * 3 + [{"entropy": 0.2}] * 5
    (alarm,) = alarms(history)
    assert "fell from 1 to 0.2 nats" in alarm.text


def test_a_small_weight_is_a_decision_and_a_zero_weight_no_channel() -> None:
    history = [{"rewards/accuracy/std": 0.4, "rewards/format/std": 0.2}] * 6
    assert causes(history, accuracy=1.0, format=0.1) == []
    assert causes(history, accuracy=100.0, format=0.0) == []
    lopsided = [{"rewards/goal/std": 4.0, "rewards/fit/std": 0.1, "rewards/term/std": 0.1}] * 6
    assert causes(lopsided, goal=1.0, fit=1.0, term=1.0) == ["one reward dominates"]
    assert "95% of what the rewards differ by is goal: fit, term" in alarms(lopsided)[0].text
    assert causes(lopsided, goal=1.0, fit=10.0, term=10.0) == []


def test_skills_fire_or_there_are_none() -> None:
    steps = [{"skills/bank_size": 2.0, "skills/fired": 0.0}] * 10
    assert causes(steps) == ["skills never fire"]
    assert causes([{**step, "skills/bank_size": 0.0} for step in steps]) == []
    assert causes([*steps[:-1], {**steps[0], "skills/fired": 0.1}]) == []


def test_share_of_turns_with_a_skill_in_their_prompt() -> None:
    def episode(bank: str | None, *skills: tuple[str, ...]) -> Trajectory:
        turns = tuple(Turn("", skills=names) for names in skills)
        return Trajectory("t", 0, 0, 0, "", Opening(""), (), turns, skill_version=bank)

    assert skill_use([episode("v1", ("a",), ()), episode("v1", (), ()), episode(None, ())]) == {
        "skills/fired": 0.25
    }
    assert skill_use([episode(None, ())]) == {}


@given(st.lists(st.dictionaries(st.sampled_from(list(HEALTHY)), st.floats(0, 1)), max_size=25))
def test_any_history_is_read_and_each_cause_is_told_once(history: list[dict[str, float]]) -> None:
    watch, told = Watch(), []
    for step in history:
        told += [alarm.cause for alarm in watch.step(step)]
    assert len(told) == len(set(told))
    assert set(causes(history)) <= set(told)


@pytest.mark.parametrize("turns", [{}, {"turns/per_episode": 4.0}])
def test_a_watch_over_all_steps_says_what_the_whole_history_says(turns: dict[str, float]) -> None:
    history = [{**step, **turns} for step in course("signal/dead_all_wrong", 1.0, 1.0)]
    watch = Watch()
    told = [alarm for step in history for alarm in watch.step(step)]
    assert told == alarms(history, {})
    assert ("ispo" in told[0].remedy) is not bool(turns)  # in dialogues other rewards may teach


def test_what_is_not_finite_or_no_number_is_left_out() -> None:
    watch = Watch()
    for step in course("kl", 0.0, 0.5):
        assert watch.step({**step, "kl": float("nan"), "entropy": "much"}) == []


def test_metrics_keep_a_warning_at_the_step_in_which_it_came_up(tmp_path: Any) -> None:
    run = RunDirectory(tmp_path / "run")
    writer = MetricsWriter(run, lambda: "as usual")
    args = SimpleNamespace(reward_weights=[1.0, 0.1])
    for number, step in enumerate(course("entropy", 1.0, 0.01, steps=20), 1):
        logs = {"loss": 0.0, **step, "rewards/accuracy/mean": 0.5, "rewards/format/mean": 0.5}
        writer.on_log(args, SimpleNamespace(is_world_process_zero=True, global_step=number), None, logs)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    (warned,) = [line for line in lines if "warnings" in line]
    assert warned["warnings"][0].startswith("entropy fell from ")
    assert 10 <= warned["step"] < 20
