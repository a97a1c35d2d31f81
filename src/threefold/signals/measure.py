"""The forward passes behind the signals: as few as the estimator's needs allow, none with a gradient.

ISPO (arXiv 2606.08815) asks for the entropy and log-probability of every token under the policy, its
log-probability under the frozen base, and the answer scored once after its reasoning and once without. The
first is one pass (none where the trainer scored the old policy anyway), the second one more (none where a
reference model was scored), and the last a short one: the answer "after its reasoning" is read off the
policy's pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.credit import Signal, Signals
from threefold.signals.answer_tokens import AnswerTokens

ScoreTokens = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]
"""(input_ids (B, L), attention_mask (B, L), keep) -> log-probabilities (B, keep) and entropies (B, keep) of
the last `keep` tokens, at the sampling temperature. Never a tensor over the vocabulary."""


@dataclass(frozen=True)
class AblatedBatch:
    """The answers of a batch in a context without reasoning: prompt, environment's tokens, lead-in,
    answer."""

    rows: Tensor
    """(N,) int64: which rows of the batch have an answer; N may be smaller than B."""
    input_ids: Tensor
    """(N, P + A): context padded on the left, answer padded on the right."""
    attention_mask: Tensor
    answer_NA: Tensor
    """bool (N, A): valid answer tokens."""

    @property
    def keep(self) -> int:
        """A, the length of the longest answer."""
        return self.answer_NA.size(1)


def ablate(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    written: Sequence[Sequence[bool]],
    answers: Sequence[AnswerTokens | None],
    *,
    pad_token_id: int,
    every_row: bool = False,
) -> AblatedBatch | None:
    """Build the trace-ablated scoring batch, or None where no row has an answer.

    The context of an answer is everything before it that the agent did not write, then the lead-in as the
    rollout wrote it, so that both conditionals end in the same tokens; answer and lead-in keep the sampler's
    token ids. The paper leaves the ablated prompt open; this is its plainest reading, and for one turn it is
    prompt + lead-in.

    Args:
        prompt_ids: Token ids of each prompt, without padding, B of them.
        completion_ids: Token ids of each completion, without padding.
        written: For each completion token, whether the agent wrote it.
        answers: Where each answer stands, None for a completion without one.
        pad_token_id: Fills the padding; masked, so its value does not matter.
        every_row: Also give rows without an answer a (masked) place, so that all processes of a sharded model
            run equally many forwards.
    """
    found = [answer is not None and answer.end > answer.start for answer in answers]
    rows = [row for row in range(len(answers)) if every_row or found[row]]
    if not rows:
        return None
    contexts, targets = [], []
    for row in rows:
        answer = answers[row]
        if answer is None or not found[row]:
            contexts.append(list(prompt_ids[row]))
            targets.append([pad_token_id])
            continue
        completion = list(completion_ids[row])
        given = [
            token for token, mine in zip(completion[: answer.lead], written[row], strict=False) if not mine
        ]
        contexts.append(list(prompt_ids[row]) + given + completion[answer.lead : answer.start])
        targets.append(completion[answer.start : answer.end])
    n_context, n_answer = max(map(len, contexts)), max(map(len, targets))
    input_ids = torch.full((len(rows), n_context + n_answer), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        begin, end = n_context - len(context), n_context + len(target)
        input_ids[i, begin:end] = torch.tensor(context + target)
        attention_mask[i, begin:end] = 1
    answer_NA = attention_mask[:, n_context:].bool() & torch.tensor([found[row] for row in rows]).unsqueeze(1)
    return AblatedBatch(torch.tensor(rows), input_ids, attention_mask, answer_NA)


@torch.no_grad()
def measure(
    needs: frozenset[Signal],
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    mask_BT: Tensor,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    answers: Sequence[AnswerTokens | None],
    pad_token_id: int,
    score_policy: ScoreTokens,
    score_base: ScoreTokens,
    policy_scores: tuple[Tensor, Tensor | None] | None = None,
    base_logp_BT: Tensor | None = None,
    every_row: bool = False,
) -> Signals:
    """Measure what `needs` names on B episodes.

    Args:
        input_ids: (B, L) prompt and completion, padded as the trainer pads.
        attention_mask: (B, L).
        mask_BT: bool (B, T), tokens that the agent wrote; the completion is the last T of L columns.
        prompt_ids, completion_ids: The same tokens as lists without padding.
        answers: Where each answer stands in its completion.
        pad_token_id: Padding of the ablated batch.
        score_policy, score_base: Scoring with the policy and with the frozen base, at equal dtype and
            temperature.
        policy_scores: Log-probabilities and entropies that the trainer computed already; saves a pass.
        base_logp_BT: The same for the base.
        every_row: See `ablate`; set where the model is sharded over processes.
    """
    if not needs:
        return Signals()
    n_completion = mask_BT.size(1)
    if policy_scores is None or policy_scores[1] is None:
        policy_scores = score_policy(input_ids, attention_mask, n_completion)
    logp_BT, entropy_BT = policy_scores
    if "base" not in needs:
        base_logp_BT = None
    elif base_logp_BT is None:
        base_logp_BT, _ = score_base(input_ids, attention_mask, n_completion)
    answer_BA, ids_BA, with_BA, without_BA = None, None, None, None
    if "ablated_answer" in needs:
        written = [row[: len(ids)].tolist() for row, ids in zip(mask_BT, completion_ids, strict=True)]
        ablated = ablate(
            prompt_ids, completion_ids, written, answers, pad_token_id=pad_token_id, every_row=every_row
        )
        answer_BA, ids_BA, with_BA, without_BA = _answer_scores(
            ablated, completion_ids, answers, logp_BT, score_policy
        )
    return Signals(
        logp_BT=logp_BT,
        entropy_BT=entropy_BT,
        base_logp_BT=base_logp_BT,
        thinking_BT=_thinking(mask_BT, answers),
        answer_BA=answer_BA,
        answer_ids_BA=ids_BA,
        answer_logp_BA=with_BA,
        ablated_answer_logp_BA=without_BA,
    )


def _thinking(mask_BT: Tensor, answers: Sequence[AnswerTokens | None]) -> Tensor:
    """bool (B, T): what the agent wrote before its answer's lead-in; all of it where there is no answer."""
    n_completion = mask_BT.size(1)
    ends = [n_completion if answer is None else answer.lead for answer in answers]
    positions_T = torch.arange(n_completion, device=mask_BT.device)
    return mask_BT.bool() & (positions_T < torch.tensor(ends, device=mask_BT.device).unsqueeze(1))


def _answer_scores(
    ablated: AblatedBatch | None,
    completion_ids: Sequence[Sequence[int]],
    answers: Sequence[AnswerTokens | None],
    logp_BT: Tensor,
    score_policy: ScoreTokens,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Validity, ids and the two log-probabilities of the answers' tokens, each (B, A); A = 1 where nobody
    answered."""
    n_rows, device = logp_BT.size(0), logp_BT.device
    n_answer = 1 if ablated is None else ablated.keep
    answer_BA = torch.zeros(n_rows, n_answer, dtype=torch.bool, device=device)
    ids_BA = torch.zeros(n_rows, n_answer, dtype=torch.int64, device=device)
    with_BA = torch.zeros(n_rows, n_answer, dtype=logp_BT.dtype, device=device)
    without_BA = torch.zeros_like(with_BA)
    if ablated is None:
        return answer_BA, ids_BA, with_BA, without_BA
    scored_NA, _ = score_policy(ablated.input_ids.to(device), ablated.attention_mask.to(device), n_answer)
    for i, row in enumerate(ablated.rows.tolist()):
        answer = answers[row]
        if answer is None:
            continue
        length = answer.end - answer.start
        answer_BA[row, :length] = True
        ids_BA[row, :length] = torch.tensor(completion_ids[row][answer.start : answer.end])
        with_BA[row, :length] = logp_BT[row, answer.start : answer.end]
        without_BA[row, :length] = scored_NA[i, :length]
    return answer_BA, ids_BA, with_BA, without_BA
