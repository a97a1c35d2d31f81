"""Decoding steps that are compiled once for each size and write into a cache of fixed size.

On an accelerator a step of a small model waits for Python: hundreds of small kernels, launched one by one.
Compiled, and on CUDA recorded as a graph, they are launched at once. For that every tensor must stay where it
is and keep its shape, so the cache is transformers' static one, allocated once for each bucket of rows and
slots and used again by the next call, and batches are filled up to a bucket:

    rows    powers of two from `FEWEST_ROWS`; finished rows go when what is left fits a smaller bucket
    slots   powers of two from `FEWEST_SLOTS` that hold the prompt and all that may be written

So one batch size meets at most log2(rows / FEWEST_ROWS) + 1 row buckets for each slot bucket, and a step is
compiled no more often. Slots are not grown on the way: the free ones are read and masked, which costs less
than to compile their buckets. All caches stay allocated between calls, about twice the largest.

Prompts are prefilled by the plain model, each once; which token is drawn is decided outside the graph, by
`choosing.py`, so the samples are those of plain decoding up to rounding.

Shapes: R rows, B rows of the bucket, L slots of the bucket, P padded prompt length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from threefold.rollout.samplers.shared_decoding import MODELS

FEWEST_ROWS, FEWEST_SLOTS = 8, 64


class CompiledDecoding:
    """The compiled step of a model, and its caches by bucket.

    Args:
        model: A causal language model, PEFT models included.
        backend: Of torch.compile.
        mode: Of torch.compile; None is "reduce-overhead" (CUDA graphs) on CUDA and the default elsewhere.
            Backends other than inductor take none.
    """

    def __init__(
        self, model: Any, *, backend: str | Callable[..., Any] = "inductor", mode: str | None = None
    ):
        self._model = model
        if mode is None and backend == "inductor" and model.device.type == "cuda":
            mode = "reduce-overhead"
        self._step = torch.compile(_step, backend=backend, mode=mode, dynamic=False)
        self._caches: dict[tuple[int, int], Cache] = {}

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """(rows, slots) that were met so far."""
        return list(self._caches)

    def refusal(self, cache: Any, length: int) -> str | None:
        """Why rows of up to `length` tokens of this prefilled cache cannot be decoded so; None where they
        can."""
        config = self._model.config.get_text_config()
        if config.model_type not in MODELS:
            return (
                f"models of type {config.model_type} were not tested with it (those are {', '.join(MODELS)})"
            )
        if config._attn_implementation != "sdpa":
            return f"it takes attention by sdpa, not {config._attn_implementation}"
        if not isinstance(cache, Cache):
            return f"a cache of type {type(cache).__name__} cannot be laid out anew"
        kinds = {type(layer) for layer in cache.layers} - {DynamicLayer, DynamicSlidingWindowLayer}
        if kinds:
            return f"cache layers of type {', '.join(sorted(kind.__name__ for kind in kinds))} have no slots"
        windows = [x.sliding_window for x in cache.layers if isinstance(x, DynamicSlidingWindowLayer)]
        if any(length >= window for window in windows):
            return f"the text outgrows the model's sliding window of {min(windows)} tokens"
        return None

    def begin(
        self,
        prefilled: Cache,
        mask_UP: Tensor,
        logits_UV: Tensor,
        prompt_of_row: Sequence[int],
        room: int,
    ) -> StaticBatch:
        """Lay out prefilled prompts, each for the rows that continue it, with room for so many tokens."""
        width = mask_UP.size(1)
        batch = StaticBatch(
            self, prefilled, width - mask_UP.sum(dim=1), width, _bucket(width + room, FEWEST_SLOTS), logits_UV
        )
        batch.keep(prompt_of_row)
        batch.logits_RV = logits_UV[list(prompt_of_row)]
        return batch

    def cache(self, like: Cache, n_rows: int, n_slots: int) -> Cache:
        """The bucket's cache, with layers as those of the given one."""
        if (n_rows, n_slots) not in self._caches:
            self._caches[n_rows, n_slots] = _empty(like, n_rows, n_slots)
        return self._caches[n_rows, n_slots]

    def forward(self, tokens_B: Tensor, first_B: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) after one more token of each row; they hold until the next call."""
        # Each bucket is compiled by itself, and dynamo gives up at eight of them.
        with torch._dynamo.config.patch(recompile_limit=256):
            torch.compiler.cudagraph_mark_step_begin()
            return self._step(self._model, tokens_B[:, None], first_B, cache)


@dataclass
class StaticBatch:
    """R rows that are being decoded, in a bucket of B; the rest of the bucket repeats the first of them."""

    compiled: CompiledDecoding
    cache: Cache
    first_B: Tensor
    """Slot of each row's first token: those before it are padding."""
    filled: int
    """Slots that hold tokens."""
    n_slots: int
    logits_RV: Tensor

    def fits_smaller(self, n_rows: int) -> bool:
        """Whether so many rows would fit a smaller bucket."""
        return _bucket(n_rows, FEWEST_ROWS) < len(self.first_B)

    def keep(self, rows: Sequence[int]) -> None:
        """Make it consist of these rows, a row several times perhaps, in the bucket that they need."""
        n_rows = _bucket(len(rows), FEWEST_ROWS)
        rows_B = [*rows, *[rows[0]] * (n_rows - len(rows))]
        index_B = torch.tensor(rows_B, device=self.first_B.device)
        cache = self.compiled.cache(self.cache, n_rows, self.n_slots)
        for old, new in zip(self.cache.layers, cache.layers, strict=True):
            for held, place in ((old.keys, new.keys), (old.values, new.values)):
                place[:, :, : self.filled] = held[index_B.to(held.device), :, : self.filled]
                place[:, :, self.filled :] = 0  # masked, and never NaN of an earlier call
            new.cumulative_length.fill_(self.filled)
        self.cache, self.first_B = cache, self.first_B[index_B]

    def advance(self, tokens_R: Tensor) -> None:
        """Forward one token of each row."""
        tokens_B = torch.zeros_like(self.first_B)
        tokens_B[: len(tokens_R)] = tokens_R.to(tokens_B.device)
        self.logits_RV = self.compiled.forward(tokens_B, self.first_B, self.cache)[: len(tokens_R)]
        self.filled += 1


def _step(model: Any, tokens_B1: Tensor, first_B: Tensor, cache: Any) -> Tensor:
    """Logits (B, V) after one more token of each row."""
    slot = cache.layers[0].cumulative_length
    slots_L = torch.arange(cache.layers[0].max_cache_len, device=tokens_B1.device)
    seen_BL = (slots_L >= first_B[:, None]) & (slots_L <= slot)
    return model(
        input_ids=tokens_B1,
        attention_mask=seen_BL[:, None, None],
        position_ids=(slot - first_B)[:, None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


def _empty(like: Cache, n_rows: int, n_slots: int) -> Cache:
    """A static cache of that size; its tensors are marked as staying where they are."""
    layers = []
    for old in like.layers:
        layer = StaticLayer(n_slots)
        layer.lazy_initialization(
            old.keys[:1].expand(n_rows, -1, -1, -1), old.values[:1].expand(n_rows, -1, -1, -1)
        )
        layers.append(layer)
    return Cache(layers=layers)


def _bucket(count: int, fewest: int) -> int:
    """The smallest power of two that holds `count`, at least `fewest`."""
    return max(fewest, 1 << (count - 1).bit_length())
