"""Who generates a recipe's episodes: our sampler on the policy, vLLM on a CPU, or TRL's own backends."""

from __future__ import annotations

from typing import Any, Literal

from threefold.credit.importance import Importance
from threefold.recipe import Recipe, RecipeError
from threefold.rollout.samplers import Sampler

_TRL_BACKENDS = ("use_vllm", "use_transformers_continuous_batching")


def check_sampler(recipe: Recipe, processes: int) -> None:
    """Raise RecipeError where vLLM on a CPU cannot serve a recipe; the other samplers are checked by the
    trainer."""
    training = recipe.training
    if training.sampler != "vllm":
        return
    import torch

    from threefold.rollout.samplers.vllm import missing

    weighs = training.vllm.importance != "off"
    by_token = training.vllm.importance == "token"
    reasons = {
        f"works on one process, this run has {processes}; set another sampler": processes > 1,
        "has no adapters: leave out model.lora, or set another sampler": recipe.model.lora is not None,
        "is for CPUs; on an accelerator set training.sampler=trl and training.trl.use_vllm=true": (
            torch.cuda.is_available()
        ),
        f"is another backend than training.trl.{'/'.join(_TRL_BACKENDS)}; leave those out": any(
            training.trl.get(name) for name in _TRL_BACKENDS
        ),
        f"weighs advantages, and the KL term of training.kl = {training.kl} would stay the engine's; set "
        "training.kl=0 or training.vllm.importance=off": weighs and training.kl > 0,
        "weighs each token, and training.ratio = sequence reads one advantage a row; set "
        "training.vllm.importance=sequence": by_token
        and training.ratio == "sequence"
        and training.loss != "cispo",
        "weighs advantages, and the loss vespo is not linear in them; set another training.loss": weighs
        and training.loss == "vespo",
    }
    for reason, present in reasons.items():
        if present:
            raise RecipeError(f"training.sampler = vllm {reason}")
    absent = missing()
    if absent is not None:
        raise RecipeError(f"training.sampler = vllm: {absent}")


def build_sampler(
    recipe: Recipe, tokenizer: Any, processes: int
) -> tuple[Literal["trl", "threefold"] | Sampler, Importance | None]:
    """What the trainer samples with, and how it weighs what an engine has sampled."""
    training = recipe.training
    if training.sampler == "vllm":
        from threefold.rollout.samplers.vllm import VllmSampler

        chosen = training.vllm
        engine = VllmSampler(
            tokenizer,
            dtype="bfloat16" if chosen.dtype == "bf16" else "float32",
            cache_gib=chosen.cache_gib,
            max_model_len=chosen.max_model_len,
        )
        if chosen.importance == "off":
            return engine, None
        return engine, Importance(chosen.importance, chosen.importance_cap)
    if training.sampler != "auto":
        return training.sampler, None
    backend = set(_TRL_BACKENDS) & set(training.trl)
    return ("trl" if backend or processes > 1 else "threefold"), None
