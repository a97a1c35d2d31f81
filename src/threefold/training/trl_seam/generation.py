"""What passes through TRL while a generation batch is made, and the hook that replaces its advantages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from threefold.rollout.samplers import Engine, Sample, Sampler, SamplingParameters, Session
from threefold.rollout.samplers.compiled_decoding import CompiledDecoding
from threefold.rollout.samplers.transformers import TransformersSampler
from threefold.training.dynamic_sampling import Candidates
from threefold.training.trl_seam.update import UpdateSeam

_BATCH = 256
"""Most rows that our sampler decodes at once."""


@dataclass
class Generation:
    """What passed through TRL while one generation batch was made."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    completions: list[Any] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    rewards_BF: Tensor | None = None
    """(B, F) over all processes, a column for each reward function; NaN where one gave no score."""
    scored: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    """Log-probabilities and entropies that TRL computed without a gradient, in its order: the old policy's
    where it needs them, then the reference model's where beta > 0."""
    sampled: list[dict[int, list[Sample]]] = field(default_factory=list)
    """What our sampler drew each time it generated: the samples of each row, one a turn."""
    seconds: dict[str, float] = field(default_factory=dict)

    def spent(self, what: str, started: float) -> None:
        """Add the seconds since `started`."""
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started


class NotedSession:
    """A session whose samples are noted by dialogue, as the driver numbers them: by row."""

    def __init__(self, session: Session, noted: dict[int, list[Sample]]) -> None:
        self._session, self._noted = session, noted

    def turn(
        self, dialogues: Sequence[int], contexts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]
    ) -> list[Sample]:
        samples = self._session.turn(dialogues, contexts, max_new_tokens)
        for dialogue, sample in zip(dialogues, samples, strict=True):
            self._noted.setdefault(dialogue, []).append(sample)
        return samples

    def close(self) -> None:
        self._session.close()


class GenerationSeam(UpdateSeam):
    """`GRPOTrainer` that keeps what passes through it and lets a subclass replace the advantages."""

    _generation: Generation | None = None
    _ready: Candidates | None = None
    """Episodes that were generated and scored ahead: TRL is given these instead of making others."""
    _capturing = False
    _own_sampler: Sampler | None = None
    _samples_policy = False
    """Whether our sampler draws from the policy itself, not from an engine's copy."""
    _pushed_at: int | None = None

    def _watching(self) -> bool:
        """Whether this batch is to be watched; False leaves TRL entirely alone."""
        return False

    def _credit(self, output: dict[str, Any], generation: Generation) -> Tensor | None:
        """Answer the local rows' new advantages, (B,) or (B, T), or None to keep TRL's."""
        return None

    def _choose_episodes(self, inputs: list[dict[str, Any]]) -> Candidates | None:
        """Hook: episodes to train on instead of one generation of `inputs`; None leaves that to TRL."""
        return None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._watching():
            return super()._generate_and_score_completions(inputs)
        generation = self._generation = Generation(inputs=inputs)
        try:
            self._ready = self._choose_episodes(inputs)
            self._capturing = True
            output = super()._generate_and_score_completions(self._ready.inputs if self._ready else inputs)
        finally:
            self._capturing = False
            self._generation = self._ready = None
        advantages = self._credit(output, generation)
        if self.importance is not None:
            credited = output["advantages"] if advantages is None else advantages
            advantages = self._weigh_batch(credited, output)
        if advantages is not None:
            output["advantages"] = advantages
            self._replace_logged_advantages(advantages)
        return output

    def _generate_candidates(self, inputs: list[dict[str, Any]]) -> Candidates:
        """Generate and score an episode of each row, as TRL would. Its logs count every one of them."""
        prompts = [row["prompt"] for row in inputs]
        generated = self._generate(prompts)
        _, completion_ids, _, completions, *_ = generated
        columns = tuple(None if not column else list(column) for column in generated)
        return Candidates(
            inputs, columns, self._calculate_rewards(inputs, prompts, completions, completion_ids)
        )

    def _generate(self, prompts: list) -> tuple:
        if self._ready is not None:
            prompt_ids, completion_ids, _, completions, logprobs, *_ = self._ready.generated
            return prompt_ids, completion_ids, None, completions, logprobs, {}, None, []
        started = time.perf_counter()
        result = super()._generate(prompts)
        if self._generation is not None:
            self._generation.spent("generate", started)
        return result

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        if self._own_sampler is None or images is not None or multimodal_fields:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        self._push_weights()
        samples = self._own_sampler.generate(prompt_ids, self._sampling())
        if self._generation is not None:
            self._generation.sampled.append({row: [sample] for row, sample in enumerate(samples)})
        logprobs = [list(sample.logprobs) for sample in samples] if self.importance is not None else None
        return [list(sample.token_ids) for sample in samples], logprobs

    def _sampling(self) -> SamplingParameters:
        return SamplingParameters(
            max_new_tokens=self.generation_config.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            entropies=self._uses_sampled_scores and self._wants_sampled_scores(),
        )

    def _wants_sampled_scores(self) -> bool:
        """Hook: whether the entropies that tokens are drawn at will be read."""
        return False

    def _session(self) -> Session | None:
        """Dialogues that keep their cache between turns, where a sampler of ours has such; else None."""
        make = getattr(self._own_sampler, "session", None)
        if make is None:
            return None
        self._push_weights()
        session = make(self._sampling())
        if self._generation is None:
            return session
        self._generation.sampled.append({})
        return NotedSession(session, self._generation.sampled[-1])

    def _sample_with(self, sampler: Literal["threefold"] | Sampler) -> None:
        """Generate with "threefold", our sampler on the policy itself (prompts prefilled once a group,
        finished rows dropped, decoding steps compiled over a static cache where TRL is told
        `cache_implementation="static"`), or with a sampler of any other kind. An engine is given the weights,
        so that one that cannot hold them says so now.

        Raises:
            ValueError: TRL was given a generation backend or options that our samplers do not serve, or an
                engine cannot hold this model.
        """
        args = self.args
        options = {
            "use_vllm": args.use_vllm,
            "use_transformers_continuous_batching": args.use_transformers_continuous_batching,
            "min_p": args.min_p is not None,
            "repetition_penalty": args.repetition_penalty != 1.0,
            "generation_kwargs": bool(args.generation_kwargs),
            f"cache_implementation={args.cache_implementation!r}": args.cache_implementation
            not in (None, "dynamic", "static"),
            "a sharded model": self.is_deepspeed_enabled or self.is_fsdp_enabled,
        }
        unserved = [name for name, used in options.items() if used]
        if unserved:
            given = repr(sampler) if isinstance(sampler, str) else type(sampler).__name__
            raise ValueError(f"sampler={given} does not serve {', '.join(unserved)}; use sampler='trl'")
        model = self.accelerator.unwrap_model(self.model)
        self._samples_policy = isinstance(sampler, str)
        if isinstance(sampler, str):
            compiled = CompiledDecoding(model) if args.cache_implementation == "static" else None
            sampler = TransformersSampler(model, self._tokenizer, batch_size=_BATCH, compiled=compiled)
        self._own_sampler = sampler
        self._pushed_at = None
        self._push_weights()

    def _push_weights(self) -> None:
        """Bring an engine the policy's weights where an update has changed them."""
        engine = self._own_sampler
        if not isinstance(engine, Engine) or self._pushed_at == self.state.global_step:
            return
        started = time.perf_counter()
        engine.push(self.accelerator.unwrap_model(self.model))
        self._pushed_at = self.state.global_step
        if self._generation is not None:  # part of time/generate, so no time of its own
            self._log_value("engine/push_seconds", time.perf_counter() - started)

    @property
    def _uses_sampled_scores(self) -> bool:
        """Whether the scores that tokens were drawn with stand for the policy's. Where the two are compared
        they do not."""
        return self._samples_policy and self.importance is None

    @property
    def _generates_together(self) -> bool:
        """Whether a generation is one of several processes, so that each has to call it as often, with as
        many rows."""
        if self.accelerator.num_processes == 1:
            return False
        one_engine = self.use_vllm and (self.vllm_mode == "server" or self.vllm_tensor_parallel_size > 1)
        return one_engine or self.is_deepspeed_enabled or self.is_fsdp_enabled

    @contextmanager
    def _turn_limit(self, max_new_tokens: int) -> Iterator[None]:
        """Bound one turn's generation, whichever backend generates."""
        holder, name = (
            (self.vllm_generation, "max_completion_length")
            if self.use_vllm
            else (self.generation_config, "max_new_tokens")
        )
        before = getattr(holder, name)
        setattr(holder, name, max_new_tokens)
        try:
            yield
        finally:
            setattr(holder, name, before)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        started = time.perf_counter()
        if self._ready is not None:
            rewards_BF = self._ready.rewards_BF
            # What reward functions logged beside rewards is of other rows, so it stays out of TRL's table.
            self._pending_extra_logs.clear()
        else:
            rewards_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._generation is not None:
            self._generation.spent("rewards", started)
            self._generation.rewards_BF = rewards_BF.clone()
            self._generation.inputs = inputs
            self._generation.completions = completions
            self._generation.completion_ids = completion_ids_list
        return rewards_BF

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        capture = self._capturing and self._generation is not None and not torch.is_grad_enabled()
        scored = super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            compute_entropy=compute_entropy or (capture and model is not self.ref_model),
            **kwargs,
        )
        if capture and self._generation is not None:
            self._generation.scored.append(scored[:2])
        return scored

    def _replace_logged_advantages(self, advantages: Tensor) -> None:
        """Put the new advantages into TRL's completions table, which was filled with its own; row means for
        (B, T)."""
        row_means = advantages.float() if advantages.dim() == 1 else advantages.float().mean(dim=1)
        gathered = self.accelerator.gather(row_means).tolist()
        logged = self._logs["advantages"]
        for _ in range(min(len(gathered), len(logged))):
            logged.pop()
        logged.extend(gathered)


def turns_of(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Which tokens the agent wrote, bool (B, T), and in which turn, int64 (B, T) with -1 where it did not.

    A turn is a run of the agent's tokens between the environment's.
    """
    mask_BT = output["completion_mask"].bool()
    if "tool_mask" in output:
        mask_BT = mask_BT & output["tool_mask"].bool()
    starts_BT = mask_BT.clone()
    starts_BT[:, 1:] &= ~mask_BT[:, :-1]
    turn_BT = starts_BT.long().cumsum(dim=1) - 1
    return mask_BT, turn_BT.masked_fill(~mask_BT, -1)


def prompts_of(output: dict[str, Any]) -> list[list[int]]:
    """Token ids of the local prompts without padding."""
    rows = zip(output["prompt_ids"], output["prompt_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]
