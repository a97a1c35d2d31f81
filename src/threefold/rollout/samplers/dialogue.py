"""Dialogues whose keys and values live between turns: each turn forwards only what was said since the last.

Prefilling a dialogue again at every turn forwards its first tokens once a turn, so K turns cost about K / 2
times the tokens of the whole dialogue. Here an opening is forwarded once for all dialogues that share it, a
turn appends the environment's new tokens and decodes the agent's, and a dialogue that is not named any more
gives its memory back.

A batch is laid out anew at the start of each turn (`kept_cache.py`): one copy takes over the tokens that
still count, pushed to the right so that all dialogues end at the same slot, with room for the turn to come.
New tokens are written into that room, without the copy of everything that transformers' growing cache makes
for each token.

On a CPU the opening stays out of that (`shared_decoding.py`): its keys and values are those of the prefill,
never copied and read once for all dialogues that began with it, and what is laid out is what came after.
Elsewhere each dialogue gets a copy.

Left padding, tokens that were cut off, and slots of dialogues whose turn is over are masked, and position ids
count tokens, not slots, so the log-probabilities are those of one forward of the dialogue. Rows whose turn is
over stay in the batch until they are half of it, then they are set aside until the next turn.

Caches that have no slot for each token (the Mamba family), or whose sliding window the dialogue outgrows,
fall back to prefilling at every turn, with the reason logged once.

Shapes: R rows in a batch, L slots filled, C new tokens, T tokens of a turn, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from threefold.rollout.samplers import Sample, SamplingParameters
from threefold.rollout.samplers.choosing import Draft, write
from threefold.rollout.samplers.kept_cache import OVER, DialogueBatch, KeptCache, lay_out, right_aligned
from threefold.rollout.samplers.shared_decoding import Prompts, SharedCache, gather, usable

if TYPE_CHECKING:
    from threefold.rollout.samplers.transformers import TransformersSampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """One dialogue's turn: its tokens so far, and the most that it may write."""

    context: tuple[int, ...]
    limit: int


class TransformersSession:
    """The dialogues of one rollout; `TransformersSampler.session` makes it.

    Args:
        sampler: Holds the model.
        parameters: How to draw; `max_new_tokens` is given with each turn.
        seed: Dialogue d draws in turn k from a stream keyed by (seed, k, d) alone.
        keep_cache: False prefills every dialogue at every turn: the same samples, slower.
    """

    def __init__(
        self,
        sampler: TransformersSampler,
        parameters: SamplingParameters,
        seed: int,
        *,
        keep_cache: bool = True,
    ) -> None:
        self._sampler = sampler
        self._parameters = parameters
        self._seed = seed
        self._turn = 0
        self._cached: dict[int, list[int]] = {}
        """Token ids by dialogue whose keys and values are kept, in the order of its unmasked slots."""
        self._batches: list[DialogueBatch] = []
        self._keeps = keep_cache
        self._window: int | None = None
        """Slots that the smallest sliding window of the model sees, None where there is none."""

    def turn(
        self,
        dialogues: Sequence[int],
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
    ) -> list[Sample]:
        """Continue dialogues by one turn of the agent.

        Args:
            dialogues: Number of each dialogue that goes on; those that are left out are over, and their
                memory is given back.
            contexts: All tokens of each so far, the sampled ones included. Where a context does not begin
                with what was said before, only the common beginning is kept.
            max_new_tokens: Most tokens of each dialogue's turn, at least 1.

        Returns:
            One sample for each dialogue, in order.

        Raises:
            ValueError: The numbers repeat or are negative, or a context is one that
                `TransformersSampler.generate` refuses.
            FloatingPointError: The model answered with NaN or infinity.
        """
        if len(set(dialogues)) < len(dialogues) or min(dialogues, default=0) < 0:
            raise ValueError(
                f"dialogues are numbered from 0 and take one turn at a time, got {list(dialogues)}"
            )
        if min(max_new_tokens, default=1) < 1:
            raise ValueError(f"max_new_tokens must be at least 1 each, got {list(max_new_tokens)}")
        asked = {
            dialogue: _Asked(tuple(context), limit)
            for dialogue, context, limit in zip(dialogues, contexts, max_new_tokens, strict=True)
        }
        for row, one in enumerate(asked.values()):
            self._sampler.check([one.context], one.limit, first_row=row)
        self._forget(set(self._cached) - set(dialogues))
        self._forget(self._parted(asked))
        samples: dict[int, Sample] = {}
        with self._sampler.scoring():
            for batch in self._batches_of(asked):
                samples.update(self._continue({dialogue: asked[dialogue] for dialogue in batch}))
        self._turn += 1
        return [samples[dialogue] for dialogue in dialogues]

    def close(self) -> None:
        """Give back all memory; a later turn prefills."""
        self._batches, self._cached = [], {}

    def _batches_of(self, asked: dict[int, _Asked]) -> list[list[int]]:
        """New dialogues and continued ones apart, each at most the sampler's batch size."""
        size = self._sampler.batch_size
        batches = []
        for continued in (False, True):
            some = [dialogue for dialogue in asked if (dialogue in self._cached) == continued]
            if len(some) > size:  # alike in length, so that padding stays small
                some.sort(key=lambda dialogue: (len(asked[dialogue].context), asked[dialogue].context))
            batches += [some[begin : begin + size] for begin in range(0, len(some), size)]
        return batches

    def _continue(self, asked: dict[int, _Asked]) -> dict[int, Sample]:
        draws_RT = self._draws(asked)
        if self._keeps:
            batch = self._resume(asked) if next(iter(asked)) in self._cached else self._open(asked)
            if batch is not None:
                return self._decode(batch, asked, draws_RT)
        longest = replace(self._parameters, max_new_tokens=max(one.limit for one in asked.values()))
        contexts, limits = zip(*((one.context, one.limit) for one in asked.values()), strict=True)
        samples = self._sampler.decode(contexts, draws_RT, longest, limits)
        return dict(zip(asked, samples, strict=True))

    def _draws(self, asked: dict[int, _Asked]) -> Tensor | None:
        """(R, T) uniform numbers, a stream for each dialogue and turn; None where nothing is drawn."""
        if self._parameters.temperature == 0:
            return None
        longest = max(one.limit for one in asked.values())
        streams = [np.random.default_rng((self._seed, self._turn, d)).random(longest) for d in asked]
        return torch.from_numpy(np.stack(streams))

    # Caches

    def _open(self, asked: dict[int, _Asked]) -> DialogueBatch | None:
        """Forward each different opening once, for all dialogues that begin with it; None where that cannot
        be."""
        different = list(dict.fromkeys(one.context for one in asked.values()))
        state = self._sampler.prefill(different)
        room = max(one.limit for one in asked.values())
        if not self._can_keep(state.cache, state.mask_RL.size(1) + room):
            return None
        place = {context: row for row, context in enumerate(different)}
        rows = [place[one.context] for one in asked.values()]
        if usable(self._sampler.model, state.cache, state.mask_RL.size(1) + room):
            cache: Any = SharedCache.begin(Prompts.of(state.cache, different), rows, room)
            mask_RL = state.mask_RL[rows, :0]
        else:
            opened = DialogueBatch(rows, state.cache, state.mask_RL, state.logits_RV, state.position_R)
            lengths = [len(one.context) for one in asked.values()]
            layers, mask_RL = lay_out([(opened, rows, list(range(len(rows))))], lengths, room)
            cache = KeptCache(layers=layers)
        return DialogueBatch(list(asked), cache, mask_RL, state.logits_RV[rows], state.position_R[rows])

    def _resume(self, asked: dict[int, _Asked]) -> DialogueBatch | None:
        """Take the dialogues out of the batches that hold them and forward what is new."""
        # The last token is always forwarded: its logits are wanted.
        kept = [
            min(_common(self._cached[dialogue], one.context), len(one.context) - 1)
            for dialogue, one in asked.items()
        ]
        new = [one.context[length:] for one, length in zip(asked.values(), kept, strict=True)]
        chunk, room = max(map(len, new)), max(one.limit for one in asked.values())
        if self._window is not None and max(kept) + chunk + room >= self._window:
            self._give_up(f"the dialogue outgrows the model's sliding window of {self._window} tokens")
            return None
        place = {dialogue: row for row, dialogue in enumerate(asked)}
        sources, openings = [], [()] * len(asked)
        for batch in self._batches:
            rows = [row for row, dialogue in enumerate(batch.dialogues) if dialogue in place]
            if rows:
                sources.append((batch, rows, [place[batch.dialogues[row]] for row in rows]))
                for row in rows:
                    openings[place[batch.dialogues[row]]] = batch.cache.opening(row)
        shared = [batch.cache.prompts for batch, *_ in sources if isinstance(batch.cache, SharedCache)]
        layers, mask_RL = lay_out(
            sources,
            [length - len(opening) for length, opening in zip(kept, openings, strict=True)],
            chunk + room,
            heads_first=bool(shared),
            free=lambda batch: set(batch.dialogues) <= {*asked, OVER},
        )
        cache: Any = KeptCache(layers=layers)
        if shared:
            prompts = gather(shared, list(dict.fromkeys(openings)))
            number = {ids: prompt for prompt, ids in enumerate(prompts.token_ids)}
            cache = SharedCache(prompts, [number[opening] for opening in openings], layers)
        self._forget(asked)
        ids_RC, mask_RC, position_RC = right_aligned(new, kept, mask_RL.device)
        mask_RL = torch.cat([mask_RL, mask_RC], dim=1)
        logits_RV, cache = self._sampler.forward(ids_RC, mask_RL, position_RC, cache)
        return DialogueBatch(list(asked), cache, mask_RL, logits_RV, position_RC[:, -1] + 1)

    def _can_keep(self, cache: Any, length: int) -> bool:
        """Whether this kind of cache has a slot for each token, and the window room for `length` of them."""
        if not isinstance(cache, Cache):
            self._give_up(f"a cache of type {type(cache).__name__} cannot be taken apart")
            return False
        kinds = {type(layer) for layer in cache.layers} - {DynamicLayer, DynamicSlidingWindowLayer}
        if kinds:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            self._give_up(f"cache layers of type {names} have no slot for each token")
            return False
        windows = [x.sliding_window for x in cache.layers if isinstance(x, DynamicSlidingWindowLayer)]
        self._window = min(windows, default=None)
        if self._window is not None and length >= self._window:
            self._give_up(f"the dialogue outgrows the model's sliding window of {self._window} tokens")
            return False
        return True

    def _give_up(self, reason: str) -> None:
        logger.warning(
            "%s: dialogues are prefilled again at every turn, slower but with equal results, because %s",
            type(self._sampler.model).__name__,
            reason,
        )
        self._keeps = False
        self.close()

    def _parted(self, asked: dict[int, _Asked]) -> list[int]:
        """Dialogues whose context no longer goes beyond the opening that they share: they start anew."""
        parted = []
        for batch in self._batches:
            for row, dialogue in enumerate(batch.dialogues):
                if dialogue in asked:
                    opening, context = batch.cache.opening(row), asked[dialogue].context
                    if len(context) <= len(opening) or context[: len(opening)] != opening:
                        parted.append(dialogue)
        return parted

    def _forget(self, dialogues: Collection[int]) -> None:
        """Let go of dialogues that are over or in another batch now; a batch goes with its last one."""
        for dialogue in dialogues:
            self._cached.pop(dialogue, None)
        for batch in self._batches:
            batch.dialogues = [OVER if d in dialogues else d for d in batch.dialogues]
        self._batches = [batch for batch in self._batches if set(batch.dialogues) != {OVER}]

    # Decoding

    def _decode(
        self, batch: DialogueBatch, asked: dict[int, _Asked], draws_RT: Tensor | None
    ) -> dict[int, Sample]:
        """Draw each dialogue's turn to its end, and keep what was forwarded for the next turn."""
        ends = self._sampler.end_tokens()
        drafts = {
            dialogue: Draft(f"turn {self._turn} of dialogue {dialogue}", ends, one.limit)
            for dialogue, one in asked.items()
        }
        stream = {dialogue: row for row, dialogue in enumerate(asked)}
        aside = []
        step = 0
        while True:
            rows = [stream[dialogue] for dialogue in batch.dialogues]
            draws_R = None if draws_RT is None else draws_RT[rows, step].to(batch.logits_RV.device)
            in_batch = [drafts[dialogue] for dialogue in batch.dialogues]
            tokens_R = write(in_batch, batch.logits_RV, self._parameters, draws_R)
            going = [row for row, draft in enumerate(in_batch) if not draft.is_over]
            if not going:
                break
            if 2 * len(going) <= len(in_batch):
                aside.append(batch.take([row for row, draft in enumerate(in_batch) if draft.is_over]))
                batch, tokens_R = batch.take(going), tokens_R[going]
                in_batch = [in_batch[row] for row in going]
            self._advance(batch, tokens_R, [not draft.is_over for draft in in_batch])
            step += 1
        self._batches += [batch, *aside]
        for dialogue, draft in drafts.items():
            # The last token was drawn and not forwarded: it comes with the next turn's new tokens.
            self._cached[dialogue] = [*asked[dialogue].context, *draft.ids[:-1]]
        return {dialogue: draft.sample() for dialogue, draft in drafts.items()}

    def _advance(self, batch: DialogueBatch, tokens_R: Tensor, goes: list[bool]) -> None:
        """Forward one token of each row; those of rows whose turn is over are masked at once."""
        tokens_R = tokens_R.to(batch.mask_RL.device)
        goes_R = torch.tensor(goes).to(batch.mask_RL)
        batch.mask_RL = torch.cat([batch.mask_RL, goes_R[:, None]], dim=1)
        batch.logits_RV, batch.cache = self._sampler.forward(
            tokens_R[:, None], batch.mask_RL, batch.position_R[:, None], batch.cache
        )
        batch.position_R = batch.position_R + goes_R


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
