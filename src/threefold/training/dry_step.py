"""A rehearsal of the heaviest step: real weights, made-up tokens at the longest prompt and completion.

It measures what an estimate cannot: seconds, and whether the memory is there. The optimizer is not run, so
its two moments come on top of the memory that is measured.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from threefold.models import load_model
from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.transformers import TransformersSampler
from threefold.training.run import Checked

_NEW_TOKENS = 8
"""Tokens that the rehearsal generates for each row; the rest is extrapolated."""
_PATIENCE = 60.0
"""Seconds: a micro-batch that would take longer is extrapolated from one row."""


@dataclass(frozen=True)
class DryStep:
    """What was measured, and what a step would take at full length."""

    token_seconds: float
    """Seconds of one more token of all rows of a step."""
    micro_batch_seconds: float
    """Seconds of one micro-batch, forward and backward."""
    generate_seconds: float
    """Of a step, if every completion has full length."""
    update_seconds: float
    """Of a step: all micro-batches of all updates."""
    peak_bytes: float
    """On the accelerator; on a CPU the largest resident size of the process."""
    extrapolated: bool
    """Whether the micro-batch was extrapolated from one row."""


def rehearse(checked: Checked) -> DryStep:
    """Load the model, generate a few tokens for a step's rows, and make one micro-batch's gradients.

    Raises:
        ModelError: The weights cannot be loaded.
        RuntimeError: Out of memory, or another failure of the model.
    """
    recipe, plan, work = checked.prepared.recipe, checked.prepared.plan, checked.prepared.work
    options: dict[str, Any] = {"trust_remote_code": recipe.model.trust_remote_code}
    model: Any = load_model(recipe.model.name, checked.weights, revision=recipe.model.revision, **options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = plan.episodes // plan.processes
    token_seconds = _token_seconds(model, work.tokenizer, work.longest_prompt, rows, plan.group_size)
    if checked.lora is not None:
        from peft import get_peft_model

        model = get_peft_model(model, checked.lora)
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    _gradient_seconds(model, 1, checked)  # the first pass pays for what later ones find ready
    one = _gradient_seconds(model, 1, checked)
    extrapolated = one * plan.micro_batch > _PATIENCE
    whole = one * plan.micro_batch if extrapolated else _gradient_seconds(model, plan.micro_batch, checked)
    return DryStep(
        token_seconds=token_seconds,
        micro_batch_seconds=whole,
        generate_seconds=token_seconds * work.completion_tokens,
        update_seconds=whole * plan.micro_batches * plan.updates_per_step,
        peak_bytes=float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else _resident_peak(),
        extrapolated=extrapolated,
    )


def _token_seconds(model: Any, tokenizer: Any, prompt_tokens: int, rows: int, group_size: int) -> float:
    """Seconds of a token of all rows: the longest prompt, and the first tokens after it taken off."""
    sampler = TransformersSampler(model, tokenizer, batch_size=rows)
    prompts = [_made_up(model, prompt_tokens, seed).tolist() for seed in range(-(-rows // group_size))]

    def seconds(new_tokens: int) -> float:
        started = time.perf_counter()
        sampler.generate(prompts, SamplingParameters(new_tokens, 1.0), samples_per_prompt=group_size, seed=0)
        return time.perf_counter() - started

    short = seconds(1)
    return max(0.0, seconds(1 + _NEW_TOKENS) - short) / _NEW_TOKENS


def _gradient_seconds(model: Any, rows: int, checked: Checked) -> float:
    work = checked.prepared.work
    length = work.longest_prompt + work.completion_tokens
    ids = torch.stack([_made_up(model, length, seed) for seed in range(rows)]).to(model.device)
    started = time.perf_counter()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=checked.autocast):
        logits = model(input_ids=ids, logits_to_keep=work.completion_tokens + 1, use_cache=False).logits[
            :, :-1
        ]
    labels = ids[:, -work.completion_tokens :]
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    loss.backward()
    model.zero_grad(set_to_none=True)
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _made_up(model: Any, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.get_text_config().vocab_size, (length,), generator=generator)


def _resident_peak() -> float:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(size if sys.platform == "darwin" else size * 1024)
