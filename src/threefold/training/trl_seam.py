"""All touches of TRL's private parts, in one place. Written for and tested with TRL 1.16.

`TrlSeam` is `GRPOTrainer` with eyes: each method that it overrides calls `super()` and keeps what passed
through (`Generation`), and offers the trainer above it one hook, `_credit`, to replace the advantages
before TRL's loss sees them. Without a hook it is `GRPOTrainer`, bit for bit. `check_trl` names what has moved
when a new release breaks an assumption.
"""

from __future__ import annotations

import copy
import inspect
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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
from threefold.training import repack, shared_prompt
from threefold.training.dynamic_sampling import Candidates

logger = logging.getLogger(__name__)

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

    def spent(self, what: str, started: float) -> None:
        """Add the seconds since `started`."""
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Speedups:
    """What may be computed more cheaply with the same gradient; each is left off, with a logged reason, where
    it would not be exact."""

    share_prompts: bool = True
    """Score a prompt once for the episodes that share it, and no padding (`shared_prompt`)."""
    repack: bool = True
    """Sort the rows of an update and fill its micro-batches by tokens (`repack`)."""
    drop_dead: bool = True
    """Where rows are repacked, leave out those without an advantage. Their entropies are then not seen by the
    update; `signals_every` measures them where they are wanted."""


class TrlSeam(GRPOTrainer):
    """`GRPOTrainer` that keeps what passes through it and lets a subclass replace the advantages."""

    _generation: Generation | None = None
    _ready: Candidates | None = None
    """Episodes that were generated and scored ahead: TRL is given these instead of making others."""
    _capturing = False
    _own_sampler: TransformersSampler | None = None
    _loss_rows: Tensor | None = None
    _observed: list[tuple[Tensor, Tensor, Tensor]]
    _rows_to_observe = sys.maxsize
    _watched_shape: tuple[int, ...] = (0, 0)
    _speedups: Speedups | None = None
    _buffered_inputs: Any

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
        if self._loss_rows is not None and torch.is_grad_enabled():
            self._observe(self._loss_rows, scored[0], scored[1])
        return scored

    def _speed_up(self, wanted: Speedups) -> None:
        """Switch on the exact speed-ups that this model and these settings allow; log why others stay off."""
        model = self.accelerator.unwrap_model(self.model)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        refused = {
            "share_prompts": shared_prompt.why_not(inner),
            "repack": repack.why_not(self.args, auxiliary_loss=self.aux_loss_enabled),
        }
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded:
            refused["share_prompts"] = "a sharded model is scored by one forward"
        per_update = self.args.gradient_accumulation_steps
        if self.args.steps_per_generation % per_update and per_update % self.args.steps_per_generation:
            refused["repack"] = "an update takes micro-batches of two generation batches"
        for name, reason in refused.items():
            if getattr(wanted, name) and reason is not None:
                logger.info("speed-up %s is off: %s", name, reason)
                wanted = replace(wanted, **{name: False})
        self._speedups = wanted
        if wanted.share_prompts:
            for scored in (inner, *self._frozen_models()):
                if shared_prompt.why_not(scored) is None:
                    shared_prompt.share_prompts(scored)

    def _frozen_models(self) -> list[PreTrainedModel]:
        """The models that are only scored: a copy of the initial weights, a reference."""
        found = [getattr(self, "_frozen_base", None), self.ref_model]
        unwrapped = [self.accelerator.unwrap_model(model) for model in found if model is not None]
        return [model.get_base_model() if hasattr(model, "get_base_model") else model for model in unwrapped]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        wanted = self._speedups
        if wanted is None or not wanted.repack or self._buffered_inputs is before:
            return inputs
        buffered = self._buffered_inputs
        window = min(self.args.gradient_accumulation_steps, len(buffered))
        repacked: list[dict[str, Any]] = []
        for first in range(0, len(buffered), window):
            update = buffered[first : first + window]
            repacked += repack.repack(
                update,
                loss_type=self.loss_type,
                drop_dead=wanted.drop_dead,
                shared=wanted.share_prompts,
                agree=self._agree_on_rows if self.accelerator.num_processes > 1 else None,
                row_number=ROW,
            )
        self._buffered_inputs = repacked
        watched = [part[ROW] for part in repacked if ROW in part]
        if watched:
            self._rows_to_observe = sum(int((rows >= 0).sum()) for rows in watched)
        return repacked[self._step % len(repacked)]

    def _agree_on_rows(self, counts: list[int]) -> list[int]:
        """The largest row count of any process, micro-batch by micro-batch."""
        mine = torch.tensor(counts, device=self.accelerator.device)
        return self.accelerator.gather(mine).view(-1, len(counts)).amax(dim=0).tolist()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss; on its way the entropies and log-probabilities that it computes anyway are kept."""
        if not inputs:  # a micro-batch that repacking has emptied
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        self._loss_rows = inputs.get(ROW) if self.model.training else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._loss_rows = None

    def _observe(self, rows: Tensor, logp: Tensor, entropy: Tensor | None) -> None:
        """Keep a micro-batch's scores; when every row that the update takes has been seen, hand them on."""
        if entropy is None:
            return
        real = rows >= 0
        self._observed.append((rows[real], logp.detach()[real], entropy.detach()[real]))
        if sum(len(part[0]) for part in self._observed) < self._rows_to_observe:
            return
        logp_BT = torch.full(self._watched_shape, torch.nan, device=logp.device)
        entropy_BT = torch.full_like(logp_BT, torch.nan)
        for part_rows, part_logp, part_entropy in self._observed:
            logp_BT[part_rows, : part_logp.size(1)] = part_logp.to(logp_BT.dtype)
            entropy_BT[part_rows, : part_entropy.size(1)] = part_entropy.to(logp_BT.dtype)
        self._observed = []
        self._rows_to_observe = sys.maxsize
        self._scores_seen(logp_BT, entropy_BT)

    def _watch_update(self, output: dict[str, Any]) -> None:
        """Number the local rows, so that the update's own forward can be read without a second one."""
        count, _ = self._watched_shape = tuple(output["completion_ids"].shape)
        output[ROW] = torch.arange(count, device=output["completion_ids"].device)
        self._observed, self._rows_to_observe = [], count

    def _scores_seen(self, logp_BT: Tensor, entropy_BT: Tensor) -> None:
        """Hook: the update has scored the local rows once, (B, T) each, in generation order; NaN where
        it left a row or padding out."""

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

    def _score_certainty(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, keep: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """`_score` with logsumexp(z) - mean z of the logits z as a third, (B, keep), in the same forward.

        TRL's fused head never holds all logits, and neither does this: with h the last hidden state and W the
        head, mean z = h . mean_j W_j and logsumexp(z) = h . W_y - log p(y).
        """
        unwrapped = self.accelerator.unwrap_model(model)
        inner = unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped
        head = inner.get_output_embeddings()
        bias = head.bias if head.bias is not None else head.weight.new_zeros(len(head.weight))
        mean_weight, mean_bias = head.weight.mean(dim=0, dtype=torch.float32), bias.float().mean()
        above_mean: list[Tensor] = []

        def watch(_: Any, __: Any, inputs: dict[str, Any], output: Any) -> None:
            hidden = output.last_hidden_state[:, -keep - 1 : -1].float()
            target = inputs["input_ids"][:, -keep:]
            logit = (hidden * head.weight[target].float()).sum(dim=-1) + bias[target].float()
            above_mean.append((logit - hidden @ mean_weight - mean_bias) / self.temperature)

        hook = inner.base_model.register_forward_hook(watch, with_kwargs=True)
        try:
            with torch.no_grad():
                logp, entropy = self._score(model, input_ids, attention_mask, keep, compute_entropy=True)
        finally:
            hook.remove()
        return logp, entropy, torch.cat(above_mean) - logp

    def _check_certainty(self) -> None:
        """Raise ValueError for models whose logits are more than a linear head's, or whose head is
        sharded."""
        text = self.model.config.get_text_config()
        fields = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier")
        changed = [f for f in (*fields, "logits_scaling") if getattr(text, f, None) not in (None, 1, 1.0)]
        if changed or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            why = f"the model's config sets {', '.join(changed)}" if changed else "the model is sharded"
            raise ValueError(
                f"self-certainty is read off a whole linear head, and {why}; choose another method or model"
            )

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
