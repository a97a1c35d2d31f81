"""The shared record: lossless JSON, strict lengths, tolerance of a crash and of nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.trajectory import (
    SCHEMA_VERSION,
    Credited,
    Opening,
    Segment,
    Trajectory,
    Turn,
    Violation,
    from_json,
    read_jsonl,
    to_json,
    write_jsonl,
)

floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
channels = st.dictionaries(texts, floats, max_size=3)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    n_tokens = draw(st.integers(0, 6))

    def row(values: st.SearchStrategy) -> tuple:
        return tuple(draw(st.lists(values, min_size=n_tokens, max_size=n_tokens)))

    segment = Segment(row(st.integers(0, 10)), row(st.integers(-1, 3)), row(st.none() | floats))
    turn = Turn(
        text=draw(texts),
        rewards=draw(channels),
        state=draw(channels),
        answer_span=draw(st.none() | st.tuples(st.integers(0, 5), st.integers(0, 5))),
        skills=tuple(draw(st.lists(texts, max_size=2))),
    )
    return Trajectory(
        task_id=draw(texts),
        group_id=draw(st.integers(0, 100)),
        member=draw(st.integers(0, 7)),
        seed=draw(st.integers(0, 2**31)),
        environment=draw(texts),
        opening=Opening(draw(texts), draw(channels)),
        segments=(segment,),
        turns=(turn,),
        rewards=draw(st.dictionaries(texts, st.none() | floats, max_size=3)),
        success=draw(st.none() | st.booleans()),
        violation=draw(st.none() | st.builds(Violation, texts, st.integers(0, 9))),
        task={"question": draw(texts)},
    )


@given(trajectories())
def test_a_trajectory_survives_json_unchanged(trajectory: Trajectory) -> None:
    assert from_json(to_json(trajectory)) == trajectory


@given(trajectories(), st.data())
def test_a_credited_trajectory_survives_json_unchanged(trajectory: Trajectory, data: st.DataObject) -> None:
    n_tokens = len(trajectory.segments[0].token_ids)
    values = tuple(data.draw(st.lists(floats, min_size=n_tokens, max_size=n_tokens)))
    credited = Credited(
        trajectory=trajectory,
        step=3,
        advantages=(values,),
        outcome_advantage=None,
        token_texts=(("a",) * n_tokens,),
        signals={"ifd": 0.5, "missing": None},
        token_signals={"entropy": (values,)},
    )
    assert from_json(to_json(credited)) == credited


def test_a_segment_needs_equal_lengths() -> None:
    with pytest.raises(ValueError, match="2 tokens, 1 turn ids, 2 log-probabilities"):
        Segment((1, 2), (-1,), (None, None))


def test_the_prompt_ends_where_the_agent_first_writes() -> None:
    assert Segment((1, 2, 3), (-1, -1, 0), (None,) * 3).prompt_length == 2
    assert Segment((1, 2), (-1, -1), (None,) * 2).prompt_length == 2


def _trajectory() -> Trajectory:
    return Trajectory("t", 0, 0, 0, "", Opening(""), (Segment((), (), ()),), ())


def test_a_newer_schema_is_refused() -> None:
    newer = json.loads(to_json(_trajectory())) | {"schema": SCHEMA_VERSION + 1}
    with pytest.raises(ValueError, match="upgrade"):
        from_json(json.dumps(newer))


def test_not_a_number_is_refused_rather_than_written() -> None:
    trajectory = Trajectory("t", 0, 0, 0, "", Opening(""), (), (), rewards={"r": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        to_json(trajectory)


def test_a_line_cut_by_a_crash_is_left_out_and_a_broken_one_is_not(tmp_path) -> None:
    path = tmp_path / "rollouts.jsonl"
    write_jsonl(path, [_trajectory(), _trajectory()])
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole.splitlines()[0][:40], encoding="utf-8")
    assert list(read_jsonl(path)) == [_trajectory(), _trajectory()]
    path.write_text("{}\n" + whole, encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        list(read_jsonl(path))
