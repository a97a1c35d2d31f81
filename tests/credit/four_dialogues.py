"""Dialogues for the tests of T²-GRPO: four whose credit was worked out by hand, and any others."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import strategies as st

from threefold.credit import CreditBatch
from threefold.credit.turn_trajectory import advantages

NAN = math.nan

# Four dialogues of one scenario: the third violates, the fourth ends after two turns. Worked out by hand.
GOAL, FIT, TERM = (torch.tensor(x) for x in ([8.0, 5, 8, 2], [6.0, 6, 3, 0], [4.0, 2, 3, 1]))
CHANNELS = {"goal": GOAL, "fit": FIT, "term": TERM}
DISTRESS = ([2, 1, 0, 0], [2, 2, 1, 0], [2, 3, 3, 2], [2, 2, 2])
RESISTANCE = ([1, 1, 0, 0], [1, 2, 1, 1], [1, 1, 0, 0], [1, 1, 3])
GROUP = torch.zeros(4, dtype=torch.int64)
VIOLATION = torch.tensor([False, False, True, False])
MASK = torch.tensor([[True, True, True]] * 3 + [[True, True, False]])


def falls(levels) -> torch.Tensor:
    rows = [[float(a - b) for a, b in itertools.pairwise(row)] for row in levels]
    return torch.tensor([row + [NAN] * (3 - len(row)) for row in rows])


TURNS = {"D": falls(DISTRESS), "R": falls(RESISTANCE)}


def golden(**options) -> torch.Tensor:
    return advantages(CHANNELS, TURNS, MASK, VIOLATION, GROUP, **options)


def batch_of(**changes) -> CreditBatch:
    """The golden episodes with two tokens a turn, the environment's token between turns."""
    turn = torch.tensor([0, 0, -1, 1, 1, -1, 2, 2])
    turn_BT = turn.repeat(4, 1)
    turn_BT[3, 5:] = -1
    fields = {
        "rewards": CHANNELS,
        "weights": dict.fromkeys(CHANNELS, 1.0),
        "group_B": GROUP,
        "mask_BT": turn_BT >= 0,
        "turn_BT": turn_BT,
        "turn_rewards": TURNS,
        "turn_state": {
            "D": torch.tensor([[float(x) for x in (*row, NAN)[:3]] for row in DISTRESS]),
            "R": torch.tensor([[float(x) for x in (*row, NAN)[:3]] for row in RESISTANCE]),
        },
        "turn_mask_BK": MASK,
        "violation_B": VIOLATION,
        "violation_turn_B": torch.tensor([-1, -1, 1, -1]),
    }
    return CreditBatch(**{**fields, **changes})


tiers = st.integers(-3, 3)


@st.composite
def episodes(draw, normalise=("rank", "zscore", "leave_one_out")):
    """A batch of one or two groups of ragged episodes, with ties, failures and violations."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=2))
    group = torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)])
    count = len(group)
    lengths = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    score = st.one_of(st.integers(0, 8).map(float), st.just(NAN))
    column = st.lists(score, min_size=count, max_size=count)
    channels = {name: torch.tensor(draw(column)) for name in ("goal", "fit")[: draw(st.integers(1, 2))]}
    rewards = st.lists(
        st.lists(st.one_of(tiers.map(float), st.just(NAN)), min_size=3, max_size=3),
        min_size=count,
        max_size=count,
    )
    turns = {"D": torch.tensor(draw(rewards))}
    violation = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    options = {
        "normalise": draw(st.sampled_from(normalise)),
        "alpha": draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        "turn_credit": draw(st.sampled_from(["delta", "return_to_go", "stratified"])),
        "ended": draw(st.sampled_from(["absent", "zero"])),
        "exclude_violators_from_rank": draw(st.booleans()),
    }
    return channels, turns, mask, violation, group, options
