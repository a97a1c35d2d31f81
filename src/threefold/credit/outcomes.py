"""What every estimator that reads outcomes and signals checks first, with the same words."""

from __future__ import annotations

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
