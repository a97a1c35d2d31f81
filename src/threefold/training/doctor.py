"""`threefold doctor`: says what will be slow or fail before it does, from the machine to a step at full
length."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from threefold.models import ModelError, resolve
from threefold.recipe import Recipe
from threefold.training.run import Checked, check
from threefold.training.run_directory import describe_environment
from threefold.training.work import Problems

Level = Literal["ok", "warn", "fail"]

_ANSWERS_CHECKED = 64
_MANY_PARAMETERS = 400e6
"""Above it training on a CPU takes days."""
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    level: Level
    what: str
    text: str


def examine(recipe: Recipe, *, step: bool = True) -> Iterator[Finding]:
    """Look at everything that a run will need, one finding at a time, the cheap ones first.

    Args:
        recipe: The experiment.
        step: Load the model and rehearse a step at the longest prompt and completion.
    """
    yield from _machine(recipe)
    yield from _endpoints(recipe)
    try:
        checked = check(recipe)
    except (ValueError, OSError, ImportError) as error:  # what `threefold train` would refuse with
        yield Finding("fail", "recipe", str(error))
        return
    yield from _recipe(checked)
    yield from _tokenizer(checked)
    if isinstance(checked.prepared.work, Problems):
        yield from _answers(checked.prepared.work)
    fits = True
    for finding in _memory(checked):
        fits = fits and finding.level != "fail"
        yield finding
    if step and not fits:
        yield Finding("warn", "dry step", "left out, as the memory would not do")
    elif step:
        yield from _dry_step(checked)


def _machine(recipe: Recipe) -> Iterator[Finding]:
    facts = describe_environment()
    machine, versions = facts["machine"], facts["versions"]
    free = _free_memory()
    yield Finding(
        "ok",
        "machine",
        f"{machine['accelerator'] or 'no accelerator'}; {machine['cores']} cores, "
        f"{recipe.run.threads or machine['threads']} threads; {free / _GIB:.1f} GiB free",
    )
    if recipe.run.threads and machine["cores"] and recipe.run.threads > machine["cores"]:
        yield Finding(
            "warn",
            "machine",
            f"run.threads = {recipe.run.threads} on {machine['cores']} cores: they will wait",
        )
    yield Finding("ok", "versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v))
    run = Path(recipe.run.dir)
    if (run / "metrics.jsonl").exists():
        yield Finding(
            "warn", "run directory", f"{run} holds a run: give another run.dir, --resume or --overwrite"
        )
    existing = next(p for p in (run.absolute(), *run.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("fail", "run directory", f"{existing} cannot be written to; set run.dir")
    yield from _trl()


def _trl() -> Iterator[Finding]:
    """Whether the installed TRL is the one that Threefold overrides."""
    from threefold.training.trl_seam import check_trl

    try:
        check_trl()
    except ImportError as error:
        yield Finding("fail", "versions", str(error))


def _endpoints(recipe: Recipe) -> Iterator[Finding]:
    from threefold.training.endpoints import endpoints_of, reach

    for where, endpoint in endpoints_of(recipe.model_dump()):
        good, said = reach(endpoint)
        yield Finding("ok" if good else "fail", "endpoint", f"{where}: {said}")


def _recipe(checked: Checked) -> Iterator[Finding]:
    prepared = checked.prepared
    work, plan = prepared.work, prepared.plan
    train, test = work.sizes()
    yield Finding(
        "ok",
        "data",
        f"{work.title}: {train} training {work.unit}, {test} held out; longest prompt {work.longest_prompt} "
        f"tokens, completion up to {work.completion_tokens}",
    )
    if 0 < test < 100:
        yield Finding(
            "warn", "data", f"{test} held-out {work.unit} give wide intervals: see docs/evaluation.md"
        )
    if isinstance(work, Problems):
        known = {p.question for p in work.train}
        shared = sum(p.question in known for p in work.test)
        if shared:
            yield Finding(
                "warn", "data", f"{shared} of {test} held-out questions are training questions, word for word"
            )
    steps = prepared.recipe.training.steps
    yield Finding(
        "ok",
        "batch",
        f"{steps} steps of {plan.prompts_per_step} {work.unit} x {plan.group_size} episodes, in "
        f"{plan.micro_batches} micro-batches of {plan.micro_batch}; {steps * plan.max_new_tokens:,} new "
        "tokens at most",
    )
    if plan.micro_batch < min(prepared.recipe.training.micro_batch, plan.episodes):
        yield Finding(
            "warn",
            "batch",
            f"the micro-batch is {plan.micro_batch}, not {prepared.recipe.training.micro_batch}: the largest "
            "divisor of the episodes of an update",
        )


def _tokenizer(checked: Checked) -> Iterator[Finding]:
    tokenizer: Any = checked.prepared.work.tokenizer
    end, pad = tokenizer.eos_token, tokenizer.pad_token
    same = "the same: masks tell them apart" if tokenizer.pad_token_id == tokenizer.eos_token_id else "apart"
    yield Finding("ok", "tokenizer", f"{len(tokenizer)} tokens; end {end!r}, pad {pad!r} ({same})")
    if tokenizer.chat_template is None:
        yield Finding("warn", "template", "there is no chat template: prompts are plain text")
        return
    question, answer = {"role": "user", "content": "What is 2 + 3?"}, "2 + 3 = 5"

    def render(messages: list[dict[str, str]], **options: Any) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        return ids

    prompt = render([question], add_generation_prompt=True)
    whole = render([question, {"role": "assistant", "content": answer}])
    if whole[: len(prompt)] != prompt:
        yield Finding(
            "warn",
            "template",
            "a rendered answer does not begin with the rendered prompt (some templates drop or add "
            "thinking): what supervision shows is not what the model is asked",
        )
    elif tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True).strip() != answer:
        yield Finding("warn", "template", "an answer does not come back from its tokens as it was written")
    elif tokenizer.eos_token_id not in whole[len(prompt) :]:
        yield Finding(
            "warn",
            "template",
            f"the template does not close an answer with the end token {end!r}: completions may run to "
            "the limit",
        )
    else:
        yield Finding(
            "ok", "template", "an answer goes through the template and back, and is closed by the end token"
        )


def _answers(work: Problems) -> Iterator[Finding]:
    """Whether right answers, stated in the asked format, are found in their tokens and scored as right."""
    from threefold.envs import mathematics
    from threefold.signals import locate

    fmt, tokenizer = work.questioner.answer_format, work.tokenizer
    if fmt.template is None:
        yield Finding("ok", "answers", f"the format {fmt.name!r} is a pattern only; it cannot be tried")
        return
    tried = work.train[:_ANSWERS_CHECKED]
    wrong, lost = [], []
    for problem in tried:
        said = fmt.state(problem.answer)
        if not mathematics.score(said, problem, fmt).strict:
            wrong.append(problem.id)
        elif locate(tokenizer, tokenizer(said, add_special_tokens=False)["input_ids"], fmt) is None:
            lost.append(problem.id)
    for names, trouble in ((wrong, "scored as wrong"), (lost, "not found in its tokens")):
        if names:
            yield Finding(
                "fail" if len(names) == len(tried) else "warn",
                "answers",
                f"the true answer, stated in the asked format, is {trouble} for {len(names)} of {len(tried)} "
                f"problems, the first {names[0]}",
            )
    if not wrong and not lost:
        yield Finding(
            "ok", "answers", f"{len(tried)} true answers are found in their tokens and scored as right"
        )


def _memory(checked: Checked) -> Iterator[Finding]:
    import torch
    from transformers import AutoConfig

    from threefold.training.memory_estimate import empty_model, estimate_memory

    recipe = checked.prepared.recipe
    model = recipe.model
    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    config = AutoConfig.from_pretrained(resolve(model.name), **options)
    found = estimate_memory(checked, config, empty_model(config, trust_remote_code=model.trust_remote_code))
    yield Finding(
        "ok",
        "model",
        f"{model.name}: {found.parameters / 1e6:,.1f} million parameters, {found.trained / 1e6:,.1f} "
        f"trained, held in {str(checked.weights).removeprefix('torch.')}"
        + (", computed in bf16" * checked.autocast),
    )
    if found.parameters > _MANY_PARAMETERS and not torch.cuda.is_available():
        yield Finding("warn", "model", "a model of this size without an accelerator takes hours a step")
    yield _disk(recipe, found.parameters * checked.weights.itemsize, found.trained * checked.weights.itemsize)
    free = _free_memory()
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in found.table())
    level: Level = "fail" if found.total > free else "warn" if found.total > 0.8 * free else "ok"
    remedy = (
        "; lower training.micro_batch, set training.gradient_checkpointing or model.lora, or shorten "
        "training.max_completion_tokens"
        if level != "ok"
        else ""
    )
    yield Finding(
        level,
        "memory",
        f"about {found.total / _GIB:.2f} GiB of {free / _GIB:.1f} free at the longest prompt and completion "
        f"({parts}){remedy}",
    )


def _disk(recipe: Recipe, weights: float, trained: float) -> Finding:
    """Checkpoints hold what is trained and its two moments; the finished model is written once more."""
    run = Path(recipe.run.dir).absolute()
    free = shutil.disk_usage(next(p for p in (run, *run.parents) if p.exists())).free
    kept = recipe.training.keep_checkpoints if recipe.training.save_every else 1
    # The new checkpoint is written before the oldest one is deleted.
    needed = 3 * trained * (kept + (recipe.training.save_every > 0)) + trained
    if recipe.model.lora is not None and recipe.warm_start.dialogues:
        needed += weights
    level: Level = "fail" if needed > free else "warn" if needed > 0.8 * free else "ok"
    return Finding(
        level,
        "disk",
        f"checkpoints and the model need about {needed / _GIB:.2f} of {free / _GIB:.1f} GiB free for "
        f"{recipe.run.dir}; the record of every episode comes on top"
        + ("; lower training.keep_checkpoints, or set run.dir to a larger disk" if level != "ok" else ""),
    )


def _dry_step(checked: Checked) -> Iterator[Finding]:
    from threefold.training.dry_step import rehearse

    recipe = checked.prepared.recipe
    try:
        took = rehearse(checked)
    except (ModelError, RuntimeError, ValueError) as error:  # torch's out-of-memory error is a RuntimeError
        yield Finding("fail", "dry step", " ".join(str(error).split())[:500])
        return
    how = "extrapolated from one row" if took.extrapolated else "measured"
    yield Finding(
        "ok",
        "dry step",
        f"a micro-batch at full length {took.micro_batch_seconds:.2f} s ({how}), a token of all rows "
        f"{1000 * took.token_seconds:.0f} ms; peak {took.peak_bytes / _GIB:.2f} GiB without the optimizer",
    )
    whole = took.generate_seconds + took.update_seconds
    hours = whole * recipe.training.steps / 3600
    yield Finding(
        "warn" if hours > 24 else "ok",
        "time",
        f"a step at full length about {whole:.1f} s ({took.generate_seconds:.1f} generating, "
        f"{took.update_seconds:.1f} updating), the run about {_duration(hours)} without evaluation; episodes "
        "that end early make it less, signals and warm start more",
    )


def _duration(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _free_memory() -> float:
    """Bytes that are free on the accelerator, else in main memory."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)
