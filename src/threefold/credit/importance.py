"""Importance correction: episodes that another engine sampled, weighed as if the policy had.

An engine that generates with weights of its own (another precision, other kernels) draws token y_t with a
probability q(y_t | y_<t) that is not quite the policy's p(y_t | y_<t). A policy gradient over its samples is
then that of q's episodes, a small bias in every step. Weighing each term by p/q takes it out; what a rare
token may weigh is truncated, which lets a little bias back in and keeps the variance bounded (truncated
importance sampling: Ionides, Journal of Computational and Graphical Statistics 17, 2008; for actors that lag
behind their learner, IMPALA, arXiv 1802.01561).

    level "token"       w_bt = min(exp(log p_bt - log q_bt), cap)
    level "sequence"    w_b  = min(exp(sum_t (log p_bt - log q_bt)), cap)      t over the trained tokens

    advantages <- w * advantages

p is the policy that the update starts from, so w is a constant of the update: no gradient flows through it.
TRL 1.16 multiplies its loss by the same w for its own vLLM (`vllm_importance_sampling_mode` "token_truncate"
and "sequence_truncate"). Every loss that is linear in the advantage at a fixed sign gives the same gradient
where the advantage carries it, since w >= 0: all but vespo, which folds w into weights of its own.

"token" ignores that what came before a token was drawn by q as well: biased, and of small variance.
"sequence" corrects for the whole episode, and its variance grows with the length: a gap of 0.03 nats a token
is one of 3 nats over 100 tokens if it always has one sign. Both are exact where p = q.

Assumptions: log-probabilities at the sampling temperature over the whole vocabulary, on both sides. Where one
is not a number the ratio is 1, as in TRL. A KL term or an entropy bonus is not weighted, so that the trainer
refuses beta > 0 with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Importance:
    """How the ratio of policy and engine weighs an advantage.

    Raises:
        ValueError: A value is outside its range.
    """

    level: Literal["token", "sequence"] = "token"
    """A ratio for each token, or one for each episode."""
    cap: float = 3.0
    """Largest ratio; larger ones become this. TRL's `vllm_importance_sampling_clip_max`, and its default."""

    def __post_init__(self) -> None:
        if self.level not in ("token", "sequence"):
            raise ValueError(f"level must be 'token' or 'sequence', got {self.level!r}")
        if not self.cap >= 1:
            raise ValueError(
                f"cap must be at least 1, the ratio where policy and engine agree, got {self.cap}"
            )


@dataclass(frozen=True)
class Ratios:
    """What importance weighs, detached."""

    values: Tensor
    """(B, T) at the level of tokens, 0 where masked; (B,) at that of sequences."""
    capped: Tensor
    """bool, in the shape of `values`: the cap has lowered it."""
    gap_BT: Tensor
    """log p - log q in nats, 0 where masked."""

    def fold(self, advantages: Tensor) -> Tensor:
        """Advantages (B,) or (B, T), weighed: (B,) where both are constant over a row, else (B, T)."""
        values, folded = self.values, advantages
        if folded.dim() < values.dim():
            folded = folded.unsqueeze(1)
        elif values.dim() < folded.dim():
            values = values.unsqueeze(1)
        return folded * values.to(folded.dtype)

    def tallies(self, mask_BT: Tensor) -> Tensor:
        """(5,) sums that add up over micro-batches and processes; `figures` reads them."""
        counted = mask_BT if self.values.dim() == 2 else mask_BT.any(dim=1, keepdim=True)
        values = self.values if self.values.dim() == 2 else self.values.unsqueeze(1)
        capped = self.capped if self.capped.dim() == 2 else self.capped.unsqueeze(1)
        columns = (counted, values * counted, capped & counted, mask_BT, self.gap_BT.abs())
        return torch.stack([column.double().sum() for column in columns])


def ratios(logp_BT: Tensor, sampled_logp_BT: Tensor, mask_BT: Tensor, importance: Importance) -> Ratios:
    """The truncated ratio of policy and engine.

    Args:
        logp_BT: Log-probabilities of the sampled tokens under the policy, in nats.
        sampled_logp_BT: Under the engine that sampled them.
        mask_BT: bool, the tokens that the agent wrote and that are trained.
        importance: Level and cap.
    """
    gap_BT = (logp_BT.detach().float() - sampled_logp_BT.detach().float()).nan_to_num(nan=0.0)
    gap_BT = gap_BT.masked_fill(~mask_BT, 0.0)
    uncapped = gap_BT.exp() if importance.level == "token" else gap_BT.sum(dim=1).exp()
    values = uncapped.clamp(max=importance.cap)
    if importance.level == "token":
        values = values.masked_fill(~mask_BT, 0.0)
    return Ratios(values, uncapped > importance.cap, gap_BT)


def figures(tallies: Tensor) -> dict[str, float]:
    """Metrics of the rows that `Ratios.tallies` counted; empty where nothing is trained."""
    counted, weight, capped, tokens, gap = tallies.tolist()
    if not counted:
        return {}
    return {
        "importance/ratio": weight / counted,
        "importance/capped": capped / counted,
        "importance/gap": gap / tokens,
    }
