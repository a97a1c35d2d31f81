"""The sample is bounded, made of whole groups, and covers the run."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.report.records import rollout_files
from threefold.report.sampling import _dead, sample_episodes
from threefold.trajectory import Credited, to_json, write_jsonl

Groups = Callable[..., list[Credited]]


def test_small_record_is_kept_whole(tmp_path: Path, group: Groups) -> None:
    for step in (1, 2):
        write_jsonl(
            tmp_path / "rollouts.jsonl", [*group(step, 0, [True, False]), *group(step, 1, [False, False])]
        )
    sample = sample_episodes(tmp_path)
    assert [(g.step, g.group_id, len(g.lines), g.dead) for g in sample.groups] == [
        (1, 0, 2, None),
        (1, 1, 2, "wrong"),
        (2, 0, 2, None),
        (2, 1, 2, "wrong"),
    ]
    assert sample.notes == ()


def test_large_record_keeps_the_newest_and_an_even_spread_of_whole_groups(
    tmp_path: Path, group: Groups
) -> None:
    for step in range(1, 101):
        write_jsonl(tmp_path / "rollouts.jsonl", [e for g in range(2) for e in group(step, g, [True, False])])
    sample = sample_episodes(tmp_path, limit=40)
    assert sample.episodes == 400
    assert sum(len(g.lines) for g in sample.groups) <= 40
    assert all(len(g.lines) == 2 for g in sample.groups)
    indices = [g.index for g in sample.groups]
    assert indices[-5:] == [195, 196, 197, 198, 199]
    # 30 of the 40 episodes are for the spread, 15 groups of 200: the stride is the power of 2 above 200 / 15.
    assert indices[:-5] == list(range(0, 195, 16))


def test_group_larger_than_the_limit_stays(tmp_path: Path, group: Groups) -> None:
    write_jsonl(tmp_path / "rollouts.jsonl", group(1, 0, [True] * 12))
    assert [len(g.lines) for g in sample_episodes(tmp_path, limit=4).groups] == [12]


def test_parts_are_read_from_the_oldest_to_the_newest(tmp_path: Path, group: Groups) -> None:
    write_jsonl(tmp_path / "rollouts.jsonl", group(30, 0, [True]))
    write_jsonl(tmp_path / "rollouts.2.jsonl", group(20, 0, [True]))
    write_jsonl(tmp_path / "rollouts.1.jsonl", group(25, 0, [True]))
    with gzip.open(tmp_path / "rollouts.10.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(to_json(group(10, 0, [True])[0]) + "\n")
    (tmp_path / "rollouts.1.jsonl.gz").write_bytes(b"half a compressed file")
    (tmp_path / "rollouts.jsonl.part").write_text("not a part of the record", encoding="utf-8")
    assert [p.name for p in rollout_files(tmp_path)] == [
        "rollouts.10.jsonl.gz",
        "rollouts.2.jsonl",
        "rollouts.1.jsonl",
        "rollouts.jsonl",
    ]
    assert [g.step for g in sample_episodes(tmp_path).groups] == [10, 20, 25, 30]


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_cut_last_line_and_cut_archive_are_said(tmp_path: Path, group: Groups, cut: int) -> None:
    text = "".join(to_json(e) + "\n" for e in group(1, 0, [True, False]))
    (tmp_path / "rollouts.jsonl").write_text(text[: -1 - cut], encoding="utf-8")
    packed = gzip.compress(text.encode("utf-8"))
    (tmp_path / "rollouts.1.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    sample = sample_episodes(tmp_path)
    assert any(note.startswith("rollouts.jsonl: ") and "line 2" in note for note in sample.notes)
    assert any(note.startswith("rollouts.1.jsonl.gz cannot be read beyond") for note in sample.notes)
    assert [len(g.lines) for g in sample.groups] == [1]


def test_line_glued_to_a_cut_one_by_a_resume_costs_one_line_only(tmp_path: Path, group: Groups) -> None:
    first, second, third = (to_json(e) for e in group(1, 0, [True, False, True]))
    text = f"{first}\n{second[:50]}{second}\n{third}\n"
    (tmp_path / "rollouts.jsonl").write_text(text, encoding="utf-8")
    sample = sample_episodes(tmp_path)
    assert sample.groups[0].lines == (first + "\n", third + "\n")
    assert len(sample.notes) == 1


def test_steps_made_again_after_a_resume_replace_the_earlier_ones(tmp_path: Path, group: Groups) -> None:
    path = tmp_path / "rollouts.jsonl"
    for step, success in ((1, True), (2, True), (3, True), (2, False), (3, False)):
        write_jsonl(path, group(step, 0, [success, success]))
    assert [(g.step, g.dead) for g in sample_episodes(tmp_path).groups] == [
        (1, "right"),
        (2, "wrong"),
        (3, "wrong"),
    ]


@given(st.lists(st.sampled_from([True, False, None]), max_size=6))
def test_group_is_dead_where_all_outcomes_are_known_and_equal(successes: list[bool | None]) -> None:
    equal = len(successes) > 1 and (all(s is True for s in successes) or all(s is False for s in successes))
    assert (_dead(successes) is not None) == equal
    if equal:
        assert _dead(successes) == ("right" if successes[0] else "wrong")


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=60), limit=st.integers(1, 30))
def test_sample_never_exceeds_its_bound(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    with open(run_dir / "rollouts.jsonl", "w", encoding="utf-8") as file:
        for step, size in enumerate(sizes):
            for member in range(size):
                head = f'"group_id": 0, "member": {member}, "success": null'
                file.write(f'{{"trajectory": {{{head}}}, "step": {step}, "split": "train"}}\n')
    sample = sample_episodes(run_dir, limit)
    assert sample.episodes == sum(sizes)
    assert sample.groups[-1].step == len(sizes) - 1
    kept, largest = sum(len(g.lines) for g in sample.groups), max(sizes)
    # The newest quarter and the spread each hold one group where a group alone is over their bound.
    assert kept <= (limit if limit >= 4 * largest else max(limit, largest) + largest)
    assert all(len(g.lines) == sizes[g.step] for g in sample.groups)


@pytest.mark.slow
def test_hundred_thousand_episodes_need_the_memory_of_the_sample(
    tmp_path: Path, episode: Callable[..., Credited]
) -> None:
    words = ["a", " b", " c", " 4", "."]
    episodes = [episode(1, 0, m, success=m % 2 == 0, completion=words) for m in range(5)]
    parts = [to_json(e).rpartition('"step": 1,') for e in episodes]
    with open(tmp_path / "rollouts.jsonl", "w", encoding="utf-8") as file:
        for step in range(20_000):
            file.writelines(f'{before}"step": {step},{after}\n' for before, _, after in parts)
    size = (tmp_path / "rollouts.jsonl").stat().st_size
    tracemalloc.start()
    sample = sample_episodes(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sample.episodes == 100_000
    assert sum(len(g.lines) for g in sample.groups) <= 400
    assert peak < size / 50
