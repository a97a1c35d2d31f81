"""Our sampler on a copy of the policy in half precision: an engine that needs nothing installed.

Where the policy is trained in fp32, decoding reads its weights for every token, and in bf16 that is half the
bytes and, on CPUs with bf16 arithmetic, less than half the work. `push` brings the copy the policy's weights.
What it samples is drawn with the copy's probabilities: `threefold.credit.importance` corrects for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from threefold.rollout.samplers import Sample, SamplingParameters
from threefold.rollout.samplers.dialogue import TransformersSession
from threefold.rollout.samplers.transformers import TransformersSampler


class HalfSampler:
    """Continues prompts with a copy of a model of transformers, as `TransformersSampler` does with the model.

    Args:
        tokenizer: Asked for `eos_token_id` only; None where `model.generation_config` names the end tokens.
        dtype: Of the copy.
        batch_size: Most rows decoded at once.
    """

    def __init__(
        self, tokenizer: Any = None, *, dtype: torch.dtype = torch.bfloat16, batch_size: int = 256
    ) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._batch_size = batch_size
        self._sampler: TransformersSampler | None = None

    def push(self, model: Any) -> None:
        """Take over a model's weights; the first call makes the copy.

        Raises:
            ValueError: It is a PEFT model, whose weights are not those of its class.
        """
        if self._sampler is None:
            if hasattr(model, "peft_config"):
                raise ValueError(
                    f"{type(model).__name__} is a PEFT model, of which no copy is made here; train without "
                    "LoRA, or use sampler='threefold'"
                )
            self._sampler = TransformersSampler(
                _copy(model, self._dtype), self._tokenizer, batch_size=self._batch_size
            )
        mine = self._sampler.model.state_dict()
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                mine[name].copy_(weight)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters,
        *,
        samples_per_prompt: int = 1,
        seed: int | None = None,
    ) -> list[Sample]:
        """As `TransformersSampler.generate`; log-probabilities are the copy's."""
        return self._pushed().generate(prompts, parameters, samples_per_prompt=samples_per_prompt, seed=seed)

    def session(self, parameters: SamplingParameters, *, seed: int | None = None) -> TransformersSession:
        """As `TransformersSampler.session`."""
        return self._pushed().session(parameters, seed=seed)

    def _pushed(self) -> TransformersSampler:
        if self._sampler is None:
            raise RuntimeError("the copy has no weights yet: call push(model) first")
        return self._sampler


def _copy(model: Any, dtype: torch.dtype) -> Any:
    """A model of the same class and configuration: a deep copy would carry what a trainer has patched."""
    state = torch.get_rng_state()
    copied = type(model)._from_config(model.config, dtype=dtype).to(model.device).eval()
    torch.set_rng_state(state)
    copied.generation_config = model.generation_config
    return copied.requires_grad_(False)
