"""Which of TRL 1.16's losses an estimator fits: refused before the first step where it does not.

A (B, T) answer says which *tokens* deserve credit. Three of TRL's settings read an advantage as a property of
the whole row, and would lose that or misread it without a word:

    ratio "sequence"    one ratio of the whole sequence multiplies every token's advantage, so its gradient is
                        that of the row's mean advantage (cispo alone weighs each token's own log-probability)
    loss "vespo"        weighs a row by the sign of its one advantage
    off-policy mask     drops a row by the sign of its one advantage

And Dr. GRPO is a loss as much as an advantage.
"""

from __future__ import annotations

from threefold.credit import CreditEstimator


def check_loss(
    credit: CreditEstimator,
    *,
    loss: str,
    ratio: str = "token",
    off_policy_mask: float | None = None,
    per_token: bool | None = None,
) -> None:
    """Refuse an estimator with a loss that it does not fit.

    Args:
        credit: The estimator; its attributes `per_token` and `loss` are read where it has them.
        loss: TRL's `loss_type`.
        ratio: TRL's `importance_sampling_level`.
        off_policy_mask: TRL's `off_policy_mask_threshold`.
        per_token: Whether it answers (B, T); by default what its attribute `per_token` says.

    Raises:
        ValueError: They do not fit; the message says why and what to set.
    """
    name = type(credit).__name__
    wanted = getattr(credit, "loss", None)
    if wanted is not None and loss != wanted:
        raise ValueError(
            f"{name} goes with the loss {wanted!r}, which divides by a constant, but the loss is {loss!r}: "
            f"set loss_type={wanted!r} (in a recipe training.loss={wanted}), or take GRPO(scale='none') for "
            "its advantages with another loss"
        )
    if per_token is None:
        per_token = getattr(credit, "per_token", False)
    if not per_token:
        return
    misfits = []
    if loss == "vespo":
        misfits.append("the loss 'vespo' weighs a whole row by the sign of one advantage; take 'dapo'")
    if ratio == "sequence" and loss != "cispo":
        misfits.append(
            "importance_sampling_level='sequence' gives every token the row's mean advantage; take 'token' "
            "(in a recipe training.ratio=token)"
        )
    if off_policy_mask is not None:
        misfits.append("off_policy_mask_threshold drops a row by the sign of one advantage; leave it unset")
    if misfits:
        raise ValueError(f"{name} gives credit per token, for which this is not made: " + "; ".join(misfits))
