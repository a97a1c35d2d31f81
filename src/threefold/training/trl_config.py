"""From a recipe to the configurations of the libraries below: TRL's, PEFT's, and the weights' data type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threefold.recipe import Recipe, RecipeError
from threefold.training.loggers import logger_options

if TYPE_CHECKING:
    from threefold.training.run import Prepared


def weights_dtype(recipe: Recipe) -> tuple[Any, bool]:
    """Data type of the weights, and whether to compute under bf16 autocast."""
    import torch

    choice = recipe.model.dtype
    if choice == "auto":
        if not torch.cuda.is_available():
            choice = "fp32"
        else:
            choice = "bf16" if recipe.model.lora else "bf16-mixed"
    return (torch.bfloat16 if choice == "bf16" else torch.float32), choice == "bf16-mixed"


def trl_config(prepared: Prepared, output_dir: str, dtype: tuple[Any, bool]) -> Any:
    """TRL's GRPOConfig for a recipe, which counts optimizer updates where a recipe counts steps;
    `training.trl` may set any field that is not derived here."""
    import torch
    from trl import GRPOConfig

    recipe, plan, training = prepared.recipe, prepared.plan, prepared.recipe.training
    updates, scheduler = plan.updates_per_step, training.lr_scheduler
    if scheduler == "constant" and training.warmup_steps:  # transformers' "constant" warms nothing up
        scheduler = "constant_with_warmup"
    derived = {
        "output_dir": output_dir,
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.micro_batches,
        "steps_per_generation": plan.steps_per_generation,
        "num_generations": plan.group_size,
        "max_completion_length": plan.max_completion_tokens,
        "max_steps": training.steps * updates,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": scheduler,
        "warmup_steps": training.warmup_steps * updates,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "beta": training.kl,
        "epsilon": training.clip_low,
        "epsilon_high": training.clip_high,
        "loss_type": training.loss,
        "importance_sampling_level": training.ratio,
        "temperature": training.temperature,
        "mask_truncated_completions": training.mask_truncated,
        "gradient_checkpointing": training.gradient_checkpointing,
        # An estimator has its scale itself.
        "scale_rewards": (prepared.credit is None and recipe.credit.scale) or "group",
        "reward_weights": list(prepared.work.rewards.values()),
        "save_strategy": "steps",
        "save_steps": (training.save_every or training.steps) * updates,
        "save_total_limit": training.keep_checkpoints,
        "seed": recipe.run.seed,
        "bf16": dtype[1],
    }
    clash = sorted(set(training.trl) & set(derived))
    if clash:
        raise RecipeError(f"training.trl.{clash[0]} is derived from the recipe's own keys; set those instead")
    free = {
        **logger_options(recipe),
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    try:
        return GRPOConfig(**derived, **{**free, **training.trl})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"TRL refuses the training section: {error}") from error


def peft_config(recipe: Recipe) -> Any:
    """PEFT's configuration, None for full fine-tuning."""
    if recipe.model.lora is None:
        return None
    from peft import LoraConfig

    lora = recipe.model.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
