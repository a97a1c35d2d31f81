"""What must hold of T²-GRPO's credit for any rewards."""

from __future__ import annotations

import itertools

import pytest
import torch
from four_dialogues import (
    episodes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.credit.normalise import centred_rank, zscore
from threefold.credit.turn_trajectory import advantages
from threefold.credit.veto import largest_clean


@settings(deadline=None, max_examples=150)
@given(episodes(), st.floats(1e-3, 10))
def test_any_violator_lies_strictly_below_every_clean_entry(batch, margin):
    channels, turns, mask, violation, group, options = batch
    bound = largest_clean(
        len(channels),
        1,
        alpha=options["alpha"],
        normalise=options["normalise"],
        group_size=int(group.bincount().max()),
    )
    got = advantages(channels, turns, mask, violation, group, veto=bound + margin, **options)
    assert got.isfinite().all()
    assert (got[~mask] == 0).all()
    bad, clean = got[mask & violation[:, None]], got[mask & ~violation[:, None]]
    if len(bad):
        assert (bad < 0).all()
        if len(clean):
            assert bad.max() < clean.min()


@settings(deadline=None, max_examples=60)
@given(episodes(), st.randoms(use_true_random=False))
def test_the_order_of_episodes_does_not_matter(batch, random):
    channels, turns, mask, violation, group, options = batch
    order = list(range(len(group)))
    random.shuffle(order)
    got = advantages(channels, turns, mask, violation, group, veto=40.0, **options)
    shuffled = advantages(
        {name: x[order] for name, x in channels.items()},
        {name: x[order] for name, x in turns.items()},
        mask[order],
        violation[order],
        group[order],
        veto=40.0,
        **options,
    )
    torch.testing.assert_close(shuffled, got[order])


@settings(deadline=None, max_examples=60)
@given(episodes(normalise=("rank",)))
def test_ranks_see_order_alone(batch):
    channels, turns, mask, violation, group, options = batch
    options = {**options, "turn_credit": "delta", "ended": "absent"}
    bent = {name: x.exp() * 3 - 7 for name, x in channels.items()}
    bent_turns = {name: x**3 + x for name, x in turns.items()}
    torch.testing.assert_close(
        advantages(bent, bent_turns, mask, violation, group, **options),
        advantages(channels, turns, mask, violation, group, **options),
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_centred_ranks_have_mean_zero_and_keep_the_order(values):
    x = torch.tensor(values).double()
    ranks = centred_rank(x, torch.zeros(len(x)))
    assert float(ranks.mean()) == pytest.approx(0, abs=1e-12)
    assert ranks.abs().max() <= 1
    for i, j in itertools.product(range(len(x)), repeat=2):
        assert (x[i] > x[j]) == (ranks[i] > ranks[j])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-5, 5), st.floats(0.1, 9))
def test_of_two_values_ranks_are_z_scores_but_for_a_factor(low, high, value, gap):
    """So an outlier hurts ties exactly as much: what the paper says of ranks does not hold."""
    x = torch.tensor([value] * low + [value + gap] * high).double()
    ranks, scores = (f(x, torch.zeros(len(x))) for f in (centred_rank, zscore))
    torch.testing.assert_close(ranks / ranks[-1], scores / scores[-1])
