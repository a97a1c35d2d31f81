"""Score what the rows of a micro-batch have in common once, however many episodes share it, and no padding.

TRL repeats a prompt for each of its G episodes and pads rows to the longest of the generation batch. Neither
changes a log-probability. `share_prompts` replaces a model's scoring forward (the one with TRL's fused head)
by a few passes (`prefixes.plan`): what several rows begin with, once, keeping keys and values; then what
follows, against a copy of them. Mostly that is the prompt and then the completions, but a system message that
different prompts share, turns that dialogues have in common, and completions that are equal are found too.
The gradient flows through all passes and is the same up to rounding (tests/training/test_shared_prompt.py:
1e-5 relative in fp32).

For P prompt and R completion tokens the backbone sees P + G R tokens a group in place of G (P + R), and the
head R in place of P + R a row where TRL projects every position (which it does without Triton).

The forward is replaced on the model itself, so that DDP, autocast and adapters wrap it like any other. It
hands over to TRL's own wherever this arithmetic would not be exact, and `why_not` says why.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from threefold.training.prefixes import Pass, left_aligned, plan

_ATTENTION = ("sdpa", "eager")
"""Attention whose mask may start behind a past."""
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling")
_BY_LENGTH = ("dynamic", "longrope")
"""Rotations whose frequencies depend on how long the forwarded rows are."""
_SCALED_BY_PLACE = "llama_4_scaling_beta"
"""Grows the queries of tokens that stand beyond a model's original context, padding counted (Ministral 3)."""
_NORMED_ONCE_ROTATED = ("hunyuan_v1_dense",)
"""Models that weigh the channels of queries and keys after the rotation, so that where a row stands counts,
and not only how far its tokens are apart."""


def why_not(model: PreTrainedModel) -> str | None:
    """Why beginnings of this model's rows cannot be shared, in words; None where they can."""
    config = model.config.get_text_config()
    if config is not model.config:
        return f"{type(model).__name__} reads more than text"
    if config._attn_implementation not in _ATTENTION:
        return f"attention {config._attn_implementation!r} is not one of {', '.join(_ATTENTION)}"
    if not any(getattr(config, name, None) is not None for name in _ROTARY):
        return f"{type(model).__name__} has absolute positions, which the removed padding would move"
    if config.model_type in _NORMED_ONCE_ROTATED:
        return f"{type(model).__name__} normalises rotated queries and keys, which the removed padding moves"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"{type(model).__name__} has layers without keys and values: {', '.join(sorted(kinds))}"
    if getattr(config, "num_kv_shared_layers", None):
        return f"layers of {type(model).__name__} read the keys and values of others"
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        return f"{type(model).__name__} routes tokens to experts, whose balance counts each repetition"
    drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    in_attention = getattr(config, "attention_dropout", None)
    if drops or in_attention:
        return "dropout differs from row to row, and what is shared would have one draw of it"
    return None


def share_prompts(model: PreTrainedModel) -> None:
    """Let this model score what rows share once. Call it after TRL has added its fused head.

    Raises:
        ValueError: The model's arithmetic does not allow it; the message is `why_not`'s.
    """
    reason = why_not(model)
    if reason is not None:
        raise ValueError(f"prompts cannot be shared: {reason}")
    plain_forward = model.forward
    widest = rotated_alike(model.config.get_text_config())

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
        ours = fused_lm_head and len(given) == 3 and not args and set(others) == {"fused_lm_head"}
        ours = ours and not hasattr(self, "_threefold_plain") and _may_keep_keys(self)
        ours = ours and given["input_ids"].size(1) <= widest
        if not ours or not _are_runs(given["attention_mask"], given["labels"]):
            return plain_forward(*args, **given, **others)
        return _scored(self, plain_forward, **given)

    model.forward = types.MethodType(forward, model)


@contextmanager
def scored_plainly(model: Any) -> Iterator[None]:
    """TRL's own forward inside, for those who watch the backbone."""
    model._threefold_plain = True
    try:
        yield
    finally:
        del model._threefold_plain


def _may_keep_keys(model: Any) -> bool:
    """Whether keys and values get their gradient: under re-entrant gradient checkpointing they do not."""
    if not (model.training and model.is_gradient_checkpointing and torch.is_grad_enabled()):
        return True
    return all(
        getattr(layer._gradient_checkpointing_func, "keywords", {}).get("use_reentrant") is False
        for layer in _checkpointed(model)
    )


def rotated_alike(config: Any) -> float:
    """Most columns, padding included, up to which a token is rotated and scaled alike, however many columns
    are forwarded with it and wherever its row begins."""
    rope = getattr(config, "rope_parameters", None) or {}
    # One rotation for all layers, or one for each kind of them.
    of_layers = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    by_length = [one for one in of_layers if one.get("rope_type") in _BY_LENGTH or one.get(_SCALED_BY_PLACE)]
    lengths = [one.get("original_max_position_embeddings") for one in by_length]
    known = [length for length in lengths if length is not None]
    return min([*known, config.max_position_embeddings]) if by_length else math.inf


def _checkpointed(model: Any) -> list[Any]:
    return [
        m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing
    ]


def _are_runs(mask_BW: Tensor, labels_BW: Tensor) -> bool:
    """Whether each row is one run of tokens between paddings, and what is scored stands in it."""
    edges_B = (mask_BW[:, 1:] != mask_BW[:, :-1]).sum(dim=1) + mask_BW[:, 0] + mask_BW[:, -1]
    scored_BW = labels_BW[:, 1:] != -100
    return bool((edges_B == 2).all() and (mask_BW[:, 1:].bool() | ~scored_BW).all() and scored_BW.any())


def _scored(
    model: Any, plain_forward: Any, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> Any:
    """TRL's per-token answers, (B, W - 1) with zeros where nothing is scored, from shared passes."""
    first_B = attention_mask.int().argmax(dim=1)
    width = int(attention_mask.sum(dim=1).max())
    ids_BL = left_aligned(input_ids, first_B, width, fill=0)
    scored_BL = left_aligned(labels, first_B, width, fill=-100) != -100
    scored_BL[:, 0] = False
    columns_L = torch.arange(width, device=ids_BL.device)
    lengths_B = (scored_BL * (columns_L + 1)).amax(dim=1)
    passes = plan(ids_BL.cpu().numpy(), lengths_B.cpu().numpy(), scored_BL.cpu().numpy(), _head_share(model))
    parts: list[Any] = []
    layers = [_PassLayer() for _ in range(model.config.num_hidden_layers)]
    with _keys_under_checkpointing(model):
        for number, one in enumerate(passes):
            if number:
                layers = _behind(layers, passes[number - 1], one)
            parts.append(_forward(model, plain_forward, one, layers, ids_BL, scored_BL))
    answer = next(part for part in parts if part is not None)
    place_BW = (torch.arange(1, labels.size(1), device=ids_BL.device) - first_B[:, None] - 1).clamp(
        0, width - 2
    )

    def assembled(name: str) -> Tensor:
        """The passes' values side by side, at their places in (B, W - 1)."""
        values_BL = torch.cat(
            [_of_rows(part, one, name, answer) for part, one in zip(parts, passes, strict=True)], 1
        )
        values_BL = torch.nn.functional.pad(values_BL, (0, width - 1 - values_BL.size(1)))
        return values_BL.gather(1, place_BW).masked_fill(labels[:, 1:] == -100, 0)

    fields = {name: assembled(name) for name in _PER_TOKEN if answer.get(name) is not None}
    loss = -fields["log_probs"].sum() / fields["label_mask"].sum()
    return type(answer)(loss=loss, **fields)


_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")


def _forward(
    model: Any, plain_forward: Any, one: Pass, layers: list[Any], ids_BL: Tensor, scored_BL: Tensor
) -> Any:
    """TRL's answer for the different beginnings of one pass, (U, C); None where nothing of it is scored."""
    rows_U = torch.tensor(one.rows, device=ids_BL.device)
    inputs = {
        "input_ids": ids_BL[rows_U, one.start - 1 : one.end - 1],
        "past_key_values": Cache(layers=layers),
    }
    if not one.scored:
        model.base_model(**inputs, use_cache=False)
        return None
    belongs_UB = torch.tensor(one.beginning_of_row, device=ids_BL.device) == torch.arange(
        len(one.rows), device=ids_BL.device
    ).unsqueeze(1)
    scored_UC = belongs_UB.float() @ scored_BL[:, one.start : one.end].float() > 0
    labels_UC = ids_BL[rows_U, one.start : one.end].masked_fill(~scored_UC, -100)
    return plain_forward(**inputs, shift_labels=labels_UC, fused_lm_head=True)


def _of_rows(part: Any, one: Pass, name: str, like: Any) -> Tensor:
    """(B, C): what a pass says of each row; any value where a row takes no part in it."""
    if part is None:
        return like[name].new_zeros(len(one.beginning_of_row), one.end - one.start)
    index_B = torch.tensor(one.beginning_of_row, device=part[name].device).clamp(min=0)
    return part[name][index_B]


def _head_share(model: Any) -> float:
    """Arithmetic of the head for a token, in units of the backbone's without its embedding."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    backbone = sum(weight.numel() for weight in model.base_model.parameters()) - embedding.numel()
    return head.numel() / max(backbone, 1)


# Keys and values between passes


class _PassLayer(DynamicLayer):
    """Keys and values of one layer: what stands before a pass, and the pass's own.

    `update` leaves what stands before as it is, so a checkpointed layer that is run again in the backward
    pass finds what it found the first time.
    """

    def __init__(self, before: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self._before = before
        self._own: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._own is None:
            self._own = key_states, value_states
        return self._after(key_states, value_states)

    def get_seq_length(self) -> int:
        return 0 if self._before is None else self._before[0].size(-2)

    def of_rows(self, index_U: Tensor) -> _PassLayer:
        """The layer of the next pass, whose beginnings go on from these of this one."""
        assert self._own is not None
        keys, values = self._after(*self._own)
        return _PassLayer((keys[index_U], values[index_U]))

    def _after(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._before is None:
            return keys, values
        return torch.cat([self._before[0], keys], dim=-2), torch.cat([self._before[1], values], dim=-2)


def _behind(layers: list[_PassLayer], last: Pass, one: Pass) -> list[_PassLayer]:
    """The layers of a pass, from those of the last one."""
    index = [last.beginning_of_row[row] for row in one.rows]
    return [layer.of_rows(torch.tensor(index)) for layer in layers]


@contextmanager
def _keys_under_checkpointing(model: Any) -> Iterator[None]:
    """Let checkpointed layers have a cache: transformers takes it away, because others would grow twice."""
    layers = _checkpointed(model)
    for layer in layers:
        layer._can_checkpoint_with_cache = True
    try:
        yield
    finally:
        for layer in layers:
            del layer._can_checkpoint_with_cache
