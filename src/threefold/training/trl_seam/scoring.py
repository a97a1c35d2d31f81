"""What TRL can compute for us without a gradient: scores of the policy and of the frozen initial model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, disable_dropout_in_model

from threefold.training import shared_prompt


class ScoringSeam(GRPOTrainer):
    """`GRPOTrainer` that scores given tokens under the policy and under its frozen initial model."""

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
            with torch.no_grad(), shared_prompt.scored_plainly(inner):
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

    def _frozen_models(self) -> list[PreTrainedModel]:
        """The models that are only scored, without their adapters: a copy of the initial weights, a
        reference."""
        found = [getattr(self, "_frozen_base", None), self.ref_model]
        unwrapped = [self.accelerator.unwrap_model(model) for model in found if model is not None]
        return [model.get_base_model() if hasattr(model, "get_base_model") else model for model in unwrapped]

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


def frozen_copy(model: str | PreTrainedModel, args: Any, peft_config: Any) -> PreTrainedModel | None:
    """A second set of the initial weights, taken before TRL patches the first; None where something else
    holds them."""
    has_reference = args is not None and args.beta != 0.0 and not args.sync_ref_model
    if has_reference or peft_config is not None:
        return None
    if args is not None and args.cast_lm_head_to_fp32:
        raise ValueError(
            "cast_lm_head_to_fp32 does not reach the frozen copy of the initial model, so the two would "
            "be scored at different precision; set beta > 0, use LoRA, or leave it off"
        )
    if isinstance(model, str):
        return create_model_from_path(model, **(getattr(args, "model_init_kwargs", None) or {}))
    return copy.deepcopy(model)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""A kind of whole numbers by its size in bytes."""


def fingerprint(model: Any) -> int | None:
    """A number that two sets of weights share only if they are the same, on any machine; None where there is
    no copy to compare.

    The bits are added up as whole numbers: a sum of floats depends on its order, and so on the threads.
    """
    if model is None:
        return None
    weights = (p.detach().contiguous() for p in model.parameters())
    return sum(
        place * int(weight.view(_BITS[weight.element_size()]).sum(dtype=torch.int64))
        for place, weight in enumerate(weights, 1)
    )
