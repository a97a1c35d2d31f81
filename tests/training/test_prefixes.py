"""Passes over what rows begin with: every token is predicted once, from what stands before it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from threefold.training import prefixes
from threefold.training.prefixes import plan, tokens_forwarded


def planned(rows: list[list[int]], prompts: list[int], head: float = 0.0) -> list[prefixes.Pass]:
    width = max(map(len, rows))
    ids_BL = np.array([row + [0] * (width - len(row)) for row in rows])
    lengths_B = np.array([len(row) for row in rows])
    columns_L = np.arange(width)
    scored_BL = (columns_L >= np.array(prompts)[:, None]) & (columns_L < lengths_B[:, None])
    return plan(ids_BL, lengths_B, scored_BL, head)


def test_a_prompt_and_then_its_completions():
    """200 tokens that four rows share, then 100 of each: by hand, 199 and 4 * 100 tokens."""
    rows = [[1] * 200 + [2 + row] * 100 for row in range(4)]
    first, second = planned(rows, [200] * 4)
    assert (first.start, first.end, first.rows, first.scored) == (1, 200, (0,), False)
    assert (second.start, second.end, second.rows, second.scored) == (200, 300, (0, 1, 2, 3), True)
    assert first.beginning_of_row == (0, 0, 0, 0)
    assert second.beginning_of_row == (0, 1, 2, 3)
    assert tokens_forwarded([first, second]) == 199 + 4 * 100


def test_a_row_that_has_ended_takes_no_part_any_more():
    rows = [[1] * 10 + [2] * 20, [1] * 10 + [3] * 20, [1] * 10 + [4] * 320]
    last = planned(rows, [10] * 3)[-1]
    assert (last.start, last.end, last.rows) == (30, 330, (2,))
    assert last.beginning_of_row == (-1, -1, 0)


def test_short_beginnings_are_not_worth_a_pass():
    rows = [[1, 1, 1, 2], [1, 1, 1, 3]]
    (only,) = planned(rows, [3, 3])
    assert (only.start, only.end, only.rows) == (1, 4, (0, 1))


def test_a_dear_head_keeps_prompts_apart_from_what_is_scored():
    """One row: nothing is shared, yet the head need not run over its prompt."""
    assert len(planned([[1] * 100 + [2] * 20], [100], head=0.0)) == 1
    prompt, completion = planned([[1] * 100 + [2] * 20], [100], head=8.0)
    assert (prompt.scored, completion.scored, completion.start) == (False, True, 100)


trees = st.lists(
    st.tuples(st.lists(st.integers(1, 2), min_size=2, max_size=9), st.integers(1, 8)), min_size=1, max_size=7
)


@given(trees, st.sampled_from([0, 1, 64]), st.sampled_from([0.0, 4.0]))
def test_every_token_is_predicted_once_after_its_own_beginning(drawn, overhead, head):
    rows = [row for row, _ in drawn]
    prompts = [min(prompt, len(row) - 1) for row, prompt in drawn]
    before, prefixes.PASS_TOKENS = prefixes.PASS_TOKENS, overhead
    try:
        passes = planned(rows, prompts, head)
    finally:
        prefixes.PASS_TOKENS = before
    assert [one.start for one in passes] == [1, *(one.end for one in passes[:-1])]
    assert passes[-1].end == max(map(len, rows))
    for number, one in enumerate(passes):
        for row, beginning in enumerate(one.beginning_of_row):
            if len(rows[row]) <= one.start:
                assert beginning == -1
                continue
            stands_for = rows[one.rows[beginning]]
            assert stands_for[: one.end] == rows[row][: one.end]
            if number:  # what it goes on from is its own beginning too
                last = passes[number - 1]
                assert last.beginning_of_row[one.rows[beginning]] == last.beginning_of_row[row]
        assert len({tuple(rows[row][: one.end]) for row in one.rows}) == len(one.rows)
        assert one.scored == any(
            prompt < one.end and one.start < len(row) and max(prompt, one.start) < min(len(row), one.end)
            for row, prompt in zip(rows, prompts, strict=True)
        )
    padded = len(rows) * max(map(len, rows))
    assert tokens_forwarded(passes) <= padded
