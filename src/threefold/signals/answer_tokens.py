"""Where the answer stands in a completion, counted in the sampler's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from threefold.answers import AnswerFormat


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


@dataclass(frozen=True)
class AnswerTokens:
    """Token positions in a completion: reasoning [0, lead), lead-in [lead, start), answer [start, end)."""

    lead: int
    start: int
    end: int


def locate(
    decoder: Decoder,
    completion_ids: Sequence[int],
    answer_format: AnswerFormat,
    *,
    written: Sequence[bool] | None = None,
) -> AnswerTokens | None:
    """Find the tokens of the final answer, or None where the completion states none in this format.

    The ids are never tokenised again: the answer is found in the decoded text and its character offsets are
    mapped back by decoding prefixes of the ids (by bisection, about 3 log T decodes). A token that holds
    characters of both the lead-in and the answer belongs to the answer.

    Args:
        decoder: The tokenizer.
        completion_ids: The completion's tokens.
        answer_format: How an answer is stated.
        written: For each token, whether the agent wrote it; what the environment states does not count.
            None: it wrote them all.
    """
    mine = range(len(completion_ids)) if written is None else [i for i, w in enumerate(written) if w]
    ids = [completion_ids[i] for i in mine]
    span = answer_format.find(decoder.decode(ids, skip_special_tokens=True))
    if span is None:
        return None
    lead = _token_at(decoder, ids, span.lead_start)
    start = _token_at(decoder, ids, span.start)
    last = min(_token_at(decoder, ids, span.end - 1), len(ids) - 1)
    if mine[last] - mine[start] != last - start:  # the environment speaks inside the answer
        return None
    return AnswerTokens(lead=mine[min(lead, start)], start=mine[start], end=mine[last] + 1)


def _token_at(decoder: Decoder, ids: Sequence[int], offset: int) -> int:
    """Index of the token that holds the character at `offset`: the last one whose prefix ends before it."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(decoder.decode(ids[:middle], skip_special_tokens=True)) <= offset:
            low = middle
        else:
            high = middle - 1
    return low
