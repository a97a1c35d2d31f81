"""Turns what passed through TRL into the shared record: one `Credited` trajectory an episode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from threefold.credit import Advantages, CreditBatch
from threefold.signals import AnswerTokens
from threefold.trajectory import Credited, Opening, Segment, Trajectory, Turn

_FIELD_LIMIT = 2_000
"""Characters of a dataset column that go into the record."""
_INCOMPLETE = "\ufffd"
"""What decoding gives for a character whose bytes have not all come yet."""
_CHARACTER_TOKENS = 8
"""Tokens that one character may be spread over, with some to spare."""


@dataclass(frozen=True)
class CreditedStep:
    """One generation batch with its credit: this process's episodes, and their place among all."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    inputs: list[dict[str, Any]]
    """The dataset rows, with what the rollout added to them."""
    answers: Sequence[AnswerTokens | None]
    batch: CreditBatch
    """Of all processes, as the advantages and outcomes."""
    advantages: Advantages
    outcome_B: Tensor
    first: int
    """Index of this process's first episode in the batch."""
    first_group: int
    """Number of groups before this batch."""
    group_size: int
    seed: int
    step: int


def records(step: CreditedStep, tokenizer: Any) -> list[Credited]:
    """The record of this process's episodes.

    Floats are rounded to six digits: this is a record to read, and the file would double without it.
    """
    signals, advantages = step.batch.signals, step.advantages
    measured = {"entropy": signals.entropy_BT, "logp": signals.logp_BT, "base_logp": signals.base_logp_BT}
    token_signals = {n: v for n, v in {**measured, **advantages.token_signals}.items() if v is not None}
    values_BT = advantages.values.unsqueeze(1) if advantages.values.dim() == 1 else advantages.values
    values_BT = values_BT * step.batch.mask_BT
    result = []
    for row in range(len(step.completion_ids)):
        index = step.first + row
        trajectory = step.inputs[row].get("trajectory") or _one_turn(step, row, tokenizer)
        trajectory = replace(trajectory, rewards=_plain(trajectory.rewards))
        segment, length = trajectory.segments[0], completion_length(trajectory)
        before = len(segment.token_ids) - length
        given = tuple(round(value, 6) for value in values_BT[index, :length].tolist())
        episode = Credited(
            trajectory=trajectory,
            step=step.step,
            advantages=((0.0,) * before + given,),
            outcome_advantage=round(float(advantages.outcome_B[index]), 6),
            token_texts=(token_texts(tokenizer, segment.token_ids),),
            signals=_plain({n: float(v[index]) for n, v in advantages.episode_signals.items()}),
        )
        result.append(with_token_signals(episode, {n: v[index].tolist() for n, v in token_signals.items()}))
    return result


def _one_turn(step: CreditedStep, row: int, tokenizer: Any) -> Trajectory:
    """The record of an episode that TRL generated itself: a prompt and a completion."""
    index, inputs, answer = step.first + row, step.inputs[row], step.answers[row]
    prompt, completion = step.prompt_ids[row], step.completion_ids[row]
    group = step.first_group + int(step.batch.group_B[index])
    outcome = _finite(float(step.outcome_B[index]))
    truncated = step.batch.truncated_B is not None and bool(step.batch.truncated_B[index])
    span = None if answer is None else (len(prompt) + answer.start, len(prompt) + answer.end)
    turn_ids = step.batch.turn_BT[index, : len(completion)].tolist()
    return Trajectory(
        task_id=str(inputs.get("id", inputs.get("task_id", group))),
        group_id=group,
        member=index % step.group_size,
        seed=step.seed,
        environment=str(inputs.get("environment", "")),
        opening=Opening(tokenizer.decode(prompt, skip_special_tokens=True)),
        segments=(
            Segment(
                token_ids=(*prompt, *completion),
                turn_ids=(*([-1] * len(prompt)), *turn_ids),
                logprobs=(None,) * (len(prompt) + len(completion)),
            ),
        ),
        turns=(Turn(text=tokenizer.decode(completion, skip_special_tokens=True), answer_span=span),),
        rewards={name: float(values[index]) for name, values in step.batch.rewards.items()},
        success=None if outcome is None else outcome >= 0.5,
        ended="length" if truncated else "terminated",
        task={
            name: value[:_FIELD_LIMIT] if isinstance(value, str) else value
            for name, value in inputs.items()
            if isinstance(value, str | int | float | bool) and name != "prompt"
        },
    )


def completion_length(trajectory: Trajectory) -> int:
    """Tokens after the prompt in a one-segment trajectory."""
    segment = trajectory.segments[0]
    return len(segment.token_ids) - segment.prompt_length


def with_token_signals(episode: Credited, token_signals: Mapping[str, Sequence[float]]) -> Credited:
    """Add signals measured after the credit was given: values of the completion's tokens, then padding."""
    length = completion_length(episode.trajectory)
    before = (None,) * (len(episode.advantages[0]) - length)
    added = {
        name: (before + tuple(_finite(value) for value in values[:length]),)
        for name, values in token_signals.items()
    }
    return replace(episode, token_signals={**added, **episode.token_signals})


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, ...]:
    """Text of each token, so that the joined texts are the decoded whole.

    A character that is spread over several byte-level tokens is given to the last of them.
    """
    ids = list(token_ids)
    pieces = tokenizer.batch_decode([[i] for i in ids])
    whole = tokenizer.decode(ids)
    if "".join(pieces) == whole:
        return tuple(pieces)
    texts = []
    for end in range(1, len(ids) + 1):
        window = max(0, end - 1 - _CHARACTER_TOKENS)
        before = tokenizer.decode(ids[window : end - 1]).rstrip(_INCOMPLETE)
        now = tokenizer.decode(ids[window:end])
        texts.append("" if now.endswith(_INCOMPLETE) and end < len(ids) else now[len(before) :])
    return tuple(texts)


def _plain(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
