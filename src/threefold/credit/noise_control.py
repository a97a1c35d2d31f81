"""The noise controls: the same rewards, given to the wrong episodes.

The papers lack them. Any number that differs inside a dead group revives it, so a revived group proves
nothing; and even random rewards are known to lift some models ("Spurious Rewards", Shao et al., arXiv
2506.10947: +21.4 points on MATH-500 for Qwen2.5-Math-7B, hardly any for Llama 3 and OLMo 2), so a rising
curve proves nothing either. What must be shown is that *these* numbers, each on its own episode, teach more
than the same numbers dealt out at random. A run and its control differ in nothing else.

**ISPO** (arXiv 2606.08815), `NoiseControl`:

    shuffle    the intrinsic rewards permuted among the right episodes of a group, and among its wrong ones
    gaussian   normal noise with the mean and deviation of those same sets

The permutation stays inside an outcome, because the intrinsic reward says right from wrong by its very sign:
across outcomes the control would also disturb the outcome. What it cannot change, by construction: how far
the intrinsic reward moves right episodes as a whole from wrong ones (the outcome's gap); an episode that is
alone with its outcome in its group; values that are equal (no answers, no critical tokens); and how often a
dead group gets any signal at all. `ispo/noise_moved` says how many values moved. "gaussian" leaves episodes
that are alone as they are too: they have no deviation.

**T²-GRPO** (arXiv 2606.08875), `TurnNoise`:

    turns      what turns are worth, permuted among those that are compared: the same turn of the same group
    all        that, and each episode's scores and violation permuted among the members of its group

A comparison of permuted values is the permuted comparison, so every turn keeps the spread of credit that its
group has at that turn, and loses what it says of its own tokens: over the deals its expectation is 0, as is
its covariance with anything of the episode. "turns" asks whether the turn horizon teaches; the trajectory's
ranks and the veto stay. "all" asks whether anything is learnt from these rewards: as many vetoes a group, on
dialogues that chance picks. All channels of a turn move together, and so do all scores of an episode. What
does not change: a comparison of one or of equal values, and a violator's -λ under "turns".
`turns/noise_moved` says how many turns moved.

Numbers come from a seed and the step: every process draws the same, a resumed run draws what the unbroken one
would have drawn, and no global random state is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from threefold.credit.normalise import group_mean, group_std

NoiseControl = Literal["shuffle", "gaussian"]
"""Of ISPO: how the intrinsic rewards are dealt out."""
TurnNoise = Literal["turns", "all"]
"""Of T²-GRPO: which rewards are dealt out."""


def generator(seed: int, step: int, what: str = "") -> torch.Generator:
    """Random numbers of one step: those of near seeds or steps, or for another `what`, have nothing to do
    with each other."""
    digest = hashlib.sha256(f"{seed}/{step}{what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def shuffled(values_N: Tensor, cell_N: Tensor, random: torch.Generator) -> Tensor:
    """(N,) the values, permuted uniformly among those of one cell.

    Args:
        values_N: (N,) values.
        cell_N: (N,) int64, which values may change places with each other.
        random: On the CPU, so that the permutation is the same on every device.
    """
    return _in_order(values_N, cell_N, _keys(len(values_N), random, values_N.device))


def _keys(count: int, random: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(count, generator=random, dtype=torch.float64).to(device)


def _in_order(values_N: Tensor, cell_N: Tensor, keys_N: Tensor) -> Tensor:
    """The values of each cell in the order of its keys."""
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


@dataclass(frozen=True)
class Deal:
    """One deal of a step. Where cells and missing values are alike, so is the permutation: channels move
    together, and keep how they go with each other."""

    seed: int
    step: int
    what: str
    """A name for the deal: another one is drawn independently."""

    @torch.no_grad()
    def __call__(self, values: Tensor, cells: Tensor) -> Tensor:
        """The values permuted among those of equal cell; NaN takes no part and stays where it is.

        Args:
            values: Of any shape.
            cells: int64 of the same shape.
        """
        keys_N = _keys(values.numel(), generator(self.seed, self.step, self.what), values.device)
        dealt_N, there_N = values.flatten().clone(), ~values.flatten().isnan()
        dealt_N[there_N] = _in_order(dealt_N[there_N], cells.flatten()[there_N], keys_N[there_N])
        return dealt_N.view_as(values)


@torch.no_grad()
def dealt_episodes(
    channels: Mapping[str, Tensor], violation_B: Tensor, scored_B: Tensor, group_B: Tensor, deal: Deal
) -> tuple[dict[str, Tensor], Tensor]:
    """Scores and violations of episodes, given to other members of their groups.

    Args:
        channels: (B,) by channel; NaN stays where it is.
        violation_B: (B,) bool.
        scored_B: (B,) bool, the episodes that anything is known of: the others are dealt no violation.
        group_B: (B,) group of each episode, any integers.
        deal: The same permutation for all of them, as far as the same members are scored.

    Returns:
        The channels, and the violations.
    """
    known_B = violation_B.float().masked_fill(~scored_B & ~violation_B, torch.nan)
    return {name: deal(scores_B, group_B) for name, scores_B in channels.items()}, deal(known_B, group_B) > 0
