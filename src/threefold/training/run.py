"""`threefold train`: from a recipe to a trained model, a run directory and a sentence on what was learned."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from threefold.credit import CreditEstimator
from threefold.credit.grpo import GRPO
from threefold.credit.named_skills import NamedSkills
from threefold.credit.outcomes import given_credit
from threefold.models import load_model
from threefold.recipe import Recipe, RecipeError, build_credit
from threefold.recipe_credit import BY_TURN, Method, method_settings, methods_of
from threefold.skills.evolution import Evolution
from threefold.training import launcher
from threefold.training.batch import BatchPlan, plan_batch
from threefold.training.callbacks import Progress, StopOnInterrupt
from threefold.training.console import Console
from threefold.training.engine import build_sampler, check_sampler
from threefold.training.held_out import InBetween, as_metrics, can_evaluate, evaluate, gains_of, summarise
from threefold.training.loggers import group_metrics, send_metrics, set_places
from threefold.training.resuming import check_resumed
from threefold.training.run_directory import BASE_FOLDER, RunDirectory
from threefold.training.skills import build_evolution, check_skills, join_policy
from threefold.training.trl_config import peft_config, trl_config, weights_dtype
from threefold.training.warm_start import check_warm_start, warm_started
from threefold.training.work import Episodes, Work, work_of


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a model is loaded."""

    recipe: Recipe
    plan: BatchPlan
    work: Work
    credit: CreditEstimator | None


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
    if recipe.training.dynamic_sampling is not None and recipe.environment.name is not None:
        raise RecipeError(
            "training.dynamic_sampling replaces problems, and this run plays episodes in the environment "
            f"{recipe.environment.name}; leave it out"
        )
    by_turn = [method for method in methods_of(recipe.credit) if method in BY_TURN]
    if by_turn and recipe.environment.name is None:
        raise RecipeError(
            f"credit.method = {by_turn[0]} compares turns, and problems have none; set environment.name, or "
            "another method"
        )
    check_skills(recipe)
    check_sampler(recipe, processes)
    work = work_of(recipe)
    credit = _credit(recipe, work)
    if credit is not None:
        credit.check(given_credit(work.rewards, credit), recipe.training.group_size)
    if recipe.warm_start.dialogues:
        check_warm_start(recipe, work)
    return Prepared(recipe, replace(plan, max_completion_tokens=work.completion_tokens), work, credit)


def _credit(recipe: Recipe, work: Work) -> CreditEstimator | None:
    """The recipe's estimator, told which of the work's rewards is the outcome, and which turns there are."""

    def fitted(method: Method, credit: Any) -> Any:
        if "turns" in method_settings(method.method) and method.turns is None:
            if method.method in BY_TURN and not work.turn_channels:
                raise RecipeError(
                    f"the environment {work.title} does not say which turn channels to credit; name them in "
                    f"{'credit.turns' if method is recipe.credit else f'the key turns of {method.method}'}"
                )
            credit = replace(credit, turns=work.turn_channels)
        if isinstance(work, Episodes):
            where = "credit" if method is recipe.credit else f"credit.together, {method.method}"
            _check_names(credit, work, where)
        if "outcome" in {field.name for field in fields(credit)}:
            credit = replace(credit, outcome=work.outcome)
        return credit

    credit = build_credit(recipe.credit, fitted)
    if recipe.skills.naming_credit is not None:
        return NamedSkills(credit or GRPO(), weight=recipe.skills.naming_credit)
    return credit


def _check_names(credit: Any, work: Episodes, where: str) -> None:
    """Hold what an estimator reads of turns against what the environment tells. Only names that it does not
    declare cost a turn of the first task."""
    rewards = tuple(getattr(credit, "turns", None) or ())
    state_key, states = "states", tuple(getattr(credit, "states", None) or ())
    if getattr(credit, "turn_credit", None) == "headroom":
        state_key, states = "levels", tuple(credit.levels or rewards)
    rewards_left = [name for name in rewards if name not in work.turn_channels]
    states_left = [name for name in states if name not in work.environment.levels]
    if not rewards_left and not states_left:
        return
    told = work.environment.told_in_a_turn(work.train[0], work.recipe.run.seed)
    for key, kind, names, known in (
        ("turns", "reward", rewards_left, told[0]),
        (state_key, "state", states_left, told[1]),
    ):
        for name in names:
            if name not in known:
                raise RecipeError(
                    f"{where}.{key}: {name!r} is no {kind} of a turn of {work.title}, which has "
                    f"{', '.join(sorted(known)) or 'none'}"
                )


@dataclass(frozen=True)
class Checked:
    """A recipe that passed every check that needs no weights, and how its weights would be held."""

    prepared: Prepared
    weights: Any
    """torch's data type of the weights."""
    autocast: bool
    """Whether it computes under bf16 autocast."""
    lora: Any
    """PEFT's configuration, None for full fine-tuning."""


def check(recipe: Recipe) -> Checked:
    """Every check that needs no weights, TRL's own included.

    Raises:
        RecipeError, ValueError: As `prepare`.
    """
    prepared, dtype = prepare(recipe, processes=launcher.processes()), weights_dtype(recipe)
    trl_config(prepared, "checked-only", dtype)
    return Checked(prepared, *dtype, lora=peft_config(recipe))


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print the complete recipe and the batch table, after every check that needs no weights."""
    prepared = check(recipe).prepared
    work = prepared.work
    console.print(recipe.to_yaml())
    console.batch_table(prepared.plan, work.longest_prompt)
    train, test = work.sizes()
    console.print(
        f"{train} training {work.unit}, {test} held out. First prompt:\n\n{work.first_prompt()}\n\n"
        "Everything that can be checked before the first step is in order."
    )


def train(
    recipe: Recipe, console: Console, *, resume: bool = False, ready: Callable[[], None] | None = None
) -> Path:
    """Run a recipe.

    Args:
        recipe: What to train, on what and how.
        console: What is said on the way.
        resume: Go on from the last checkpoint of the run directory.
        ready: Called on the first process when all is checked and loaded, before anything is measured.

    Returns:
        The run directory.

    Raises:
        FileExistsError: The run directory holds a run and `resume` is not set.
        RecipeError, ValueError: Something is wrong that can be known before the first step, as a
            run of another recipe that is to be resumed.
    """
    import torch

    from threefold.memory import keep_freed_memory

    started = time.perf_counter()
    keep_freed_memory()
    launcher.use_own_accelerator()
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    processes, main = launcher.processes(), launcher.is_first()
    run = RunDirectory(recipe.run.dir, resume=resume, append=not main)
    prepared = prepare(recipe, processes=processes)
    if main:  # alone, for it is overwritten here what others would read
        if resume:
            changed = check_resumed(recipe, run, prepared.plan.updates_per_step)
            for key, (old, new) in changed.items():
                console.note(f"goes on with {key} = {new!r}, which was {old!r}")
        run.write_config(recipe.to_yaml())
    creators = ThreadPoolExecutor(1, "skill-creator")
    skills = build_evolution(recipe, prepared.work.tokenizer, run.path, creators, resume=resume, main=main)
    trainer = _build_trainer(prepared, run, console, skills)
    if main:
        facts: dict[str, Any] = {"processes": processes, "reward_weights": dict(prepared.work.rewards)}
        if prepared.work.scope:
            facts["scope"] = prepared.work.scope
        if prepared.work.made_with:
            facts["made_with"] = dict(prepared.work.made_with)
        run.write_environment(
            recipe.run.seed, model=recipe.model.name, parameters=_parameters(trainer.model), **facts
        )
        console.started(recipe, prepared.plan, prepared.work, seconds=time.perf_counter() - started)
        if ready is not None:
            ready()
    evaluations = _before(prepared, trainer, run, console, resume)
    _measure_in_between(prepared, trainer, run, console, evaluations)
    checkpoint = run.latest_checkpoint() if resume else None
    if checkpoint is not None and main:
        run.drop_after(int(checkpoint.name.rpartition("-")[2]))
    done = int(checkpoint.name.rpartition("-")[2]) // prepared.plan.updates_per_step if checkpoint else 0
    finished = done == recipe.training.steps
    if finished:
        console.print(f"all {done} steps are trained already; raise training.steps to go on")
    else:
        console.training(recipe.training.steps, done)
        if checkpoint is not None and main:
            run.drop_model()
    stopped = False
    try:
        if checkpoint is not None and finished:
            trainer.restore(checkpoint)
        else:
            stopped = _fit(trainer, checkpoint)
    finally:
        console.finish()
        creators.shutdown(wait=False, cancel_futures=True)
    _finish(prepared, trainer, run, console, evaluations, stopped)
    if processes > 1:  # a process that leaves while another still listens to it can take that one down
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
        # The model holds the group, and threads of it that outlive the interpreter abort the process.
        del trainer
        gc.collect()
    prepared.work.close()
    return run.path


def _build_trainer(prepared: Prepared, run: RunDirectory, console: Console, skills: Evolution | None) -> Any:
    from transformers import PrinterCallback

    from threefold.training.trainer import ThreefoldTrainer
    from threefold.training.trl_seam import Speedups

    recipe = prepared.recipe
    set_places(recipe)
    sampler, importance = build_sampler(recipe, prepared.work.tokenizer)
    trainer = ThreefoldTrainer(
        model=_initial_model(prepared, run, console),
        args=trl_config(prepared, str(run.path / "checkpoints"), weights_dtype(recipe)),
        processing_class=prepared.work.tokenizer,
        peft_config=peft_config(recipe),
        callbacks=[StopOnInterrupt()],
        credit=prepared.credit,
        run_dir=run,
        signals_every=recipe.training.signals_every * recipe.training.updates_per_step,
        signals_base=recipe.training.signals_base,
        dynamic_sampling=_dynamic_sampling(recipe),
        sampler=sampler,
        importance=importance,
        speedups=Speedups(**recipe.training.speedups.model_dump()),
        skills=skills,
        kl_on_dead_groups=recipe.training.kl_on_dead_groups,
        **prepared.work.trainer_options(),
    )
    join_policy(recipe, trainer)
    updates = recipe.training.updates_per_step
    group_metrics(trainer, run.path)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(
        Progress(
            lambda step, logs: console.step(
                -(-step // updates), recipe.training.steps, logs, trainer.step_in_words
            )
        )
    )
    return trainer


def _initial_model(prepared: Prepared, run: RunDirectory, console: Console) -> Any:
    """The weights that learning starts from: the recipe's model, warm-started where it says so."""
    recipe = prepared.recipe
    weights, autocast = weights_dtype(recipe)
    options: dict[str, Any] = {"trust_remote_code": recipe.model.trust_remote_code}
    if not recipe.warm_start.dialogues:
        return load_model(recipe.model.name, weights, revision=recipe.model.revision, **options)
    folder = warm_started(
        recipe, prepared.work, weights, console.note, processes=prepared.plan.processes, bf16=autocast
    )
    model = load_model(str(folder), weights, **options)
    if recipe.model.lora is not None and launcher.is_first():
        # An adapter is of no use without the weights it was trained on.
        model.save_pretrained(run.path / BASE_FOLDER)
    return model


def _dynamic_sampling(recipe: Recipe) -> Any:
    from threefold.training.dynamic_sampling import DynamicSampling

    settings = recipe.training.dynamic_sampling
    return None if settings is None else DynamicSampling(**settings.model_dump())


def _parameters(model: Any) -> dict[str, int]:
    parameters = list(model.parameters())
    return {
        "total": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
    }


# Training with an orderly end
# -----------------------------------------------------------------------------------


def _fit(trainer: Any, checkpoint: Path | None) -> bool:
    """Train; True on every process where an interrupt ended it early (a checkpoint was saved then)."""
    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopOnInterrupt))
    with interrupt:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return interrupt.agreed(trainer.args.device)


# What was learned
# -----------------------------------------------------------------------------------------------


def _before(prepared: Prepared, trainer: Any, run: RunDirectory, console: Console, resume: bool) -> list[Any]:
    """Held-out success of the initial model; a resumed run reads what the first one measured."""
    if resume:
        return run.read_before()
    if not prepared.recipe.evaluation.before:
        return []
    before = evaluate(prepared.work, trainer, console, "before")
    if before and launcher.is_first():
        run.write_before(before)
        if prepared.recipe.evaluation.every:
            run.append_metrics(0, as_metrics(before), split="held_out")
    return before


def _measure_in_between(
    prepared: Prepared, trainer: Any, run: RunDirectory, console: Console, before: Sequence[Any]
) -> None:
    """Have the trainer evaluate every so many steps, where the recipe asks for it and the model is whole."""
    settings, updates = prepared.recipe.evaluation, prepared.recipe.training.updates_per_step
    if not settings.every:
        return
    if not can_evaluate(trainer):
        console.print("a sharded model is not evaluated in between; evaluation.every has no effect")
        return

    def measure(update: int) -> None:
        made = evaluate(prepared.work, trainer, console, f"after step {update // updates} of")
        if launcher.is_first():
            line = as_metrics(made)
            run.append_metrics(update, line, split="held_out")
            send_metrics(trainer, {f"held_out/{name}": value for name, value in line.items()})
            console.held_out(update // updates, made, gains_of(prepared.work, before, made))

    trainer.add_callback(InBetween(settings.every * updates, measure, last=not settings.after))


def _finish(
    prepared: Prepared,
    trainer: Any,
    run: RunDirectory,
    console: Console,
    before: Sequence[Any],
    stopped: bool,
) -> None:
    """Save, evaluate and report: on every process, of which the first writes."""
    from threefold.report import write_report

    step, after = trainer.state.global_step, []
    if not stopped:
        trainer.save_model(str(run.path / "model"))
        if prepared.recipe.evaluation.after:
            after = evaluate(prepared.work, trainer, console, "after")
    if not launcher.is_first():
        return
    if after:
        run.write_after(after)  # first of all: it took the longest
        summary = summarise(prepared.work, before, after, step)
        run.write_evaluation(summary)
        if prepared.recipe.evaluation.every:
            run.append_metrics(step, as_metrics(after), split="held_out")
        console.learned(summary)
    console.ended(run.path, write_report(run.path), step=step, stopped=stopped)
