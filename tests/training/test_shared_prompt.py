"""Prompts scored once a micro-batch: the same answers and the same gradient as TRL's own forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from threefold.training.shared_prompt import share_prompts, why_not

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
WINDOW = {**SIZES, "head_dim": 8, "sliding_window": 64}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, head_dim=8)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**WINDOW, query_pre_attn_scalar=8, attn_implementation="eager")
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**WINDOW)),
}
PROMPTS, GROUP, PROMPT, COMPLETION = 3, 4, 20, 10


def model_of(kind: str) -> Any:
    transformers.set_seed(0)
    return MODELS[kind]().train()


def batch(prompt: int = PROMPT, completion: int = COMPLETION) -> dict[str, Tensor]:
    """Groups of one prompt each, of different lengths, with completions of different lengths."""
    generator = torch.Generator().manual_seed(1)
    rows = PROMPTS * GROUP
    prompts = torch.randint(3, 99, (PROMPTS, prompt), generator=generator).repeat_interleave(GROUP, 0)
    padding = torch.tensor([2, 5, 8])[:PROMPTS].repeat_interleave(GROUP)
    prompt_mask = torch.arange(prompt) >= padding[:, None]
    lengths = torch.randint(1, completion - 1, (rows, 1), generator=generator)
    mask = torch.cat([prompt_mask, torch.arange(completion) < lengths], dim=1).long()
    ids = torch.cat([prompts, torch.randint(3, 99, (rows, completion), generator=generator)], dim=1)
    ids = ids.masked_fill(mask == 0, 0)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :prompt] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pair(kind: str) -> tuple[Any, Any]:
    """The same model twice: with TRL's forward, and with prompts shared."""
    plain = model_of(kind)
    shared = copy.deepcopy(plain)
    for model in (plain, shared):
        add_fused_lm_head(model, temperature=1.3, outputs=("log_probs", "entropy", "mean_logits"))
    share_prompts(shared)
    return plain, shared


def tokens_forwarded(model: Any) -> list[int]:
    """Tokens of every call of the backbone from now on."""
    counts: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return counts


def relative_difference(one: Any, other: Any) -> float:
    pairs = [(a.grad, b.grad) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    difference = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return (difference / sum(float((a**2).sum()) for a, _ in pairs)) ** 0.5


@pytest.mark.parametrize("kind", MODELS)
def test_the_answers_and_the_gradient_are_those_of_trls_forward(kind):
    plain, shared = pair(kind)
    rows = batch()
    weights = torch.randn(PROMPTS * GROUP, COMPLETION, generator=torch.Generator().manual_seed(2))
    counts = tokens_forwarded(shared)
    answers = []
    for model in (plain, shared):
        answer = model(**rows, fused_lm_head=True)
        (answer.log_probs[:, -COMPLETION:] * weights).sum().backward()
        answers.append(answer)
    # The path under test was taken: two passes of the backbone, the prompts once each and without padding.
    longest = int(rows["attention_mask"][:, PROMPT:].sum(dim=1).max())
    assert counts == [PROMPTS * (PROMPT - 2 - 1), PROMPTS * GROUP * (1 + longest)]
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(answers[1][name], answers[0][name], rtol=0, atol=2e-6)
    assert relative_difference(plain, shared) < 1e-5


def test_one_token_less_of_a_prompt_is_another_prompt():
    """Prompts that differ in their padding alone must not be taken for one."""
    plain, shared = pair("llama")
    rows = batch()
    rows["attention_mask"][0, : PROMPT - 1] = 0
    expected, answer = (m(**rows, fused_lm_head=True).log_probs for m in (plain, shared))
    torch.testing.assert_close(answer, expected, rtol=0, atol=2e-6)


def test_prompts_of_one_token():
    plain, shared = pair("llama")
    rows = batch()
    rows = {name: value[:, PROMPT - 1 :] for name, value in rows.items()}
    expected, answer = (m(**rows, fused_lm_head=True).log_probs for m in (plain, shared))
    assert torch.equal(answer, expected)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_a_row_longer_than_the_window_is_left_to_trl(kind):
    plain, shared = pair(kind)
    rows = batch(prompt=60)
    counts = tokens_forwarded(shared)
    expected, answer = (m(**rows, fused_lm_head=True).log_probs for m in (plain, shared))
    assert torch.equal(answer, expected)
    assert counts == [rows["input_ids"].numel()]


def test_gradient_checkpointing_is_left_to_trl():
    plain, shared = pair("llama")
    for model in (plain, shared):
        model.gradient_checkpointing_enable()
    rows = batch()
    counts = tokens_forwarded(shared)
    expected, answer = (m(**rows, fused_lm_head=True).log_probs for m in (plain, shared))
    assert torch.equal(answer, expected)
    assert counts == [rows["input_ids"].numel()]


def test_generation_and_plain_losses_are_untouched():
    plain, shared = pair("llama")
    rows = batch()
    expected, answer = (m(**rows) for m in (plain, shared))
    assert torch.equal(answer.logits, expected.logits)
    assert torch.equal(answer.loss, expected.loss)
    prompt = rows["input_ids"][:1, 2:PROMPT]
    texts = [m.eval().generate(prompt, max_new_tokens=5, do_sample=False) for m in (plain, shared)]
    assert torch.equal(*texts)


def test_models_that_it_would_change_are_refused():
    absolute = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    )
    assert "absolute positions" in why_not(absolute)
    with pytest.raises(ValueError, match="prompts cannot be shared: GPT2LMHeadModel has absolute positions"):
        share_prompts(absolute)
    recurrent = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2)
    )
    assert why_not(recurrent) is not None
    experts = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=2))
    assert "experts" in why_not(experts)
    assert why_not(model_of("llama")) is None
