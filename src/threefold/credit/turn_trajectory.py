"""T²-GRPO: credit at two horizons, each channel ranked on its own, and a hard veto that nothing can offset.

"T²-GRPO", Song et al., arXiv 2606.08875v1, Eqs. 3 to 7, for the N episodes of a group:

    CRank(x; X) = 2 (rank(x; X) - 1) / (|X| - 1) - 1  in [-1, 1], the mean rank for ties      (3)
    A_traj[i]   = Σ_k CRank(R^k_i ; the group's R^k)                                          (4)
    A_turn[i,t] = Σ_k CRank(r^k_{i,t} ; r^k_{j,t} of the j that have not ended before t)      (5)
    A_perf[i,t] = A_traj[i] + α A_turn[i,t]                                                   (6)
    A[i,t]      = A_perf[i,t] if i is clean, -λ in every turn if it broke a safety rule       (7)

R^k are the channels of the whole episode (goal, fit, term), r^k those of a turn (falls of distress D and of
resistance R), λ is `veto`. Every turn's credit goes to all tokens that the agent wrote in it.

Each of the three ideas is a switch: `normalise` ("rank" or "zscore"), `horizons` ("dual", or "summed": all
turn rewards make one more episode channel) and `veto` (None: minus the violation is one more). All three
off is GDPO as the paper describes it, see gdpo.py.

Where the paper is silent, our reading (docs/t2grpo.md has all of them, and what to be careful about):
  * A comparison of fewer than `min_valid` turns gives 0; a value of NaN (a judge that failed) takes no part
    and gets 0 in that channel alone.
  * Violators stay in the comparisons of the others, as the paper's full group; `exclude_violators_from_rank`
    takes them out.
  * -λ must lie below all that a clean episode can get, or it is no veto: n_traj + α n_turn for ranks, times
    (N-1)/sqrt(N) for z-scores. A smaller λ is refused. "leave_one_out" has no such bound, so there the floor
    lies 1 below the batch's largest clean magnitude where λ does not reach so far.
  * The veto is applied last. Whitening or rescaling afterwards undoes it: see gdpo.whiten and its test.

Not the paper's: `turn_credit` and `ended` (turn_credit.py), `veto_from_turn`, weights of channels, and
`noise_control` (noise_control.py), which gives the rewards to the wrong turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, Signal, grpo, turns
from threefold.credit.noise_control import Deal, TurnNoise, dealt_episodes
from threefold.credit.turn_credit import (
    Ended,
    Normalise,
    TurnCredit,
    relative_turns,
    scored_episodes,
    summed_turns,
    within,
)
from threefold.credit.veto import apply_veto, check_veto, largest_clean, without_violation

Inputs = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Tensor, Tensor, Tensor]
"""What `advantages` compares: trajectory channels, turn channels, mask, violations, groups."""
Horizons = Literal["dual", "summed"]
"""Turns compared by turn index beside the episode channels, or summed into one more episode channel."""


@torch.no_grad()
def advantages(
    trajectory_channels: Mapping[str, Tensor],
    turn_channels: Mapping[str, Tensor],
    turn_mask_BK: Tensor,
    violation_B: Tensor,
    group_B: Tensor,
    *,
    alpha: float = 1.0,
    veto: float | None = 16.0,
    normalise: Normalise = "rank",
    horizons: Horizons = "dual",
    turn_credit: TurnCredit = "delta",
    ended: Ended = "absent",
    exclude_violators_from_rank: bool = False,
    veto_from_turn: bool = False,
    violation_turn_B: Tensor | None = None,
    min_valid: int = 2,
    eps: float = 1e-4,
    weights: Mapping[str, float] | None = None,
    levels: Mapping[str, Tensor] | None = None,
    top_level: float = 3.0,
    deal: Deal | None = None,
) -> Tensor:
    """The advantage of every turn (Eq. 7).

    Args:
        trajectory_channels: (B,) by channel, scores of whole episodes; NaN where one could not be scored.
        turn_channels: (B, K) by channel, rewards of turns; NaN where one could not be scored.
        turn_mask_BK: (B, K) bool, the turns that took place.
        violation_B: (B,) bool, the episodes that broke a safety rule.
        group_B: (B,) group of each episode, any integers.
        alpha: α, weight of the turn horizon, 0 or more.
        veto: λ, what a violator's turns get, with a minus; None makes the violation a channel instead.
        normalise: How a channel is compared within its group.
        horizons: Whether turns have a horizon of their own.
        turn_credit: What a turn is credited with (turn_credit.py); only with horizons="dual".
        ended: Whether ended episodes take part in later turns' comparisons; only with horizons="dual".
        exclude_violators_from_rank: Compare clean episodes with clean ones only.
        veto_from_turn: Veto from the turn of the violation on; earlier turns keep their blame, not praise.
        violation_turn_B: (B,) that turn, 0 the first; -1 or None where unknown, which vetoes all turns.
        min_valid: Smallest number of turns that are compared, 2 or more.
        eps: Added to the standard deviation of z-scores.
        weights: Weight of each trajectory channel; 1 by default.
        levels: (B, K) by turn channel, the level before each turn, for turn_credit="headroom".
        top_level: Highest level, for the same.
        deal: Gives turn rewards to other turns of their comparison: the noise control "turns".

    Returns:
        (B, K) advantages, 0 for turns that did not take place.

    Raises:
        ValueError: A shape or an option does not fit, or `veto` does not exceed what clean episodes can get.
    """
    group_size = int(group_B.unique(return_counts=True)[1].max()) if len(group_B) else 0
    if weights is not None:
        for name in trajectory_channels:
            grpo.check_choice("the weighted trajectory channel", name, weights)
            grpo.check_range(f"the weight of {name!r}", weights[name])
    weights = {name: 1.0 if weights is None else weights[name] for name in trajectory_channels}
    grpo.check_range("eps", eps, above=0.0)
    grpo.check_range("top_level", top_level, above=0.0)
    turns.check_shapes(trajectory_channels, turn_channels, turn_mask_BK, violation_B, group_B)
    _check_options(alpha, normalise, horizons, turn_credit, ended, min_valid)
    check_veto(
        veto,
        largest_clean(
            sum(map(abs, weights.values())),
            len(turn_channels) if horizons == "dual" else min(len(turn_channels), 1),
            alpha=alpha,
            normalise=normalise,
            group_size=group_size,
        ),
        exclude_violators_from_rank=exclude_violators_from_rank,
        veto_from_turn=veto_from_turn,
    )
    perf_B, turn_BK = parts(
        trajectory_channels,
        turn_channels,
        turn_mask_BK,
        violation_B,
        group_B,
        alpha=alpha,
        violation_as_channel=veto is None,
        normalise=normalise,
        horizons=horizons,
        turn_credit=turn_credit,
        ended=ended,
        exclude_violators_from_rank=exclude_violators_from_rank,
        min_valid=min_valid,
        eps=eps,
        weights=weights,
        levels=levels,
        top_level=top_level,
        deal=deal,
    )
    perf_BK = torch.where(turn_mask_BK, perf_B.unsqueeze(1) + turn_BK, 0)
    return apply_veto(
        perf_BK, turn_mask_BK, violation_B, veto, from_turn_B=violation_turn_B if veto_from_turn else None
    )


@torch.no_grad()
def parts(
    trajectory_channels: Mapping[str, Tensor],
    turn_channels: Mapping[str, Tensor],
    turn_mask_BK: Tensor,
    violation_B: Tensor,
    group_B: Tensor,
    *,
    alpha: float,
    violation_as_channel: bool,
    normalise: Normalise,
    horizons: Horizons,
    turn_credit: TurnCredit,
    ended: Ended,
    exclude_violators_from_rank: bool,
    min_valid: int,
    eps: float,
    weights: Mapping[str, float],
    levels: Mapping[str, Tensor] | None,
    top_level: float,
    deal: Deal | None = None,
) -> tuple[Tensor, Tensor]:
    """The two summands of Eq. 6 before the veto: (B,) of whole episodes and (B, K) of turns, α included."""
    left_out_B = violation_B if exclude_violators_from_rank else torch.zeros_like(violation_B)

    def relative(values_B: Tensor) -> Tensor:
        floats_B = values_B if values_B.is_floating_point() else values_B.float()
        return within(floats_B.masked_fill(left_out_B, torch.nan), group_B, normalise, eps=eps)

    perf_B = torch.zeros(len(group_B), device=group_B.device)
    for name, scores_B in trajectory_channels.items():
        perf_B = perf_B + weights[name] * relative(scores_B)
    turn_BK = torch.zeros(turn_mask_BK.shape, device=group_B.device)
    if horizons == "summed" and turn_channels:
        summed_B = summed_turns(turn_channels, turn_mask_BK)
        perf_B = perf_B + alpha * relative(summed_B if deal is None else deal(summed_B, group_B))
    if violation_as_channel:
        scored_B = scored_episodes(trajectory_channels, turn_channels, turn_mask_BK)
        perf_B = perf_B + relative(without_violation(violation_B, scored_B))
    if horizons == "dual":
        for name, rewards_BK in turn_channels.items():
            turn_BK = turn_BK + alpha * relative_turns(
                rewards_BK,
                turn_mask_BK,
                group_B,
                turn_credit=turn_credit,
                normalise=normalise,
                ended=ended,
                min_valid=min_valid,
                eps=eps,
                levels_BK=None if levels is None else levels.get(name),
                top_level=top_level,
                left_out_B=left_out_B,
                deal=deal,
            )
    return perf_B, turn_BK


def _check_options(
    alpha: float, normalise: str, horizons: str, turn_credit: str, ended: str, min_valid: int
) -> None:
    grpo.check_range("alpha", alpha, least=0.0)
    grpo.check_range("min_valid", min_valid, least=2)
    grpo.check_choice("normalise", normalise, get_args(Normalise))
    grpo.check_choice("horizons", horizons, get_args(Horizons))
    grpo.check_choice("turn_credit", turn_credit, get_args(TurnCredit))
    grpo.check_choice("ended", ended, get_args(Ended))
    if horizons == "summed" and (turn_credit, ended) != ("delta", "absent"):
        raise ValueError(
            f"turn_credit={turn_credit!r} and ended={ended!r} have no effect with horizons='summed', which "
            "adds up the turns' rewards; leave them at 'delta' and 'absent', or use horizons='dual'"
        )


@dataclass(frozen=True)
class T2GRPO:
    """Turn and trajectory credit with a hard veto, as a credit estimator.

    Trajectory channels are the reward functions; turn channels, violations and levels come from the episodes
    that the trainer plays with `environment=`.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    per_token: ClassVar[bool] = True

    turns: tuple[str, ...] = ("D", "R")
    """Names of the turn channels: the keys of an environment's `Observation.rewards`."""
    trajectory: tuple[str, ...] | None = None
    """Names of the reward functions that are trajectory channels; all by default, () is none."""
    alpha: float = 1.0
    """α, weight of the turn horizon, 0 or more."""
    veto: float | None = 16.0
    """λ, the paper's 16; None for none, with the violation as one more channel."""
    normalise: Normalise = "rank"
    horizons: Horizons = "dual"
    turn_credit: TurnCredit = "delta"
    """What a turn is credited with. "headroom" reads the level before each turn from the episodes' state."""
    ended: Ended = "absent"
    """Whether ended episodes take part in later comparisons. The gradient of the expected reward, without
    bias, is normalise="leave_one_out", turn_credit="return_to_go", ended="zero" (docs/turn-credit.md)."""
    exclude_violators_from_rank: bool = False
    veto_from_turn: bool = False
    min_valid: int = 2
    """Smallest number of turns that are compared, 2 or more; the authors' early code has 5."""
    eps: float = 1e-4
    """Added to the standard deviation of z-scores; above 0."""
    levels: tuple[str, ...] | None = None
    """For "headroom": names of the states that hold the levels, one for each of `turns` in their order; the
    turn channels' own names by default."""
    top_level: float = 3.0
    """Highest level, for "headroom"; the paper's tiers end at 3."""
    violation_penalty: float = 5.0
    """What GRPO, the reference in `outcome_B` and the report, would take off a violator's reward."""
    noise_control: TurnNoise | None = None
    """Give the rewards of "turns", or of "all", to others of the group by chance (noise_control.py)."""
    noise_seed: int = 0
    """Seed of that chance; the step is added."""

    def __post_init__(self) -> None:
        _check_options(
            self.alpha, self.normalise, self.horizons, self.turn_credit, self.ended, self.min_valid
        )
        grpo.check_range("eps", self.eps, above=0.0)
        grpo.check_range("top_level", self.top_level, above=0.0)
        grpo.check_range("violation_penalty", self.violation_penalty, least=0.0)
        turns.check_names("T2GRPO's turns", self.turns)
        if self.trajectory is not None:
            turns.check_names("T2GRPO's trajectory", self.trajectory)
        if self.levels is not None:
            turns.check_names("T2GRPO's levels", self.levels)
        self._check_noise()
        self._check_veto(0.0, 2)  # what needs a veto must not wait for the trainer

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def _check_noise(self) -> None:
        if self.noise_control is None:
            return
        grpo.check_choice("noise_control", self.noise_control, get_args(TurnNoise))
        if self.noise_control == "turns" and not (self.alpha and self.turns):
            raise ValueError(
                f"noise_control='turns' deals out turn rewards, and with alpha={self.alpha:g} and "
                f"turns={self.turns} none count; use 'all', or leave it out"
            )
        if self.noise_control == "all" and self.veto_from_turn:
            raise ValueError(
                "noise_control='all' gives violations to other episodes, in which they have no turn to start "
                "from; leave veto_from_turn at False"
            )

    def _check_veto(self, n_trajectory: float, group_size: int) -> None:
        n_turn = len(self.turns) if self.horizons == "dual" else min(len(self.turns), 1)
        bound = {"alpha": self.alpha, "normalise": self.normalise, "group_size": group_size}
        check_veto(
            self.veto,
            largest_clean(n_trajectory, n_turn, **bound),  # type: ignore[arg-type]
            exclude_violators_from_rank=self.exclude_violators_from_rank,
            veto_from_turn=self.veto_from_turn,
        )

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, channels that nobody scores and a veto that is none.

        Raises:
            ValueError: With the nearest name, or the smallest veto.
        """
        for name in self.trajectory or ():
            grpo.check_choice("T2GRPO's trajectory channel", name, reward_names)
        grpo.check_group_size(group_size)
        if self.levels is not None and len(self.levels) != len(self.turns):
            raise ValueError(
                f"T2GRPO's levels {self.levels} are not one for each of its turns {self.turns}; give as "
                "many, in the same order"
            )
        self._check_veto(len(self._trajectory_of(reward_names)), group_size)

    def _trajectory_of(self, reward_names: Iterable[str]) -> tuple[str, ...]:
        """The trajectory channels: those that are named, which may be none, else all reward functions."""
        return tuple(reward_names) if self.trajectory is None else self.trajectory

    def _levels(self, batch: CreditBatch) -> dict[str, Tensor]:
        """(B, K) by turn channel, the level before each turn."""
        names = self.levels or self.turns
        states = turns.levels(batch, names)
        return {channel: states[name] for channel, name in zip(self.turns, names, strict=True)}

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Credit by turn and trajectory: (B, T), or (B,) where all turns of an episode get the same.

        Raises:
            ValueError: A turn channel is missing from the episodes, or the reward weights lift the clean
                episodes over the veto.
        """
        channels, mask_BK = turns.channels(batch, self.turns)
        names = self._trajectory_of(batch.rewards)
        scores = {name: batch.rewards[name] for name in names}
        inputs: Inputs = (scores, channels, mask_BK, turns.violations(batch), batch.group_B)
        comparison: dict[str, Any] = {
            "alpha": self.alpha,
            "normalise": self.normalise,
            "horizons": self.horizons,
            "turn_credit": self.turn_credit,
            "ended": self.ended,
            "exclude_violators_from_rank": self.exclude_violators_from_rank,
            "min_valid": self.min_valid,
            "eps": self.eps,
            "weights": {name: batch.weights[name] for name in names},
            "levels": self._levels(batch) if self.turn_credit == "headroom" else None,
            "top_level": self.top_level,
        }
        figures = turns.comparison_figures(
            batch,
            self.turns,
            names,
            min_valid=self.min_valid,
            turn_credit=self.turn_credit,
            ended=self.ended,
            levels=comparison["levels"],
            top_level=self.top_level,
        )

        def vetoed() -> Tensor:
            return advantages(
                *inputs,
                veto=self.veto,
                veto_from_turn=self.veto_from_turn,
                violation_turn_B=batch.violation_turn_B,
                **comparison,
            )

        values_BK = vetoed()
        if self.noise_control is not None:
            own_BK = values_BK
            inputs, comparison["deal"] = self._dealt(batch, inputs)
            values_BK = vetoed()
            if mask_BK.any():
                figures["turns/noise_moved"] = float((values_BK != own_BK)[mask_BK].float().mean())
        perf_B, turn_BK = parts(*inputs, violation_as_channel=self.veto is None, **comparison)
        by_turn = self.horizons == "dual" and self.alpha != 0 and len(self.turns) > 0
        return turns.credited(
            batch,
            values_BK if by_turn or self.veto_from_turn else values_BK[:, 0],
            reward_B=turns.plain_sum(batch, self.turns, self.violation_penalty, names=names),
            figures=figures,
            episode_signals={"trajectory_credit": perf_B},
            turn_signals={"turn_credit": turn_BK} if by_turn else None,
        )

    def _dealt(self, batch: CreditBatch, inputs: Inputs) -> tuple[Inputs, Deal]:
        """The noise control: what `advantages` reads with its episodes' scores dealt out, and how it is to
        deal out turns."""
        deal = Deal(self.noise_seed, batch.step, "turns")
        if self.noise_control == "turns":
            return inputs, deal
        scores, channels, mask_BK, violation_B, group_B = inputs
        scored_B = scored_episodes(scores, channels, mask_BK)
        among = Deal(self.noise_seed, batch.step, "episodes")
        dealt, dealt_violation_B = dealt_episodes(scores, violation_B, scored_B, group_B, among)
        return (dealt, channels, mask_BK, dealt_violation_B, group_B), deal
