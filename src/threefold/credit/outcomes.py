"""What every estimator that reads outcomes and signals checks first, with the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from threefold.credit import CreditBatch, Signals, grpo


def outcome_of(method: str, name: str, batch: CreditBatch) -> Tensor:
    """(B,) float32 outcomes in [0, 1], NaN where unscorable.

    Raises:
        ValueError: No reward function has that name, or it gave an outcome outside [0, 1]; the message names
            episode and value.
    """
    grpo.check_choice(f"{method}'s outcome", name, batch.rewards)
    outcome_B = batch.rewards[name].detach().float()
    bad_B = (outcome_B < 0) | (outcome_B > 1)
    if bad_B.any():
        episode = int(bad_B.nonzero()[0])
        raise ValueError(
            f"reward function {name!r} gave episode {episode} of the batch "
            f"{outcome_B[episode].item():g}: {method}'s outcome must lie in [0, 1], or be None where it "
            "cannot score; rescale it, or name another reward function as the outcome"
        )
    return outcome_B


def measured(method: str, signals: Signals, *names: str) -> list[Tensor]:
    """The named signals, without gradient.

    Raises:
        ValueError: One of them was not measured.
    """
    found = [getattr(signals, name) for name in names]
    missing = [name for name, signal in zip(names, found, strict=True) if signal is None]
    if missing:
        raise ValueError(f"{method} was handed no {', '.join(missing)}: measure all that its `needs` names")
    return [signal.detach() for signal in found]


@torch.no_grad()
def same_outcome(outcome_B: Tensor, group_B: Tensor) -> Tensor:
    """(B,) int64: one number for the right episodes of a group, one for its wrong ones, one for the rest.

    Right is an outcome of 0.5 or more; an outcome of NaN is neither.
    """
    _, row_B = group_B.unique(return_inverse=True)
    return 3 * row_B + torch.where(outcome_B.isnan(), 2, (outcome_B >= 0.5).long())


def given_credit(weights: Mapping[str, float], credit: Any) -> list[str]:
    """Names of the reward functions that an estimator sees: those with a weight, and its own outcome
    (`outcomes`, where it is several methods).

    One of weight 0 is watched, for the figures; a method that ranks channels apart must not rank it, and
    where nothing else could be scored it must not stand for a score.
    """
    own = getattr(credit, "outcomes", None) or (getattr(credit, "outcome", None),)
    return [name for name, weight in weights.items() if weight != 0 or name in own]
