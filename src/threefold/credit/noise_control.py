"""The noise control: the same intrinsic rewards, given to the wrong episodes.

ISPO's paper (arXiv 2606.08815) lacks it. Any number that differs inside a dead group revives it, so a revived
group proves nothing; what must be shown is that *these* numbers, each on its own episode, teach more than the
same numbers dealt out at random. A run and its control differ in nothing else: rewards, lengths, the sizes of
advantages and the share of dead groups are alike.

    shuffle    the intrinsic rewards permuted among the right episodes of a group, and among its wrong ones
    gaussian   normal noise with the mean and deviation of those same sets

The permutation stays inside an outcome, because the intrinsic reward says right from wrong by its very sign:
across outcomes the control would also disturb the outcome.

What it cannot change, by construction: how far the intrinsic reward moves right episodes as a whole from
wrong ones (the outcome's gap); an episode that is alone with its outcome in its group; values that are equal
(no answers, no critical tokens); and how often a dead group gets any signal at all. `ispo/noise_moved` says
how many values moved. "gaussian" leaves episodes that are alone as they are too: they have no deviation.

Numbers come from a seed and the step: every process draws the same, a resumed run draws what the unbroken one
would have drawn, and no global random state is touched.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor

from threefold.credit.normalise import group_mean, group_std

NoiseControl = Literal["shuffle", "gaussian"]


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step: those of near seeds or steps have nothing to do with each other."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def shuffled(values_N: Tensor, cell_N: Tensor, random: torch.Generator) -> Tensor:
    """(N,) the values, permuted uniformly among those of one cell.

    Args:
        values_N: (N,) values.
        cell_N: (N,) int64, which values may change places with each other.
        random: On the CPU, so that the permutation is the same on every device.
    """
    keys_N = torch.rand(len(values_N), generator=random, dtype=torch.float64).to(values_N.device)
    by_key_N = keys_N.argsort()
    source_N = by_key_N[cell_N[by_key_N].argsort(stable=True)]
    result_N = torch.empty_like(values_N)
    result_N[cell_N.argsort(stable=True)] = values_N[source_N]
    return result_N


@torch.no_grad()
def gaussian(values_N: Tensor, cell_N: Tensor, random: torch.Generator) -> Tensor:
    """(N,) normal noise with the mean and the unbiased deviation of each cell's values; alone, unchanged."""
    noise_N = torch.randn(len(values_N), generator=random, dtype=torch.float64).to(values_N)
    std_N = group_std(values_N, cell_N)
    return torch.where(std_N.isnan(), values_N, group_mean(values_N, cell_N) + std_N * noise_N)


@torch.no_grad()
def replaced(kind: NoiseControl, values_N: Tensor, cell_N: Tensor, random: torch.Generator) -> Tensor:
    """(N,) the values as the control of that kind gives them."""
    return (shuffled if kind == "shuffle" else gaussian)(values_N, cell_N, random)
