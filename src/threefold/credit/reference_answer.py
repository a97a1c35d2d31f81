"""RLPR: reasoning is worth by how much it makes the reference answer likelier. No verifier, but a reference.

"RLPR: Extrapolating RLVR to General Domains without Verifiers", Yu et al., arXiv 2506.18254. With y* the
reference answer, z_i the episode's own reasoning, and probabilities (not their logarithms) of single tokens:

    R_i = max(0, mean_t p(y*_t | q, z_i, y*_<t) - mean_t p(y*_t | q, y*_<t))
    A_i = (R_i - mean R) / (std R + eps)

The closest relative of ISPO's IFD, which asks the same of the episode's *own* answer in log-probabilities and
lets an outcome sign it. Here the reference does both. A study of likelihood rewards (arXiv 2602.03979) finds
log-probabilities to work in more set-ups.

Source: the reward is the official code's, as our notes give it. Where we read or deviate:
  * The second term is the policy's own at this step; the authors' data hold it precomputed.
  * The reference stands where the episode's own answer stood, after the lead-in that the episode wrote; its
    tokens are those of the text alone. An episode without an answer in the format has no such place: 0.
  * The authors' filter, which drops prompts whose rewards spread less than a moving average, is not here.
  * `outcome_weight` adds that much of the reward functions' sum; 0 is the paper.

A value that is not finite makes its episode unscorable: advantage 0, out of the baseline, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo
from threefold.credit.outcomes import measured


@torch.no_grad()
def probability_gain(with_BR: Tensor, without_BR: Tensor, reference_BR: Tensor) -> Tensor:
    """(B,) gain in the mean probability of the reference's tokens, at least 0; 0 without a reference.

    Args:
        with_BR: (B, R) log-probabilities of the reference's tokens after the episode's reasoning, nats.
        without_BR: (B, R) the same without it.
        reference_BR: (B, R) bool, which entries are a reference's; what stands elsewhere is not read.
    """
    gain_BR = torch.where(reference_BR, with_BR.exp() - without_BR.exp(), 0)
    return (gain_BR.sum(dim=1) / reference_BR.sum(dim=1).clamp(min=1)).clamp(min=0)


@dataclass(frozen=True)
class ReferenceAnswer:
    """RLPR's reward as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    outcome_weight: float = 0.0
    """Weight of the reward functions' sum beside the gain, 0 or more; 0 is the paper."""
    scale: grpo.Scale = "group"
    """What advantages are measured in, as in `grpo.GRPO`."""
    eps: float = 1e-4
    """Added to the standard deviation, in units of probability; above 0."""

    per_token = False

    def __post_init__(self) -> None:
        grpo.check_range("outcome_weight", self.outcome_weight, least=0.0)
        grpo.GRPO(scale=self.scale, eps=self.eps)  # checks these two

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({"policy", "reference_answer"})

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: There is no reward function (TRL wants one), or a group has fewer than two episodes.
        """
        grpo.GRPO().check(reward_names, group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit from the reference answer's probabilities.

        Raises:
            ValueError: A signal is missing.
        """
        names = ("reference_logp_BR", "ablated_reference_logp_BR", "reference_BR")
        with_BR, without_BR, reference_BR = measured("RLPR", batch.signals, *names)
        gain_B = probability_gain(with_BR, without_BR, reference_BR).float()
        broken_B = ~gain_B.isfinite()
        extrinsic_B = grpo.combine(batch.rewards, batch.weights)
        reward_B = gain_B.masked_fill(broken_B, torch.nan)
        if self.outcome_weight:
            reward_B = reward_B + self.outcome_weight * extrinsic_B
        metrics = {
            "reference_answer/no_answer": float((~reference_BR.any(dim=1)).float().mean()),
            "reference_answer/non_finite_signals": float(broken_B.sum()),
        }
        if (~broken_B).any():
            metrics["reference_answer/gain"] = float(gain_B[~broken_B].mean())
        return Advantages(
            values=grpo.advantages(reward_B, batch.group_B, scale=self.scale, eps=self.eps),
            outcome_B=grpo.advantages(extrinsic_B, batch.group_B, scale=self.scale, eps=self.eps),
            reward_B=reward_B,
            metrics=metrics,
            episode_signals={"reference_gain": gain_B.masked_fill(broken_B, torch.nan), "reward": reward_B},
        )
