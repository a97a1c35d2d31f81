"""Our answers to ISPO's traps: one option each, and the paper's behaviour (arXiv 2606.08815) as the default.

The numbers are those of docs/ispo.md. None of this is in the paper. `ISPO.recommended` turns on what we would
start with; tests/credit/test_ispo_traps.py shows each trap with the default and closed with the option.

Trap 7 deserves its derivation. The paper pays a wrong episode for the entropy H_t at tokens that it sampled.
H_t is a constant of the prefix, so its policy gradient at that prefix, E_y[H_t grad log p(y)], is zero: the
bonus makes prefixes of high entropy likelier and pushes no entropy up. The gradient of the entropy itself is

    grad H_t = E_y[(-log p(y) - H_t) grad log p(y)]

so a token's credit of (H* - H_t) (-log p(y_t) - H_t) is an unbiased estimate of the gradient of
-(H_t - H*)² / 2: it raises entropies below the target H*, lowers those above, and rests at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from threefold.credit import grpo
from threefold.credit.noise_control import NoiseControl, generator, replaced
from threefold.credit.normalise import dead_groups, group_max, group_mean, group_size


@dataclass(frozen=True, kw_only=True)
class ISPOOptions:
    """Fields of `ispo.ISPO` that are not the paper's; each default is what the paper does.

    Raises:
        ValueError: A field is outside its range, or needs another one; the message names it.
    """

    std_floor: float = 0.0
    """Trap 1. The deviation counts as at least this, in units of the reward: small spreads stay small."""
    intrinsic_cap: float | None = None
    """Trap 1. Normalise outcome and intrinsic part apart, and shrink the latter in each group so that no
    episode's exceeds this, in units of the advantage; None adds them before normalising, as in the paper."""
    ifd_where_answers_coincide: bool = True
    """Trap 3. Whether IFD counts where all answers of a group are the same tokens; it then compares nothing
    but confidence in that answer."""
    all_wrong_ifd: bool = True
    """Trap 4. Whether IFD counts where a group is all wrong; it then pays for ignoring the reasoning."""
    all_wrong_weight: float = 1.0
    """Trap 4. Factor on the advantages of all-wrong groups, 0 or more; 0 skips them."""
    preserve_sign: bool = False
    """Trap 5. In groups with right and wrong answers, keep advantages of right ones >= 0 and of wrong ones
    <= 0."""
    token_baseline: bool = False
    """Trap 6. Take R_token less its mean over the group's episodes of the same outcome that have critical
    tokens: having or avoiding them pays nothing, and the outcome's gap stays whole."""
    entropy_target: float | None = None
    """Trap 7. Entropy in nats at which critical tokens of wrong episodes are to rest, in place of Eq. 7;
    needs `token_credit`."""
    hinge_quantile: float | None = None
    """Trap 8. Put the hinge at this quantile, in (0, 1), of the batch's entropies on critical tokens of wrong
    episodes, so that it always fires; None takes `hinge`. Nothing to measure: `hinge`."""
    token_credit: bool = False
    """Give the token term to the critical tokens themselves, as (B, T) advantages, and not to the episode."""
    noise_control: NoiseControl | None = None
    """Trap 2. Deal the intrinsic rewards out at random: "shuffle" or "gaussian" (`credit.noise_control`)."""
    noise_seed: int = 0
    """Seed of those random numbers; the step is added."""

    def check_options(self) -> None:
        """Raise ValueError where an option is outside its range, or lacks what it needs."""
        for field in ("std_floor", "all_wrong_weight"):
            grpo.check_range(field, getattr(self, field), least=0.0)
        if self.intrinsic_cap is not None:
            grpo.check_range("intrinsic_cap", self.intrinsic_cap, above=0.0)
        if self.hinge_quantile is not None:
            grpo.check_range("hinge_quantile", self.hinge_quantile, above=0.0, most=1.0)
        if self.noise_control is not None:
            grpo.check_choice("noise_control", self.noise_control, ("shuffle", "gaussian"))
        if self.entropy_target is not None:
            grpo.check_range("entropy_target", self.entropy_target, least=0.0)
            if not self.token_credit:
                raise ValueError(
                    f"entropy_target is {self.entropy_target!r}, and an entropy can only be steered token by "
                    "token: set token_credit=True as well"
                )

    def dealt_out(
        self, step: int, same_B: Tensor, intrinsic_B: Tensor, credit_BT: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The noise control (trap 2): intrinsic rewards, token credit (NaN where there is none) and (B,)
        bool, whose rewards moved."""
        assert self.noise_control is not None
        random = generator(self.noise_seed, step)
        dealt_B = replaced(self.noise_control, intrinsic_B, same_B, random)
        moved_B = dealt_B != intrinsic_B
        if credit_BT is not None:
            has_BT = ~credit_BT.isnan()
            same = same_B[:, None].expand_as(credit_BT)[has_BT]
            before_BT, credit_BT = credit_BT, credit_BT.clone()
            credit_BT[has_BT] = replaced(self.noise_control, credit_BT[has_BT], same, random)
            moved_B = moved_B | (has_BT & (credit_BT != before_BT)).any(dim=1)
        return dealt_B, credit_BT, moved_B

    def token_credit_of(
        self,
        entropy_BT: Tensor,
        logp_BT: Tensor,
        hinged_BT: Tensor,
        critical_BT: Tensor,
        calm_B: Tensor,
        same_B: Tensor,
    ) -> Tensor:
        """(B, T) the token term as credit of the critical tokens themselves, nats; NaN elsewhere.

        A token is worth what Eqs. 6 and 7 average, less the mean over the critical tokens of the group's
        episodes of the same outcome: the term has no mean of its own. With `entropy_target`, tokens that
        Eq. 7 would shape get `towards_target`, whose mean is 0 as it is.

        Args:
            entropy_BT, logp_BT: (B, T) of the policy, nats.
            hinged_BT: (B, T) the entropy with its hinge (Eq. 7).
            critical_BT: (B, T) bool.
            calm_B: (B,) bool, the episodes that Eq. 7 shapes; Eq. 6 shapes the others.
            same_B: (B,) from `outcomes.same_outcome`.
        """
        worth_BT = torch.where(calm_B[..., None], hinged_BT, logp_BT)
        same_BT = same_B[:, None].expand_as(critical_BT)
        mean_BT = torch.zeros_like(worth_BT)
        mean_BT[critical_BT] = group_mean(worth_BT[critical_BT], same_BT[critical_BT])
        credit_BT = worth_BT - mean_BT
        if self.entropy_target is not None:
            steered_BT = towards_target(entropy_BT, logp_BT, self.entropy_target)
            credit_BT = torch.where(calm_B[..., None], steered_BT, credit_BT)
        return credit_BT.masked_fill(~critical_BT, torch.nan)


class How(TypedDict):
    """How advantages are normalised, as in `grpo.advantages`."""

    scale: grpo.Scale
    eps: float
    std_floor: float


@torch.no_grad()
def normalised_apart(
    extrinsic_B: Tensor,
    intrinsic_B: Tensor,
    group_B: Tensor,
    *,
    cap: float,
    scale: grpo.Scale = "group",
    eps: float = 1e-4,
    std_floor: float = 0.0,
) -> Tensor:
    """Advantages of the outcome plus those of the intrinsic part, the latter shrunk to a cap (trap 1).

    Shrunk, not clipped: in each group they keep their order, their proportions and their mean of 0.

    Args:
        extrinsic_B: (B,) rewards; NaN where unscorable.
        intrinsic_B: (B,) what the signals add to them.
        group_B: (B,) group of each episode, any integers.
        cap: Largest advantage that the intrinsic part may give.
        scale, eps, std_floor: As in `grpo.advantages`, for both.

    Returns:
        (B,) advantages; 0 where unscorable.
    """
    how: How = {"scale": scale, "eps": eps, "std_floor": std_floor}
    outcome_B = grpo.advantages(extrinsic_B, group_B, **how)
    known_B = intrinsic_B.masked_fill(extrinsic_B.isnan(), torch.nan)
    added_B = grpo.advantages(known_B, group_B, **how)
    return outcome_B + added_B * (cap / group_max(added_B.abs(), group_B).clamp(min=cap))


@torch.no_grad()
def answers_coincide(answer_ids_BA: Tensor, answer_BA: Tensor, group_B: Tensor) -> Tensor:
    """(B,) bool: two or more members of the episode's group have an answer, and all are the same (trap 3).

    Args:
        answer_ids_BA: (B, A) int64, token ids.
        answer_BA: (B, A) bool, which of them are an answer's.
        group_B: (B,) group of each episode, any integers.
    """
    _, which_B = answer_ids_BA.masked_fill(~answer_BA, -1).unique(dim=0, return_inverse=True)
    which_B = which_B.double().masked_fill(~answer_BA.any(dim=1), torch.nan)
    return dead_groups(which_B, group_B) & (group_size(which_B, group_B) >= 2)


@torch.no_grad()
def all_wrong(outcome_B: Tensor, group_B: Tensor) -> Tensor:
    """(B,) bool: the episode's group has a scored outcome, and none of 0.5 or more (trap 4)."""
    return group_max(outcome_B, group_B) < 0.5


@torch.no_grad()
def less_same_outcome(values_B: Tensor, has_B: Tensor, same_B: Tensor) -> Tensor:
    """(B,) values less the mean of those of the same outcome that have one; 0 for those without (trap 6).

    Args:
        values_B: (B,) values, such as token rewards.
        has_B: (B,) bool, who has one: a critical token.
        same_B: (B,) from `outcomes.same_outcome`.
    """
    known_B = values_B.masked_fill(~has_B, torch.nan)
    return (known_B - group_mean(known_B, same_B)).nan_to_num(nan=0.0)


@torch.no_grad()
def measured_hinge(entropy_BT: Tensor, where_BT: Tensor, quantile: float, otherwise: float) -> float:
    """A quantile of the entropies where `where_BT` holds, nats; `otherwise` where it never does (trap 8)."""
    values = entropy_BT[where_BT].float()
    if not len(values):
        return otherwise
    # Exactly floor(quantile * n) values lie below it, ties apart: the hinge fires on those.
    return float(values.sort().values[min(int(quantile * len(values)), len(values) - 1)])


@torch.no_grad()
def towards_target(entropy_BT: Tensor, logp_BT: Tensor, target: float) -> Tensor:
    """(B, T) credit whose policy gradient is that of -(H - target)² / 2 at each prefix (trap 7)."""
    return (target - entropy_BT) * (-logp_BT - entropy_BT)
