"""The map of groups: what counts as dead, that it stays small, and that turns reach the page."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.report import write_report
from threefold.report.groups import LABELS, Cell, GroupMapper, cell, groups_data
from threefold.report.records import Head
from threefold.report.sampling import sample_episodes
from threefold.trajectory import Credited, write_jsonl


def member(success: bool | None, reward: float | None = None, **rewards: float | None) -> Head:
    return Head("train", 1, 7, 0, success, rewards, reward)


@pytest.mark.parametrize(
    ("members", "state", "right"),
    [
        ([member(True, 1.0), member(False, 0.0)], "alive", 1),
        ([member(False, 0.0), member(False, 0.0)], "wrong", 0),
        ([member(True, 1.0), member(True, 1.0)], "right", 2),
        ([member(False, 0.1), member(False, 0.0)], "wrong_ranked", 0),
        ([member(True, 1.1), member(True, 1.0)], "right_ranked", 2),
        # Without the scalar that was normalised, the channels say whether anything differs.
        (
            [member(False, accuracy=0.0, format=1.0), member(False, accuracy=0.0, format=0.0)],
            "wrong_ranked",
            0,
        ),
        ([member(False, accuracy=0.0), member(False, accuracy=0.0)], "wrong", 0),
        # Without an outcome, rewards decide.
        ([member(None, goal=3.0), member(None, goal=3.0)], "equal", 0),
        ([member(None, goal=3.0), member(None, goal=2.0)], "alive", 0),
        ([member(None), member(None)], "unscored", 0),
        ([member(None, accuracy=None), member(None, accuracy=None)], "unscored", 0),
        # An unscored member is left out, as in training.
        (
            [member(None, accuracy=None), member(True, accuracy=1.0), member(True, accuracy=1.0)],
            "right_ranked",
            2,
        ),
    ],
)
def test_states(members: list[Head], state: str, right: int) -> None:
    assert cell(7, members) == Cell(7, state, right, len(members))


def test_map_of_a_record_has_every_group_of_every_step(
    tmp_path: Path, group: Callable[..., list[Credited]]
) -> None:
    for step in (1, 2):
        for number, successes in enumerate(([True, False], [True, True], [False, False])):
            write_jsonl(tmp_path / "rollouts.jsonl", group(step, number, successes))
    found = sample_episodes(tmp_path, limit=2).map
    assert list(found.steps) == [1, 2]
    assert [c.right for c in found.steps[1]] == [1, 2, 0]
    assert found.seen == 2
    data = groups_data(found)
    names = [name for name, _ in data["states"]]
    # From the bottom: wrong, alive, right. The rewards of the fixture differ, so dead groups were ranked.
    assert [names[state] for _, state, _, _ in data["steps"][0]["cells"]] == [
        "wrong_ranked", "alive", "right_ranked"
    ]  # fmt: skip


def test_steps_made_again_replace_the_earlier_ones() -> None:
    mapper = GroupMapper()
    for step, state in ((1, "alive"), (2, "wrong"), (3, "wrong"), (2, "right"), (3, "right"), (4, "alive")):
        mapper.add_step(step, [Cell(0, state, 0, 2)])
    assert [cells[0].state for cells in mapper.map().steps.values()] == ["alive", "right", "right", "alive"]
    assert mapper.map().seen == 4


@given(steps=st.integers(1, 300), per_step=st.integers(1, 9), first=st.integers(0, 50), by=st.integers(1, 7))
def test_map_is_bounded_and_spread_evenly(steps: int, per_step: int, first: int, by: int) -> None:
    mapper = GroupMapper(step_limit=16, cell_limit=64)
    for i in range(steps):
        mapper.add_step(first + by * i, [Cell(g, "alive", 1, 2) for g in range(per_step)])
    kept = list(mapper.map().steps)
    assert len(kept) <= 16
    assert len(kept) * per_step <= 64 or len(kept) == 1
    assert kept[0] == first
    assert len({b - a for a, b in itertools.pairwise(kept)}) <= 1
    assert mapper.map().seen == steps
    if steps <= 16 and steps * per_step <= 64:
        assert len(kept) == steps


def page_data(path: Path, name: str) -> Any:
    html = path.read_text(encoding="utf-8")
    match = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def test_page_counts_groups_in_words_and_embeds_the_map(finished_run: Path) -> None:
    path = write_report(finished_run)
    html = path.read_text(encoding="utf-8")
    data = page_data(path, "groups")
    assert len(data["steps"]) == 60
    assert "of 240 groups, " in html
    counts = [state for step in data["steps"] for _, state, _, _ in step["cells"]]
    label = LABELS["alive"]
    assert f"{counts.count([n for n, _ in data['states']].index('alive'))} {label}" in html


def test_turns_of_a_dialogue_reach_the_page(
    make_run: Callable[..., Path], dialogue: Callable[..., Credited], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", steps=2)
    write_jsonl(run / "rollouts.jsonl", [dialogue(3, 0, m) for m in range(2)])
    episode = page_data(write_report(run), "episodes")[0]
    assert episode["start"] == {"D": 2, "R": 1}
    assert (episode["violation"], episode["violation_turn"], episode["skills"]) == ("command", 1, "v3")
    first, second = episode["turns"]
    assert first == {
        "action": "Let us look.",
        "rewards": {"distress": 1},
        "state": {"D": 1, "R": 1},
        "skills": ["validate"],
        "advantage": 0.5,
        "entropy": 0.3,  # tokens 2, 3 and 4
    }
    assert (second["advantage"], second["entropy"], second["state"]["D"]) == (-1, 0.75, 3)
    assert [run["turn"] for run in episode["segments"][0]] == [-1, 0, -1, 1]
