"""The next token of each row, drawn from its logits at a uniform number of its own, and what it cost in nats:
one softmax over the vocabulary serves the draw, the log-probability and the entropy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from threefold.rollout.samplers import Sample, SamplingParameters


@dataclass
class Draft:
    """A sample that is being written."""

    name: str
    """What it continues, for messages."""
    ends: Collection[int]
    """Tokens that end it."""
    limit: int
    """Most tokens, at least 1."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    """As long as the others, or empty where none were asked for."""

    @property
    def is_over(self) -> bool:
        return bool(self.ids) and (self.ids[-1] in self.ends or len(self.ids) == self.limit)

    def sample(self) -> Sample:
        """What was written, up to the limit."""
        ids = tuple(self.ids)
        return Sample(
            ids,
            tuple(self.logprobs),
            "stop" if ids[-1] in self.ends else "length",
            tuple(self.entropies) if self.entropies else None,
        )


def write(
    drafts: Sequence[Draft],
    logits_RV: Tensor,
    parameters: SamplingParameters,
    draws_R: Tensor | None,
) -> Tensor:
    """Draw the next token of each row and add it, with what it cost, to the row's draft, unless that is over.

    Args:
        drafts: One for each row.
        logits_RV, parameters, draws_R: See `choose`.

    Returns:
        tokens_R, of all rows.

    Raises:
        FloatingPointError: A row that goes on has logits that are not finite.
    """
    tokens_R, logprobs_R, entropies_R = choose(logits_RV, parameters, draws_R)
    columns = [logprobs_R] if entropies_R is None else [logprobs_R, entropies_R]
    scores = torch.stack(columns, dim=1).tolist()  # one wait for an accelerator, not two
    for draft, token, score in zip(drafts, tokens_R.tolist(), scores, strict=True):
        if draft.is_over:
            continue
        if not score[0] > -float("inf"):
            raise FloatingPointError(
                f"the model's logits are not finite at new token {len(draft.ids) + 1} of {draft.name} "
                f"(log-probability {score[0]}): look for NaN in the weights or an overflow in half precision"
            )
        draft.ids.append(token)
        draft.logprobs.append(score[0])
        draft.entropies += score[1:]
    return tokens_R


def choose(
    logits_RV: Tensor, parameters: SamplingParameters, draws_R: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The next token of each row, its log-probability, and the entropy that it was drawn at.

    A token is drawn by inverting the cumulative distribution at the row's own uniform number, so a row's
    token depends on that row alone; torch.multinomial would tie it to the batch it happens to be in.

    Args:
        logits_RV: (R, V) of any floating type; computed with in fp32, the cumulative sum in fp64.
        parameters: How to draw.
        draws_R: (R,) uniform in [0, 1), fp64; None where the temperature is 0.

    Returns:
        tokens_R (int64), logprobs_R and entropies_R (fp32): at the sampling temperature (1 where greedy) over
        all V. The last is None where `parameters` do not ask for it.
    """
    logits_RV = logits_RV.float()
    if draws_R is not None and parameters.temperature != 1:
        logits_RV = logits_RV / parameters.temperature
    logp_RV = logits_RV.log_softmax(-1)
    tokens_R, entropies_R = logits_RV.argmax(-1), None
    if draws_R is not None or parameters.entropies:
        probs_RV = logp_RV.exp()
        if draws_R is not None:
            tokens_R = _draw(probs_RV, draws_R, parameters)
        if parameters.entropies:
            entropies_R = -(probs_RV * logp_RV).nansum(-1)  # 0 log 0 is 0
    return tokens_R, logp_RV.gather(-1, tokens_R[:, None])[:, 0], entropies_R


def _draw(probs_RV: Tensor, draws_R: Tensor, parameters: SamplingParameters) -> Tensor:
    order_RV = None
    if parameters.top_k or parameters.top_p < 1:
        size = probs_RV.size(-1)
        probs_RV, order_RV = probs_RV.topk(min(parameters.top_k or size, size), dim=-1)
    cumulative_RV = probs_RV.cumsum(-1, dtype=torch.float64)
    total_R1 = cumulative_RV[:, -1:]
    if parameters.top_p < 1:
        # A token stays while those more probable than it fall short of top_p; the first one always stays.
        short_RV = cumulative_RV - probs_RV < parameters.top_p * total_R1
        cumulative_RV = (probs_RV * short_RV).cumsum(-1, dtype=torch.float64)
        total_R1 = cumulative_RV[:, -1:]
    # Strictly below the total: the first cumulative value above it then belongs to a token that may be drawn.
    target_R1 = torch.minimum(draws_R[:, None] * total_R1, total_R1.nextafter(torch.zeros_like(total_R1)))
    index_R1 = torch.searchsorted(cumulative_RV, target_R1, right=True)
    # Only NaN can pass the end: kept in range here, refused by its log-probability afterwards.
    index_R1 = index_R1.clamp(max=cumulative_RV.size(-1) - 1)
    return (index_R1 if order_RV is None else order_RV.gather(-1, index_R1))[:, 0]
