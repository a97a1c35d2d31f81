"""Our sampler on a copy in half precision: it samples what the copy says, and leaves the policy alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from threefold.rollout.samplers import Engine, SamplingParameters, Session
from threefold.rollout.samplers.half import HalfSampler
from threefold.rollout.samplers.transformers import TransformersSampler
from tiny_parts import tiny_model

PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12]]


def scored(model, prompt, sample):
    ids = torch.tensor([[*prompt, *sample.token_ids]])
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return logp.gather(-1, ids[0, len(prompt) :, None])[:, 0]


def test_its_log_probabilities_are_the_copys_and_near_the_policys():
    policy = tiny_model(initializer_range=0.3)
    sampler = HalfSampler()
    assert isinstance(sampler, Engine)
    sampler.push(policy)
    copied = tiny_model(initializer_range=0.3).to(torch.bfloat16)
    for prompt, sample in zip(
        PROMPTS, sampler.generate(PROMPTS, SamplingParameters(20), seed=0), strict=True
    ):
        told = torch.tensor(sample.logprobs)
        from_policy = (scored(policy, prompt, sample) - told).abs().mean()
        assert 1e-4 < from_policy < 0.05
        assert (scored(copied, prompt, sample) - told).abs().mean() < 0.05


def test_in_full_precision_it_samples_what_the_policy_would():
    policy = tiny_model()
    sampler, own = HalfSampler(dtype=torch.float32), TransformersSampler(policy)
    sampler.push(policy)
    parameters = SamplingParameters(12)
    options = {"samples_per_prompt": 2, "seed": 3}
    found = sampler.generate(PROMPTS, parameters, **options)
    wanted = own.generate(PROMPTS, parameters, **options)
    sessions = sampler.session(parameters, seed=1), own.session(parameters, seed=1)
    assert isinstance(sessions[0], Session)
    found += sessions[0].turn([0, 1, 2], PROMPTS, [8] * 3)
    wanted += sessions[1].turn([0, 1, 2], PROMPTS, [8] * 3)
    assert [sample.token_ids for sample in found] == [sample.token_ids for sample in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_pushed_weights_arrive_and_return_exactly_and_nothing_else_is_touched():
    policy, other = tiny_model(), tiny_model(seed=4)
    policy.train()
    state = torch.get_rng_state()
    sampler, parameters = HalfSampler(), SamplingParameters(12)
    sampler.push(policy)
    assert torch.equal(state, torch.get_rng_state())
    before = sampler.generate(PROMPTS, parameters, seed=0)
    sampler.push(other)
    assert sampler.generate(PROMPTS, parameters, seed=0) != before
    sampler.push(policy)
    assert sampler.generate(PROMPTS, parameters, seed=0) == before
    assert policy.training
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in policy.parameters())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(RuntimeError, match="call push"):
        HalfSampler().generate(PROMPTS, SamplingParameters(4))
    with pytest.raises(ValueError, match=r"PEFT.*without LoRA"):
        HalfSampler().push(get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear")))
