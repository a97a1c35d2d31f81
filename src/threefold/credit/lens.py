"""LENS: a wrong answer costs the more, the surer the policy was of it.

"Don't Waste Mistakes: Leveraging Negative RL-Groups via Confidence Reweighting", Feng et al., arXiv
2510.08696, sections 4 and 5.1, which we read in full. With outcome r_i and confidence p_i = exp(mean_t
log p(o_it)), the length-normalised probability of the whole episode under the policy that sampled it:

    r~_i = r_i - (1 - r_i) (1/G) p_i / (D - p_i)                               (calibrated reward)
    D    = max(D_imp, 2 max_j p_j)      D_imp = 1 / mean_j (r_j / p_j)         (mixed group)
         = 2 max_j p_j                                                         (group without a right answer)
    A_i  = (r~_i - mean r~) / (std r~ + eps)                                   (mixed group)
         = α (r~_i - mean r~)                                                  (group without a right answer)

D is the question's difficulty normaliser; taking at least twice the largest confidence keeps p / (D - p) in
[0, 1]. 1/G keeps a wrong answer's advantage below a right one's. α is `alpha`, the paper's only
hyper-parameter, 0.25 there: all-wrong groups carry confidence differences only, so they are centred, not
standardised, and weigh less. All-right groups stay dead.

Where we read or deviate: p_i also stands in D_imp (the paper writes the raw probability there, which
underflows to 0 for long episodes and leaves D = 2 max p, as ours mostly does). eps and the unbiased deviation
are TRL's. Other reward functions are added unsigned, with their weights. An unscorable episode takes no part;
one with a log-probability that is not finite keeps its plain outcome, takes no part in D, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo
from threefold.credit.normalise import group_max, group_mean, group_size
from threefold.credit.outcomes import measured, outcome_of


@torch.no_grad()
def calibrated_reward(outcome_B: Tensor, confidence_B: Tensor, group_B: Tensor) -> Tensor:
    """Outcomes less a penalty on confident mistakes (section 5.1).

    Args:
        outcome_B: (B,) outcomes in [0, 1]; NaN where unscorable.
        confidence_B: (B,) length-normalised probabilities of the episodes in (0, 1]; NaN where unknown.
        group_B: (B,) group of each episode, any integers.

    Returns:
        (B,) rewards in [-1/G, 1]; the outcome itself where the confidence is unknown.
    """
    known_B = torch.where(outcome_B.isnan(), torch.nan, confidence_B)
    largest_B = group_max(known_B, group_B)
    inverse_B = group_mean(outcome_B / known_B, group_B)
    # Without a right answer D_imp is 1 / 0: the group falls back to twice its largest confidence.
    implied_B = torch.where(inverse_B > 0, 1 / inverse_B, -torch.inf)
    difficulty_B = torch.maximum(implied_B, 2 * largest_B)
    penalty_B = (known_B / (difficulty_B - known_B)).nan_to_num(nan=0.0) / group_size(outcome_B, group_B)
    return outcome_B - (1 - outcome_B) * penalty_B


@dataclass(frozen=True)
class LENS:
    """LENS as a credit estimator.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    outcome: str
    """Name of the reward function that says right or wrong; its rewards must lie in [0, 1]."""
    alpha: float = 0.25
    """Weight of groups without a right answer, 0 or more."""
    eps: float = 1e-4
    """Added to the standard deviation of mixed groups, in units of the reward; above 0."""

    per_token = False

    def __post_init__(self) -> None:
        grpo.check_range("alpha", self.alpha, least=0.0)
        grpo.check_range("eps", self.eps, above=0.0)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({"policy"})

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: No reward function is called `outcome`, or a group has fewer than two episodes.
        """
        grpo.check_choice("LENS's outcome", self.outcome, reward_names)
        grpo.check_group_size(group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit from outcomes and the policy's log-probabilities.

        Raises:
            ValueError: The outcome is missing or outside [0, 1], or the log-probabilities are missing.
        """
        outcome_B = outcome_of("LENS", self.outcome, batch)
        (logp_BT,) = measured("LENS", batch.signals, "logp_BT")
        tokens_B = batch.mask_BT.sum(dim=1)
        mean_logp_B = torch.where(batch.mask_BT, logp_BT, 0).sum(dim=1) / tokens_B.clamp(min=1)
        broken_B = ~mean_logp_B.isfinite()
        unknown_B = broken_B | (tokens_B == 0)
        confidence_B = mean_logp_B.float().exp().masked_fill(unknown_B, torch.nan)
        extrinsic_B = grpo.combine(batch.rewards, batch.weights).masked_fill(outcome_B.isnan(), torch.nan)
        calibrated_B = calibrated_reward(outcome_B, confidence_B, batch.group_B)
        reward_B = extrinsic_B + (calibrated_B - outcome_B)
        no_right_B = ~(group_max(outcome_B, batch.group_B) > 0)
        centred_B = grpo.advantages(reward_B, batch.group_B, scale="none")
        scored_B = grpo.advantages(reward_B, batch.group_B, eps=self.eps)
        wrong_B = (outcome_B == 0) & ~unknown_B
        metrics = {"lens/non_finite_signals": float(broken_B.sum())}
        if wrong_B.any():
            metrics["lens/penalty_wrong"] = float((outcome_B - calibrated_B)[wrong_B].mean())
            metrics["lens/confidence_wrong"] = float(confidence_B[wrong_B].mean())
        return Advantages(
            values=torch.where(no_right_B, self.alpha * centred_B, scored_B),
            outcome_B=grpo.advantages(extrinsic_B, batch.group_B, eps=self.eps),
            reward_B=reward_B,
            metrics=metrics,
            episode_signals={"confidence": confidence_B, "reward": reward_B},
        )
