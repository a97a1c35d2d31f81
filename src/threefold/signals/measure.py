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


ScoreCertainty = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None, Tensor]]
"""The same, with logsumexp(z) - mean z (B, keep) of the logits z as a third."""


@dataclass(frozen=True)
class AblatedBatch:
    """Answers in a context of choice, such as one without reasoning: prompt, environment's tokens, lead-in,
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
        contexts.append(list(prompt_ids[row]) + _without_reasoning(completion, written[row], answer))
        targets.append(completion[answer.start : answer.end])
    return _batch(rows, contexts, targets, [found[row] for row in rows], pad_token_id)


def _without_reasoning(completion: Sequence[int], written: Sequence[bool], answer: AnswerTokens) -> list[int]:
    """What stands before an answer and is not reasoning: what the agent did not write, and the lead-in."""
    before = zip(completion[: answer.lead], written, strict=False)
    given = [token for token, mine in before if not mine]
    return given + list(completion[answer.lead : answer.start])


def _batch(
    rows: Sequence[int],
    contexts: Sequence[list[int]],
    targets: Sequence[list[int]],
    found: Sequence[bool],
    pad_token_id: int,
) -> AblatedBatch:
    """Contexts padded on the left, targets on the right; a row that is not `found` has no valid target."""
    n_context, n_answer = max(map(len, contexts)), max(map(len, targets))
    input_ids = torch.full((len(rows), n_context + n_answer), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        begin, end = n_context - len(context), n_context + len(target)
        input_ids[i, begin:end] = torch.tensor(context + target)
        attention_mask[i, begin:end] = 1
    answer_NA = attention_mask[:, n_context:].bool() & torch.tensor(found).unsqueeze(1)
    return AblatedBatch(torch.tensor(rows), input_ids, attention_mask, answer_NA)


def references_after(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    written: Sequence[Sequence[bool]],
    answers: Sequence[AnswerTokens | None],
    reference_ids: Sequence[Sequence[int]],
    *,
    reasoning: bool,
    pad_token_id: int,
) -> AblatedBatch:
    """Every row's true answer in the place of its own: after its reasoning, or without it.

    The context ends with the lead-in that the episode wrote. A row without an answer of its own has no place
    for another, and one without a reference has none to put there: no valid target.
    """
    contexts, targets, found = [], [], []
    for row, answer in enumerate(answers):
        found.append(answer is not None and len(reference_ids[row]) > 0)
        context = list(prompt_ids[row])
        if answer is not None:
            completion = list(completion_ids[row])
            context += (
                completion[: answer.start]
                if reasoning
                else _without_reasoning(completion, written[row], answer)
            )
        contexts.append(context)
        targets.append(list(reference_ids[row]) if found[row] else [pad_token_id])
    return _batch(range(len(answers)), contexts, targets, found, pad_token_id)


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
    score_certainty: ScoreCertainty | None = None,
    reference_ids: Sequence[Sequence[int]] | None = None,
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
        score_certainty: Scoring with the policy that gives certainty too; only where that is needed.
        reference_ids: Token ids of each row's true answer; only where the reference answer is needed.
    """
    if not needs:
        return Signals()
    n_completion, certainty_BT = mask_BT.size(1), None
    if "self_certainty" in needs:
        if score_certainty is None:
            raise ValueError("self-certainty is needed and no `score_certainty` was given")
        logp_BT, entropy_BT, certainty_BT = score_certainty(input_ids, attention_mask, n_completion)
        policy_scores = (logp_BT, entropy_BT)
    if policy_scores is None or policy_scores[1] is None:
        policy_scores = score_policy(input_ids, attention_mask, n_completion)
    logp_BT, entropy_BT = policy_scores
    if "base" not in needs:
        base_logp_BT = None
    elif base_logp_BT is None:
        base_logp_BT, _ = score_base(input_ids, attention_mask, n_completion)
    written = [row[: len(ids)].tolist() for row, ids in zip(mask_BT, completion_ids, strict=True)]
    answer_BA, ids_BA, with_BA, without_BA = None, None, None, None
    if "ablated_answer" in needs:
        ablated = ablate(
            prompt_ids, completion_ids, written, answers, pad_token_id=pad_token_id, every_row=every_row
        )
        answer_BA, ids_BA, with_BA, without_BA = _answer_scores(
            ablated, completion_ids, answers, logp_BT, score_policy
        )
    reference_BR, reference_with_BR, reference_without_BR = None, None, None
    if "reference_answer" in needs:
        if reference_ids is None:
            raise ValueError("the reference answer is needed and no `reference_ids` were given")
        where = (prompt_ids, completion_ids, written, answers, reference_ids)
        after = references_after(*where, reasoning=True, pad_token_id=pad_token_id)
        alone = references_after(*where, reasoning=False, pad_token_id=pad_token_id)
        device = logp_BT.device
        reference_BR = after.answer_NA.to(device)
        reference_with_BR, _ = score_policy(
            after.input_ids.to(device), after.attention_mask.to(device), after.keep
        )
        reference_without_BR, _ = score_policy(
            alone.input_ids.to(device), alone.attention_mask.to(device), alone.keep
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
        self_certainty_BT=certainty_BT,
        reference_BR=reference_BR,
        reference_logp_BR=reference_with_BR,
        ablated_reference_logp_BR=reference_without_BR,
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
