"""The hard veto: an episode that broke a safety rule lies below every clean one, and nothing may offset it.

T²-GRPO's Eq. 7 (arXiv 2606.08875). Subtracting a penalty from a reward is no veto: enough reward buys it
back, and normalisation rescales it. Here a violator's *advantage* is set, last of all, to a floor that no
clean advantage reaches. It composes with any method that gives credit by turn; whatever rescales or
re-centres the advantages afterwards undoes it (gdpo.py says by how much).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threefold.credit import grpo
from threefold.credit.turn_credit import Normalise


@torch.no_grad()
def apply_veto(
    values_BK: Tensor,
    turn_mask_BK: Tensor,
    violation_B: Tensor,
    veto: float | None,
    *,
    from_turn_B: Tensor | None = None,
) -> Tensor:
    """Put violators below every clean entry (Eq. 7): the last step of any composition.

    Args:
        values_BK: (B, K) advantages, of any method.
        turn_mask_BK: (B, K) bool, the turns that took place.
        violation_B: (B,) bool.
        veto: λ; the floor is -λ, or 1 below the largest clean magnitude of the batch if that is lower.
        from_turn_B: (B,) turn from which a violator is vetoed, -1 for all of them, and so is a turn that did
            not take place. Its earlier turns keep their blame, and any praise becomes 0: no violating episode
            is reinforced anywhere.

    Returns:
        (B, K) advantages.
    """
    if veto is None:
        return values_BK
    clean_BK = turn_mask_BK & ~violation_B.unsqueeze(1)
    largest = values_BK[clean_BK].abs().max().item() if clean_BK.any() else 0.0
    floor = -veto if largest < veto else -(largest + 1)
    vetoed_BK = turn_mask_BK & violation_B.unsqueeze(1)
    if from_turn_B is not None:
        turn_K = torch.arange(values_BK.shape[1], device=values_BK.device)
        reached_B1 = (turn_mask_BK & (turn_K >= from_turn_B.unsqueeze(1))).any(dim=1, keepdim=True)
        before_BK = vetoed_BK & (turn_K < from_turn_B.unsqueeze(1)) & reached_B1
        values_BK = torch.where(before_BK, values_BK.clamp(max=0), values_BK)
        vetoed_BK = vetoed_BK & ~before_BK
    return values_BK.masked_fill(vetoed_BK, floor)


def largest_clean(
    n_trajectory: float, n_turn: int, *, alpha: float, normalise: Normalise, group_size: int
) -> float:
    """The largest magnitude that a clean entry can have: what a veto must exceed.

    A centred rank is at most 1, a z-score of N values with the unbiased deviation (N - 1) / sqrt(N).
    "leave_one_out" has no bound: 0 is answered, and `apply_veto` takes care.
    """
    if normalise == "leave_one_out":
        return 0.0
    unit = 1.0 if normalise == "rank" else (group_size - 1) / math.sqrt(max(group_size, 1))
    return (n_trajectory + alpha * n_turn) * unit


def check_veto(
    veto: float | None, largest: float, *, exclude_violators_from_rank: bool, veto_from_turn: bool
) -> None:
    """Refuse a veto that a clean episode could fall below, and options that need one.

    Raises:
        ValueError: With the smallest veto that would do.
    """
    if veto is None:
        for name, used in (
            ("exclude_violators_from_rank", exclude_violators_from_rank),
            ("veto_from_turn", veto_from_turn),
        ):
            if used:
                raise ValueError(f"{name}=True says what happens beside a veto, but veto is None; set one")
        return
    grpo.check_range("veto", veto, above=0.0)
    if veto <= largest * (1 + 1e-5):  # above the rounding of float32
        raise ValueError(
            f"veto={veto:g} does not exceed {largest:g}, the largest magnitude that a clean episode can get "
            "with these channels, alpha, normalise and group size, so a violator could end above it; set "
            f"veto to more than that, such as {math.ceil(largest + 1)}, or to None for none"
        )


def without_violation(violation_B: Tensor, scored_B: Tensor) -> Tensor:
    """(B,) the violation as a channel, for want of a veto: -1 and 0, NaN for a clean but unscored episode.

    An episode that failed before anything could be scored earns nothing by not having violated.
    """
    return (-violation_B.float()).masked_fill(~scored_B & ~violation_B, torch.nan)
