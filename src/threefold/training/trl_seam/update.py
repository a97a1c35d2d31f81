"""What happens between the credited batch and the gradient: the exact speed-ups, and the scores that the loss
computes anyway."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from threefold.credit.importance import Importance, figures, ratios
from threefold.credit.normalise import group_max
from threefold.training import repack, shared_prompt
from threefold.training.trl_seam.scoring import ScoringSeam

logger = logging.getLogger(__name__)

ROW = "threefold_row"
"""Key under which a row's number travels through TRL's shuffle and split to the loss, which ignores it."""
WITHOUT_KL = "threefold_without_kl"
"""The same for bool: the KL term has no say in this row."""


@dataclass(frozen=True)
class Speedups:
    """What may be computed more cheaply with the same gradient; each is left off, with a logged reason, where
    it would not be exact."""

    share_prompts: bool = True
    """Score once what episodes begin with alike, prompts above all, and no padding (`shared_prompt`)."""
    repack: bool = True
    """Sort the rows of an update and fill its micro-batches by tokens (`repack`)."""
    drop_dead: bool = True
    """Where rows are repacked, leave out those without an advantage. Their entropies are then not seen by the
    update; `signals_every` measures them where they are wanted."""


_OLD = "old_per_token_logps"
"""Key of the old policy's log-probabilities, where TRL scored them when the batch was generated."""


class UpdateSeam(ScoringSeam):
    """`GRPOTrainer` whose updates may be computed more cheaply, and whose own scores can be read."""

    kl_on_dead_groups = True
    _loss_rows: Tensor | None = None
    _loss_inputs: dict[str, Any] | None = None
    _observed: list[tuple[Tensor, Tensor, Tensor]]
    _rows_to_observe = sys.maxsize
    _watched_shape: tuple[int, ...] = (0, 0)
    _speedups: Speedups | None = None
    _widest_shared = math.inf
    """Columns beyond which a forward is TRL's own, so that each row has its prompt to itself."""
    _buffered_inputs: Any
    importance: Importance | None = None
    """How advantages are weighed where another engine sampled; None does not."""
    _tallies: Tensor
    _tallied_at: int | None = None
    """The update that `_tallies` are of."""

    def _speed_up(self, wanted: Speedups) -> None:
        """Switch on the exact speed-ups that this model and these settings allow; log why others stay off."""
        model = self.accelerator.unwrap_model(self.model)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        refused = {
            "share_prompts": shared_prompt.why_not(inner),
            "repack": repack.why_not(self.args, auxiliary_loss=self.aux_loss_enabled),
            "drop_dead": repack.why_not_dropped(self.args, kl_on_dead_groups=self.kl_on_dead_groups),
        }
        checkpointing = self.args.gradient_checkpointing_kwargs or {}
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            refused["share_prompts"] = "a sharded model is scored by one forward"
        elif self.args.gradient_checkpointing and checkpointing.get("use_reentrant") is not False:
            refused["share_prompts"] = "re-entrant gradient checkpointing gives keys and values no gradient"
        elif self.args.neftune_noise_alpha is not None:
            refused["share_prompts"] = "NEFTune's noise differs from row to row"
        if isinstance(self.processing_class, ProcessorMixin):
            refused["repack"] = "the patches of images are no rows, so rows cannot be taken with theirs"
        per_update = self.args.gradient_accumulation_steps
        if self.args.steps_per_generation % per_update and per_update % self.args.steps_per_generation:
            refused["repack"] = "an update takes micro-batches of two generation batches"
        for name, reason in refused.items():
            if getattr(wanted, name) and reason is not None:
                logger.info("speed-up %s is off: %s", name, reason)
                wanted = replace(wanted, **{name: False})
        if wanted.drop_dead and not wanted.repack:
            logger.info("speed-up drop_dead is off: rows are left out where an update is repacked")
            wanted = replace(wanted, drop_dead=False)
        self._speedups = wanted
        self._widest_shared = shared_prompt.rotated_alike(inner.config.get_text_config())
        if wanted.share_prompts:
            for scored in (inner, *self._frozen_models()):
                if shared_prompt.why_not(scored) is None:
                    shared_prompt.share_prompts(scored)

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
            if self.beta != 0.0:  # idle rows must have no KL either
                none = torch.zeros(len(update[0]["advantages"]), dtype=torch.bool)
                update = [{WITHOUT_KL: none.to(part["advantages"].device), **part} for part in update]
            repacked += repack.repack(
                update,
                loss_type=self.loss_type,
                drop_dead=wanted.drop_dead,
                shared=wanted.share_prompts and self._columns(update[0]) <= self._widest_shared,
                agree=self._agree_on_rows if self.accelerator.num_processes > 1 else None,
                row_number=ROW,
                without_kl=WITHOUT_KL,
            )
        self._buffered_inputs = repacked
        watched = [part[ROW] for part in repacked if ROW in part]
        if watched:
            self._rows_to_observe = sum(int((rows >= 0).sum()) for rows in watched)
        return repacked[self._step % len(repacked)]

    @staticmethod
    def _columns(part: dict[str, Any]) -> int:
        """Tokens of a micro-batch's rows, padding included."""
        return int(part["prompt_ids"].size(1) + part["completion_ids"].size(1))

    def _agree_on_rows(self, counts: list[int]) -> list[int]:
        """The largest row count of any process, micro-batch by micro-batch."""
        mine = torch.tensor(counts, device=self.accelerator.device)
        return self.accelerator.gather(mine).view(-1, len(counts)).amax(dim=0).tolist()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss; on its way the entropies and log-probabilities that it computes anyway are kept."""
        if not inputs:  # a micro-batch that repacking has emptied
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        self._loss_rows = inputs.get(ROW) if self.model.training else None
        weighs = self.importance is not None and self.model.training and _OLD not in inputs
        if weighs or (WITHOUT_KL in inputs and self.beta != 0.0):
            inputs = self._loss_inputs = {**inputs}  # a copy, for the next iteration reads them again
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._loss_rows = self._loss_inputs = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        scored = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, **kwargs
        )
        if self._loss_rows is not None and torch.is_grad_enabled():
            self._observe(self._loss_rows, scored[0], scored[1])
        if self._loss_inputs is not None and self.importance is not None:  # beta is 0
            weighed = self._weighed(self._loss_inputs["advantages"], scored[0], self._loss_inputs)
            self._loss_inputs["advantages"] = weighed
        elif self._loss_inputs is not None:
            # Against itself a row has a KL of 0 and a gradient of exactly 0, in every loss, and all that the
            # loss divides by stays as it was.
            quiet_B1 = self._loss_inputs[WITHOUT_KL].unsqueeze(1)
            reference_BT = self._loss_inputs["ref_per_token_logps"]
            self._loss_inputs["ref_per_token_logps"] = torch.where(quiet_B1, scored[0].detach(), reference_BT)
        return scored

    def _weigh_batch(self, advantages: Tensor, output: dict[str, Any]) -> Tensor:
        """The local rows' advantages, weighed where TRL has scored the old policy. Where it has not, the
        update starts from the policy that its own forward scores, and weighs them then: no pass more."""
        if output.get("sampling_per_token_logps") is None:
            raise ValueError(
                "importance= compares the policy with whoever sampled, and the episodes came without "
                "log-probabilities: give them under 'logprobs' in what rollout_func answers, or sample with "
                "sampler='threefold' or an engine"
            )
        self._tallied_at = None
        return self._weighed(advantages, output[_OLD], output) if _OLD in output else advantages

    def _weighed(self, advantages: Tensor, logp_BT: Tensor, rows: dict[str, Any]) -> Tensor:
        """Advantages times the ratio of the policy, whose log-probabilities are given, and the engine that
        sampled these rows; figures are kept over all micro-batches of an update."""
        assert self.importance is not None
        mask_BT = rows["completion_mask"].bool()
        if "tool_mask" in rows:
            mask_BT = mask_BT & rows["tool_mask"].bool()
        weights = ratios(logp_BT, rows["sampling_per_token_logps"], mask_BT, self.importance)
        tallies = self.accelerator.gather(weights.tallies(mask_BT)[None]).sum(dim=0)
        again = self._tallied_at == self.state.global_step
        self._tallies = self._tallies + tallies if again else tallies
        self._tallied_at = self.state.global_step
        for name, value in figures(self._tallies).items():
            logged = self._metrics["train"][name]
            if again and logged:
                logged.pop()
            logged.append(value)
        return weights.fold(advantages)

    def _mark_dead_groups(
        self, output: dict[str, Any], values: Tensor, mask_BT: Tensor, group_B: Tensor, local: slice
    ) -> None:
        """Log how many rows have nothing but a KL term, and take it from them where that is wanted.

        Args:
            output: The local rows on their way to the loss.
            values: (B,) or (B, T) advantages of all processes.
            mask_BT: (B, T) bool, the tokens that are trained.
            group_B: (B,) group of each row.
            local: Which of them are the rows of this process.
        """
        values_BT = values if values.dim() == 2 else values.unsqueeze(1)
        alive_B = ((values_BT != 0) & mask_BT).any(dim=1)
        dead_B = (group_max(alive_B.float(), group_B) == 0) & mask_BT.any(dim=1)
        self._log_value("signal/dead_rows", float(dead_B.sum()))
        if not self.kl_on_dead_groups:
            output[WITHOUT_KL] = dead_B[local]

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

    def _log_value(self, name: str, value: float) -> None:
        """Hand a number to TRL's metrics, averaged over the logging interval and sent to every
        `report_to`."""
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _watch_update(self, output: dict[str, Any]) -> None:
        """Number the local rows, so that the update's own forward can be read without a second one."""
        count, _ = self._watched_shape = tuple(output["completion_ids"].shape)
        output[ROW] = torch.arange(count, device=output["completion_ids"].device)
        self._observed, self._rows_to_observe = [], count

    def _scores_seen(self, logp_BT: Tensor, entropy_BT: Tensor) -> None:
        """Hook: the update has scored the local rows once, (B, T) each, in generation order; NaN where
        it left a row or padding out."""
