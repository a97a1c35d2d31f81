"""ISPO: the outcome, plus what the policy itself says of its reasoning, so that equal outcomes still differ.

"Momentum for Reasoning: Dense Intrinsic Signals in Policy Optimization", Chen et al., arXiv 2606.08815. For
an episode with reasoning T, its own answer A and outcome R_o (1 right, 0 wrong):

    R       = R_o + λ1 (2 R_o - 1) IFD + λ2 R_token                                             (Eq. 8)
    IFD     = [log p(A | Q, T) - log p(A | Q)] / |A|                                            (Eq. 2)
    C       = {the top k% of entropies of this episode} ∩ {log p(y_t) - log p_0(y_t) >= τ_Δ}    (Eqs. 4, 5)
    R_token = mean over C of log p(y_t) if right                                                (Eq. 6)
            = mean over C of α H_t - β max(0, τ_H - H_t) if wrong; 0 where C is empty           (Eq. 7)
    A_i     = (R_i - mean R) / (std R + eps) inside the group: one number per episode, as in GRPO

λ1 is `lambda_ifd`, λ2 `lambda_token`, k% `top_fraction`, τ_Δ `drift_threshold`, τ_H `hinge` (both nats).
H_t and p are entropy and probability under the policy that sampled, p_0 under the frozen initial model. IFD
asks how far the answer hangs on the reasoning: E_A[|A| IFD] = KL(p(.|Q,T) || p(.|Q)). No gradient flows here.

Where the paper is silent, our reading:
  * p(A | Q) has the same prompt and answer lead-in, with the reasoning left out (see `threefold.signals`).
  * C is taken from the reasoning alone; top k% is ceil(k n) tokens, at least one, the earlier token on ties.
  * No answer found: IFD is 0. A fractional outcome mixes Eqs. 6 and 7 linearly; metrics call >= 0.5 right.
  * Other reward functions are added unsigned. The outcome enters with its weight, but signs IFD unweighted.
  * An outcome of NaN is unscorable: advantage 0, out of the baseline. A signal that is not finite adds 0.
  * eps 1e-4 and the unbiased deviation are TRL's. `symmetric` offers both readings of that ablation.

What to know before trusting it, and our answer (`ispo_options`; numbers in tests/credit/test_ispo*.py):
  1 In a group of equal outcomes std R is proportional to λ, so dividing by it undoes a small λ: an all-wrong
    group pushes as hard as a mixed one.                       `std_floor`, `intrinsic_cap`, `scale="none"`
  2 Any noise makes std R > 0: "no dead groups" proves nothing.                            `noise_control`
  3 Where all answers of a group are the same, IFD only compares the confidence in that answer.
                                                                       `ifd_where_answers_coincide=False`
  4 In an all-wrong group IFD pays for ignoring the reasoning.   `all_wrong_ifd=False`, `all_wrong_weight`
  5 In a mixed group a right answer whose IFD lies about 0.33 below its peers' gets a negative advantage.
                                                                                           `preserve_sign`
  6 R_token is <= 0 if right and mostly > 0 if wrong: it narrows the outcome's gap, and a right episode with
    empty C beats its peers. At step 0 nothing has drifted and every C is empty.          `token_baseline`
  7 Paying for an entropy at a sampled prefix does not raise it.       `entropy_target` with `token_credit`
  8 C holds an episode's highest entropies, so the hinge seldom fires.                   `hinge_quantile`
  And Eq. 9's cross term lacks a sign: Var R = λ1² Var IFD + λ2² Var R_token + 2 λ1 λ2 (2 R_o - 1) Cov. It may
  cancel the rest, so Proposition 2 (no dead group for any λ1 > 0) does not hold as written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo, ispo_options
from threefold.credit.critical_tokens import (
    Combine,
    combined,
    critical_tokens,
    drifted_tokens,
    high_entropy_tokens,
)
from threefold.credit.ispo_options import ISPOOptions
from threefold.credit.normalise import clamp_to_outcome
from threefold.credit.outcomes import measured, outcome_of, same_outcome

__all__ = [
    "ISPO",
    "conditional_ifd",
    "critical_tokens",
    "drifted_tokens",
    "high_entropy_tokens",
    "intrinsic_reward",
    "reward",
    "token_reward",
]

Symmetric = Literal["none", "correct", "wrong"]
"""Shaping by outcome ("none", the paper), or Eq. 6 ("correct") or Eq. 7 ("wrong") for all episodes."""
Metrics = dict[str, float | None]


@torch.no_grad()
def conditional_ifd(
    logp_with_trace_BA: Tensor, logp_without_trace_BA: Tensor, answer_mask_BA: Tensor
) -> Tensor:
    """How much more likely an answer is after its reasoning than without it, per token (Eq. 2).

    Args:
        logp_with_trace_BA: (B, A) log p(A | Q, T), nats.
        logp_without_trace_BA: (B, A) log p(A | Q) of the same tokens, nats.
        answer_mask_BA: (B, A) bool, the tokens of the answer; what stands elsewhere is not read.

    Returns:
        (B,) nats per token; 0 for an episode without an answer.
    """
    return _masked_mean(logp_with_trace_BA - logp_without_trace_BA, answer_mask_BA)


def hinged_entropy(entropy_BT: Tensor, alpha: float, beta: float, hinge: float) -> Tensor:
    """α H - β max(0, τ_H - H) of each token, nats (inside Eq. 7)."""
    return alpha * entropy_BT - beta * (hinge - entropy_BT).clamp(min=0)


@torch.no_grad()
def token_reward(
    entropy_BT: Tensor,
    logp_BT: Tensor,
    critical_BT: Tensor,
    correct_B: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    hinge: float = 0.3,
    symmetric: Symmetric = "none",
) -> Tensor:
    """One number from the critical tokens: be sure where right, stay unsure where wrong (Eqs. 6 and 7).

    Args:
        entropy_BT: (B, T) entropies, nats.
        logp_BT: (B, T) log-probabilities of the sampled tokens, nats.
        critical_BT: (B, T) bool; nothing else is read.
        correct_B: (B,) bool, or an outcome in [0, 1] that mixes the two equations linearly; NaN gives 0.
        alpha: Weight of the entropy of wrong episodes.
        beta: Weight of the penalty where their entropy is below the hinge.
        hinge: That entropy, nats.
        symmetric: Eq. 6 ("correct") or Eq. 7 ("wrong") for all episodes instead.

    Returns:
        (B,) nats; 0 for an episode without critical tokens.

    Raises:
        ValueError: `symmetric` is unknown.
    """
    grpo.check_choice("symmetric", symmetric, get_args(Symmetric))
    right_B = _masked_mean(logp_BT, critical_BT)
    wrong_B = _masked_mean(hinged_entropy(entropy_BT, alpha, beta, hinge), critical_BT)
    if symmetric != "none":
        return right_B if symmetric == "correct" else wrong_B
    correct_B = correct_B.to(right_B.dtype)
    # A share of 0 takes nothing of its side, not even 0 times an infinity. Comparisons with NaN are False.
    right_B = torch.where(correct_B > 0, correct_B * right_B, 0)
    return right_B + torch.where(correct_B < 1, (1 - correct_B) * wrong_B, 0)


@torch.no_grad()
def intrinsic_reward(
    outcome_B: Tensor,
    ifd_B: Tensor,
    token_B: Tensor,
    *,
    lambda_ifd: float = 0.5,
    lambda_token: float = 0.1,
) -> Tensor:
    """What the signals add to the reward: λ1 (2 R_o - 1) IFD + λ2 R_token (Eq. 8).

    Args:
        outcome_B: (B,) outcomes in [0, 1], which sign IFD.
        ifd_B: (B,) from `conditional_ifd`.
        token_B: (B,) from `token_reward`.
        lambda_ifd: λ1. A term whose weight is exactly 0 is not added at all, so not even its NaN counts.
        lambda_token: λ2.
    """
    added_B = torch.zeros_like(outcome_B)
    if lambda_ifd != 0:
        added_B = added_B + lambda_ifd * (2 * outcome_B - 1) * ifd_B
    if lambda_token != 0:
        added_B = added_B + lambda_token * token_B
    return added_B


@torch.no_grad()
def reward(
    outcome_B: Tensor,
    ifd_B: Tensor,
    token_B: Tensor,
    *,
    lambda_ifd: float = 0.5,
    lambda_token: float = 0.1,
    extrinsic_B: Tensor | None = None,
) -> Tensor:
    """(B,) the composite reward R_o + λ1 (2 R_o - 1) IFD + λ2 R_token (Eq. 8); see `intrinsic_reward`.

    `extrinsic_B` (B,) is what the signals are added to, the outcome by default.
    """
    weights = {"lambda_ifd": lambda_ifd, "lambda_token": lambda_token}
    base_B = (outcome_B if extrinsic_B is None else extrinsic_B).detach()
    return base_B + intrinsic_reward(outcome_B.detach(), ifd_B, token_B, **weights)


@dataclass(frozen=True)
class ISPO(ISPOOptions):
    """Intrinsic signal policy optimisation as a credit estimator; with both weights 0 it equals `grpo.GRPO`.

    The fields below are the paper's; those that close its traps are in `ispo_options.ISPOOptions`.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    outcome: str
    """Name of the reward function that says right or wrong; its rewards must lie in [0, 1]."""
    lambda_ifd: float = 0.5
    """λ1, weight of the signed IFD, 0 or more; 0 saves its forward pass."""
    lambda_token: float = 0.1
    """λ2, weight of the token reward, 0 or more; 0 saves the forward pass of the initial model."""
    top_fraction: float = 0.1
    """Share of the reasoning that counts as uncertain, in (0, 1]."""
    drift_threshold: float = 0.3
    """τ_Δ in nats, 0 or more: by how much a token must have become more likely than initially."""
    hinge: float = 0.3
    """τ_H in nats, 0 or more: entropy below which certainty in a wrong episode is penalised."""
    alpha: float = 1.0
    """Weight of the entropy of wrong episodes, 0 or more."""
    beta: float = 1.0
    """Weight of the hinge's penalty, 0 or more; 0 is the paper's ablation without it."""
    combine: Combine = "intersection"
    """Which tokens are critical; "entropy" saves the forward pass of the initial model."""
    symmetric: Symmetric = "none"
    """One shaping for all episodes instead of one by outcome; an ablation."""
    scale: grpo.Scale = "group"
    """What advantages are measured in, as in `grpo.GRPO`."""
    eps: float = 1e-4
    """Added to the standard deviation, in units of the reward; above 0."""

    def __post_init__(self) -> None:
        for field in ("lambda_ifd", "lambda_token", "drift_threshold", "hinge", "alpha", "beta"):
            grpo.check_range(field, getattr(self, field), least=0.0)
        grpo.check_range("top_fraction", self.top_fraction, above=0.0, most=1.0)
        grpo.check_choice("combine", self.combine, get_args(Combine))
        grpo.check_choice("symmetric", self.symmetric, get_args(Symmetric))
        grpo.GRPO(scale=self.scale, eps=self.eps)  # checks these two
        self.check_options()

    @classmethod
    def paper(cls, outcome: str) -> ISPO:
        """The configuration of section 4.1, and the defaults where the paper gives no value."""
        return cls(outcome, 0.5, 0.1, top_fraction=0.1, drift_threshold=0.3, hinge=0.3, alpha=1.0, beta=1.0)

    @classmethod
    def recommended(cls, outcome: str) -> ISPO:
        """The paper's signals, traps closed: chosen by argument and on validation problems (docs/ispo.md)."""
        return cls(
            outcome,
            std_floor=0.1,
            intrinsic_cap=0.5,
            ifd_where_answers_coincide=False,
            all_wrong_ifd=False,
            all_wrong_weight=0.0,
            preserve_sign=True,
            token_baseline=True,
            hinge_quantile=0.2,
        )

    @property
    def per_token(self) -> bool:
        return self.token_credit and self.lambda_token > 0

    @property
    def needs(self) -> frozenset[Signal]:
        ifd: set[Signal] = {"policy", "ablated_answer"} if self.lambda_ifd else set()
        token: set[Signal] = {"policy"} if self.lambda_token else set()
        drift: set[Signal] = {"base"} if self.lambda_token and self.combine != "entropy" else set()
        return frozenset(ifd | token | drift)

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, what cannot work.

        Raises:
            ValueError: No reward function is called `outcome`, or a group has fewer than two episodes.
        """
        grpo.check_choice("ISPO's outcome", self.outcome, reward_names)
        grpo.check_group_size(group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit from outcome and signals.

        Raises:
            ValueError: The outcome is missing or outside [0, 1], or a signal that `needs` names is missing.
        """
        outcome_B = outcome_of("ISPO", self.outcome, batch)
        extrinsic_B = grpo.combine(batch.rewards, batch.weights)
        metrics: Metrics = {"ispo/unscorable": float(outcome_B.isnan().sum())}
        episode_signals: dict[str, Tensor] = {}
        token_signals: dict[str, Tensor] = {}
        if self.needs:
            # Without an outcome IFD has no sign. With no signal in use other rewards may score it.
            extrinsic_B = extrinsic_B.masked_fill(outcome_B.isnan(), torch.nan)
            if batch.signals.entropy_BT is not None:
                token_signals["entropy"] = batch.signals.entropy_BT.detach()
        ifd_B = token_B = torch.zeros_like(outcome_B)
        credit_BT: Tensor | None = None
        broken_B = torch.zeros_like(outcome_B, dtype=torch.bool)
        if self.lambda_ifd:
            ifd_B, bad_B = self._ifd(batch, outcome_B, metrics)
            broken_B = broken_B | bad_B
            episode_signals["ifd"] = ifd_B
        if self.lambda_token:
            token_B, credit_BT, critical_BT, bad_B = self._token(batch, outcome_B, metrics)
            broken_B = broken_B | bad_B
            episode_signals["token_reward"], token_signals["critical"] = token_B, critical_BT.float()
        metrics["ispo/non_finite_signals"] = float(broken_B.sum())
        weights = {"lambda_ifd": self.lambda_ifd, "lambda_token": 0 if self.per_token else self.lambda_token}
        intrinsic_B = intrinsic_reward(outcome_B, ifd_B, token_B, **weights)
        if self.noise_control is not None and self.needs:
            same_B = same_outcome(outcome_B, batch.group_B)
            intrinsic_B, credit_BT, moved_B = self.dealt_out(batch.step, same_B, intrinsic_B, credit_BT)
            metrics["ispo/noise_moved"] = _mean(moved_B, ~outcome_B.isnan())
        reward_B = extrinsic_B + intrinsic_B if self.needs else extrinsic_B
        return Advantages(
            values=self._advantages(batch, outcome_B, extrinsic_B, intrinsic_B, credit_BT),
            outcome_B=grpo.advantages(extrinsic_B, batch.group_B, scale=self.scale, eps=self.eps),
            reward_B=reward_B,
            metrics={name: value for name, value in metrics.items() if value is not None},
            episode_signals={**episode_signals, "reward": reward_B},
            token_signals=token_signals,
        )

    def _advantages(
        self,
        batch: CreditBatch,
        outcome_B: Tensor,
        extrinsic_B: Tensor,
        intrinsic_B: Tensor,
        credit_BT: Tensor | None,
    ) -> Tensor:
        """(B,) advantages, or (B, T) where the token term is credit of its tokens."""
        how: ispo_options.How = {"scale": self.scale, "eps": self.eps, "std_floor": self.std_floor}
        if not self.needs:
            return grpo.advantages(extrinsic_B, batch.group_B, **how)
        if self.intrinsic_cap is None:
            values = grpo.advantages(extrinsic_B + intrinsic_B, batch.group_B, **how)
        else:
            values = ispo_options.normalised_apart(
                extrinsic_B, intrinsic_B, batch.group_B, cap=self.intrinsic_cap, **how
            )
        if credit_BT is not None:
            cap = torch.inf if self.intrinsic_cap is None else self.intrinsic_cap
            added_BT = (self.lambda_token * credit_BT.nan_to_num(nan=0.0)).clamp(-cap, cap)
            values = (values[:, None] + added_BT) * (batch.mask_BT & ~extrinsic_B.isnan()[:, None])
        if self.all_wrong_weight != 1:
            wrong_B = ispo_options.all_wrong(outcome_B, batch.group_B)
            weight_B = torch.where(wrong_B, self.all_wrong_weight, 1.0)
            values = values * (weight_B if values.dim() == 1 else weight_B[:, None])
        return clamp_to_outcome(values, outcome_B, batch.group_B) if self.preserve_sign else values

    def _ifd(self, batch: CreditBatch, outcome_B: Tensor, metrics: Metrics) -> tuple[Tensor, Tensor]:
        """(B,) IFD and (B,) bool, where it was not finite and became 0; fills in the metrics."""
        names = ("answer_logp_BA", "ablated_answer_logp_BA", "answer_BA")
        with_BA, without_BA, answer_BA = measured("ISPO", batch.signals, *names)
        ifd_B = conditional_ifd(with_BA, without_BA, answer_BA)
        broken_B, answered_B = ~ifd_B.isfinite(), answer_BA.any(dim=1)
        metrics["ispo/no_answer"] = _mean(~answered_B)
        metrics["ispo/ifd_right"] = _mean(ifd_B, (outcome_B >= 0.5) & answered_B & ~broken_B)
        metrics["ispo/ifd_wrong"] = _mean(ifd_B, (outcome_B < 0.5) & answered_B & ~broken_B)
        unused_B = broken_B
        if not self.all_wrong_ifd:
            unused_B = unused_B | ispo_options.all_wrong(outcome_B, batch.group_B)
        if not self.ifd_where_answers_coincide:
            (ids_BA,) = measured("ISPO", batch.signals, "answer_ids_BA")
            same_B = ispo_options.answers_coincide(ids_BA, answer_BA, batch.group_B)
            metrics["ispo/answers_coincide"] = _mean(same_B)
            unused_B = unused_B | same_B
        return ifd_B.masked_fill(unused_B, 0), broken_B

    def _token(
        self, batch: CreditBatch, outcome_B: Tensor, metrics: Metrics
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """(B,) token reward, (B, T) token credit where asked for, (B, T) critical and (B,) where signals were
        not finite; fills in the metrics."""
        entropy_BT, logp_BT = measured("ISPO", batch.signals, "entropy_BT", "logp_BT")
        critical_BT, broken_B = self._critical(batch, entropy_BT, logp_BT, metrics)
        right_B, wrong_B = outcome_B >= 0.5, outcome_B < 0.5
        wrong_BT = critical_BT & wrong_B[:, None]
        hinge = self.hinge
        if self.hinge_quantile is not None:
            hinge = ispo_options.measured_hinge(entropy_BT, wrong_BT, self.hinge_quantile, self.hinge)
            metrics["ispo/hinge"] = hinge
        shaping = {"alpha": self.alpha, "beta": self.beta, "hinge": hinge}
        token_B = token_reward(
            entropy_BT, logp_BT, critical_BT, outcome_B, symmetric=self.symmetric, **shaping
        )
        metrics["ispo/empty_critical"] = _mean(~critical_BT.any(dim=1))
        metrics["ispo/token_reward_right"] = _mean(token_B, right_B)
        metrics["ispo/token_reward_wrong"] = _mean(token_B, wrong_B)
        metrics["ispo/hinge_active"] = _mean(entropy_BT < hinge, wrong_BT)
        metrics["certainty/entropy_critical_right"] = _mean(entropy_BT, critical_BT & right_B[:, None])
        metrics["certainty/entropy_critical_wrong"] = _mean(entropy_BT, wrong_BT)
        same_B = same_outcome(outcome_B, batch.group_B)
        if self.token_baseline:
            token_B = ispo_options.less_same_outcome(token_B, critical_BT.any(dim=1), same_B)
        credit_BT = None
        if self.per_token:
            calm_B = wrong_B if self.symmetric == "none" else wrong_B.new_full((), self.symmetric == "wrong")
            worth_BT = hinged_entropy(entropy_BT, **shaping)
            credit_BT = self.token_credit_of(entropy_BT, logp_BT, worth_BT, critical_BT, calm_B, same_B)
        return token_B, credit_BT, critical_BT, broken_B

    def _critical(
        self, batch: CreditBatch, entropy_BT: Tensor, logp_BT: Tensor, metrics: Metrics
    ) -> tuple[Tensor, Tensor]:
        """(B, T) bool, critical, and (B,) bool, where signals were not finite; fills in the metrics."""
        thinking_BT = batch.signals.thinking_BT
        eligible_BT = batch.mask_BT if thinking_BT is None else batch.mask_BT & thinking_BT
        sound_BT, base_BT, drift_BT = entropy_BT.isfinite() & logp_BT.isfinite(), None, None
        if self.combine != "entropy":
            (base_BT,) = measured("ISPO", batch.signals, "base_logp_BT")
            sound_BT = sound_BT & base_BT.isfinite()
        broken_B = (eligible_BT & ~sound_BT).any(dim=1)
        eligible_BT = eligible_BT & ~broken_B[:, None]
        top_BT = high_entropy_tokens(entropy_BT, eligible_BT, top_fraction=self.top_fraction)
        if base_BT is not None:
            drift_BT = drifted_tokens(logp_BT, base_BT, eligible_BT, drift_threshold=self.drift_threshold)
            metrics["ispo/drift_set"] = _mean(drift_BT, eligible_BT)
        critical_BT = combined(top_BT, drift_BT, self.combine)
        metrics["ispo/entropy_set"] = _mean(top_BT, eligible_BT)
        metrics["ispo/critical_set"] = _mean(critical_BT, eligible_BT)
        return critical_BT, broken_B


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row where `mask` holds, 0 where it nowhere does; what stands elsewhere is not read."""
    return torch.where(mask, values, 0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def _mean(values: Tensor, where: Tensor | None = None) -> float | None:
    """Mean of `values` where `where` holds, all by default; None, for a metric to leave out, over none."""
    chosen = values if where is None else values[where]
    return chosen.float().mean().item() if chosen.numel() else None
