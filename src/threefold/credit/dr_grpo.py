"""Dr. GRPO: a reward less its group's mean, and nothing divided by anything that depends on the group.

"Understanding R1-Zero-Like Training: A Critical Perspective", Liu et al., arXiv 2503.20783:

    A_i = R_i - mean(R)
    J   = (1/G) sum_i sum_t min(r_it A_i, clip(r_it, 1 - eps, 1 + eps) A_i) / constant

Two biases of GRPO go: dividing by the group's deviation favours prompts that are nearly always or nearly
never solved, and dividing by an episode's own length makes long wrong answers cheap. The first is this file;
the second is the loss, TRL's `loss_type="dr_grpo"`, which divides by a constant. The method is both: `DrGRPO`
names its loss, and another one is refused before the first step. For the centred advantage with a loss of
your own, take `grpo.GRPO(scale="none")`, which gives the same numbers.

Dead groups stay dead, as in GRPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from threefold.credit import Advantages, CreditBatch, Signal, grpo


@dataclass(frozen=True)
class DrGRPO:
    """Dr. GRPO as a credit estimator; it goes with TRL's `loss_type="dr_grpo"`."""

    loss = "dr_grpo"
    per_token = False

    @property
    def scale(self) -> grpo.Scale:
        return "none"

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset()

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Refuse, before the first step, groups in which nothing can be compared.

        Raises:
            ValueError: There is no reward function, or a group has fewer than two episodes.
        """
        grpo.GRPO().check(reward_names, group_size)

    def assign(self, batch: CreditBatch) -> Advantages:
        return grpo.GRPO(scale="none").assign(batch)
