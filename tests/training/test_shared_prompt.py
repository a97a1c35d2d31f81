"""What rows have in common scored once: the same answers and the same gradient as TRL's own forward."""

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
KINDS = tuple(MODELS)
CHANGES_WITH_LENGTH = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 24,
    },
}
"""Rotations that differ for rows of more than 24 tokens."""
for _name, _rope in CHANGES_WITH_LENGTH.items():
    _length = {"max_position_embeddings": 24 if _name == "dynamic" else 256}
    MODELS[_name] = lambda rope=_rope, length=_length: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**SIZES, **length}, rope_parameters=dict(rope))
    )
SCALED = {**CHANGES_WITH_LENGTH["longrope"], "rope_type": "default", "llama_4_scaling_beta": 0.1}
MODELS["ministral3"] = lambda: transformers.Ministral3ForCausalLM(
    transformers.Ministral3Config(**SIZES, head_dim=8, rope_parameters=dict(SCALED))
)
"""Queries grow where a token stands beyond 24 columns, its padding counted."""
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


def compared(kind: str, rows: dict[str, Tensor], checkpointing: dict[str, Any] | None = None) -> int:
    """Hold answers and gradient of shared passes against TRL's forward; the tokens that they forwarded."""
    plain, shared = pair(kind)
    if checkpointing is not None:
        for model in (plain, shared):
            model.gradient_checkpointing_enable(checkpointing)
    weights = torch.randn(rows["input_ids"].shape, generator=torch.Generator().manual_seed(2))[:, 1:]
    counts = tokens_forwarded(shared)
    answers = []
    for model in (plain, shared):
        answer = model(**rows, fused_lm_head=True)
        (answer.log_probs * weights).sum().backward()
        answers.append(answer)
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(answers[1][name], answers[0][name], rtol=0, atol=2e-6)
    torch.testing.assert_close(answers[1].loss, answers[0].loss)
    assert relative_difference(plain, shared) < 1e-5
    return sum(counts)


def rows_of(prompts: list[list[int]], completions: list[list[int]]) -> dict[str, Tensor]:
    """Rows as TRL lays them out: prompts padded on the left, completions on the right."""
    before, behind = max(map(len, prompts)), max(map(len, completions))
    ids = torch.zeros(len(prompts), before + behind, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        here = slice(before - len(prompt), before + len(completion))
        ids[row, here], mask[row, here] = torch.tensor(prompt + completion), 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :before] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 99, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_and_the_gradient_are_those_of_trls_forward(kind):
    rows = batch()
    # No more than the prompts once each, without padding, and their last token with every completion.
    longest = int(rows["attention_mask"][:, PROMPT:].sum(dim=1).max())
    assert 0 < compared(kind, rows) <= PROMPTS * (PROMPT - 2 - 1) + PROMPTS * GROUP * (1 + longest)


@pytest.mark.parametrize("kind", KINDS)
def test_dialogues_share_the_turns_that_they_have_in_common(kind):
    """Four dialogues of one opening: two part after the second turn, a third after the first."""
    opening, first, second = random_ids(150, 0), random_ids(100, 1), random_ids(100, 2)
    completions = [
        first + second + random_ids(20, 3),
        first + second + random_ids(30, 4),
        first + random_ids(110, 5),
        random_ids(90, 6),
    ]
    forwarded = compared(kind, rows_of([opening] * 4, completions))
    once = 150 + 100 + 100 + 20 + 30 + 110 + 90
    assert once <= forwarded < 1.2 * once  # TRL: 4 * (150 + 230)


def test_prompts_of_different_lengths_share_their_system_message():
    system = random_ids(200, 0)
    prompts = [system + random_ids(count, seed) for seed, count in enumerate((30, 34, 41), 1)]
    rows = rows_of(prompts * 2, [random_ids(12, seed) for seed in range(10, 16)])
    assert compared("llama", rows) < 200 + 30 + 34 + 41 + 6 * 60


def test_completions_that_are_equal_are_scored_once():
    prompt, same = random_ids(100, 0), random_ids(100, 1)
    assert compared("qwen3", rows_of([prompt] * 4, [same] * 4)) == 199  # nothing follows the last token


def test_one_prompt_may_end_where_another_goes_on():
    """Equal tokens, of which one row's are its prompt and the other's its completion."""
    tokens = random_ids(120, 0)
    rows = rows_of([tokens[:80], tokens[:40]], [[*tokens[80:], 5, 6], [*tokens[40:], 7]])
    assert compared("llama", rows) < 2 * 100


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_rows_longer_than_the_sliding_window(kind):
    """The window, 64 tokens, ends inside what is shared."""
    rows = batch(prompt=90, completion=40)
    assert compared(kind, rows) < 0.5 * rows["input_ids"].numel()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_under_gradient_checkpointing(kind):
    """Layers that run a second time in the backward pass find the keys and values of the first time."""
    rows = batch(prompt=80)
    forwarded = compared(kind, rows, {"use_reentrant": False})
    assert forwarded < 0.5 * rows["input_ids"].numel()


def test_reentrant_checkpointing_is_left_to_trl():
    """It gives no gradient to what a layer takes from outside, such as keys and values."""
    rows = batch()
    assert compared("llama", rows, {"use_reentrant": True}) == rows["input_ids"].numel()


def test_one_token_less_of_a_prompt_is_another_prompt():
    """Prompts that differ in their padding alone must not be taken for one."""
    rows = batch()
    rows["attention_mask"][0, : PROMPT - 1] = 0
    compared("llama", rows)


def test_prompts_of_one_token():
    rows = batch()
    compared("llama", {name: value[:, PROMPT - 1 :] for name, value in rows.items()})


def test_a_row_that_scores_nothing():
    rows = batch()
    rows["labels"][3] = -100
    compared("llama", rows)


@pytest.mark.parametrize("kind", [*CHANGES_WITH_LENGTH, "ministral3"])
def test_rows_beyond_the_length_where_the_rotation_changes_are_left_to_trl(kind):
    short = batch(prompt=14)  # 24 columns
    assert compared(kind, short) < short["input_ids"].numel()
    long = batch()
    assert compared(kind, long) == long["input_ids"].numel()


def test_a_row_with_a_hole_is_left_to_trl():
    rows = batch()
    rows["attention_mask"][0, PROMPT - 3] = 0
    assert compared("llama", rows) == rows["input_ids"].numel()


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
    dropping = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, attention_dropout=0.1))
    assert "dropout" in why_not(dropping)
    normed = transformers.HunYuanDenseV1ForCausalLM(
        transformers.HunYuanDenseV1Config(**SIZES, head_dim=8, pad_id=0)
    )
    assert "normalises rotated queries and keys" in why_not(normed)
    assert why_not(model_of("llama")) is None
