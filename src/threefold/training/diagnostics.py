"""What a step's numbers mean: is there a signal, where does it come from, and how certain is the policy.

Pure functions of a credited batch. Every figure is defined without reference to the method that ran, so runs
of different methods can be compared; docs/metrics.md explains each name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch
from threefold.credit.critical_tokens import critical_tokens, high_entropy_tokens
from threefold.credit.normalise import dead_groups
from threefold.evaluation.calibration import brier, expected_calibration_error
from threefold.signals import AnswerTokens
from threefold.trajectory import Trajectory

COMPOSITE_TOLERANCES = (0.0, 1e-6, 1e-4, 1e-2)
"""A group counts as dead in the composite reward where it spans at most this much: any noise passes at 0."""


def diagnose(
    batch: CreditBatch,
    advantages: Advantages,
    outcome_B: Tensor,
    *,
    answer_logp_B: Tensor | None = None,
    top_fraction: float = 0.1,
) -> dict[str, float]:
    """Figures of one generation batch, by metric name. A figure without a case to measure is left out.

    Args:
        batch: The episodes of all processes.
        advantages: What the estimator answered.
        outcome_B: (B,) the outcome in [0, 1], NaN where unscorable.
        answer_logp_B: (B,) log-probability of each whole answer after its reasoning, NaN without an answer;
            None where nothing has scored the tokens yet.
        top_fraction: Share of each episode's tokens that counts as its top-entropy tokens.
    """
    first_B = _first_of_group(batch.group_B)
    scored_B = ~outcome_B.isnan()
    right_B = scored_B & (outcome_B >= 0.5)
    dead_B = dead_groups(outcome_B, batch.group_B)
    weight_BT = _token_advantages(advantages.values, batch.mask_BT).abs()
    total = weight_BT.sum()
    figures = {
        "signal/groups": float(first_B.sum()),
        "signal/dead_outcome": _share(dead_B, first_B),
        "signal/dead_all_right": _share(dead_B & _group_any(right_B, batch.group_B), first_B),
        "signal/dead_all_wrong": _share(dead_B & ~_group_any(right_B, batch.group_B), first_B),
        "signal/unscorable": float((~scored_B).float().mean()),
        **_spread(advantages.values, batch.mask_BT),
        "signal/trained_tokens": float(batch.mask_BT.sum()),
        "signal/effective_tokens": float((weight_BT > 0).sum()),
    }
    for tolerance in COMPOSITE_TOLERANCES:
        dead_composite_B = dead_groups(advantages.reward_B, batch.group_B, tol=tolerance)
        figures[f"signal/dead_composite@{tolerance:g}"] = _share(dead_composite_B, first_B)
    if total > 0:
        figures["signal/gradient_share_dead"] = float(weight_BT[dead_B].sum() / total)
    if scored_B.any():
        figures["signal/outcome"] = float(outcome_B[scored_B].mean())
    figures |= initial_kl(batch)
    if batch.signals.entropy_BT is not None:
        figures |= certainty(batch.signals.entropy_BT, batch.mask_BT, outcome_B, top_fraction=top_fraction)
    figures |= critical_certainty(batch, outcome_B)
    if answer_logp_B is not None:
        figures |= confidence(answer_logp_B, outcome_B)
    return figures


def initial_kl(batch: CreditBatch) -> dict[str, float]:
    """`signal/kl_initial`: nats a trained token from the frozen initial model, where that was scored.

    The mean of log-probability minus initial log-probability over the policy's own samples, an unbiased
    estimate of the divergence summed over tokens (k1 of Schulman's three); of a small batch it can be
    negative. TRL logs `kl`, which is never negative, only where it is in the loss.
    """
    signals = batch.signals
    if signals.logp_BT is None or signals.base_logp_BT is None:
        return {}
    moved_BT = signals.logp_BT - signals.base_logp_BT
    moved = moved_BT[batch.mask_BT & moved_BT.isfinite()]
    return {"signal/kl_initial": float(moved.mean())} if len(moved) else {}


def certainty(
    entropy_BT: Tensor, mask_BT: Tensor, outcome_B: Tensor, *, top_fraction: float = 0.1
) -> dict[str, float]:
    """Mean entropy (nats) on all tokens and on each episode's top-entropy tokens, by outcome.

    Measured alike for every method, unlike the entropy on ISPO's critical tokens, which depend on drift. NaN
    marks tokens whose entropy was not seen.
    """
    figures = {}
    mask_BT = mask_BT & entropy_BT.isfinite()
    top_BT = high_entropy_tokens(entropy_BT, mask_BT, top_fraction=top_fraction)
    for tokens, chosen_BT in (("all", mask_BT), ("top", top_BT)):
        for outcome, rows_B in _by_outcome(outcome_B):
            values = entropy_BT[chosen_BT & rows_B.unsqueeze(1)]
            if len(values):
                figures[f"certainty/entropy_{tokens}_{outcome}"] = float(values.mean())
    return figures


def critical_certainty(batch: CreditBatch, outcome_B: Tensor) -> dict[str, float]:
    """Mean entropy (nats) on the critical tokens, by outcome, whatever the method calls critical.

    The set is ISPO's with its paper's values (a tenth of the reasoning, a drift of 0.3 nats), so methods can
    be compared; it needs the frozen initial model's scores. Which tokens drift still depends on the method.
    """
    signals = batch.signals
    if signals.entropy_BT is None or signals.logp_BT is None or signals.base_logp_BT is None:
        return {}
    reasoning_BT = batch.mask_BT if signals.thinking_BT is None else signals.thinking_BT
    critical_BT = critical_tokens(signals.entropy_BT, signals.logp_BT, signals.base_logp_BT, reasoning_BT)
    figures = {}
    for outcome, rows_B in _by_outcome(outcome_B):
        values = signals.entropy_BT[critical_BT & rows_B.unsqueeze(1)]
        if len(values):
            figures[f"certainty/entropy_drifted_{outcome}"] = float(values.mean())
    return figures


def confidence(answer_logp_B: Tensor, outcome_B: Tensor) -> dict[str, float]:
    """Mean probability of the answers given, by outcome, and their calibration.

    NaN marks an episode without an answer.
    """
    figures = {}
    probability_B = answer_logp_B.double().exp().clamp(max=1.0)
    answered_B = ~answer_logp_B.isnan()
    for outcome, rows_B in _by_outcome(outcome_B):
        values = probability_B[rows_B & answered_B]
        if len(values):
            figures[f"certainty/confidence_{outcome}"] = float(values.mean())
    scored_B = answered_B & ~outcome_B.isnan()
    if scored_B.any():
        sure, right = probability_B[scored_B].cpu().numpy(), (outcome_B[scored_B] >= 0.5).cpu().numpy()
        figures["certainty/brier"] = brier(sure, right)
        figures["certainty/ece"] = expected_calibration_error(sure, right)
    return figures


def answer_logp(logp_BT: Tensor, answers: Sequence[AnswerTokens | None]) -> Tensor:
    """(B,) summed log-probability of each answer's tokens after its reasoning; NaN without an answer."""
    logp_B = torch.full((len(answers),), torch.nan, device=logp_BT.device)
    for row, answer in enumerate(answers):
        if answer is not None:
            logp_B[row] = logp_BT[row, answer.start : answer.end].sum()
    return logp_B


def skill_use(episodes: Sequence[Trajectory]) -> dict[str, float]:
    """`skills/fired`: share of the turns whose prompt held a skill; empty where no episode had a bank."""
    turns = [turn for episode in episodes if episode.skill_version is not None for turn in episode.turns]
    if not turns:
        return {}
    return {"skills/fired": sum(bool(turn.skills) for turn in turns) / len(turns)}


def _by_outcome(outcome_B: Tensor) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """Comparisons with NaN are False, so an unscorable episode is in neither."""
    return ("right", outcome_B >= 0.5), ("wrong", outcome_B < 0.5)


def in_words(figures: dict[str, float], method: str, *, kl: float = 0.0) -> str:
    """One sentence on what the step's groups gave, and why a loss is zero where it is.

    Args:
        figures: Those of `diagnose`.
        method: Who gave the advantages.
        kl: Weight of the KL term in the loss, which acts on dead groups too.
    """
    groups = round(figures["signal/groups"])
    dead = round(figures["signal/dead_outcome"] * groups)
    right = round(figures["signal/dead_all_right"] * groups)
    parts = [f"{dead} of {groups} groups gave no signal from outcomes"]
    if dead:
        parts[0] += f" ({dead - right} all wrong, {right} all right)"
    still_dead = round(figures["signal/dead_composite@0"] * groups)
    share = figures.get("signal/gradient_share_dead", 0.0)
    if dead > still_dead and not share:
        parts.append(f"{method}'s rewards differ in {dead - still_dead} of them, without any advantage")
    elif dead > still_dead:
        weight = f"{share:.0%}" if share >= 0.01 else "less than 1%"
        parts.append(f"{method} revived {dead - still_dead}, {weight} of the gradient's weight")
    elif share:  # by advantages that are not differences of rewards, such as those of single tokens
        parts.append(f"{method} gave them {share:.0%} of the gradient's weight")
    if figures["signal/unscorable"]:
        parts.append(f"{figures['signal/unscorable']:.0%} of the episodes could not be scored")
    if not figures["signal/effective_tokens"]:
        parts.append(
            "no token has an advantage, so the policy gradient is zero: " + _why_zero(figures, dead, groups)
        )
        if kl and figures["signal/trained_tokens"]:
            parts.append(f"the KL term, of weight {kl:g}, alone moves the policy")
    return "; ".join(parts)


def _why_zero(figures: dict[str, float], dead: int, groups: int) -> str:
    if not figures["signal/trained_tokens"]:
        return "every completion is masked (all of them truncated?); raise max_completion_length"
    if figures["signal/unscorable"] == 1.0:
        return "the reward functions scored nothing; look at their None and NaN answers"
    if dead == groups:
        return "all members of every group have the same outcome; choose problems nearer the model's ability"
    return "the rewards of every group are equal"


def _spread(values: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """Mean, standard deviation and largest magnitude of the advantages: an entry an episode, or a trained
    token."""
    values = (values if values.dim() == 1 else values[mask_BT.bool()]).float()
    if not len(values):  # no token is trained
        values = values.new_zeros(1)
    return {
        "signal/advantage_mean": float(values.mean()),
        "signal/advantage_std": float(values.std(unbiased=False)),
        "signal/advantage_max": float(values.abs().max()),
    }


def _token_advantages(values: Tensor, mask_BT: Tensor) -> Tensor:
    expanded_BT = values.unsqueeze(1) if values.dim() == 1 else values
    return expanded_BT * mask_BT


def _first_of_group(group_B: Tensor) -> Tensor:
    """bool (B,): the first member of each group."""
    _, inverse_B = group_B.unique(return_inverse=True)
    positions_B = torch.arange(len(group_B), device=group_B.device)
    first_N = torch.full((int(inverse_B.max()) + 1,), len(group_B), device=group_B.device)
    first_N = first_N.scatter_reduce(0, inverse_B, positions_B, "amin")
    return first_N[inverse_B] == positions_B


def _group_any(flags_B: Tensor, group_B: Tensor) -> Tensor:
    """bool (B,): whether any member of the episode's group has the flag."""
    _, inverse_B = group_B.unique(return_inverse=True)
    count_N = torch.zeros(int(inverse_B.max()) + 1, device=group_B.device).index_add_(
        0, inverse_B, flags_B.float()
    )
    return (count_N > 0)[inverse_B]


def _share(flags_B: Tensor, among_B: Tensor) -> float:
    return float((flags_B & among_B).sum() / among_B.sum())
