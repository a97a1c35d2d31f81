"""INTUITOR: an episode is worth how far from a blind guess the policy was while it wrote it. No outcome.

"Learning to Reason without External Rewards", Zhao et al., arXiv 2505.19590. With z the logits at token t and
U the uniform distribution over the V tokens of the vocabulary:

    R_i = mean_t KL(U || p(. | o_<t)) = mean_t [logsumexp(z_t) - mean_j z_tj] - log V
    A_i = (R_i - mean R) / (std R + eps)

The constant log V drops out of the advantage and is left out. Nothing is verified: what pays is certainty,
and an intrinsic reward alone is what confident errors are made of. It stands here as an alternative to ISPO's
signals and as a warning. `outcome_weight` adds that much of the reward functions' sum, which the paper does
not do; 0 is the paper.

The paper trains with a KL term (`training.kl`). Without one a third party's run hacked lengths and collapsed
at about step 20. Source: the formula is the official code's, as our notes give it.

Measured on the trained tokens at the sampling temperature, as all signals are. An episode with a value that
is not finite, or without trained tokens, is unscorable: advantage 0, out of the baseline, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo
from threefold.credit.outcomes import measured


@torch.no_grad()
def self_certainty(certainty_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B,) mean over the masked tokens of logsumexp(z) - mean z, nats; NaN without any.

    Args:
        certainty_BT: (B, T) that difference at each token; what stands outside `mask_BT` is not read.
        mask_BT: (B, T) bool, the trained tokens.
    """
    return torch.where(mask_BT, certainty_BT, 0).sum(dim=1) / mask_BT.sum(dim=1)


@dataclass(frozen=True)
class SelfCertainty:
    """INTUITOR's self-certainty as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    outcome_weight: float = 0.0
    """Weight of the reward functions' sum beside self-certainty, 0 or more; 0 is the paper."""
    scale: grpo.Scale = "group"
    """What advantages are measured in, as in `grpo.GRPO`."""
    eps: float = 1e-4
    """Added to the standard deviation, in nats; above 0."""

    per_token = False

    def __post_init__(self) -> None:
        grpo.check_range("outcome_weight", self.outcome_weight, least=0.0)
        grpo.GRPO(scale=self.scale, eps=self.eps)  # checks these two

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({"policy", "self_certainty"})

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: There is no reward function (TRL wants one), or a group has fewer than two episodes.
        """
        grpo.GRPO().check(reward_names, group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit from the policy's certainty.

        Raises:
            ValueError: The signal is missing.
        """
        (certainty_BT,) = measured("INTUITOR", batch.signals, "self_certainty_BT")
        certainty_B = self_certainty(certainty_BT, batch.mask_BT).float()
        broken_B = ~certainty_B.isfinite()
        certainty_B = reward_B = certainty_B.masked_fill(broken_B, torch.nan)
        extrinsic_B = grpo.combine(batch.rewards, batch.weights)
        if self.outcome_weight:
            reward_B = reward_B + self.outcome_weight * extrinsic_B
        metrics = {"self_certainty/non_finite_signals": float(broken_B.sum())}
        if (~broken_B).any():
            metrics["self_certainty/mean"] = float(certainty_B[~broken_B].mean())
        return Advantages(
            values=grpo.advantages(reward_B, batch.group_B, scale=self.scale, eps=self.eps),
            outcome_B=grpo.advantages(extrinsic_B, batch.group_B, scale=self.scale, eps=self.eps),
            reward_B=reward_B,
            metrics=metrics,
            episode_signals={
                "self_certainty": certainty_B,
                "reward": reward_B,
            },
            token_signals={"self_certainty": torch.where(batch.mask_BT, certainty_BT, 0)},
        )
