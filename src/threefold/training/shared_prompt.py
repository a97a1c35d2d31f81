"""Score each different prompt of a micro-batch once, however many episodes share it, and no padding.

TRL repeats a prompt for each of its G episodes and pads rows to the longest of the generation batch. Neither
changes a log-probability. `share_prompts` replaces a model's scoring forward (the one with TRL's fused head)
by two: the different prompts through the backbone, all but their last token, keeping keys and values; then
that last token and the completions against a copy of them. The gradient flows through both and is the same
up to rounding (tests/training/test_shared_prompt.py: 1e-5 relative in fp32).

For P prompt and R completion tokens the backbone sees P + G R tokens a group in place of G (P + R), and the
head R in place of P + R a row where TRL projects every position (which it does without Triton).

The forward is replaced on the model itself, so that DDP, autocast and adapters wrap it like any other. It
hands over to TRL's own wherever this arithmetic would not be exact, and `why_not` says why.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

_ATTENTION = ("sdpa", "eager")
"""Attention whose mask may have a left-padded past and a right-padded present."""
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling")


def why_not(model: PreTrainedModel) -> str | None:
    """Why prompts of this model cannot be shared, in words; None where they can."""
    config = model.config.get_text_config()
    if config is not model.config:
        return f"{type(model).__name__} reads more than text"
    if config._attn_implementation not in _ATTENTION:
        return f"attention {config._attn_implementation!r} is not one of {', '.join(_ATTENTION)}"
    if not any(getattr(config, name, None) is not None for name in _ROTARY):
        return f"{type(model).__name__} has absolute positions, which the removed padding would move"
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        return f"{type(model).__name__} has layers without keys and values: {', '.join(sorted(kinds))}"
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        return f"{type(model).__name__} routes tokens to experts, whose balance counts each repetition"
    return None


def share_prompts(model: PreTrainedModel) -> None:
    """Let this model score shared prompts once. Call it after TRL has added its fused head.

    Raises:
        ValueError: The model's arithmetic does not allow it; the message is `why_not`'s.
    """
    reason = why_not(model)
    if reason is not None:
        raise ValueError(f"prompts cannot be shared: {reason}")
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    plain_forward = model.forward

    @functools.wraps(plain_forward)
    def forward(
        self: Any,
        *args: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        fused_lm_head: bool = False,
        **others: Any,
    ) -> Any:
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        given = {name: value for name, value in tensors.items() if value is not None}
        if fused_lm_head:
            others["fused_lm_head"] = True
        checkpointing = self.training and self.is_gradient_checkpointing and torch.is_grad_enabled()
        ours = fused_lm_head and len(given) == 3 and not args and set(others) == {"fused_lm_head"}
        if not ours or checkpointing or (window is not None and given["input_ids"].size(1) > window):
            return plain_forward(*args, **given, **others)
        split = _first_scored(given["labels"])
        if split is None or split < 2 or not bool(given["attention_mask"][:, split - 1].all()):
            return plain_forward(**given, **others)
        return _scored(self, plain_forward, **given, split=split)

    model.forward = types.MethodType(forward, model)


def _first_scored(labels_BL: Tensor) -> int | None:
    """The first column that any row scores; None where no row scores anything."""
    scored = (labels_BL != -100).any(dim=0).nonzero()
    return int(scored[0]) if len(scored) else None


def _scored(
    model: Any,
    plain_forward: Any,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    split: int,
) -> Any:
    """TRL's per-token answers, (B, L - 1) with zeros before the completions, from prompts scored once."""
    length = input_ids.size(1)
    prompts, row_to_prompt = torch.unique(
        torch.cat([input_ids[:, :split], attention_mask[:, :split]], dim=1), dim=0, return_inverse=True
    )
    prompt_ids, prompt_mask = prompts[:, :split], prompts[:, split:]
    first = int(prompt_mask.any(dim=0).nonzero()[0])
    last = int(attention_mask.any(dim=0).nonzero()[-1]) + 1
    prompt_ids, prompt_mask = prompt_ids[:, first:], prompt_mask[:, first:]
    cache = DynamicCache()
    if prompt_ids.size(1) > 1:
        model.base_model(
            input_ids=prompt_ids[:, :-1],
            attention_mask=prompt_mask[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(row_to_prompt)
    answer = plain_forward(
        input_ids=input_ids[:, split - 1 : last],
        attention_mask=attention_mask[:, first:last],
        past_key_values=cache,
        labels=labels[:, split - 1 : last],
        fused_lm_head=True,
    )

    def widened(values: Tensor | None) -> Tensor | None:
        """(B, last - split) values at their places in (B, L - 1)."""
        if values is None:
            return None
        return torch.nn.functional.pad(values, (split - 1, length - last))

    fields = {name: widened(answer[name]) for name in _PER_TOKEN if answer.get(name) is not None}
    return type(answer)(loss=answer.loss, **fields)


_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")
