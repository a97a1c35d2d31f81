"""How much memory a run needs at its longest prompt and completion, before a weight is loaded.

Activations are those of Korthikanti et al. (arXiv 2205.05198, equation 2) without the attention matrix, which
SDPA never forms: 34 bytes a token, layer and unit of width in 16 bit, 2 of them with gradient checkpointing.
It was derived for layers with a plain feed-forward of four times the width, so it is a rule of thumb: the dry
step of `threefold doctor` measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from threefold.recipe import Recipe
from threefold.training.run import Checked

_ACTIVATION_BYTES = 34
_CHECKPOINTED_BYTES = 2
_LOGIT_COPIES = 3
"""The logits in fp32, their log-softmax, and their gradient."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part. Weights, gradients and optimizer stay; of update and generation the larger counts."""

    parameters: int
    trained: int
    fixed: dict[str, float]
    update: dict[str, float]
    generation: dict[str, float]

    @property
    def total(self) -> float:
        moving = max(sum(self.update.values()), sum(self.generation.values()))
        return sum(self.fixed.values()) + moving

    def table(self) -> list[tuple[str, float]]:
        """(part, bytes) of what counts in `total`, the largest first."""
        larger = max(self.update, self.generation, key=lambda parts: sum(parts.values()))
        parts = {**self.fixed, **larger}
        return sorted(((name, size) for name, size in parts.items() if size), key=lambda row: -row[1])


def estimate_memory(checked: Checked, config: Any, model: Any) -> MemoryEstimate:
    """The estimate for one process.

    Args:
        checked: The recipe with everything that is known before weights are loaded.
        config: The model's configuration.
        model: The model without weights (on torch's meta device), for its sizes.
    """
    recipe, plan, work = checked.prepared.recipe, checked.prepared.plan, checked.prepared.work
    sizes = config.get_text_config()
    length = work.longest_prompt + work.completion_tokens
    width, layers = sizes.hidden_size, sizes.num_hidden_layers
    held = checked.weights.itemsize
    computed = 2 if checked.autocast else held
    parameters = sum(p.numel() for p in model.parameters())
    trained = parameters if recipe.model.lora is None else _lora_parameters(model, recipe.model.lora)
    frozen_copy = 0 if recipe.model.lora is not None else parameters * held
    needs: frozenset[str] = frozenset() if checked.prepared.credit is None else checked.prepared.credit.needs
    scores_initial = "base" in needs or (recipe.training.signals_base and recipe.training.signals_every > 0)
    follows = bool(recipe.training.trl.get("sync_ref_model"))  # then it is no initial model for long
    fixed = {
        "weights": parameters * held,
        "16-bit copies of the weights": parameters * 2 if checked.autocast else 0,
        "gradients": trained * held,
        "optimizer (two moments)": 2 * trained * held,
        "reference model (training.kl)": frozen_copy if recipe.training.kl else 0,
        "frozen initial model (signals)": frozen_copy
        if scores_initial and (follows or not recipe.training.kl)
        else 0,
        "the engine's weights and cache": _engine_bytes(recipe, parameters),
    }
    tokens = plan.micro_batch * length
    per_token = _ACTIVATION_BYTES * computed / 2
    if recipe.training.gradient_checkpointing:
        activations = tokens * width * (_CHECKPOINTED_BYTES * computed / 2 * layers + per_token)
    else:
        activations = tokens * width * per_token * layers
    rows = plan.episodes // plan.processes
    heads = getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads
    head_width = getattr(sizes, "head_dim", None) or width // sizes.num_attention_heads
    return MemoryEstimate(
        parameters=parameters,
        trained=trained,
        fixed={name: float(size) for name, size in fixed.items()},
        update={
            "activations of a micro-batch": activations,
            "logits of a micro-batch": float(
                plan.micro_batch * (work.completion_tokens + 1) * sizes.vocab_size * 4 * _LOGIT_COPIES
            ),
        },
        generation={
            "keys and values while generating": float(
                rows * length * layers * 2 * heads * head_width * computed
            )
        },
    )


def _engine_bytes(recipe: Recipe, parameters: int) -> float:
    engine = recipe.training.vllm
    if recipe.training.sampler == "threefold-bf16":
        return parameters * 2
    if recipe.training.sampler != "vllm":
        return 0
    return parameters * (2 if engine.dtype == "bf16" else 4) + engine.cache_gib * 2**30


def empty_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """A model of this configuration without weights, for its sizes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _lora_parameters(model: Any, lora: Any) -> int:
    names = None if isinstance(lora.target_modules, str) else set(lora.target_modules)
    return sum(
        lora.r * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (name.rpartition(".")[2] in names if names is not None else not name.endswith("lm_head"))
    )
