"""Who generates a recipe's episodes: our sampler on the policy, an engine with weights of its own, or TRL's
backends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from threefold.credit.importance import Importance
from threefold.recipe import Recipe, RecipeError
from threefold.rollout.samplers import Sampler

_ENGINES = ("threefold-bf16", "vllm")
_TRL_BACKENDS = ("use_vllm", "use_transformers_continuous_batching")


def check_sampler(recipe: Recipe, processes: int) -> None:
    """Raise RecipeError where an engine cannot serve a recipe; other samplers are checked by the trainer."""
    training = recipe.training
    if training.sampler not in _ENGINES:
        return
    import torch

    from threefold.rollout.samplers.vllm import missing

    weighs, by_token = training.importance != "off", training.importance == "token"
    vllm = training.sampler == "vllm"
    reasons = {
        f"works on one process, this run has {processes}; set another sampler": processes > 1,
        "has no adapters: leave out model.lora, or set another sampler": recipe.model.lora is not None,
        f"is another backend than training.trl.{'/'.join(_TRL_BACKENDS)}; leave those out": any(
            training.trl.get(name) for name in _TRL_BACKENDS
        ),
        f"weighs advantages, and the KL term of training.kl = {training.kl} would stay the engine's; set "
        "training.kl=0 or training.importance=off": weighs and training.kl > 0,
        "weighs each token, and training.ratio = sequence reads one advantage a row; set "
        "training.importance=sequence": by_token
        and training.ratio == "sequence"
        and training.loss != "cispo",
        "weighs advantages, and the loss vespo is not linear in them; set another training.loss": weighs
        and training.loss == "vespo",
        "is for CPUs; on an accelerator set training.sampler=trl and training.trl.use_vllm=true": vllm
        and torch.cuda.is_available(),
    }
    for reason, present in reasons.items():
        if present:
            raise RecipeError(f"training.sampler = {training.sampler} {reason}")
    absent = missing() if vllm else None
    if absent is not None:
        raise RecipeError(f"training.sampler = vllm: {absent}")


def build_sampler(
    recipe: Recipe, tokenizer: Any
) -> tuple[Literal["trl", "threefold"] | Sampler, Importance | None]:
    """What the trainer samples with, and how it weighs what an engine has sampled."""
    training = recipe.training
    if training.sampler == "auto":
        backend = any(training.trl.get(name) for name in _TRL_BACKENDS)
        return ("trl" if backend or _shards(training.trl) else "threefold"), None
    if training.sampler in ("trl", "threefold"):
        return training.sampler, None
    importance = None
    if training.importance != "off":
        importance = Importance(training.importance, training.importance_cap)
    return _engine(recipe, tokenizer), importance


def _shards(trl: Mapping[str, Any]) -> bool:
    """Whether the weights may be sharded: by a field of TRL's, or by `accelerate launch`."""
    launched = any(
        os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("1", "true")
        for kind in ("DEEPSPEED", "FSDP")
    )
    return launched or any(trl.get(name) for name in ("deepspeed", "fsdp"))


def _engine(recipe: Recipe, tokenizer: Any) -> Sampler:
    if recipe.training.sampler == "threefold-bf16":
        from threefold.rollout.samplers.half import HalfSampler

        return HalfSampler(tokenizer)
    from threefold.rollout.samplers.vllm import VllmSampler

    chosen = recipe.training.vllm
    return VllmSampler(
        tokenizer,
        dtype="bfloat16" if chosen.dtype == "bf16" else "float32",
        cache_gib=chosen.cache_gib,
        max_model_len=chosen.max_model_len,
    )
