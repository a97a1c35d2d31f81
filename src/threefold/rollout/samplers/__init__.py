"""The contract of a sampler: prompts as token ids in, sampled token ids with log-probabilities out.

Nothing here imports torch, so a sampler that talks to a server costs no more than its client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable


@dataclass(frozen=True)
class SamplingParameters:
    """How tokens are drawn.

    Raises:
        ValueError: A value is outside its range.
    """

    max_new_tokens: int
    """Most tokens of a sample, the end token included; at least 1."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token (greedy) and ignores `top_p` and `top_k`."""
    top_p: float = 1.0
    """Draw from the smallest set of most probable tokens that has this much probability; 1 is off."""
    top_k: int = 0
    """Draw from this many most probable tokens, before `top_p` is applied to what they share; 0 is off."""
    entropies: bool = False
    """Also report the entropy of each distribution that a token was drawn from."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be a finite number, 0 (greedy) or greater, got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], 1 is off, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or greater, got {self.top_k}")


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    token_ids: tuple[int, ...]
    """What was sampled, the end token included where it ended the sample; never empty."""
    logprobs: tuple[float, ...]
    """Log-probability of each token in nats, at the sampling temperature (1 where greedy), over the whole
    vocabulary: `top_p` and `top_k` narrow what is drawn, not what is reported."""
    finish_reason: Literal["stop", "length"]
    """"stop": the last token is an end token. "length": `max_new_tokens` were written without one."""
    entropies: tuple[float, ...] | None = None
    """Entropy in nats of each token's distribution, as `logprobs` over the whole vocabulary; None unless
    asked for."""


class Sampler(Protocol):
    """Whatever continues prompts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters,
        *,
        samples_per_prompt: int = 1,
        seed: int | None = None,
    ) -> list[Sample]:
        """Continue every prompt `samples_per_prompt` times.

        Args:
            prompts: Token ids of each prompt, without padding.
            parameters: How to draw.
            samples_per_prompt: Samples of each prompt.
            seed: The same seed gives the same samples whatever was drawn before; None draws on from global
                state.

        Returns:
            `len(prompts) * samples_per_prompt` samples, prompt by prompt: those of prompt 0 first.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """What a sampler has besides that draws from weights of its own: they have to be brought to it."""

    def push(self, model: Any) -> None:
        """Take over this model's weights, and forget what was computed with the ones before.

        Raises:
            ValueError: The engine cannot hold such a model; raised by the first call.
        """
        ...


@runtime_checkable
class Session(Protocol):
    """Dialogues that a sampler remembers from one turn to the next, so that only new tokens are forwarded."""

    def turn(
        self,
        dialogues: Sequence[int],
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
    ) -> list[Sample]:
        """Continue dialogues by one turn.

        Args:
            dialogues: Number of each dialogue that goes on; one that is left out is over.
            contexts: All tokens of each so far.
            max_new_tokens: Most tokens of each one's turn, at least 1.

        Returns:
            One sample for each dialogue, in order.
        """
        ...

    def close(self) -> None:
        """Give back what is remembered."""
        ...


def end_tokens(model: Any, tokenizer: Any = None) -> frozenset[int]:
    """Tokens that end a turn: those of `model.generation_config` and the tokenizer's."""
    configuration = getattr(model, "generation_config", None)
    found = getattr(configuration, "eos_token_id", None)
    ends = {found} if isinstance(found, int) else set(found or ())
    of_tokenizer = getattr(tokenizer, "eos_token_id", None)
    return frozenset(ends if of_tokenizer is None else ends | {of_tokenizer})


def check_prompts(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    vocabulary: int,
    context: int | None,
    first_row: int = 0,
) -> None:
    """Raise ValueError for a prompt that cannot be continued by `max_new_tokens`; rows count from
    `first_row`."""
    for row, prompt in enumerate(prompts, first_row):
        if len(prompt) == 0:
            raise ValueError(
                f"prompt {row} is empty: a prompt needs at least one token, such as the start token"
            )
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            bad = next(token for token in prompt if not 0 <= token < vocabulary)
            raise ValueError(f"prompt {row} holds token id {bad}, the model has ids 0 to {vocabulary - 1}")
        if context is not None and len(prompt) + max_new_tokens > context:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, with {max_new_tokens} new ones that is "
                f"{len(prompt) + max_new_tokens}, but the model's context has {context}: lower "
                f"max_new_tokens to {max(context - len(prompt), 0)} or shorten the prompt"
            )
