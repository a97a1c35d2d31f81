"""The sampler against `generate`, teacher forcing, and the distribution that it claims to draw from.

All models are real ones with random weights, small enough that a test takes a moment.
"""

import logging

import numpy as np
import pytest
import torch
from architectures import (
    ENDS,
    VOCABULARY,
    count_forwards,
    gemma3,
    gpt2,
    llama,
    lora,
    mamba,
    own_cache,
    qwen2,
    teacher_forced,
)

from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.transformers import TransformersSampler

RAGGED = [[5, 3, 8, 9, 20, 31], [4], [60, 61], [5, 3, 8, 9, 20, 31], [12] * 11]


def greedy(model, prompts, tokens=24, **options):
    return TransformersSampler(model, **options).generate(prompts, SamplingParameters(tokens, temperature=0))


@pytest.mark.parametrize("make", [llama, qwen2, gemma3, gpt2, mamba, lora])
def test_greedy_equals_generate_token_for_token(make):
    model = make()
    samples = greedy(model, RAGGED)
    for prompt, sample in zip(RAGGED, samples, strict=True):
        expected = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        assert list(sample.token_ids) == expected
        assert sample.finish_reason == ("stop" if expected[-1] in ENDS else "length")


def test_the_cases_above_hold_early_and_late_ends():
    """Otherwise removal of finished rows would not have been tried."""
    samples = TransformersSampler(llama()).generate(
        RAGGED, SamplingParameters(24), samples_per_prompt=4, seed=0
    )
    lengths = {len(sample.token_ids) for sample in samples if sample.finish_reason == "stop"}
    assert len(lengths) > 3
    assert any(sample.finish_reason == "length" for sample in samples)


@pytest.mark.parametrize("make", [llama, qwen2, gemma3, gpt2, mamba, lora, own_cache])
def test_logprobs_equal_teacher_forcing(make):
    model = make()
    parameters = SamplingParameters(24, temperature=0.7, top_p=0.9, top_k=30)
    samples = TransformersSampler(model).generate(RAGGED, parameters, samples_per_prompt=3, seed=0)
    for i, sample in enumerate(samples):
        expected = teacher_forced(model, RAGGED[i // 3], sample, temperature=0.7)
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-5)
        assert not set(ENDS) & set(sample.token_ids[:-1])
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] in ENDS)
        assert sample.finish_reason == "stop" or len(sample.token_ids) == 24


def test_greedy_logprobs_are_those_of_temperature_one():
    model = llama()
    for prompt, sample in zip(RAGGED, greedy(model, RAGGED), strict=True):
        np.testing.assert_allclose(sample.logprobs, teacher_forced(model, prompt, sample), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_a_sample_does_not_depend_on_its_batch(batch_size):
    """Other rows, their padding and their removal change no token, and scores by no more than rounding."""
    model = llama()
    parameters = SamplingParameters(16, temperature=0.8)
    alone = TransformersSampler(model).generate(RAGGED, parameters, samples_per_prompt=4, seed=11)
    batched = TransformersSampler(model, batch_size=batch_size).generate(
        RAGGED, parameters, samples_per_prompt=4, seed=11
    )
    assert [s.token_ids for s in batched] == [s.token_ids for s in alone]
    for a, b in zip(batched, alone, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    fewer = TransformersSampler(model).generate(RAGGED[:2], parameters, samples_per_prompt=4, seed=11)
    assert [s.token_ids for s in fewer] == [s.token_ids for s in alone[:8]]


def test_a_shorter_limit_gives_the_beginning_of_the_longer_sample():
    long, short = (
        TransformersSampler(llama()).generate(RAGGED, SamplingParameters(tokens), seed=2)
        for tokens in (20, 6)
    )
    assert [s.token_ids for s in short] == [s.token_ids[:6] for s in long]


def test_every_prompt_is_forwarded_once_and_finished_rows_leave():
    model = llama()
    shapes = count_forwards(model)
    samples = TransformersSampler(model).generate(
        RAGGED, SamplingParameters(24), samples_per_prompt=4, seed=0
    )
    prefill, *steps = shapes
    assert prefill == (4, 11)  # five prompts, of which two are equal
    lengths = [len(sample.token_ids) for sample in samples]
    expected = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert steps == [(rows, 1) for rows in expected]
    assert expected[-1] < expected[0] <= 20


def test_one_new_token_needs_one_forward():
    model = llama()
    shapes = count_forwards(model)
    samples = TransformersSampler(model).generate([[4]], SamplingParameters(1), samples_per_prompt=5, seed=0)
    assert shapes == [(1, 1)]
    assert [len(sample.token_ids) for sample in samples] == [1] * 5


def test_a_cache_of_unknown_kind_is_only_slower(caplog):
    plain = TransformersSampler(llama()).generate(
        RAGGED, SamplingParameters(16), samples_per_prompt=2, seed=0
    )
    model = own_cache()
    shapes = count_forwards(model)
    sampler = TransformersSampler(model)
    with caplog.at_level(logging.WARNING):
        first = sampler.generate(RAGGED, SamplingParameters(16), samples_per_prompt=2, seed=0)
        second = sampler.generate(RAGGED, SamplingParameters(16), samples_per_prompt=2, seed=0)
    assert [s.token_ids for s in first] == [s.token_ids for s in second] == [s.token_ids for s in plain]
    assert sum("cache of type Opaque" in record.message for record in caplog.records) == 1
    assert shapes[:2] == [(4, 11), (10, 11)]
    assert set(shapes[2:]) == {(10, 1), (10, 11)}


def test_prompts_come_back_in_their_order():
    one_by_one = [greedy(llama(), [prompt])[0] for prompt in RAGGED]
    together = greedy(llama(), RAGGED, batch_size=2)
    assert [s.token_ids for s in together] == [s.token_ids for s in one_by_one]
    twice = TransformersSampler(llama()).generate(
        RAGGED, SamplingParameters(24, temperature=0), samples_per_prompt=2
    )
    assert [s.token_ids for s in twice[::2]] == [s.token_ids for s in twice[1::2]]
    assert [s.token_ids for s in twice[::2]] == [s.token_ids for s in one_by_one]


def test_seed_fixes_the_samples_and_leaves_the_global_generator_alone():
    sampler, parameters = TransformersSampler(llama()), SamplingParameters(12)
    torch.manual_seed(1)
    first = sampler.generate(RAGGED, parameters, seed=4)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    second = sampler.generate(RAGGED, parameters, seed=4)
    assert first == second
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sampler.generate(RAGGED, parameters, seed=5) != first


def test_without_a_seed_the_global_generator_governs():
    sampler, parameters = TransformersSampler(llama()), SamplingParameters(12)
    torch.manual_seed(1)
    first, next_one = sampler.generate(RAGGED, parameters), sampler.generate(RAGGED, parameters)
    torch.manual_seed(1)
    assert sampler.generate(RAGGED, parameters) == first
    assert next_one != first


def test_frequencies_follow_the_softmax():
    model, prompt, count = llama(), [5, 3, 8], 4000
    samples = TransformersSampler(model, batch_size=4000).generate(
        [prompt], SamplingParameters(1), samples_per_prompt=count, seed=0
    )
    with torch.no_grad():
        probs = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).double().numpy()
    seen = np.bincount([s.token_ids[0] for s in samples], minlength=VOCABULARY)
    usual = probs * count >= 5
    expected = np.append(probs[usual], probs[~usual].sum()) * count
    observed = np.append(seen[usual], seen[~usual].sum())
    assert usual.sum() > 5
    # Over k cells chi-square has mean k - 1 and variance 2 (k - 1); four deviations are rarely passed.
    degrees = len(expected) - 1
    assert ((observed - expected) ** 2 / expected).sum() < degrees + 4 * np.sqrt(2 * degrees)


class WithEnd:
    def __init__(self, eos_token_id):
        self.eos_token_id = eos_token_id


def test_end_tokens_of_model_and_tokenizer_all_end_a_sample():
    model = llama()
    free = list(greedy(model, [[4]])[0].token_ids)
    second, fourth = free[1], free[3]
    assert len({*free[:4], *ENDS}) == 4 + len(ENDS), "pick another seed: the greedy answer repeats a token"

    model.generation_config.eos_token_id = [*ENDS, fourth]
    sample = TransformersSampler(model).generate([[4]], SamplingParameters(24, temperature=0))[0]
    assert (list(sample.token_ids), sample.finish_reason) == (free[:4], "stop")

    sample = TransformersSampler(model, WithEnd(second)).generate(
        [[4]], SamplingParameters(24, temperature=0)
    )[0]
    assert (list(sample.token_ids), sample.finish_reason) == (free[:2], "stop")

    model.generation_config.eos_token_id = None
    sample = TransformersSampler(model, WithEnd(None)).generate([[4]], SamplingParameters(3, temperature=0))[
        0
    ]
    assert (list(sample.token_ids), sample.finish_reason) == (free[:3], "length")


def test_an_end_token_at_the_limit_is_a_stop():
    model = llama()
    token = greedy(model, [[4]], tokens=1)[0].token_ids[0]
    model.generation_config.eos_token_id = token
    assert greedy(model, [[4]], tokens=1)[0].finish_reason == "stop"


def test_train_mode_is_off_inside_and_restored_module_by_module():
    model = llama(attention_dropout=0.9)
    expected = greedy(model, RAGGED)
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert greedy(model, RAGGED) == expected
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_restored_after_an_error():
    model = llama().train()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    for parameters in (SamplingParameters(4), SamplingParameters(4, temperature=0)):
        with pytest.raises(FloatingPointError, match="not finite at new token 1 of a prompt of 2 tokens"):
            TransformersSampler(model).generate([[4, 5]], parameters, seed=0)
    assert model.training


def test_weights_changed_between_calls_are_seen():
    model = llama()
    sampler = TransformersSampler(model)
    parameters = SamplingParameters(8, temperature=0)
    before = sampler.generate(RAGGED, parameters)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    assert sampler.generate(RAGGED, parameters) != before
    assert sampler.generate(RAGGED, parameters) == greedy(model, RAGGED, tokens=8)


def test_half_precision_scores_are_computed_in_single():
    sample = TransformersSampler(llama().bfloat16()).generate([[4, 9]], SamplingParameters(6), seed=0)[0]
    scores = torch.tensor(sample.logprobs)
    assert not torch.equal(scores, scores.bfloat16().float())


def test_no_prompts_no_samples():
    assert TransformersSampler(llama()).generate([], SamplingParameters(4)) == []


@pytest.mark.parametrize(
    ("prompts", "tokens", "message"),
    [
        ([[4], []], 4, r"prompt 1 is empty"),
        ([[4], [5, VOCABULARY]], 4, r"prompt 1 holds token id 97, the model has ids 0 to 96"),
        ([[-1]], 4, r"prompt 0 holds token id -1"),
        (
            [[4], [5] * 100],
            29,
            r"prompt 1 has 100 tokens, with 29 .* 129, .* has 128: lower max_new_tokens to 28",
        ),
    ],
)
def test_refuses_prompts_by_row(prompts, tokens, message):
    with pytest.raises(ValueError, match=message):
        TransformersSampler(llama()).generate(prompts, SamplingParameters(tokens))


def test_the_context_may_be_used_to_its_last_token():
    model = llama()
    model.generation_config.eos_token_id = None
    assert len(greedy(model, [[5] * 100], tokens=28)[0].token_ids) == 28


def test_refuses_arguments_out_of_range():
    with pytest.raises(ValueError, match="batch_size"):
        TransformersSampler(llama(), batch_size=0)
    with pytest.raises(ValueError, match="samples_per_prompt"):
        TransformersSampler(llama()).generate([[4]], SamplingParameters(1), samples_per_prompt=0)
    with pytest.raises(ValueError, match="seed must be 0 or greater, got -3"):
        TransformersSampler(llama()).generate([[4]], SamplingParameters(1), seed=-3)
    with pytest.raises(TypeError, match=r"Linear.forward takes .*attention_mask"):
        TransformersSampler(torch.nn.Linear(2, 2))
