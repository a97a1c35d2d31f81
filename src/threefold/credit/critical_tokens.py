"""Critical tokens: where reasoning is decided, the policy is uncertain, and training has left its mark.

Sections 3.5 and Eqs. 4 and 5 of ISPO (arXiv 2606.08815). The set of high entropy is ranked inside each
episode; the drift set is signed: a token counts when it became likelier than it was initially, not rarer.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from threefold.credit import grpo

Combine = Literal["intersection", "entropy", "drift", "union"]
"""Which tokens are critical: both sets' (the paper), one set's alone, or either's."""


@torch.no_grad()
def high_entropy_tokens(entropy_BT: Tensor, mask_BT: Tensor, *, top_fraction: float = 0.1) -> Tensor:
    """(B, T) bool: the ceil(top_fraction * n) highest entropies of each episode's n masked tokens (Eq. 4).

    Ranked per episode, unlike TRL's batch-wide `top_entropy_quantile`. The earlier token wins a tie.

    Args:
        entropy_BT: (B, T) entropies, nats. One that is not finite never counts.
        mask_BT: (B, T) bool, the tokens that may be chosen.
        top_fraction: Share of them that is chosen, in (0, 1]; at least one token.
    """
    mask_BT = mask_BT & entropy_BT.isfinite()
    # In integers: 0.1 * 70 is 7.000000000000001 in floats, whose ceiling is 8.
    share = Fraction(str(top_fraction)).limit_denominator(1_000_000)
    count_B1 = -(-mask_BT.sum(dim=1, keepdim=True) * share.numerator // share.denominator)
    order_BT = entropy_BT.masked_fill(~mask_BT, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    chosen_BT = torch.arange(entropy_BT.shape[1], device=entropy_BT.device) < count_B1.clamp(min=1)
    return torch.zeros_like(mask_BT).scatter(1, order_BT, chosen_BT) & mask_BT


@torch.no_grad()
def drifted_tokens(
    logp_BT: Tensor, base_logp_BT: Tensor, mask_BT: Tensor, *, drift_threshold: float = 0.3
) -> Tensor:
    """(B, T) bool: the masked tokens at least `drift_threshold` nats likelier than initially (Eq. 5)."""
    return mask_BT & (logp_BT - base_logp_BT >= drift_threshold)


@torch.no_grad()
def critical_tokens(
    entropy_BT: Tensor,
    logp_BT: Tensor,
    base_logp_BT: Tensor | None,
    mask_BT: Tensor,
    *,
    top_fraction: float = 0.1,
    drift_threshold: float = 0.3,
    combine: Combine = "intersection",
) -> Tensor:
    """(B, T) bool: the tokens where reasoning is decided, uncertain and shaped by the training (section 3.5).

    Args:
        entropy_BT: (B, T) entropies of the policy, nats.
        logp_BT: (B, T) log-probabilities of the sampled tokens under the policy, nats.
        base_logp_BT: (B, T) the same under the frozen initial model; None only with combine="entropy".
        mask_BT: (B, T) bool, the tokens that may be critical.
        top_fraction: As in `high_entropy_tokens`.
        drift_threshold: As in `drifted_tokens`.
        combine: How the two sets make one.

    Raises:
        ValueError: `combine` is unknown, or needs `base_logp_BT`, which is None.
    """
    entropy_set_BT = high_entropy_tokens(entropy_BT, mask_BT, top_fraction=top_fraction)
    drift_set_BT = None
    if base_logp_BT is not None:
        drift_set_BT = drifted_tokens(logp_BT, base_logp_BT, mask_BT, drift_threshold=drift_threshold)
    return combined(entropy_set_BT, drift_set_BT, combine)


def combined(entropy_set_BT: Tensor, drift_set_BT: Tensor | None, combine: Combine) -> Tensor:
    """One set of two: see `critical_tokens`."""
    grpo.check_choice("combine", combine, get_args(Combine))
    if combine == "entropy":
        return entropy_set_BT
    if drift_set_BT is None:
        raise ValueError(f'combine={combine!r} needs base_logp_BT; only combine="entropy" does without it')
    if combine == "drift":
        return drift_set_BT
    return entropy_set_BT & drift_set_BT if combine == "intersection" else entropy_set_BT | drift_set_BT
