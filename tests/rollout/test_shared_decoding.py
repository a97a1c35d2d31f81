"""Decoding that reads a prompt once for all its samples, against plain attention over copies of it."""

from __future__ import annotations

import numpy as np
import pytest
from architectures import (
    gemma3,
    gemma3_wide,
    gpt2,
    llama,
    lora,
    mistral,
    qwen2,
    qwen3,
    scored_whole,
    teacher_forced,
)

from threefold.rollout.samplers import SamplingParameters, dialogue, shared_decoding
from threefold.rollout.samplers import transformers as sampling
from threefold.rollout.samplers.transformers import TransformersSampler

PROMPTS = [[5, 3, 8, 9, 20, 31], [60, 61], [12] * 11]


def eager():
    return llama(attn_implementation="eager")


def wide_heads():
    """One key head for all queries."""
    return llama(num_key_value_heads=1)


MODELS = [llama, qwen2, qwen3, mistral, gemma3_wide, lora, eager, wide_heads]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step that was decoded with shared prompts."""
    counted: list[int] = []
    step = shared_decoding.SharedCache.step

    def counting(self, number, query, keys, values):
        if number == 0:
            counted.append(len(query))
        return step(self, number, query, keys, values)

    monkeypatch.setattr(shared_decoding.SharedCache, "step", counting)
    return counted


@pytest.mark.parametrize("make", MODELS)
def test_samples_are_those_of_plain_attention(make, calls, monkeypatch):
    """Three prompts of different lengths, groups of five, rows that end at different times."""
    model = make()
    before = model.config._attn_implementation
    parameters = SamplingParameters(20, temperature=0.9)
    shared = TransformersSampler(model).generate(PROMPTS, parameters, samples_per_prompt=5, seed=0)
    lengths = sorted(len(sample.token_ids) for sample in shared)
    assert calls == [sum(length > step for length in lengths) for step in range(1, lengths[-1])]
    assert len({*lengths}) > 2  # rows left the batch on the way
    assert model.config._attn_implementation == before
    monkeypatch.setattr(sampling, "usable", lambda *_: False)
    plain = TransformersSampler(model).generate(PROMPTS, parameters, samples_per_prompt=5, seed=0)
    assert [s.token_ids for s in shared] == [s.token_ids for s in plain]
    for row, (mine, theirs) in enumerate(zip(shared, plain, strict=True)):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
        expected = teacher_forced(model, PROMPTS[row // 5], mine, temperature=0.9)
        np.testing.assert_allclose(mine.logprobs, expected, atol=1e-5)


def test_prompts_whose_rows_have_all_ended_are_let_go(calls):
    """Rows of one prompt end before the others, which go on with their own keys."""
    model = llama()
    parameters = SamplingParameters(80)
    together = TransformersSampler(model).generate(PROMPTS, parameters, samples_per_prompt=2, seed=4)
    alone = TransformersSampler(model, batch_size=1).generate(
        PROMPTS, parameters, samples_per_prompt=2, seed=4
    )
    assert [s.token_ids for s in together] == [s.token_ids for s in alone]
    ends = [max(len(s.token_ids) for s in together[2 * prompt : 2 * prompt + 2]) for prompt in range(3)]
    assert len({*ends}) > 1


@pytest.mark.parametrize("make", [gemma3, gpt2])
def test_other_attention_is_left_as_it_is(make, calls):
    """Windows that are narrower than the text, and a model that no test holds against this."""
    TransformersSampler(make()).generate(PROMPTS, SamplingParameters(8), samples_per_prompt=3, seed=0)
    assert calls == []


def test_prompts_that_share_nothing_are_decoded_as_before(calls):
    TransformersSampler(llama()).generate(PROMPTS, SamplingParameters(8), seed=0)
    assert calls == []


def test_the_attention_comes_back_after_an_error(monkeypatch):
    model = llama()

    def failing(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(shared_decoding.SharedCache, "step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        TransformersSampler(model).generate(PROMPTS, SamplingParameters(8), samples_per_prompt=3, seed=0)
    assert model.config._attn_implementation == "sdpa"


GROUPS = [0, 0, 0, 1, 1, 2, 2, 2, 2]
"""Which prompt each dialogue opens with."""


def dialogues(model, turns=3, batch_size=64):
    """Play dialogues that open in groups; answers (dialogue, turn) -> context and sample."""
    session = TransformersSampler(model, batch_size=batch_size).session(
        SamplingParameters(1, temperature=0.9, entropies=True), seed=5
    )
    contexts = [list(PROMPTS[group]) for group in GROUPS]
    spoken = {}
    for turn in range(turns):
        # The last of each group is over after its first turn; the middle prompt's are all over after two.
        live = [d for d in range(9) if turn == 0 or (d not in (2, 4, 8) and (turn < 2 or d != 3))]
        samples = session.turn(live, [contexts[d] for d in live], [5 + d % 3 for d in live])
        for d, sample in zip(live, samples, strict=True):
            spoken[d, turn] = list(contexts[d]), sample
            contexts[d] += [*sample.token_ids, *range(50, 51 + (d + turn) % 3)]
    return spoken, session


@pytest.mark.parametrize("make", MODELS)
def test_dialogues_that_share_openings_are_those_of_one_forward(make, calls, monkeypatch):
    model = make()
    spoken, session = dialogues(model)
    assert max(calls) == 9
    assert all(isinstance(batch.cache, shared_decoding.SharedCache) for batch in session._batches)
    for context, sample in spoken.values():
        logprobs, entropies = scored_whole(model, context, sample, temperature=0.9)
        np.testing.assert_allclose(sample.logprobs, logprobs, atol=1e-5)
        np.testing.assert_allclose(sample.entropies, entropies, atol=1e-5)
    monkeypatch.setattr(dialogue, "usable", lambda *_: False)
    plain, session = dialogues(model)
    assert not any(isinstance(batch.cache, shared_decoding.SharedCache) for batch in session._batches)
    assert {key: sample.token_ids for key, (_, sample) in spoken.items()} == {
        key: sample.token_ids for key, (_, sample) in plain.items()
    }


def test_an_opening_is_held_once_however_long_its_dialogues_go_on():
    """Its keys and values are those of the prefill; an opening without dialogues is let go in time."""
    model = llama()
    session = TransformersSampler(model).session(SamplingParameters(1, temperature=0.9), seed=5)
    contexts = [list(PROMPTS[group]) for group in GROUPS]
    held = []
    for live in (range(9), range(9), range(2), range(2)):
        samples = session.turn(list(live), [contexts[d] for d in live], [6] * len(live))
        for d, sample in zip(live, samples, strict=True):
            contexts[d] += [*sample.token_ids, 50]
        held.append({id(batch.cache.prompts): batch.cache.prompts for batch in session._batches})
    # In one turn the batch may halve, and then what goes on has the openings that it needs as a copy.
    widest = [max(held[turn].values(), key=len) for turn in (0, 1)]
    assert widest[0] is widest[1]
    assert widest[0].layers[0][0].shape[:3] == (3, 2, 11)
    assert [p.token_ids for p in held[2].values()] == [(tuple(PROMPTS[0]),)]
    assert list(held[2]) == list(held[3])


def test_dialogues_of_several_batches_are_decoded_together():
    """Openings that were forwarded in different batches come together in a later turn, and part again."""
    model = llama()
    whole, _ = dialogues(model)
    for batch_size in (2, 4):
        parted, _ = dialogues(model, batch_size=batch_size)
        assert {key: s.token_ids for key, (_, s) in parted.items()} == {
            key: s.token_ids for key, (_, s) in whole.items()
        }


@pytest.mark.parametrize("cut", [[5, 3, 8], [5, 3, 8, 9, 20, 31], [5, 3, 8, 9, 20, 32, 33]])
def test_a_dialogue_that_leaves_its_opening_starts_anew(cut):
    model = llama()
    session = TransformersSampler(model).session(SamplingParameters(1, temperature=0.9), seed=5)
    opening = PROMPTS[0]
    first = session.turn([0, 1, 2], [opening] * 3, [6, 6, 6])
    contexts = [cut, *([*opening, *sample.token_ids, 50, 51] for sample in first[1:])]
    for context, sample in zip(contexts, session.turn([0, 1, 2], contexts, [6, 6, 6]), strict=True):
        np.testing.assert_allclose(sample.logprobs, teacher_forced(model, context, sample, 0.9), atol=1e-5)
    assert sorted(d for batch in session._batches for d in batch.dialogues) == [0, 1, 2]
