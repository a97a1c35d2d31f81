"""vLLM in this process: its log-probabilities are the model's, pushed weights arrive, seeds decide.

Skipped where vLLM is not installed; docs/speed.md says how to get it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from threefold.rollout.samplers import Engine, Sample, SamplingParameters, Session
from threefold.rollout.samplers.vllm import VllmSampler, missing
from tiny_parts import tiny_model, tiny_tokenizer

needs_vllm = pytest.mark.skipif(missing() is not None, reason=f"needs vLLM: {missing()}")

PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12], list(range(3, 60))]
GAP = {"float32": 1e-5, "bfloat16": 0.02}
"""Largest mean |difference| in nats allowed; in bf16 these models make 0.002 to 0.015."""


def model_for_vllm(seed: int = 0) -> Any:
    """The tiny model with heads of 32, the smallest that vLLM's CPU kernels know, and spread-out logits."""
    model = tiny_model(seed, hidden_size=128, intermediate_size=128, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight *= 8
    return model


def moved(model: Any) -> Any:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return other


def gap(
    model: Any, contexts: Sequence[Sequence[int]], samples: Sequence[Sample], temperature: float
) -> float:
    """Mean |difference| of the samples' log-probabilities from the model's own."""
    differences = []
    for context, sample in zip(contexts, samples, strict=True):
        ids = torch.tensor([[*context, *sample.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(context) - 1 : -1] / temperature
        logp = logits.log_softmax(-1).gather(-1, ids[0, len(context) :, None])[:, 0]
        differences += (logp - torch.tensor(sample.logprobs)).abs().tolist()
    return float(np.mean(differences))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request):
    """A sampler, its model and its data type; one engine for all tests, as starting one takes seconds."""
    sampler = VllmSampler(tiny_tokenizer(), dtype=request.param, cache_gib=0.25)
    model = model_for_vllm()
    sampler.push(model)
    yield sampler, model, request.param
    sampler.close()


@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_log_probabilities_are_the_models_at_the_sampling_temperature(engine, temperature):
    sampler, model, dtype = engine
    samples = sampler.generate(
        PROMPTS, SamplingParameters(24, temperature=temperature), samples_per_prompt=3, seed=0
    )
    contexts = [prompt for prompt in PROMPTS for _ in range(3)]
    assert gap(model, contexts, samples, temperature or 1.0) < GAP[dtype]
    # The comparison can fail: at another temperature they are others.
    assert gap(model, contexts, samples, 1.7) > 10 * GAP[dtype]
    assert {s.finish_reason for s in samples} >= {"length"}
    for sample in samples:
        assert 1 <= len(sample.token_ids) <= 24
        assert len(sample.logprobs) == len(sample.token_ids)
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] == 1)
        assert 1 not in sample.token_ids[:-1]


@needs_vllm
def test_pushed_weights_arrive_and_return_exactly(engine):
    sampler, model, dtype = engine
    assert isinstance(sampler, Engine)
    parameters = SamplingParameters(16)
    before = sampler.generate(PROMPTS, parameters, seed=3)
    other = moved(model)
    sampler.push(other)
    try:
        after = sampler.generate(PROMPTS, parameters, seed=3)
        assert [s.token_ids for s in after] != [s.token_ids for s in before]
        assert gap(other, PROMPTS, after, 1.0) < GAP[dtype]
        assert gap(model, PROMPTS, after, 1.0) > 0.1
    finally:
        sampler.push(model)
    assert sampler.generate(PROMPTS, parameters, seed=3) == before


@needs_vllm
def test_the_seed_decides_and_nothing_else_of_the_process_is_touched(engine):
    sampler, _, _ = engine
    parameters = SamplingParameters(12)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = sampler.generate(PROMPTS, parameters, samples_per_prompt=2, seed=4)
    assert torch.equal(states[2], torch.get_rng_state())
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert sampler.generate(PROMPTS, parameters, samples_per_prompt=2, seed=4) == first
    assert sampler.generate(PROMPTS, parameters, samples_per_prompt=2, seed=5) != first
    assert first[0].token_ids != first[1].token_ids  # the samples of a prompt are different draws
    torch.manual_seed(1)
    drawn = sampler.generate(PROMPTS, parameters), sampler.generate(PROMPTS, parameters)
    torch.manual_seed(1)
    assert sampler.generate(PROMPTS, parameters) == drawn[0]
    assert drawn[0] != drawn[1]
    assert torch.set_num_threads.__name__ == "set_num_threads"  # vLLM replaces it by nothing


@needs_vllm
def test_a_sample_does_not_depend_on_who_shares_its_batch(engine):
    sampler, _, dtype = engine
    if dtype != "float32":
        pytest.skip("rounding differs between batches in half precision")
    parameters = SamplingParameters(12)
    together = sampler.generate(PROMPTS, parameters, seed=4)
    assert sampler.generate(PROMPTS[:1], parameters, seed=4)[0].token_ids == together[0].token_ids


@needs_vllm
def test_samples_are_distributed_as_the_model_says(engine):
    """4000 first tokens against the model's own probabilities."""
    sampler, model, _ = engine
    count = 4000
    samples = sampler.generate([PROMPTS[0]], SamplingParameters(1), samples_per_prompt=count, seed=0)
    with torch.no_grad():
        probs = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    seen = torch.bincount(torch.tensor([s.token_ids[0] for s in samples]), minlength=len(probs)) / count
    # The total variation that n draws from these probabilities have on average: sum sqrt(p (1 - p) / 2 pi n).
    expected = (probs * (1 - probs) / (2 * torch.pi * count)).sqrt().sum()
    assert (seen - probs).abs().sum() / 2 < 1.5 * expected
    assert (torch.full_like(probs, 1 / len(probs)) - probs).abs().sum() / 2 > 3 * expected


@needs_vllm
def test_a_session_continues_dialogues(engine):
    sampler, model, dtype = engine
    session = sampler.session(SamplingParameters(8), seed=2)
    assert isinstance(session, Session)
    contexts = [[5, 6, 7], [5, 6, 7], list(range(3, 50))]
    first = session.turn([0, 1, 2], contexts, [4, 4, 8])
    assert [len(s.token_ids) <= most for s, most in zip(first, [4, 4, 8], strict=True)] == [True] * 3
    assert first[0].token_ids != first[1].token_ids
    longer = [[*contexts[d], *first[d].token_ids, 9, 9] for d in (0, 2)]
    second = session.turn([0, 2], longer, [6, 6])
    assert gap(model, [*contexts, *longer], [*first, *second], 1.0) < GAP[dtype]
    again = sampler.session(SamplingParameters(8), seed=2)
    assert again.turn([0, 1, 2], contexts, [4, 4, 8]) == first
    with pytest.raises(ValueError, match="one turn at a time"):
        session.turn([0, 0], contexts[:2], [4, 4])
    session.close()


@needs_vllm
@pytest.mark.parametrize(
    ("prompts", "parameters", "message"),
    [
        ([[5], []], SamplingParameters(4), "prompt 1 is empty"),
        ([[5, 99]], SamplingParameters(4), "prompt 0 holds token id 99"),
        ([[5] * 250], SamplingParameters(10), "has 250 tokens.*context has 256"),
        ([[5]], SamplingParameters(4, top_p=0.9), "top_p=0.9.*use sampler='threefold'"),
        ([[5]], SamplingParameters(4, top_k=5), "top_k=5"),
        ([[5]], SamplingParameters(4, entropies=True), "no entropies"),
    ],
)
def test_what_it_cannot_do_is_refused(engine, prompts, parameters, message):
    with pytest.raises(ValueError, match=message):
        engine[0].generate(prompts, parameters)


@needs_vllm
def test_models_that_it_cannot_hold_are_refused_with_the_reason():
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match=r"PEFT.*without LoRA"):
        VllmSampler().push(get_peft_model(model_for_vllm(), LoraConfig(target_modules="all-linear")))
    with pytest.raises(ValueError, match=r"vLLM cannot run a LlamaForCausalLM.*head.*sampler='threefold'"):
        VllmSampler(cache_gib=0.25).push(tiny_model())  # heads of 8
    with pytest.raises(RuntimeError, match="call push"):
        VllmSampler().generate([[5]], SamplingParameters(4))


@needs_vllm
def test_weights_that_do_not_arrive_are_noticed():
    model = model_for_vllm()
    model.state_dict = dict  # vLLM only warns of what it misses, and goes on with random weights
    with pytest.raises(ValueError, match=r"nats from the model's on average"):
        VllmSampler(cache_gib=0.25).push(model)


@needs_vllm
@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": "int8"}, "'bfloat16' or 'float32'"), ({"cache_gib": 0}, "got 0")]
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VllmSampler(**options)


@pytest.mark.skipif(missing() is None, reason="vLLM is installed here")
def test_without_vllm_the_message_says_how_to_get_it():
    with pytest.raises(ImportError, match=r"not installed.*docs/speed\.md has the commands"):
        VllmSampler()
