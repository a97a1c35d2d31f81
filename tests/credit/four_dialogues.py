"""Four dialogues whose credit was worked out by hand, for the tests of T²-GRPO."""

from __future__ import annotations

import itertools
import math

import torch

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
