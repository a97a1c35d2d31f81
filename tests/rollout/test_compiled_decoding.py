"""Compiled steps over a static cache against plain decoding, and how often they are compiled.

A backend that runs a graph as it was traced shows what dynamo makes of a model, in a moment; one slow test
has inductor compile it. No test here runs on an accelerator.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from architectures import gemma3, gemma3_wide, gpt2, llama, lora, mistral, qwen2, qwen3, teacher_forced

from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.compiled_decoding import CompiledDecoding
from threefold.rollout.samplers.transformers import TransformersSampler

PROMPTS = [[5, 3, 8, 9, 20, 31], [60, 61], [12] * 11]
SAMPLING = SamplingParameters(24, temperature=0.9, entropies=True)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


class Traced:
    """A backend that keeps a graph for each compilation, and runs it as it is."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph


def drawn(sampler, prompts=PROMPTS, parameters=SAMPLING, seed=0):
    return sampler.generate(prompts, parameters, samples_per_prompt=7, seed=seed)


MODELS = [
    llama,
    qwen3,
    gemma3_wide,
    pytest.param(qwen2, marks=pytest.mark.slow),
    pytest.param(mistral, marks=pytest.mark.slow),
    pytest.param(lora, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("make", MODELS)
def test_samples_are_those_of_plain_decoding_with_one_graph_for_each_bucket(make):
    """21 rows of three prompts: they are decoded in a bucket of 32 rows, then of 16 and 8 as they end."""
    model, traced = make(), Traced()
    compiled = CompiledDecoding(model, backend=traced)
    samples, plain = drawn(TransformersSampler(model, compiled=compiled)), drawn(TransformersSampler(model))
    assert [s.token_ids for s in samples] == [s.token_ids for s in plain]
    for row, (mine, theirs) in enumerate(zip(samples, plain, strict=True)):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
        np.testing.assert_allclose(mine.entropies, theirs.entropies, atol=1e-5)
        expected = teacher_forced(model, PROMPTS[row // 7], mine, temperature=0.9)
        np.testing.assert_allclose(mine.logprobs, expected, atol=1e-5)
    lengths = [len(s.token_ids) for s in samples]
    running = [21, *(sum(length > step for length in lengths) for step in range(1, max(lengths)))]
    needed = dict.fromkeys(32 if n > 16 else 16 if n > 8 else 8 for n in running)
    assert compiled.buckets == [(rows, 64) for rows in needed]
    assert len(traced.graphs) == len(needed)


def test_a_bucket_is_compiled_once_whatever_is_decoded_in_it():
    """Other seeds, prompts, lengths, fewer rows, weights that a trainer moved, a model in train mode."""
    model, traced = llama(), Traced()
    compiled = CompiledDecoding(model, backend=traced)
    sampler, plain = TransformersSampler(model, compiled=compiled), TransformersSampler(model)
    met = []
    for seed, prompts in enumerate([PROMPTS, PROMPTS, [[3, 4]], [[9] * 20, [8] * 30], [[9] * 70]]):
        with torch.no_grad():
            model.lm_head.weight.mul_(1.02)
        model.train(seed == 3)
        samples = drawn(sampler, prompts, seed=seed)
        assert [s.token_ids for s in samples] == [s.token_ids for s in drawn(plain, prompts, seed=seed)]
        assert len(traced.graphs) == len(compiled.buckets)
        met.append(list(compiled.buckets))
    assert met[1] == met[0] or len(met[1]) == len(met[0]) + 1  # the last few rows may need another
    # 8, 16 and 32 rows by 64 slots, and 8 rows by 128 for the last prompt.
    assert set(met[-1]) == {(32, 64), (16, 64), (8, 64), (8, 128)}


def test_greedy_and_a_single_token():
    model = llama()
    sampler = TransformersSampler(model, compiled=CompiledDecoding(model, backend=Traced()))
    for parameters in (SamplingParameters(9, temperature=0), SamplingParameters(1)):
        mine = drawn(sampler, parameters=parameters)
        theirs = drawn(TransformersSampler(model), parameters=parameters)
        assert [s.token_ids for s in mine] == [s.token_ids for s in theirs]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (gemma3, "outgrows the model's sliding window of 4"),
        (gpt2, "models of type gpt2 were not tested"),
        (lambda: llama(attn_implementation="eager"), "sdpa, not eager"),
    ],
)
def test_what_cannot_be_compiled_is_decoded_as_before_and_the_reason_is_logged_once(make, reason, caplog):
    model, traced = make(), Traced()
    sampler = TransformersSampler(model, compiled=CompiledDecoding(model, backend=traced))
    with caplog.at_level(logging.WARNING, logger="threefold.rollout.samplers.transformers"):
        samples = [drawn(sampler, seed=seed) for seed in (0, 1)]
    said = [r.getMessage() for r in caplog.records if "decoding is not compiled" in r.getMessage()]
    assert len(said) == 1
    assert reason in said[0]
    assert not traced.graphs
    for seed in (0, 1):
        plain = drawn(TransformersSampler(model), seed=seed)
        assert [s.token_ids for s in samples[seed]] == [s.token_ids for s in plain]


def test_sessions_say_that_they_take_plain_steps(caplog):
    model, traced = llama(), Traced()
    sampler = TransformersSampler(model, compiled=CompiledDecoding(model, backend=traced))
    with caplog.at_level(logging.WARNING, logger="threefold.rollout.samplers.transformers"):
        for _ in range(2):
            sampler.session(SAMPLING, seed=0).turn([0, 1], PROMPTS[:2], [8, 8])
    assert caplog.text.count("dialogues are decoded by plain steps") == 1
    assert not traced.graphs


@pytest.mark.slow
def test_inductor_compiles_the_same_samples():
    model = llama()
    compiled = CompiledDecoding(model)
    samples, plain = drawn(TransformersSampler(model, compiled=compiled)), drawn(TransformersSampler(model))
    assert len(compiled.buckets) > 1
    assert [s.token_ids for s in samples] == [s.token_ids for s in plain]
    for mine, theirs in zip(samples, plain, strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-4)
