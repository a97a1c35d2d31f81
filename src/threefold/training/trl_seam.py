"""All touches of TRL's private parts, in one place. Written for and tested with TRL 1.16.

`TrlSeam` is `GRPOTrainer` with eyes: each method that it overrides calls `super()` and keeps what passed
through (`Generation`), and offers the trainer above it one hook, `_credit`, to replace the advantages
before TRL's loss sees them. Without a hook it is `GRPOTrainer`, bit for bit. `check_trl` names what has moved
when a new release breaks an assumption.
"""

from __future__ import annotations

import copy
import inspect
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, disable_dropout_in_model

from threefold.rollout.samplers import SamplingParameters, Session
from threefold.rollout.samplers.transformers import TransformersSampler

_SIGNATURES = {
    "_generate": ["prompts"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["inputs"],
    "_generate_single_turn": [
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_get_per_token_logps_and_entropies": [
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ],
    "_compute_loss": ["model", "inputs"],
}
"""First parameters, after self, of the private methods that are overridden or called."""

ROW = "threefold_row"
"""Key under which a row's number travels through TRL's shuffle and split to the loss, which ignores it."""


def check_trl(trainer: type[GRPOTrainer] = GRPOTrainer) -> None:
    """Raise ImportError naming each private method of TRL whose signature is not the one this file was
    written for."""
    moved = []
    for name, expected in _SIGNATURES.items():
        method = getattr(trainer, name, None)
        found = list(inspect.signature(method).parameters)[1:] if method else None
        if found is None or found[: len(expected)] != expected:
            moved.append(f"{name}: expected {expected}, found {found}")
    if moved:
        import trl

        raise ImportError(
            f"TRL {trl.__version__} has moved what Threefold overrides (written for TRL 1.16): "
            + "; ".join(moved)
            + ". Install trl>=1.16,<1.17, or report the version."
        )


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
    seconds: dict[str, float] = field(default_factory=dict)


class TrlSeam(GRPOTrainer):
    """`GRPOTrainer` that keeps what passes through it and lets a subclass replace the advantages."""

    _generation: Generation | None = None
    _capturing = False
    _own_sampler: TransformersSampler | None = None
    _loss_rows: Tensor | None = None
    _observed: list[tuple[Tensor, Tensor, Tensor]]
    _rows_to_observe = sys.maxsize

    def _watching(self) -> bool:
        """Whether this batch is to be watched; False leaves TRL entirely alone."""
        return False

    def _credit(self, output: dict[str, Any], generation: Generation) -> Tensor | None:
        """Answer the local rows' new advantages, (B,) or (B, T), or None to keep TRL's."""
        return None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._watching():
            return super()._generate_and_score_completions(inputs)
        generation = self._generation = Generation(inputs=inputs)
        self._capturing = True
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._capturing = False
            self._generation = None
        advantages = self._credit(output, generation)
        if advantages is not None:
            output["advantages"] = advantages
            self._replace_logged_advantages(advantages)
        return output

    def _generate(self, prompts: list) -> tuple:
        started = time.perf_counter()
        result = super()._generate(prompts)
        if self._generation is not None:
            self._generation.seconds["generate"] = time.perf_counter() - started
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
        samples = self._own_sampler.generate(prompt_ids, self._sampling())
        return [list(sample.token_ids) for sample in samples], None

    def _sampling(self) -> SamplingParameters:
        return SamplingParameters(
            max_new_tokens=self.generation_config.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
        )

    def _session(self) -> Session | None:
        """Dialogues that keep their cache between turns, where our sampler generates; else None."""
        return None if self._own_sampler is None else self._own_sampler.session(self._sampling())

    def _sample_ourselves(self, batch_size: int) -> None:
        """Generate with Threefold's sampler: prompts prefilled once a group, finished rows dropped.

        Raises:
            ValueError: TRL was given a generation backend or options that the sampler does not serve.
        """
        args = self.args
        options = {
            "use_vllm": args.use_vllm,
            "use_transformers_continuous_batching": args.use_transformers_continuous_batching,
            "min_p": args.min_p is not None,
            "repetition_penalty": args.repetition_penalty != 1.0,
            "generation_kwargs": bool(args.generation_kwargs),
            "a sharded model": self.is_deepspeed_enabled or self.is_fsdp_enabled,
        }
        unserved = [name for name, used in options.items() if used]
        if unserved:
            raise ValueError(f"sampler='threefold' does not serve {', '.join(unserved)}; use sampler='trl'")
        model = self.accelerator.unwrap_model(self.model)
        self._own_sampler = TransformersSampler(model, self._tokenizer, batch_size=batch_size)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        started = time.perf_counter()
        rewards_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._generation is not None:
            self._generation.seconds["rewards"] = time.perf_counter() - started
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
        if self._loss_rows is not None and torch.is_grad_enabled():
            self._observe(self._loss_rows, scored[0], scored[1])
        return scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss; on its way the entropies and log-probabilities that it computes anyway are kept."""
        self._loss_rows = inputs.get(ROW) if self.model.training else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._loss_rows = None

    def _observe(self, rows: Tensor, logp: Tensor, entropy: Tensor | None) -> None:
        """Keep a micro-batch's scores; when every row of the generation batch has been seen, hand them on."""
        if entropy is None:
            return
        self._observed.append((rows, logp.detach(), entropy.detach()))
        seen = torch.cat([part[0] for part in self._observed])
        if len(seen) < self._rows_to_observe:
            return
        order = seen.argsort()
        logp_BT = torch.cat([part[1] for part in self._observed])[order]
        entropy_BT = torch.cat([part[2] for part in self._observed])[order]
        self._observed = []
        self._rows_to_observe = sys.maxsize
        self._scores_seen(logp_BT, entropy_BT)

    def _watch_update(self, output: dict[str, Any]) -> None:
        """Number the local rows, so that the update's own forward can be read without a second one."""
        count = len(output["completion_ids"])
        output[ROW] = torch.arange(count, device=output["completion_ids"].device)
        self._observed, self._rows_to_observe = [], count

    def _scores_seen(self, logp_BT: Tensor, entropy_BT: Tensor) -> None:
        """Hook: the update has scored every local row once, (B, T) each, in generation order."""

    def _replace_logged_advantages(self, advantages: Tensor) -> None:
        """Put the new advantages into TRL's completions table, which was filled with its own; row means for
        (B, T)."""
        row_means = advantages.float() if advantages.dim() == 1 else advantages.float().mean(dim=1)
        gathered = self.accelerator.gather(row_means).tolist()
        logged = self._logs["advantages"]
        for _ in range(min(len(gathered), len(logged))):
            logged.pop()
        logged.extend(gathered)

    def _log_value(self, name: str, value: float) -> None:
        """Hand a number to TRL's metrics, averaged over the logging interval and sent to every
        `report_to`."""
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    # What TRL computed already, and what it can compute for us

    def _policy_scores(self, generation: Generation) -> tuple[Tensor, Tensor | None] | None:
        """The old policy's scores, where TRL needed them anyway."""
        return generation.scored[0] if len(generation.scored) > (self.beta != 0.0) else None

    def _reference_scores(self, generation: Generation) -> Tensor | None:
        """The reference model's log-probabilities, where beta > 0 and the reference stays the initial
        model."""
        if self.beta == 0.0 or self.args.sync_ref_model:
            return None
        return generation.scored[-1][0]

    def _score(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        keep: int,
        *,
        compute_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies (B, keep) of the last `keep` tokens, without a gradient."""
        with torch.no_grad(), disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs):
            logp, entropy, _ = self._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                keep,
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=compute_entropy,
            )
        return logp, entropy

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

    @contextmanager
    def _as_base(self) -> Iterator[Any]:
        """The frozen initial model: the reference, the policy with its adapter off, or the frozen copy."""
        frozen = getattr(self, "_frozen_base", None)
        if frozen is not None:
            yield frozen
        elif self.ref_model is not None:
            yield self.ref_model
        else:
            unwrapped = self.accelerator.unwrap_model(self.model)
            adapter_off = (
                unwrapped.disable_adapter() if hasattr(unwrapped, "disable_adapter") else nullcontext()
            )
            with adapter_off:
                yield self.model

    def _prepare_frozen(self, model: PreTrainedModel) -> PreTrainedModel:
        """Make a copy of the initial model fit to be scored: no gradient, no dropout, TRL's fused head, its
        device."""
        model.requires_grad_(False)
        disable_dropout_in_model(model)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        add_fused_lm_head(inner, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)


def frozen_copy(model: str | PreTrainedModel, model_init_kwargs: dict[str, Any] | None) -> PreTrainedModel:
    """A second set of the initial weights, taken before TRL patches the first."""
    if isinstance(model, str):
        return create_model_from_path(model, **(model_init_kwargs or {}))
    return copy.deepcopy(model)


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
