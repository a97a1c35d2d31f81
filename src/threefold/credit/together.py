"""Several methods at once: their advantages are added, and a veto stays the last word.

For episode i and token t, with methods m and weights w_m:

    A_it = sum over m of  w_m A^m_it

Each method sees the batch as if it were alone (the reward functions of weight 0 that are another's outcome
are not shown to it) and is normalised by its own rule before the sum, so no method's scale drowns another's;
the weights say how much each counts. Advantages add where the methods answer different questions: which turn
calmed the patient (T²-GRPO), and which of equally rewarded answers was reasoned to (ISPO). Two methods that
normalise the same outcome count it twice, which is a larger learning rate for it and nothing else; give the
second one rewards of its own or a small weight.

An episode that broke a safety rule keeps the advantages of the methods that veto, alone: praise from a method
that does not know of violations must not buy a veto back. Where the others lift clean episodes so high or low
that one falls below the veto, the veto is lowered below them, as `veto.apply_veto` does. So every vetoed
token stays below every clean one, whatever the methods, and a test holds that for random ones.

Not in the papers, which are silent on each other.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from threefold.credit import Advantages, CreditBatch, CreditEstimator, Signal, grpo
from threefold.credit.outcomes import given_credit


@dataclass(frozen=True)
class Together:
    """The weighted sum of several methods' advantages, as a credit estimator.

    The first method is the leading one: what it calls outcome, plain reward and turns is what diagnostics and
    report speak of.

    Raises:
        ValueError: No method is given, a weight is not above 0 or belongs to nobody, or two methods belong to
            different losses.
    """

    methods: Mapping[str, CreditEstimator]
    """By a name of your own, such as "ispo"; the order counts only in that the first leads."""
    weights: Mapping[str, float]
    """w of each method, above 0."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("Together adds methods up; give one or more")
        if set(self.weights) != set(self.methods):
            raise ValueError(
                f"Together's weights are those of {', '.join(self.weights) or 'nobody'}, its methods "
                f"{', '.join(self.methods)}; give one weight for each"
            )
        for name, weight in self.weights.items():
            grpo.check_range(f"weight of {name}", weight, above=0.0)
        losses = {loss for method in self.methods.values() if (loss := getattr(method, "loss", None))}
        if len(losses) > 1:
            raise ValueError(f"these methods belong to the losses {', '.join(sorted(losses))}, not to one")

    def __getattr__(self, name: str) -> Any:
        """`outcome`, `turns` and `loss` are those of the first method that has one."""
        if name in ("outcome", "turns", "loss"):
            for method in self.methods.values():
                if (value := getattr(method, name, None)) is not None:
                    return value
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Every method's own."""
        found = (getattr(method, "outcome", None) for method in self.methods.values())
        return tuple(name for name in found if name is not None)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset().union(*(method.needs for method in self.methods.values()))

    @property
    def per_token(self) -> bool:
        return any(getattr(method, "per_token", False) for method in self.methods.values())

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Each method's own check."""
        for method in self.methods.values():
            method.check(reward_names, group_size)

    @torch.no_grad()
    def assign(self, batch: CreditBatch) -> Advantages:
        """Every method's answer, added; see above.

        Returns:
            (B,) where all answers are constant over a row, else (B, T).
        """
        answers = {name: method.assign(_alone(batch, method)) for name, method in self.methods.items()}
        first = next(iter(answers.values()))
        if len(answers) == 1 and set(self.weights.values()) == {1.0}:
            return first
        flat = all(answer.values.dim() == 1 for answer in answers.values())
        alone = {
            name: answer.values if flat else _spread(answer.values, batch.mask_BT)
            for name, answer in answers.items()
        }
        parts = {name: self.weights[name] * values for name, values in alone.items()}
        weight_of = {name: float(part.abs().sum()) for name, part in parts.items()}
        total = sum(weight_of.values()) or 1.0
        # where two methods measure the same, the leading one is heard: ChainMap asks it first
        return replace(
            first,
            values=self._vetoed(alone, parts, batch),
            metrics={
                **ChainMap(*(dict(answer.metrics) for answer in answers.values())),
                **{f"together/{name}": weight / total for name, weight in weight_of.items()},
            },
            token_signals=ChainMap(*(dict(answer.token_signals) for answer in answers.values())),
            episode_signals=ChainMap(*(dict(answer.episode_signals) for answer in answers.values())),
        )

    def _vetoed(self, alone: Mapping[str, Tensor], parts: Mapping[str, Tensor], batch: CreditBatch) -> Tensor:
        """The sum of the parts, in which violators have those of vetoing methods alone, below everybody.

        Args:
            alone: What each method answered: its floor is -veto there, which a weight's rounding would move.
            parts: The same times the methods' weights.
            batch: The episodes.
        """
        values = torch.stack(list(parts.values())).sum(dim=0)
        vetoing = {
            name: veto
            for name, method in self.methods.items()
            if (veto := getattr(method, "veto", None)) is not None
        }
        if batch.violation_B is None or not vetoing or not batch.violation_B.any():
            return values
        violator = batch.violation_B if values.dim() == 1 else batch.violation_B[:, None] & batch.mask_BT
        clean = ~batch.violation_B if values.dim() == 1 else ~batch.violation_B[:, None] & batch.mask_BT
        values = torch.where(violator, sum(parts[name] for name in vetoing), values)
        under = torch.zeros_like(violator)
        for name, veto in vetoing.items():  # a veto may begin at the violating turn: the turns before it stay
            under |= violator & (alone[name] <= -veto)
        largest = values[clean].abs().max() if clean.any() else values.new_zeros(())
        return torch.where(under, torch.minimum(values, -(largest + 1)), values)


def _alone(batch: CreditBatch, method: CreditEstimator) -> CreditBatch:
    """The batch as the method would see it without the others."""
    names = given_credit(batch.weights, method)
    return replace(batch, rewards={name: batch.rewards[name] for name in names if name in batch.rewards})


def _spread(values: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T), zero where masked."""
    return values if values.dim() == 2 else values[:, None] * mask_BT
