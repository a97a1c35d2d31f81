"""Keys and values of dialogues between turns: laid out anew for each turn, and grown in place during it.

Shapes: R rows in a batch, S rows that they are taken from, L slots filled, C slots in all, H heads, D head
size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

OVER = -1
"""Stands for a dialogue that a batch held and holds no longer."""


class KeptLayer(DynamicLayer):
    """Keys and values (R, H, C, D) of one layer, the first `length` slots filled.

    In memory heads or slots come first. Plain attention takes either, and slots first is faster to lay out;
    `shared_decoding` multiplies whole heads.
    """

    def __init__(self, keys_RHCD: Tensor, values_RHCD: Tensor, length: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys_RHCD.dtype, keys_RHCD.device, True
        self.keys, self.values = keys_RHCD, values_RHCD
        self.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.size(-2)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def rows(self, index_R: Tensor) -> KeptLayer:
        """A copy of some rows, alike in memory."""
        if self.keys.is_contiguous():
            return KeptLayer(self.keys[index_R], self.values[index_R], self.length)
        keys_RCHD, values_RCHD = self.keys.transpose(1, 2)[index_R], self.values.transpose(1, 2)[index_R]
        return KeptLayer(keys_RCHD.transpose(1, 2), values_RCHD.transpose(1, 2), self.length)


class KeptCache(Cache):
    """Layers of dialogues that share nothing; one that reads another layer's keys and values is empty."""

    def take(self, rows: Sequence[int]) -> KeptCache:
        """A copy of some rows."""
        layers: list[Any] = []
        for layer in self.layers:
            kept = isinstance(layer, KeptLayer)
            layers.append(layer.rows(torch.tensor(rows, device=layer.device)) if kept else type(layer)())
        return KeptCache(layers=layers)

    def opening(self, row: int) -> tuple[int, ...]:
        """What is held of a row apart from the layers: nothing."""
        return ()


@dataclass
class DialogueBatch:
    """Dialogues that are decoded together, or were: what the next forward needs of them."""

    dialogues: list[int]
    """The number of each row's dialogue, or `OVER`."""
    cache: Any
    """`KeptCache` or `SharedCache`, or a prefilled one whose rows only go on to others."""
    mask_RL: Tensor
    """1 where a slot of the cache's layers holds a token of the dialogue."""
    logits_RV: Tensor
    position_R: Tensor
    """Position of the next token."""

    def take(self, rows: Sequence[int]) -> DialogueBatch:
        """A copy of some rows, with their part of the cache."""
        index_R = torch.tensor(rows, device=self.mask_RL.device)
        return DialogueBatch(
            dialogues=[self.dialogues[row] for row in rows],
            cache=self.cache.take(rows),
            mask_RL=self.mask_RL[index_R],
            logits_RV=self.logits_RV[index_R.to(self.logits_RV.device)],
            position_R=self.position_R[index_R],
        )


def lay_out(
    sources: Sequence[tuple[DialogueBatch, Sequence[int], Sequence[int]]],
    lengths: Sequence[int],
    room: int,
    *,
    heads_first: bool = False,
    free: Callable[[DialogueBatch], bool] | None = None,
) -> tuple[list[Any], Tensor]:
    """Copy what caches hold of dialogues into one batch, pushed to the right, with room behind.

    Args:
        sources: (batch, its rows to take, the rows that they become); a row may be taken several times.
        lengths: Tokens to keep of each new row, its first ones.
        room: Slots behind them.
        heads_first: Where heads come before slots in memory.
        free: Batches for which this holds lose each layer once it has been copied.

    Returns:
        The layers, and their mask (R, L) over the filled slots, L the largest of `lengths`.
    """
    longest = max(lengths)
    device = sources[0][0].mask_RL.device
    mask_RL = torch.zeros(len(lengths), longest, dtype=torch.long, device=device)
    moves = []
    for batch, rows, targets in sources:
        # Slots of masked tokens sort behind the others, so slot i of `order` holds the dialogue's token i.
        order_SL = (1 - batch.mask_RL).argsort(dim=1, stable=True)
        slots_RC = torch.zeros(len(rows), longest + room, dtype=torch.long, device=device)
        for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
            length = lengths[target]
            slots_RC[i, longest - length : longest] = order_SL[row, :length]
            mask_RL[target, longest - length :] = 1
        moves.append(
            (batch, torch.tensor(rows, device=device), torch.tensor(targets, device=device), slots_RC)
        )
    layers: list[Any] = []
    for number, first in enumerate(sources[0][0].cache.layers):
        if first.keys is None:  # a layer that shares another's keys and values
            layers.append(DynamicLayer())
            continue
        pair = []
        for name in ("keys", "values"):
            held = getattr(first, name)
            sizes = [longest + room, held.size(1)]
            moved = held.new_empty(len(lengths), *sizes[:: -1 if heads_first else 1], held.size(3))
            moved_RCHD = moved.transpose(1, 2) if heads_first else moved
            for batch, rows_R, targets_R, slots_RC in moves:
                source_SCHD = getattr(batch.cache.layers[number], name).transpose(1, 2)
                at = targets_R.to(held.device)
                moved_RCHD[at] = source_SCHD[rows_R.to(held.device)[:, None], slots_RC.to(held.device)]
            pair.append(moved_RCHD.transpose(1, 2))
        layers.append(KeptLayer(pair[0], pair[1], longest))
        for batch, *_ in moves:
            if free is not None and free(batch):
                batch.cache.layers[number].keys = batch.cache.layers[number].values = None
    return layers, mask_RL


def right_aligned(
    new: Sequence[Sequence[int]], before: Sequence[int], device: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions (R, C) of tokens that follow `before` tokens of each row."""
    longest = max(map(len, new))
    ids_RC = torch.zeros(len(new), longest, dtype=torch.long)
    mask_RC, position_RC = torch.zeros_like(ids_RC), torch.zeros_like(ids_RC)
    for row, (ids, length) in enumerate(zip(new, before, strict=True)):
        ids_RC[row, longest - len(ids) :] = torch.tensor(ids)
        mask_RC[row, longest - len(ids) :] = 1
        position_RC[row, longest - len(ids) :] = torch.arange(length, length + len(ids))
    return ids_RC.to(device), mask_RC.to(device), position_RC.to(device)
