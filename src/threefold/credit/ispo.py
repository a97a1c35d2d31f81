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

What to know before trusting it (with numbers in tests/credit/test_ispo*.py):
  * In a group of equal outcomes std R is proportional to λ, so dividing by it undoes a small λ: an all-wrong
    group pushes as hard as a mixed one, towards answers that ignore the reasoning. A larger `eps` is a soft
    floor, `scale="none"` keeps λ as it is. Any noise makes std R > 0: "no dead groups" alone proves nothing.
  * Eq. 9's cross term lacks a sign: Var R = λ1² Var IFD + λ2² Var R_token + 2 λ1 λ2 (2 R_o - 1) Cov. It may
    cancel the rest, so Proposition 2 (no dead group for any λ1 > 0) does not hold as written.
  * In a mixed group a right answer whose IFD lies about 0.33 below its peers' gets a negative advantage;
    `preserve_sign=True` clamps it to 0.
  * R_token is <= 0 if right and mostly > 0 if wrong: it narrows the outcome's gap, and a right episode with
    empty C beats its peers (`ispo/empty_critical`). At step 0 nothing has drifted and every C is empty.
  * C holds an episode's highest entropies, so the hinge seldom fires (`ispo/hinge_active`).
  * Where all answers of a group are the same, IFD only compares the confidence in that answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, Signals, grpo
from threefold.credit.normalise import clamp_to_outcome

Combine = Literal["intersection", "entropy", "drift", "union"]
"""Which tokens are critical: both sets' (the paper), one set's alone, or either's."""
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
    return _combined(entropy_set_BT, drift_set_BT, combine)


def _combined(entropy_set_BT: Tensor, drift_set_BT: Tensor | None, combine: Combine) -> Tensor:
    grpo.check_choice("combine", combine, get_args(Combine))
    if combine == "entropy":
        return entropy_set_BT
    if drift_set_BT is None:
        raise ValueError(f'combine={combine!r} needs base_logp_BT; only combine="entropy" does without it')
    if combine == "drift":
        return drift_set_BT
    return entropy_set_BT & drift_set_BT if combine == "intersection" else entropy_set_BT | drift_set_BT


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
    wrong_B = _masked_mean(alpha * entropy_BT - beta * (hinge - entropy_BT).clamp(min=0), critical_BT)
    if symmetric != "none":
        return right_B if symmetric == "correct" else wrong_B
    correct_B = correct_B.to(right_B.dtype)
    # A share of 0 takes nothing of its side, not even 0 times an infinity. Comparisons with NaN are False.
    right_B = torch.where(correct_B > 0, correct_B * right_B, 0)
    return right_B + torch.where(correct_B < 1, (1 - correct_B) * wrong_B, 0)


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
    """The composite reward R_o + λ1 (2 R_o - 1) IFD + λ2 R_token (Eq. 8).

    Args:
        outcome_B: (B,) outcomes in [0, 1], which sign IFD.
        ifd_B: (B,) from `conditional_ifd`.
        token_B: (B,) from `token_reward`.
        lambda_ifd: λ1. A term whose weight is exactly 0 is not added at all, so not even its NaN counts.
        lambda_token: λ2.
        extrinsic_B: (B,) what the signals are added to, the outcome by default.

    Returns:
        (B,) rewards.
    """
    total_B = (outcome_B if extrinsic_B is None else extrinsic_B).detach()
    if lambda_ifd != 0:
        total_B = total_B + lambda_ifd * (2 * outcome_B - 1) * ifd_B
    if lambda_token != 0:
        total_B = total_B + lambda_token * token_B
    return total_B


@dataclass(frozen=True)
class ISPO:
    """Intrinsic signal policy optimisation as a credit estimator; with both weights 0 it equals `grpo.GRPO`.

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
    preserve_sign: bool = False
    """In groups with right and wrong answers, keep advantages of right ones >= 0 and of wrong ones <= 0."""

    def __post_init__(self) -> None:
        for field in ("lambda_ifd", "lambda_token", "drift_threshold", "hinge", "alpha", "beta"):
            grpo.check_range(field, getattr(self, field), least=0.0)
        grpo.check_range("top_fraction", self.top_fraction, above=0.0, most=1.0)
        grpo.check_choice("combine", self.combine, get_args(Combine))
        grpo.check_choice("symmetric", self.symmetric, get_args(Symmetric))
        grpo.GRPO(scale=self.scale, eps=self.eps)  # checks these two

    @classmethod
    def paper(cls, outcome: str) -> ISPO:
        """The configuration of section 4.1, and the defaults where the paper gives no value."""
        return cls(outcome, 0.5, 0.1, top_fraction=0.1, drift_threshold=0.3, hinge=0.3, alpha=1.0, beta=1.0)

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
        outcome_B = self._outcome(batch)
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
        broken_B = torch.zeros_like(outcome_B, dtype=torch.bool)
        if self.lambda_ifd:
            ifd_B, bad_B = self._ifd(batch.signals, outcome_B, metrics)
            broken_B = broken_B | bad_B
            episode_signals["ifd"] = ifd_B
        if self.lambda_token:
            token_B, critical_BT, bad_B = self._token(batch, outcome_B, metrics)
            broken_B = broken_B | bad_B
            episode_signals["token_reward"], token_signals["critical"] = token_B, critical_BT.float()
        metrics["ispo/non_finite_signals"] = float(broken_B.sum())
        weights = {"lambda_ifd": self.lambda_ifd, "lambda_token": self.lambda_token}
        reward_B = reward(outcome_B, ifd_B, token_B, extrinsic_B=extrinsic_B, **weights)
        values_B = grpo.advantages(reward_B, batch.group_B, scale=self.scale, eps=self.eps)
        if self.preserve_sign and self.needs:
            values_B = clamp_to_outcome(values_B, outcome_B, batch.group_B)
        return Advantages(
            values=values_B,
            outcome_B=grpo.advantages(extrinsic_B, batch.group_B, scale=self.scale, eps=self.eps),
            reward_B=reward_B,
            metrics={name: value for name, value in metrics.items() if value is not None},
            episode_signals={**episode_signals, "reward": reward_B},
            token_signals=token_signals,
        )

    def _outcome(self, batch: CreditBatch) -> Tensor:
        """(B,) float32 outcomes, refused where they cannot sign IFD."""
        grpo.check_choice("ISPO's outcome", self.outcome, batch.rewards)
        outcome_B = batch.rewards[self.outcome].detach().float()
        bad_B = (outcome_B < 0) | (outcome_B > 1)
        if bad_B.any():
            episode = int(bad_B.nonzero()[0])
            raise ValueError(
                f"reward function {self.outcome!r} gave episode {episode} of the batch "
                f"{outcome_B[episode].item():g}: ISPO's outcome must lie in [0, 1], or be None where it "
                "cannot score; rescale it, or name another reward function as the outcome"
            )
        return outcome_B

    def _ifd(self, signals: Signals, outcome_B: Tensor, metrics: Metrics) -> tuple[Tensor, Tensor]:
        """(B,) IFD and (B,) bool, where it was not finite and became 0; fills in the metrics."""
        names = ("answer_logp_BA", "ablated_answer_logp_BA", "answer_BA")
        with_BA, without_BA, answer_BA = _measured(signals, *names)
        ifd_B = conditional_ifd(with_BA, without_BA, answer_BA)
        broken_B, answered_B = ~ifd_B.isfinite(), answer_BA.any(dim=1)
        metrics["ispo/no_answer"] = _mean(~answered_B)
        metrics["ispo/ifd_right"] = _mean(ifd_B, (outcome_B >= 0.5) & answered_B & ~broken_B)
        metrics["ispo/ifd_wrong"] = _mean(ifd_B, (outcome_B < 0.5) & answered_B & ~broken_B)
        return ifd_B.masked_fill(broken_B, 0), broken_B

    def _token(self, batch: CreditBatch, outcome_B: Tensor, metrics: Metrics) -> tuple[Tensor, ...]:
        """(B,) token reward, (B, T) critical and (B,) where signals were not finite; fills in the metrics."""
        entropy_BT, logp_BT = _measured(batch.signals, "entropy_BT", "logp_BT")
        thinking_BT = batch.signals.thinking_BT
        eligible_BT = batch.mask_BT if thinking_BT is None else batch.mask_BT & thinking_BT
        sound_BT, base_BT, drift_BT = entropy_BT.isfinite() & logp_BT.isfinite(), None, None
        if self.combine != "entropy":
            (base_BT,) = _measured(batch.signals, "base_logp_BT")
            sound_BT = sound_BT & base_BT.isfinite()
        broken_B = (eligible_BT & ~sound_BT).any(dim=1)
        eligible_BT = eligible_BT & ~broken_B[:, None]
        top_BT = high_entropy_tokens(entropy_BT, eligible_BT, top_fraction=self.top_fraction)
        if base_BT is not None:
            drift_BT = drifted_tokens(logp_BT, base_BT, eligible_BT, drift_threshold=self.drift_threshold)
            metrics["ispo/drift_set"] = _mean(drift_BT, eligible_BT)
        critical_BT = _combined(top_BT, drift_BT, self.combine)
        shaping = {"alpha": self.alpha, "beta": self.beta, "hinge": self.hinge}
        token_B = token_reward(
            entropy_BT, logp_BT, critical_BT, outcome_B, symmetric=self.symmetric, **shaping
        )
        right_B, wrong_B = outcome_B >= 0.5, outcome_B < 0.5
        metrics["ispo/entropy_set"] = _mean(top_BT, eligible_BT)
        metrics["ispo/critical_set"] = _mean(critical_BT, eligible_BT)
        metrics["ispo/empty_critical"] = _mean(~critical_BT.any(dim=1))
        metrics["ispo/token_reward_right"] = _mean(token_B, right_B)
        metrics["ispo/token_reward_wrong"] = _mean(token_B, wrong_B)
        metrics["ispo/hinge_active"] = _mean(entropy_BT < self.hinge, critical_BT & wrong_B[:, None])
        metrics["certainty/entropy_critical_right"] = _mean(entropy_BT, critical_BT & right_B[:, None])
        metrics["certainty/entropy_critical_wrong"] = _mean(entropy_BT, critical_BT & wrong_B[:, None])
        return token_B, critical_BT, broken_B


def _measured(signals: Signals, *names: str) -> list[Tensor]:
    """The named signals, all of which must have been measured."""
    found = [getattr(signals, name) for name in names]
    missing = [name for name, signal in zip(names, found, strict=True) if signal is None]
    if missing:
        raise ValueError(f"ISPO was handed no {', '.join(missing)}: measure all that its `needs` names")
    return [signal.detach() for signal in found]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row where `mask` holds, 0 where it nowhere does; what stands elsewhere is not read."""
    return torch.where(mask, values, 0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def _mean(values: Tensor, where: Tensor | None = None) -> float | None:
    """Mean of `values` where `where` holds, all by default; None, for a metric to leave out, over none."""
    chosen = values if where is None else values[where]
    return chosen.float().mean().item() if chosen.numel() else None
