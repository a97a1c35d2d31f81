"""Decoding steps that read a group's prompt once for all of its samples.

A step of decoding attends from one new token a row to all tokens before it, and on a CPU it waits for memory.
With a copy of the prompt's keys and values in each row, G samples read the same numbers G times, and
transformers' growing cache copies all of them for each token. Here the prompt's keys and values stay single;
the new tokens of all its samples are multiplied with them at once, and with what each row has of its own
apart. One softmax runs over both, so the result is that of plain attention.

What a row has of its own is what it wrote, and in a dialogue all that was said since the opening. A dialogue
forwards several tokens a row at the start of a turn: their scores would be many, so they attend by PyTorch's
kernel, to a copy of both parts that lives as long as one layer.

The attention is handed to the model under a name of its own for the length of a forward, by the interface
that transformers offers for this. `usable` says where: models that were tested, on a CPU (on an accelerator
fused kernels are the better choice), without sliding windows that would cut what is read.

Shapes: R rows, U different prompts, G most rows of a prompt, P prompt length padded on the left, T own slots
filled, C new tokens of each row, H key heads, N query heads for each, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from threefold.rollout.samplers.kept_cache import KeptLayer

NAME = "threefold_shared_prompts"
MODELS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""Kinds that the tests hold against plain attention. Others may do more in theirs than is done here."""


def usable(model: Any, cache: Any, length: int) -> bool:
    """Whether this model's rows of up to `length` tokens may be decoded so."""
    config = model.config.get_text_config()
    if config.model_type not in MODELS or model.device.type != "cpu" or not isinstance(cache, Cache):
        return False
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    windows = [x.sliding_window for x in cache.layers if isinstance(x, DynamicSlidingWindowLayer)]
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return plain and all(length < window for window in windows)


@dataclass(frozen=True)
class Prompts:
    """Keys and values of U different prompts, whoever continues them."""

    token_ids: tuple[tuple[int, ...], ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values (U, H, P, D) of each layer."""

    @classmethod
    def of(cls, prefilled: Cache, token_ids: Sequence[tuple[int, ...]]) -> Prompts:
        """Those that were forwarded, padded on the left."""
        return cls(tuple(token_ids), tuple((layer.keys, layer.values) for layer in prefilled.layers))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def width(self) -> int:
        """P, the length of the longest."""
        return max(map(len, self.token_ids))

    def bias_UP(self) -> Tensor | None:
        """0 at tokens and -inf at padding; None where there is no padding."""
        if len({len(ids) for ids in self.token_ids}) == 1:
            return None
        bias_UP = torch.zeros(len(self), self.width, dtype=self.layers[0][0].dtype)
        for row, ids in enumerate(self.token_ids):
            bias_UP[row, : self.width - len(ids)] = -torch.inf
        return bias_UP


def gather(sources: Sequence[Prompts], wanted: Sequence[tuple[int, ...]]) -> Prompts:
    """Some of the prompts, by their token ids; a source that holds them all and few others is answered as it
    is."""
    for source in sources:
        if len(source) < 2 * len(wanted) and set(wanted) <= set(source.token_ids):
            return source
    found = {ids: (source, row) for source in sources for row, ids in enumerate(source.token_ids)}
    width = max(map(len, wanted))
    layers = []
    for number, pair in enumerate(sources[0].layers):
        both = []
        for which, like in enumerate(pair):
            joined = like.new_zeros(len(wanted), like.size(1), width, like.size(3))
            for place, ids in enumerate(wanted):
                source, row = found[ids]
                joined[place, :, width - len(ids) :] = source.layers[number][which][row, :, -len(ids) :]
            both.append(joined)
        layers.append((both[0], both[1]))
    return Prompts(tuple(wanted), tuple(layers))


class SharedCache(Cache):
    """Keys and values of prompts, and in its layers (R, H, T, D) those that each row has of its own.

    Args:
        prompts: The prompts.
        prompt_of_row: For each of R rows, which prompt it continues.
        own: A layer of the rows' own tokens for each layer of the model.
    """

    def __init__(self, prompts: Prompts, prompt_of_row: Sequence[int], own: Sequence[KeptLayer]) -> None:
        super().__init__(layers=list(own))
        self._share(prompts, list(prompt_of_row))
        self._own_bias_R11CT: Tensor | None = None

    @classmethod
    def begin(cls, prompts: Prompts, prompt_of_row: Sequence[int], room: int) -> SharedCache:
        """Rows that have nothing of their own yet, with room for so many tokens each."""
        own = []  # zeros: a slot that stays masked is still multiplied by its weight of 0, and 0 x NaN is NaN
        for keys, values in prompts.layers:
            shapes = [(len(prompt_of_row), held.size(1), room, held.size(3)) for held in (keys, values)]
            own.append(KeptLayer(keys.new_zeros(shapes[0]), values.new_zeros(shapes[1]), 0))
        return cls(prompts, prompt_of_row, own)

    def opening(self, row: int) -> tuple[int, ...]:
        """The prompt that a row continues."""
        return self.prompts.token_ids[self._prompt_of_row[row]]

    def take(self, rows: Sequence[int]) -> SharedCache:
        """A copy of some rows; the prompts are not copied unless half of them are no longer needed."""
        index_R = torch.tensor(rows)
        own = [layer.rows(index_R) for layer in self.layers]
        prompts, prompt_of_row = self.prompts, [self._prompt_of_row[row] for row in rows]
        left = list(dict.fromkeys(prompt_of_row))
        if 2 * len(left) <= len(prompts):  # the others would be read for nothing
            prompts = gather([prompts], [prompts.token_ids[prompt] for prompt in left])
            prompt_of_row = [left.index(prompt) for prompt in prompt_of_row]
        return SharedCache(prompts, prompt_of_row, own)

    def _share(self, prompts: Prompts, prompt_of_row: list[int]) -> None:
        """Give each row a slot beside the others of its prompt, G slots a prompt."""
        self.prompts, self._bias_UP, self._prompt_of_row = prompts, prompts.bias_UP(), prompt_of_row
        taken = [0] * len(prompts)
        ranks = []
        for prompt in prompt_of_row:
            ranks.append(taken[prompt])
            taken[prompt] += 1
        self._most = max(taken)
        slots = [prompt * self._most + rank for prompt, rank in zip(prompt_of_row, ranks, strict=True)]
        self._slot_R = None if slots == list(range(len(taken) * self._most)) else torch.tensor(slots)

    def see(self, mask_RT: Tensor, n_new: int) -> None:
        """Say what the next forward attends to of the rows' own slots, its `n_new` tokens included."""
        self._own_bias_R11CT = None
        if n_new == 1 and mask_RT.all():
            return
        n_slots = mask_RT.size(1)
        seen_CT = torch.ones(n_new, n_slots, dtype=torch.bool).tril(n_slots - n_new)
        seen_R11CT = seen_CT & mask_RT.bool()[:, None, None, None]
        zeros_R11CT = torch.zeros(seen_R11CT.shape, dtype=self.layers[0].keys.dtype)
        self._own_bias_R11CT = zeros_R11CT.masked_fill(~seen_R11CT, -torch.inf)

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

    def step(self, number: int, query_RHND: Tensor, keys_RHTD: Tensor, values_RHTD: Tensor) -> Tensor:
        """Scaled queries of one token a row against the prompts and the rows' own tokens, (R, H, N, D)."""
        prompt_keys, prompt_values = self.prompts.layers[number]
        scores_UHMP = self._to_prompts(query_RHND) @ prompt_keys.mT
        if self._bias_UP is not None:
            scores_UHMP += self._bias_UP[:, None, None]
        own_RHNT = query_RHND @ keys_RHTD.mT
        if self._own_bias_R11CT is not None:
            own_RHNT += self._own_bias_R11CT[:, 0]
        scores = torch.cat([self._to_rows(scores_UHMP), own_RHNT], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_RHND.dtype)
        of_prompt, own = weights.split([prompt_keys.size(-2), keys_RHTD.size(-2)], dim=-1)
        return self._to_rows(self._to_prompts(of_prompt) @ prompt_values) + own @ values_RHTD

    def several(self, number: int, query_RHND: Tensor, keys_RHTD: Tensor, values_RHTD: Tensor) -> Tensor:
        """The same of C tokens a row, N holding C for each of the query heads."""
        prompt_keys, prompt_values = self.prompts.layers[number]
        of_row = torch.tensor(self._prompt_of_row)
        bias_R11CT = self._own_bias_R11CT
        assert bias_R11CT is not None
        rows, _, queries, _ = query_RHND.shape
        bias_R1CP = torch.zeros(rows, 1, bias_R11CT.size(3), prompt_keys.size(2), dtype=query_RHND.dtype)
        if self._bias_UP is not None:
            bias_R1CP += self._bias_UP[of_row][:, None, None]
        bias_R1CX = torch.cat([bias_R1CP, bias_R11CT[:, 0]], dim=-1)
        return scaled_dot_product_attention(
            query_RHND,
            torch.cat([prompt_keys[of_row], keys_RHTD], dim=2),
            torch.cat([prompt_values[of_row], values_RHTD], dim=2),
            attn_mask=bias_R1CX.repeat(1, 1, queries // bias_R11CT.size(3), 1),
            scale=1.0,
        )

    def _to_prompts(self, values_RHNX: Tensor) -> Tensor:
        """(U, H, G N, X): rows beside the others of their prompt, zeros in empty slots."""
        n_prompts, (_, heads, queries, width) = len(self.prompts), values_RHNX.shape
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
    """Attention of the new tokens, as transformers calls it; the answer is (R, C, H N, D)."""
    rows, heads, new, size = query.shape
    query_RHND = query.reshape(rows, key.size(1), heads // key.size(1) * new, size)
    query_RHND = query_RHND * (size**-0.5 if scaling is None else scaling)
    over = shared.step if new == 1 else shared.several
    attended_RHND = over(module.layer_idx, query_RHND, key, value)
    return attended_RHND.reshape(rows, heads, new, size).transpose(1, 2), None


AttentionInterface.register(NAME, attend)
