"""Decoding that reads a prompt once for all its samples, against plain attention over copies of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import SIZES, gemma3, gpt2, llama, lora, qwen2, teacher_forced
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from threefold.rollout.samplers import SamplingParameters, shared_decoding
from threefold.rollout.samplers import transformers as sampling
from threefold.rollout.samplers.transformers import TransformersSampler

PROMPTS = [[5, 3, 8, 9, 20, 31], [60, 61], [12] * 11]


def qwen3():
    torch.manual_seed(6)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES)).eval()


def mistral():
    torch.manual_seed(7)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)).eval()


def gemma3_wide():
    """Its windows are wider than anything here."""
    torch.manual_seed(8)
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=100, layer_types=layers)).eval()


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
    attend = shared_decoding.SharedCache.attend

    def counting(self, layer, query, keys, values):
        if layer is self.layers[0]:
            counted.append(len(query))
        return attend(self, layer, query, keys, values)

    monkeypatch.setattr(shared_decoding.SharedCache, "attend", counting)
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

    monkeypatch.setattr(shared_decoding.SharedCache, "attend", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        TransformersSampler(model).generate(PROMPTS, SamplingParameters(8), samples_per_prompt=3, seed=0)
    assert model.config._attn_implementation == "sdpa"
