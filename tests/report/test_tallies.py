"""Counts over all episodes are right, stay small, and are read without the numbers of the tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from care_runs import care_episode, write_care_run
from hypothesis import given
from hypothesis import strategies as st

from threefold.report.intervals import Moments, change, in_words, student
from threefold.report.reading import Interval
from threefold.report.records import Head, read_head, without_numbers
from threefold.report.sampling import sample_episodes
from threefold.report.tallies import Tally
from threefold.trajectory import Credited, to_json

# Moments and intervals


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(0, 30))
def test_moments_of_two_parts_add_up_to_those_of_the_whole(values: list[float], at: int) -> None:
    whole, one, two = Moments(), Moments(), Moments()
    for number, value in enumerate(values):
        whole.add(value)
        (one if number < at else two).add(value)
    one.merge(two)
    assert one.count == len(values)
    assert one.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert one.squares == pytest.approx(whole.squares)


def test_interval_of_a_mean_is_students() -> None:
    moments = Moments()
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        moments.add(value)
    interval = moments.interval()
    reach = 2.776 * math.sqrt(2.5 / 5)  # t with 4 degrees of freedom; sample variance 2.5
    assert interval.mean == 3
    assert interval.low == pytest.approx(3 - reach, rel=2e-3)
    assert interval.high == pytest.approx(3 + reach, rel=2e-3)
    assert Moments(3, 3.0, 3.0).interval() == Interval(1.0)


@pytest.mark.parametrize(("freedom", "value"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042)])
def test_quantiles_of_students_t_are_those_of_the_tables(freedom: int, value: float) -> None:
    assert student(freedom) == pytest.approx(value, rel=1e-2)


def test_nothing_in_twenty_is_not_never() -> None:
    interval = Moments(20, 0.0, 0.0).interval((0, 1))
    assert (interval.mean, interval.low) == (0, 0)
    assert interval.high == pytest.approx(1 - 0.025 ** (1 / 20))  # 16.8 %, the exact binomial end


def test_a_change_over_the_steps_has_the_sign_that_the_steps_have() -> None:
    rising = change([0.0] * 10 + [1.0] * 10)
    assert rising is not None
    assert (rising.first.mean, rising.last.mean, rising.difference.sign) == (0, 1, 1)
    assert change([1.0] * 9) is None
    flat = change([0.0, 1.0] * 20)
    assert flat is not None
    assert flat.difference.sign == 0


def test_words_name_the_unit() -> None:
    assert in_words(Interval(0.123, 0.1, 0.2), percent=True) == "12.3 % [10.0, 20.0]"
    assert in_words(Interval(-0.05), percent=True, signed=True, points=True) == "-5.0 points"
    assert in_words(Interval(-0.0001), percent=True, signed=True) == "0.0 %"


# Reading


def test_numbers_are_cut_out_and_nothing_else(episode: Callable[..., Credited]) -> None:
    line = to_json(episode(3, 1, 2, success=True))
    short = json.loads(without_numbers(line))
    whole = json.loads(line)
    assert short["trajectory"]["segments"] == short["advantages"] == short["token_texts"] == []
    assert short["token_signals"] == {}
    for key in ("task_id", "turns", "rewards", "success", "task", "opening"):
        assert short["trajectory"][key] == whole["trajectory"][key]
    assert (short["step"], short["signals"], short["split"]) == (3, whole["signals"], "train")


HOSTILE = [
    ', "segments": [',
    '], "turns": [',
    ', "advantages": [',
    '], "outcome_advantage": ',
    '], "signals": {',
    '}, "split": "test"}',
    '\\", "token_signals": {',
    "\\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_cannot_pass_for_a_key(episode: Callable[..., Credited], text: str) -> None:
    record = episode(3, 1, 2, completion=[text, "a", text, text], question=text)
    head = read_head(to_json(record))
    assert head is not None
    assert (head.split, head.step, head.group_id, head.member, head.success) == ("train", 3, 1, 2, True)
    assert len(without_numbers(to_json(record))) < len(to_json(record))


def test_a_line_in_another_form_is_read_whole(episode: Callable[..., Credited]) -> None:
    line = json.dumps(json.loads(to_json(episode(3, 1, 2))), separators=(",", ":"))
    assert without_numbers(line) == line
    assert read_head(line) == read_head(to_json(episode(3, 1, 2)))
    for cut in range(0, len(line), 97):
        assert read_head(line[:cut]) is None


@given(cut=st.integers(1, 2_000))
def test_a_line_that_a_crash_cut_is_no_episode(cut: int) -> None:
    line = to_json(care_episode(1, 0, 0, levels=[2, 1, 0]))
    assert read_head(line[: len(line) - 1 - cut % (len(line) - 1)]) is None


# Tallies


def test_a_record_is_counted_by_rule_subtype_turn_and_state(tmp_path: Path) -> None:
    tallies = sample_episodes(write_care_run(tmp_path / "care", steps=10)).tallies
    whole = tallies.part(0, 1)
    assert whole is not None
    assert tallies.episodes == whole.episodes == 10 * 6 * 4
    assert set(whole.rules) == {"coercion", "unsafe permission"}
    assert sum(tallies.violation_turns.values()) == sum(whole.rules.values())
    assert set(tallies.violation_turns) == {1}
    assert {name: subtype.episodes for name, subtype in tallies.subtypes.items()} == dict.fromkeys(
        ("DLB", "FTD-bv", "VaD"), 80
    )
    assert sum(sum(s.rules.values()) for s in tallies.subtypes.values()) == sum(whole.rules.values())
    early, late = tallies.part(0, 0.2), tallies.part(0.8, 1)
    assert early is not None
    assert late is not None
    assert (early.first, early.last, late.first, late.last) == (1, 2, 9, 10)
    assert early.drops["D"].mean == pytest.approx(0.15, abs=0.1)
    assert late.drops["D"].mean == pytest.approx(0.95, abs=0.1)
    assert whole.levels["D", 0].interval() == Interval(2.0, 2.0, 2.0)
    assert whole.drops["R"].mean == 0


def test_members_of_a_group_are_one_draw() -> None:
    tally = Tally()
    heads = [Head("train", 1, 0, member, None, rule="coercion" if member else None) for member in range(4)]
    tally.add_step([*heads, *(Head("train", 1, 1, member, None) for member in range(4))])
    whole = tally.tallies().part(0, 1)
    assert whole is not None
    assert (whole.violating.count, whole.violating.mean) == (2, 0.375)


def test_failed_and_held_out_episodes_count_nowhere() -> None:
    tally = Tally()
    tally.add_step([Head("train", 1, 0, 0, None, failed=True, rule="coercion"), Head("eval", 1, 1, 0, True)])
    tallies = tally.tallies()
    assert (tallies.episodes, tallies.failed, len(tallies.stretches)) == (0, 1, 0)


@given(steps=st.lists(st.integers(0, 2_000), min_size=1, max_size=80, unique=True))
def test_stretches_stay_few_and_lose_nothing(steps: list[int]) -> None:
    tally = Tally(stretches=8)
    for step in sorted(steps):
        tally.add_step([Head("train", step, 0, 0, True)])
    tallies = tally.tallies()
    assert len(tallies.stretches) <= 8
    assert tallies.episodes == len(steps)
    assert (tallies.stretches[0].first, tallies.stretches[-1].last) == (min(steps), max(steps))
    ends = [(s.first, s.last) for s in tallies.stretches]
    assert ends == sorted(ends)
    assert all(before[1] < after[0] for before, after in pairwise(ends))
    assert sum(s.episodes for s in tallies.pooled()) == len(steps)


def test_skills_are_counted_by_version() -> None:
    tally = Tally()
    tally.add_step(
        [
            Head("train", 1, 0, 0, True, skill_version="v1", skills=[("look", "open"), ("look",)]),
            Head("train", 1, 0, 1, False, skill_version="v1", skills=[(), ()]),
            Head("train", 1, 0, 2, False, skill_version="v2", skills=[("look",)]),
        ]
    )
    tallies = tally.tallies()
    assert (tallies.versions["v1"].episodes, tallies.versions["v1"].turns) == (2, 4)
    look = tallies.skills["v1", "look"]
    assert (look.episodes, look.turns, look.right, look.scored) == (1, 2, 1, 1)
    assert tallies.skills["v1", "open"].turns == 1
    assert ("v2", "open") not in tallies.skills
    assert (tallies.stretches[0].turns, tallies.stretches[0].turns_with_skill) == (5, 3)
