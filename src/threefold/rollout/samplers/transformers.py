"""Sampling with a Hugging Face causal language model in memory, the default for training and evaluation.

The decode loop is our own because `generate` repeats two costs that group sampling makes large: it forwards
the prompt once for each of the G copies, and it carries every row on until the longest one ends. Here a
prompt is forwarded once in a batch and its keys and values are copied to its samples, and a row that ends
leaves the batch.

Each sample draws from a random stream of its own, keyed by (seed, its place in the result): which rows share
a batch, which of them end early, and how many prompts follow do not touch it. Only sampling by
`SamplingParameters` happens; other settings of `generation_config` (repetition penalties, bad words, ...) are
not applied, because log-probabilities under them would not be the policy's.

Shapes: R rows in a batch, U different prompts among them, L padded prompt length, T new tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from threefold.rollout.samplers import Sample, SamplingParameters, check_prompts, end_tokens
from threefold.rollout.samplers.choosing import Draft, write
from threefold.rollout.samplers.compiled_decoding import CompiledDecoding, StaticBatch
from threefold.rollout.samplers.dialogue import TransformersSession
from threefold.rollout.samplers.shared_decoding import Prompts, SharedCache, usable

logger = logging.getLogger(__name__)

_CACHE_NAMES = ("past_key_values", "cache_params")
"""What models call their cache, as argument and as output; the second is the Mamba family's."""


@dataclass
class _Decoding:
    """Rows that are being decoded: everything the next forward needs."""

    logits_RV: Tensor
    cache: Any
    mask_RL: Tensor
    """Attention mask over what the cache's layers hold, the prompt and the tokens so far: 0 at left padding.
    A `SharedCache` holds the prompts apart."""
    position_R: Tensor
    """Position of the next token."""

    def keep(self, rows: Sequence[int]) -> None:
        """Make the batch consist of these of its rows, in this order; a row may be named several times."""
        if list(rows) == list(range(self.mask_RL.size(0))):
            return
        index = torch.tensor(rows, device=self.mask_RL.device)
        if isinstance(self.cache, SharedCache):
            self.cache = self.cache.take(rows)
        else:
            self.cache.reorder_cache(index)
        self.mask_RL, self.position_R = self.mask_RL[index], self.position_R[index]
        self.logits_RV = self.logits_RV[index.to(self.logits_RV.device)]


class TransformersSampler:
    """Continues prompts with a causal language model of transformers, PEFT models included.

    The model is used as it is at each call: weights that a trainer changed are seen at once, and modules in
    train mode are put into evaluation mode for the call and restored.

    Args:
        model: A causal language model whose forward takes an attention mask and a cache.
        tokenizer: Asked for `eos_token_id` only; None where `model.generation_config` names the end tokens.
        batch_size: Most rows decoded at once. Rows are sorted by prompt length, so that padding stays small.
        compiled: Decode `generate`'s rows by compiled steps over a static cache, meant for accelerators;
            where the model or the cache does not allow it the log says so, and plain steps are taken.
            Sessions take plain ones.

    Raises:
        ValueError: `batch_size` is less than 1.
        TypeError: The model's forward takes no attention mask or no cache.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 64,
        compiled: CompiledDecoding | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepts = frozenset(inspect.signature(base.forward).parameters)
        names = [name for name in _CACHE_NAMES if name in self._accepts]
        if not names or "attention_mask" not in self._accepts:
            raise TypeError(
                f"{type(base).__name__}.forward takes {sorted(self._accepts)}: sampling needs attention_mask "
                f"and one of {', '.join(_CACHE_NAMES)}"
            )
        self._cache_name = names[0]
        self._may_reorder = True
        self._compiled = compiled
        self._said_plain = False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters,
        *,
        samples_per_prompt: int = 1,
        seed: int | None = None,
        first_place: int = 0,
    ) -> list[Sample]:
        """Continue every prompt `samples_per_prompt` times.

        Args:
            prompts: Token ids of each prompt, without padding, at least one token each.
            parameters: How to draw.
            samples_per_prompt: Samples of each prompt, at least 1.
            seed: At least 0. The sample at place i of the result depends on its prompt, the parameters, the
                seed and i alone (up to rounding, which may differ between batch shapes). None takes a seed
                from torch's global generator, so `torch.manual_seed` governs.
            first_place: Place of the first sample, where these are a part of a larger result.

        Returns:
            `len(prompts) * samples_per_prompt` samples, prompt by prompt: those of prompt 0 first.

        Raises:
            ValueError: A prompt is empty, holds an id outside the vocabulary, or leaves no room in the
                model's context; the message names its row.
            FloatingPointError: The model answered with NaN or infinity.
        """
        if samples_per_prompt < 1:
            raise ValueError(f"samples_per_prompt must be at least 1, got {samples_per_prompt}")
        seed = _seed(seed)
        self.check(prompts, parameters.max_new_tokens)
        rows = [tuple(prompt) for prompt in prompts for _ in range(samples_per_prompt)]
        by_length = sorted(range(len(rows)), key=lambda row: (len(rows[row]), rows[row]))
        samples: dict[int, Sample] = {}
        with self.scoring():
            for begin in range(0, len(rows), self.batch_size):
                batch = by_length[begin : begin + self.batch_size]
                draws_RT = _draws(seed, [first_place + row for row in batch], parameters)
                decoded = self.decode([rows[row] for row in batch], draws_RT, parameters)
                samples.update(zip(batch, decoded, strict=True))
        return [samples[row] for row in range(len(rows))]

    def session(
        self, parameters: SamplingParameters, *, seed: int | None = None, keep_cache: bool = True
    ) -> TransformersSession:
        """Dialogues of many turns that keep their keys and values from one turn to the next.

        Args:
            parameters: How to draw; the most tokens of a turn are given with each turn.
            seed: As in `generate`: dialogue d in turn k draws from a stream of its own.
            keep_cache: False prefills every dialogue at every turn, with the same samples.
        """
        if self._compiled is not None and not self._said_plain:
            logger.warning("decoding is compiled for one turn; dialogues are decoded by plain steps")
            self._said_plain = True
        return TransformersSession(self, parameters, _seed(seed), keep_cache=keep_cache)

    # What `generate` and a session are made of

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The model in evaluation mode and without gradients."""
        with _evaluation_mode(self.model), torch.no_grad():
            yield

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, first_row: int = 0) -> None:
        """Raise ValueError for a prompt that cannot be continued by `max_new_tokens`; rows count from
        `first_row`."""
        check_prompts(
            prompts,
            max_new_tokens,
            vocabulary=self.model.get_input_embeddings().num_embeddings,
            context=getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
            first_row=first_row,
        )

    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a turn."""
        return end_tokens(self.model, self.tokenizer)

    def decode(
        self,
        prompts: Sequence[tuple[int, ...]],
        draws_RT: Tensor | None,
        parameters: SamplingParameters,
        limits: Sequence[int] | None = None,
    ) -> list[Sample]:
        """Decode one batch to its end.

        Args:
            prompts: Token ids of each row.
            draws_RT: Each row's uniform numbers, None where greedy.
            parameters: How to draw.
            limits: Most tokens of each row, at most `parameters.max_new_tokens`; None: that for all.
        """
        ends, most = self.end_tokens(), parameters.max_new_tokens
        drafts = [
            Draft(f"a prompt of {len(prompt)} tokens", ends, limit)
            for prompt, limit in zip(prompts, limits or [most] * len(prompts), strict=True)
        ]
        state = self._start_compiled(prompts, most) or self._start(prompts, most)
        in_batch = list(range(len(prompts)))
        for step in range(most):
            draws_R = None if draws_RT is None else draws_RT[in_batch, step].to(state.logits_RV.device)
            tokens_R = write([drafts[row] for row in in_batch], state.logits_RV, parameters, draws_R)
            going = [i for i, row in enumerate(in_batch) if not drafts[row].is_over]
            if not going:
                break
            if state.fits_smaller(len(going)) if isinstance(state, StaticBatch) else self._may_reorder:
                state.keep(going)
                in_batch = [in_batch[i] for i in going]
                tokens_R = tokens_R[going]
            self._advance(state, tokens_R)
        return [draft.sample() for draft in drafts]

    def _start_compiled(self, prompts: Sequence[tuple[int, ...]], room: int) -> StaticBatch | None:
        """Forward each different prompt once, and lay them out for compiled steps; None where those may not
        be taken."""
        if self._compiled is None:
            return None
        different = list(dict.fromkeys(prompts))
        place = {prompt: i for i, prompt in enumerate(different)}
        state = self.prefill(different)
        reason = self._compiled.refusal(state.cache, state.mask_RL.size(1) + room)
        if reason is not None:
            logger.warning(
                "%s: decoding is not compiled, slower but with equal results, because %s",
                type(self.model).__name__,
                reason,
            )
            self._compiled = None
            return None
        of_prompt = [place[prompt] for prompt in prompts]
        return self._compiled.begin(state.cache, state.mask_RL, state.logits_RV, of_prompt, room)

    def _start(self, prompts: Sequence[tuple[int, ...]], room: int) -> _Decoding:
        """Forward each different prompt once, and let rows share its keys and values or give each a copy."""
        different = list(dict.fromkeys(prompts))
        place = {prompt: i for i, prompt in enumerate(different)}
        if self._may_reorder:
            state = self.prefill(different)
            if isinstance(state.cache, Cache):
                of_prompt = [place[prompt] for prompt in prompts]
                longest = state.mask_RL.size(1) + room
                if len(different) < len(prompts) and usable(self.model, state.cache, longest):
                    return _share(state, different, of_prompt, room)
                state.keep(of_prompt)
                return state
            self._may_reorder = False
            logger.warning(
                "%s answers with a cache of type %s, whose rows cannot be copied or removed: every sample "
                "forwards its own prompt and finished rows stay in the batch, slower but with equal results",
                type(self.model).__name__,
                type(state.cache).__name__,
            )
        return self.prefill(prompts)

    def prefill(self, prompts: Sequence[tuple[int, ...]]) -> _Decoding:
        """Forward prompts, left-padded, one row each."""
        longest = max(map(len, prompts))
        ids_UL = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask_UL = torch.zeros_like(ids_UL)
        for row, prompt in enumerate(prompts):
            ids_UL[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_UL[row, longest - len(prompt) :] = 1
        device = self.model.get_input_embeddings().weight.device
        ids_UL, mask_UL = ids_UL.to(device), mask_UL.to(device)
        positions_UL = (mask_UL.cumsum(-1) - 1).clamp(min=0)
        logits_UV, cache = self.forward(ids_UL, mask_UL, positions_UL, cache=None)
        return _Decoding(logits_UV, cache, mask_UL, positions_UL[:, -1] + 1)

    def _advance(self, state: _Decoding | StaticBatch, tokens_R: Tensor) -> None:
        if isinstance(state, StaticBatch):
            return state.advance(tokens_R)
        tokens_R = tokens_R.to(state.mask_RL.device)
        state.mask_RL = torch.cat([state.mask_RL, state.mask_RL.new_ones(len(tokens_R), 1)], dim=1)
        state.logits_RV, state.cache = self.forward(
            tokens_R[:, None], state.mask_RL, state.position_R[:, None], state.cache
        )
        state.position_R = state.position_R + 1
        return None

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last position (R, V), and the cache; given None, the model makes the one it needs."""
        optional: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        if cache is not None and self._cache_name == "cache_params":
            # The Mamba family multiplies inputs by the mask: one new token by a long mask would broadcast.
            mask = None
        with ExitStack() as attention:
            if isinstance(cache, SharedCache):
                assert mask is not None
                cache.see(mask, ids.size(1))
                attention.enter_context(cache.attention(self.model))
                optional["shared"], mask = cache, None
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                use_cache=True,
                **{self._cache_name: cache},
                **{k: value for k, value in optional.items() if k in self._accepts or k == "shared"},
            )
        cache = output.get(self._cache_name)
        if cache is None:
            raise TypeError(
                f"{type(self.model).__name__} answers without {self._cache_name}: sampling needs its cache"
            )
        return output.logits[:, -1], cache


def _share(
    prefilled: _Decoding, prompts: Sequence[tuple[int, ...]], prompt_of_row: list[int], room: int
) -> _Decoding:
    """Rows that share prefilled prompts and have written nothing yet."""
    return _Decoding(
        prefilled.logits_RV[prompt_of_row],
        SharedCache.begin(Prompts.of(prefilled.cache, prompts), prompt_of_row, room),
        prefilled.mask_RL[prompt_of_row, :0],
        prefilled.position_R[prompt_of_row],
    )


def _seed(seed: int | None) -> int:
    """The given seed, or one from torch's global generator."""
    if seed is None:
        return int(torch.randint(2**63 - 1, ()))
    if seed < 0:
        raise ValueError(f"seed must be 0 or greater, got {seed}")
    return seed


def _draws(seed: int, places: Sequence[int], parameters: SamplingParameters) -> Tensor | None:
    """(R, T) uniform numbers in [0, 1), a stream a row; None where nothing is drawn."""
    if parameters.temperature == 0:
        return None
    streams = [np.random.default_rng((seed, place)).random(parameters.max_new_tokens) for place in places]
    return torch.from_numpy(np.stack(streams))


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module's own mode: a frozen part may differ from the rest."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
