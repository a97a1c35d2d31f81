"""The arithmetic of the floors, against counts by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from floors import Machine, Setting, Shape, generation_floor, update_floor

SHAPE = Shape(body=1000, head=200, layers=2, width=10, cached=8, size=4)
ONE_EACH = Setting(prompts=1, group=1, prompt=3, completion=2)
PAIR = Setting(prompts=1, group=2, prompt=3, completion=2)


def test_attention_counts_each_token_with_those_before_it() -> None:
    # positions 1 and 2 see 2 and 3 tokens: 4 operations x 2 layers x width 10 x 5, in 3 rows
    assert SHAPE.attention(rows=3, start=1, stop=3) == 3 * 4 * 2 * 10 * 5


def test_generation_by_hand() -> None:
    never_reads = Machine(bandwidth=float("inf"), arithmetic=1.0)
    prompt = 2 * (3 * 1000 + 200) + 80 * (1 + 2 + 3)
    step = 2 * (1000 + 200) + 80 * 4
    assert generation_floor(never_reads, SHAPE, ONE_EACH, shared=False) == prompt + step
    never_counts = Machine(bandwidth=1.0, arithmetic=float("inf"))
    one = 4 * (1200 + 4 * 8)
    assert generation_floor(never_counts, SHAPE, ONE_EACH, shared=False) == one
    assert generation_floor(never_counts, SHAPE, PAIR, shared=False) == 4 * (1200 + 8 * 8)
    assert generation_floor(never_counts, SHAPE, PAIR, shared=True) == 4 * (1200 + 5 * 8)


def test_an_update_is_three_forwards_and_a_shared_prompt_is_one_row() -> None:
    machine = Machine(bandwidth=float("inf"), arithmetic=1.0)
    own = 2 * (2 * 1000 + 2 * 200) + 80 * (4 + 5)
    prompt = 2 * 3 * 1000 + 80 * 6
    assert update_floor(machine, SHAPE, PAIR, shared=False) == pytest.approx(3 * 2 * (own + prompt))
    assert update_floor(machine, SHAPE, PAIR, shared=True) == pytest.approx(3 * (2 * own + prompt))
