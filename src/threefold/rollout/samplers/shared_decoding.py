"""Decoding steps that read a group's prompt once for all of its samples.

A step of decoding attends from one new token a row to all tokens before it, and on a CPU it waits for memory.
With a copy of the prompt's keys and values in each row, G samples read the same numbers G times, and
transformers' growing cache copies all of them for each token. Here the prompt's keys and values stay single;
the new tokens of all its samples are multiplied with them at once, and with what each row wrote itself apart.
One softmax runs over both, so the result is that of plain attention.

The attention is handed to the model under a name of its own for the length of a decoding step, by the
interface that transformers offers for this. `usable` says where: models that were tested, on a CPU (on an
accelerator fused kernels are the better choice), without sliding windows that would cut what is read.

Shapes: R rows, U different prompts, G most rows of a prompt, P prompt length padded on the left, T tokens
written, C room for them, H key heads, N query heads for each, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

NAME = "threefold_shared_prompts"
_MODELS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""Kinds that the tests hold against plain attention. Others may do more in theirs than is done here."""


def usable(model: Any, cache: Any, length: int) -> bool:
    """Whether this model's rows of up to `length` tokens may be decoded so."""
    config = model.config.get_text_config()
    if config.model_type not in _MODELS or model.device.type != "cpu" or not isinstance(cache, Cache):
        return False
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    windows = [x.sliding_window for x in cache.layers if isinstance(x, DynamicSlidingWindowLayer)]
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return plain and all(length < window for window in windows)


class SharedLayer(DynamicLayer):
    """One layer: the prompts' keys and values (U, H, P, D), and the rows' own (R, H, C, D)."""

    def __init__(self, prompt: Any, n_rows: int, room: int) -> None:
        super().__init__()
        self.prompt_keys, self.prompt_values = prompt.keys, prompt.values
        self.dtype, self.device, self.is_initialized = prompt.keys.dtype, prompt.keys.device, True
        _, heads, self._prompt_length, size = prompt.keys.shape
        self.keys = prompt.keys.new_empty(n_rows, heads, room, size)
        self.values = torch.empty_like(self.keys)
        self._written = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a token of each row; the answer is what rows wrote themselves, (R, H, T, D)."""
        self.keys[:, :, self._written] = key_states[:, :, 0]
        self.values[:, :, self._written] = value_states[:, :, 0]
        self._written += 1
        return self.keys[:, :, : self._written], self.values[:, :, : self._written]

    def get_seq_length(self) -> int:
        return self._prompt_length + self._written

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        """Make it consist of these rows, and of these prompts unless None."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        if prompts is not None:
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]


class SharedCache(Cache):
    """Keys and values of prompts, and of what their rows go on to write.

    Args:
        prefilled: The prompts' cache, U rows.
        mask_UP: 0 where a prompt is padded.
        prompt_of_row: For each of R rows, which prompt it continues; rows of a prompt beside each other.
        room: Most tokens that a row writes.
    """

    def __init__(self, prefilled: Cache, mask_UP: Tensor, prompt_of_row: list[int], room: int) -> None:
        layers = [SharedLayer(layer, len(prompt_of_row), room) for layer in prefilled.layers]
        super().__init__(layers=layers)
        self._bias_UP = torch.zeros(mask_UP.shape, dtype=layers[0].dtype).masked_fill(
            mask_UP == 0, -torch.inf
        )
        self._place(prompt_of_row)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make it consist of these rows."""
        prompt_of_row = [self._prompt_of_row[row] for row in beam_idx.tolist()]
        left = list(dict.fromkeys(prompt_of_row))
        prompts = None
        if left != list(range(len(self._bias_UP))):
            prompts = torch.tensor(left)
            self._bias_UP = self._bias_UP[prompts]
        for layer in self.layers:
            layer.keep(beam_idx, prompts)
        number = {prompt: place for place, prompt in enumerate(left)}
        self._place([number[prompt] for prompt in prompt_of_row])

    def _place(self, prompt_of_row: list[int]) -> None:
        """Give each row a slot beside the others of its prompt, G slots a prompt."""
        self._prompt_of_row = prompt_of_row
        taken = [0] * len(self._bias_UP)
        ranks = []
        for prompt in prompt_of_row:
            ranks.append(taken[prompt])
            taken[prompt] += 1
        self._most = max(taken)
        slots = [prompt * self._most + rank for prompt, rank in zip(prompt_of_row, ranks, strict=True)]
        self._slot_R = None if slots == list(range(len(taken) * self._most)) else torch.tensor(slots)

    @contextmanager
    def attention(self, model: Any) -> Iterator[None]:
        """Inside, the model attends as `attend` does."""
        config = model.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before

    def attend(
        self, layer: SharedLayer, query_RHND: Tensor, keys_RHTD: Tensor, values_RHTD: Tensor
    ) -> Tensor:
        """Scaled queries against the prompts and against the rows' own tokens, (R, H, N, D)."""
        scores_RHNP = self._to_rows(
            self._to_prompts(query_RHND) @ layer.prompt_keys.mT + self._bias_UP[:, None, None]
        )
        scores = torch.cat([scores_RHNP, query_RHND @ keys_RHTD.mT], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_RHND.dtype)
        of_prompt, own = weights.split([scores_RHNP.size(-1), keys_RHTD.size(-2)], dim=-1)
        return self._to_rows(self._to_prompts(of_prompt) @ layer.prompt_values) + own @ values_RHTD

    def _to_prompts(self, values_RHNX: Tensor) -> Tensor:
        """(U, H, G N, X): rows beside the others of their prompt, zeros in empty slots."""
        n_prompts, (_, heads, queries, width) = len(self._bias_UP), values_RHNX.shape
        if self._slot_R is not None:
            empty = values_RHNX.new_zeros(n_prompts * self._most, heads, queries, width)
            values_RHNX = empty.index_copy(0, self._slot_R, values_RHNX)
        by_prompt = values_RHNX.view(n_prompts, self._most, heads, queries, width)
        return by_prompt.transpose(1, 2).reshape(n_prompts, heads, self._most * queries, width)

    def _to_rows(self, values_UHMX: Tensor) -> Tensor:
        """The way back: (R, H, N, X)."""
        n_prompts, heads, both, width = values_UHMX.shape
        by_prompt = values_UHMX.view(n_prompts, heads, self._most, both // self._most, width)
        rows = by_prompt.transpose(1, 2).reshape(n_prompts * self._most, heads, both // self._most, width)
        return rows if self._slot_R is None else rows[self._slot_R]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared: SharedCache,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a row, as transformers calls it; the answer is (R, 1, H N, D)."""
    rows, heads, _, size = query.shape
    layer: Any = shared.layers[module.layer_idx]
    query_RHND = query.view(rows, key.size(1), heads // key.size(1), size)
    query_RHND = query_RHND * (size**-0.5 if scaling is None else scaling)
    return shared.attend(layer, query_RHND, key, value).reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, attend)
