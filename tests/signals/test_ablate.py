"""The batch that scores answers without their reasoning, and how measurements are put together."""

from __future__ import annotations

import pytest
import torch

from threefold.signals import AnswerTokens, measure
from threefold.signals.measure import ablate, references_after

PAD = 0
PROMPTS = [[11, 12], [21], [31, 32, 33]]
COMPLETIONS = [[101, 102, 103, 104, 105], [201, 202], [301, 302, 303, 304, 305, 306]]
# Row 0: reasoning 101, lead-in 102, answer 103 104. Row 1: none. Row 2: the environment wrote 302 303.
ANSWERS = [AnswerTokens(1, 2, 4), None, AnswerTokens(4, 4, 5)]
WRITTEN = [[True] * 5, [True] * 2, [True, False, False, True, True, True]]


def test_context_is_prompt_environment_and_lead_in():
    batch = ablate(PROMPTS, COMPLETIONS, WRITTEN, ANSWERS, pad_token_id=PAD)
    assert batch.rows.tolist() == [0, 2]
    assert batch.input_ids.tolist() == [
        [PAD, PAD, 11, 12, 102, 103, 104],  # prompt + lead-in | answer
        [31, 32, 33, 302, 303, 305, PAD],  # prompt + what the environment said | answer
    ]
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]]
    assert batch.answer_NA.tolist() == [[True, True], [True, False]]
    assert batch.keep == 2


def test_every_row_keeps_a_place_for_rows_without_an_answer():
    batch = ablate(PROMPTS, COMPLETIONS, WRITTEN, ANSWERS, pad_token_id=PAD, every_row=True)
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.input_ids[1].tolist() == [PAD, PAD, PAD, PAD, 21, PAD, PAD]
    assert batch.answer_NA.tolist() == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("answer", [None, AnswerTokens(1, 1, 1)])
def test_without_an_answer_there_is_nothing_to_score(answer):
    arguments = ([[11]], [[101, 102]], [[True, True]], [answer])
    assert ablate(*arguments, pad_token_id=PAD) is None
    kept = ablate(*arguments, pad_token_id=PAD, every_row=True)
    assert kept.rows.tolist() == [0]
    assert not kept.answer_NA.any()


def test_a_reference_stands_where_the_answer_stood_with_and_without_reasoning():
    references = [[901], [902], [903, 904]]
    arguments = (PROMPTS, COMPLETIONS, WRITTEN, ANSWERS, references)
    after = references_after(*arguments, reasoning=True, pad_token_id=PAD)
    assert after.input_ids.tolist() == [
        [PAD, PAD, PAD, 11, 12, 101, 102, 901, PAD],  # prompt, reasoning, lead-in | reference
        [PAD, PAD, PAD, PAD, PAD, PAD, 21, PAD, PAD],  # no answer: no place for the reference
        [31, 32, 33, 301, 302, 303, 304, 903, 904],
    ]
    assert after.answer_NA.tolist() == [[True, False], [False, False], [True, True]]
    alone = references_after(*arguments, reasoning=False, pad_token_id=PAD)
    assert alone.input_ids.tolist() == [
        [PAD, PAD, 11, 12, 102, 901, PAD],
        [PAD, PAD, PAD, PAD, 21, PAD, PAD],
        [31, 32, 33, 302, 303, 903, 904],
    ]
    assert torch.equal(alone.answer_NA, after.answer_NA)


def counted(calls, offset):
    """A scorer whose log-probability of a token is the token's id plus `offset`; it notes its calls."""

    def score(input_ids, attention_mask, keep):
        calls.append((tuple(input_ids.shape), keep))
        return input_ids[:, -keep:].float() + offset, torch.full((len(input_ids), keep), 0.5)

    return score


def measured(needs, **options):
    calls, width = {"policy": [], "base": []}, max(map(len, COMPLETIONS))
    prompt = torch.tensor([[PAD, 11, 12], [PAD, PAD, 21], [31, 32, 33]])
    completion = torch.tensor([ids + [PAD] * (width - len(ids)) for ids in COMPLETIONS])
    written = torch.tensor([row + [False] * (width - len(row)) for row in WRITTEN])
    input_ids = torch.cat([prompt, completion], dim=1)
    signals = measure(
        frozenset(needs),
        input_ids=input_ids,
        attention_mask=(input_ids != PAD).long(),
        mask_BT=written,
        prompt_ids=PROMPTS,
        completion_ids=COMPLETIONS,
        answers=ANSWERS,
        pad_token_id=PAD,
        score_policy=counted(calls["policy"], 0.0),
        score_base=counted(calls["base"], 0.25),
        **options,
    )
    return signals, calls


def test_no_needs_cost_nothing():
    signals, calls = measured([])
    assert calls == {"policy": [], "base": []}
    assert all(value is None for value in vars(signals).values())


def test_all_needs_are_three_passes_of_which_one_is_short():
    signals, calls = measured(["policy", "base", "ablated_answer"])
    assert calls == {"policy": [((3, 9), 6), ((2, 7), 2)], "base": [((3, 9), 6)]}
    assert signals.logp_BT[0].tolist() == [101, 102, 103, 104, 105, 0]
    assert signals.base_logp_BT[0, 0] == 101.25
    assert signals.answer_BA.tolist() == [[True, True], [False, False], [True, False]]
    assert signals.answer_ids_BA.tolist() == [[103, 104], [0, 0], [305, 0]]
    assert signals.answer_logp_BA.tolist() == [[103, 104], [0, 0], [305, 0]]
    assert signals.ablated_answer_logp_BA.tolist() == [[103, 104], [0, 0], [305, 0]]


def test_thinking_ends_at_the_lead_in_and_leaves_the_environment_out():
    signals, _ = measured(["policy"])
    assert signals.thinking_BT.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],  # no answer: all that was written
        [1, 0, 0, 1, 0, 0],
    ]


def test_scores_that_exist_already_are_not_computed_again():
    given = torch.zeros(3, 6)
    signals, calls = measured(["policy", "base"], policy_scores=(given, given + 1), base_logp_BT=given - 1)
    assert calls == {"policy": [], "base": []}
    assert signals.logp_BT is given
    assert torch.equal(signals.entropy_BT, given + 1)
    assert torch.equal(signals.base_logp_BT, given - 1)


def test_scores_without_entropies_are_not_enough():
    _, calls = measured(["policy"], policy_scores=(torch.zeros(3, 6), None))
    assert calls["policy"] == [((3, 9), 6)]


def test_with_every_row_the_short_pass_is_made_even_where_nobody_answered():
    signals, calls = measured(["policy", "ablated_answer"], every_row=True)
    assert calls["policy"][1] == ((3, 7), 2)
    assert signals.answer_BA.tolist() == [[True, True], [False, False], [True, False]]
