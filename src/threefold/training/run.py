"""`threefold train`: from a recipe to a trained model, a run directory and a sentence on what was learned."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.envs import mathematics
from threefold.envs.problems import Problem
from threefold.models import load_model
from threefold.recipe import Recipe, RecipeError, build_credit
from threefold.tasks import Questioner, held_out_problems, questioner, training_problems
from threefold.training.batch import BatchPlan, plan_batch
from threefold.training.callbacks import Progress, StopOnInterrupt
from threefold.training.console import Console
from threefold.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from threefold.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a model is loaded."""

    recipe: Recipe
    plan: BatchPlan
    questioner: Questioner
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    longest_prompt: int


def prepare(recipe: Recipe, *, processes: int = 1) -> Prepared:
    """Check everything that can be checked before the first step, weights excepted.

    Raises:
        RecipeError: A setting cannot work; the message names the key.
        ValueError: A problem file, a prompt or a tokenizer cannot be used; the message names the row.
    """
    plan = plan_batch(recipe.training, processes)
    if recipe.training.dynamic_sampling is not None and processes > 1:
        raise RecipeError(
            f"training.dynamic_sampling works on one process, this run has {processes}; leave it out"
        )
    credit = build_credit(recipe.credit)
    if credit is not None:
        credit.check(_reward_names(recipe), recipe.training.group_size)
    train, evaluation = training_problems(recipe), recipe.evaluation
    wanted = evaluation.before or evaluation.after
    test = held_out_problems(recipe, evaluation.problems) if wanted else ()
    ask = questioner(recipe)
    room = recipe.training.max_completion_tokens
    longest = max(
        ask.check_lengths("data.train", train, room), ask.check_lengths("held-out data", test, room)
    )
    return Prepared(recipe, plan, ask, train, test, longest)


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print the complete recipe and the batch table, after every check that needs no weights."""
    prepared = prepare(recipe, processes=int(os.environ.get("WORLD_SIZE", "1")))
    _trl_config(prepared, "checked-only", _dtype(recipe))
    ask = prepared.questioner
    console.print(recipe.to_yaml())
    console.batch_table(prepared.plan, prepared.longest_prompt)
    console.print(
        f"{len(prepared.train)} training problems, {len(prepared.test)} held out. First prompt:\n\n"
        f"{ask.tokenizer.decode(ask.prompt_ids(prepared.train[0]))}\n\n"
        f"(answer: {prepared.train[0].answer}). Everything that can be checked before the first step is in "
        "order."
    )


def train(recipe: Recipe, console: Console, *, resume: bool = False) -> Path:
    """Run a recipe.

    Returns:
        The run directory.

    Raises:
        FileExistsError: The run directory holds a run and `resume` is not set.
        RecipeError, ValueError: Something is wrong that can be known before the first step.
    """
    import torch

    from threefold.memory import keep_freed_memory

    started = time.perf_counter()
    keep_freed_memory()
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    processes, main = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0")) == 0
    run = RunDirectory(recipe.run.dir, resume=resume, append=not main)
    prepared = prepare(recipe, processes=processes)
    trainer = _build_trainer(prepared, run, console)
    if main:
        run.write_config(recipe.to_yaml())
        run.write_environment(recipe.run.seed, model=recipe.model.name, parameters=_parameters(trainer.model))
    console.started(recipe, prepared.plan, seconds=time.perf_counter() - started)
    evaluations = _before(prepared, trainer, run, console, resume)
    checkpoint = run.latest_checkpoint() if resume else None
    if checkpoint is not None and main:
        run.drop_after(int(checkpoint.name.rpartition("-")[2]))
    try:
        stopped = _fit(trainer, checkpoint)
    finally:
        console.finish()
    if main:
        _finish(prepared, trainer, run, console, evaluations, stopped)
    return run.path


def _build_trainer(prepared: Prepared, run: RunDirectory, console: Console) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback

    from threefold.training.trainer import ThreefoldTrainer
    from threefold.training.trl_seam import Speedups

    recipe = prepared.recipe
    weights, _ = _dtype(recipe)
    model = load_model(
        recipe.model.name,
        weights,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    ask = prepared.questioner
    rows = [
        {
            "prompt": ask.prompt(p),
            "answer": p.answer,
            "question": p.question,
            "id": p.id,
            "difficulty": p.difficulty,
        }
        for p in prepared.train
    ]
    rewards: list[Any] = [mathematics.accuracy_reward(ask.answer_format)]
    if recipe.credit.format_weight:
        rewards.append(mathematics.format_reward(ask.answer_format))
    trainer = ThreefoldTrainer(
        model=model,
        reward_funcs=rewards,
        args=_trl_config(prepared, str(run.path / "checkpoints"), _dtype(recipe)),
        train_dataset=Dataset.from_list(rows),
        processing_class=ask.tokenizer,
        peft_config=_peft(recipe),
        callbacks=[StopOnInterrupt()],
        credit=build_credit(recipe.credit),
        answer_format=ask.answer_format,
        run_dir=run,
        signals_every=recipe.training.signals_every,
        signals_base=recipe.training.signals_base,
        dynamic_sampling=_dynamic_sampling(recipe),
        sampler=_sampler(recipe, prepared.plan.processes),
        speedups=Speedups(**recipe.training.speedups.model_dump()),
    )
    updates = recipe.training.updates_per_step
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(
        Progress(
            lambda step, logs: console.step(
                -(-step // updates), recipe.training.steps, logs, trainer.step_in_words
            )
        )
    )
    return trainer


def _sampler(recipe: Recipe, processes: int) -> Any:
    """Who generates: our sampler where one process holds a whole model, TRL's backends elsewhere."""
    if recipe.training.sampler != "auto":
        return recipe.training.sampler
    backend = {"use_vllm", "use_transformers_continuous_batching"} & set(recipe.training.trl)
    return "trl" if backend or processes > 1 else "threefold"


def _dynamic_sampling(recipe: Recipe) -> Any:
    from threefold.training.dynamic_sampling import DynamicSampling

    settings = recipe.training.dynamic_sampling
    return None if settings is None else DynamicSampling(**settings.model_dump())


def _reward_names(recipe: Recipe) -> list[str]:
    return ["accuracy", "format"] if recipe.credit.format_weight else ["accuracy"]


def _dtype(recipe: Recipe) -> tuple[Any, bool]:
    """Data type of the weights, and whether to compute under bf16 autocast."""
    import torch

    choice = recipe.model.dtype
    if choice == "auto":
        if not torch.cuda.is_available():
            choice = "fp32"
        else:
            choice = "bf16" if recipe.model.lora else "bf16-mixed"
    return (torch.bfloat16 if choice == "bf16" else torch.float32), choice == "bf16-mixed"


def _trl_config(prepared: Prepared, output_dir: str, dtype: tuple[Any, bool]) -> Any:
    """TRL's GRPOConfig for a recipe; `training.trl` may set any field that is not derived here."""
    import torch
    from trl import GRPOConfig

    recipe, plan, training = prepared.recipe, prepared.plan, prepared.recipe.training
    derived = {
        "output_dir": output_dir,
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.micro_batches,
        "steps_per_generation": plan.steps_per_generation,
        "num_generations": plan.group_size,
        "max_completion_length": training.max_completion_tokens,
        "max_steps": training.steps * plan.updates_per_step,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler,
        "warmup_steps": training.warmup_steps,
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
        "scale_rewards": recipe.credit.scale or "group",
        "reward_weights": [1.0, recipe.credit.format_weight] if recipe.credit.format_weight else None,
        "save_strategy": "steps",
        "save_steps": training.save_every or training.steps * plan.updates_per_step,
        "save_total_limit": training.keep_checkpoints,
        "seed": recipe.run.seed,
        "bf16": dtype[1],
    }
    clash = sorted(set(training.trl) & set(derived))
    if clash:
        raise RecipeError(f"training.trl.{clash[0]} is derived from the recipe's own keys; set those instead")
    free = {
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    try:
        return GRPOConfig(**derived, **{**free, **training.trl})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"TRL refuses the training section: {error}") from error


def _peft(recipe: Recipe) -> Any:
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


def _parameters(model: Any) -> dict[str, int]:
    parameters = list(model.parameters())
    return {
        "total": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
    }


# Training with an orderly end
# -----------------------------------------------------------------------------------


def _fit(trainer: Any, checkpoint: Path | None) -> bool:
    """Train; True where an interrupt ended it early (a checkpoint was saved then)."""
    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopOnInterrupt))
    with interrupt:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return interrupt.requested


# What was learned
# -----------------------------------------------------------------------------------------------


def _before(
    prepared: Prepared, trainer: Any, run: RunDirectory, console: Console, resume: bool
) -> list[Evaluation]:
    """Held-out success of the initial model; a resumed run reads what the first one measured."""
    if resume:
        return run.read_before()
    if not prepared.recipe.evaluation.before:
        return []
    if trainer.accelerator.num_processes > 1:
        console.print("several processes do not evaluate; run `threefold eval` on the run afterwards")
        return []
    before = _evaluate(prepared, trainer, console, "before")
    run.write_before(before)
    return before


def _finish(
    prepared: Prepared,
    trainer: Any,
    run: RunDirectory,
    console: Console,
    before: Sequence[Evaluation],
    stopped: bool,
) -> None:
    from threefold.report import write_report

    if stopped:
        console.print(f"stopped at step {trainer.state.global_step}; continue with --resume")
    else:
        trainer.save_model(str(run.path / "model"))
        if prepared.recipe.evaluation.after and trainer.accelerator.num_processes == 1:
            after = _evaluate(prepared, trainer, console, "after")
            summary = summarise(before, after, trainer.state.global_step)
            run.write_after(after)
            run.write_evaluation(summary)
            console.learned(summary)
    report = write_report(run.path)
    console.print(f"report: {report}")


def _evaluate(prepared: Prepared, trainer: Any, console: Console, when: str) -> list[Evaluation]:
    from threefold.evaluation.evaluate import evaluate
    from threefold.rollout.samplers.transformers import TransformersSampler

    settings, training, ask = prepared.recipe.evaluation, prepared.recipe.training, prepared.questioner
    model = trainer.accelerator.unwrap_model(trainer.model)
    sampler = TransformersSampler(model, ask.tokenizer, batch_size=settings.batch_size)
    results = []
    modes = [("sampled", training.temperature, settings.samples)] + (
        [("greedy", 0.0, 1)] if settings.greedy else []
    )
    for mode, temperature, samples in modes:
        with console.evaluating(f"{when} training, {mode}", len(prepared.test) * samples) as progress:
            results.append(
                evaluate(
                    sampler,
                    ask.tokenizer,
                    prepared.test,
                    prompt=ask.prompt_ids,
                    score=ask.scores,
                    confidence=ask.confidence,
                    temperature=temperature,
                    samples=samples,
                    max_new_tokens=training.max_completion_tokens,
                    seed=settings.seed,
                    progress=progress,
                )
            )
    return results


def summarise(before: Sequence[Evaluation], after: Sequence[Evaluation], step: int) -> dict[str, Any]:
    """evaluation.json: both evaluations and the paired gain of each score, with bootstrap intervals over
    problems."""
    from threefold.evaluation.evaluate import paired_gain

    gains = []
    for first, last in zip(before, after, strict=False):
        for name in first.scores:
            gain = paired_gain(first, last, name)
            gains.append(
                {"score": name, "mode": first.mode, "mean": gain.mean, "low": gain.low, "high": gain.high}
            )
    return {
        "evaluations": [e.to_json(when="before", step=0) for e in before]
        + [e.to_json(when="after", step=step) for e in after],
        "gains": gains,
    }
