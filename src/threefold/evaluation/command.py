"""`threefold eval`: pass@1 greedy, avg@k and pass@k of a model or a run, with intervals; in an environment
also broken rules and rewards."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from threefold.environments import NamedEnvironment, named_environment
from threefold.evaluation.episodes import SHARES, EpisodeEvaluation, evaluate_episodes, sessions
from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.swap import interval_text, print_swap, swap_changes
from threefold.models import TINY, context_length, load_model, load_tokenizer
from threefold.recipe import Recipe, RecipeError, apply_override, load_recipe, parse_recipe
from threefold.rollout.samplers import SamplingParameters
from threefold.skills.bank import Bank, version_problem
from threefold.skills.command import read_bank_or_skills
from threefold.skills.store import versions
from threefold.tasks import ARITHMETIC, TINY_ARITHMETIC, held_out_problems, questioner


def evaluate_model(options: Namespace) -> dict[str, Any]:
    """Evaluate what `threefold eval` names, print a table and return the figures.

    Args:
        options: The command's arguments; see `threefold eval --help`.

    Raises:
        RecipeError: A run directory holds no model, a number is out of range, or a prompt is too long.
    """
    _check(options)
    if options.output:
        _check_output(options.output)
    recipe, folder = _find(options.model, options.data, options.overrides)
    figures: dict[str, Any] = {"model": options.model}
    if recipe.environment.name is None:
        if options.swap:
            raise RecipeError(
                "--swap changes an environment, but this is evaluated on problems; leave it out"
            )
        problems = _on_problems(options, recipe, folder)
        figures["evaluations"] = [result.to_json() for result in problems]
    else:
        figures |= _in_environment(options, recipe, folder)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _check_output(output: Path) -> None:
    """Refuse a file that cannot be written, before the evaluation rather than after it; make its folder."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--output {output}: {output.parent} cannot be made: {error.strerror}") from error
    if output.is_dir():
        raise RecipeError(f"--output {output} is a folder; name a file in it, such as {output / 'eval.json'}")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise RecipeError(f"--output {output} may not be written; give another place")


def _on_problems(options: Namespace, recipe: Recipe, folder: str | None) -> list[Evaluation]:
    if options.bank is not None:
        raise RecipeError(
            "--bank is for environments, whose agents see skills; this is evaluated on problems"
        )
    if options.split is not None:
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"test_split": options.split})}
        )
    max_tokens = options.max_tokens or (recipe.training.max_completion_tokens if folder else 512)
    ask = questioner(recipe, folder)
    problems = held_out_problems(recipe, options.problems, options.data)
    ask.check_lengths(options.data or recipe.data.test or recipe.data.train, problems, max_tokens)
    sampler = _sampler(recipe, folder, ask.tokenizer, options)
    results = []
    with Progress(disable=options.quiet, transient=True) as bars:
        for name, temperature, samples, ks in _modes(options):
            results.append(
                evaluate(
                    sampler,
                    ask.tokenizer,
                    problems,
                    prompt=ask.prompt_ids,
                    score=ask.scores,
                    confidence=ask.confidence,
                    temperature=temperature,
                    samples=samples,
                    ks=ks,
                    max_new_tokens=max_tokens,
                    seed=options.seed,
                    progress=partial(_advance, bars, bars.add_task(name)),
                )
            )
    _print(results)
    return results


def _in_environment(options: Namespace, recipe: Recipe, folder: str | None) -> dict[str, Any]:
    if options.data:
        raise RecipeError(
            f"--data names problems, but this is evaluated in the environment {recipe.environment.name}; "
            "name another one with environment.name=..."
        )
    bank, split = _bank(options, recipe), options.split or recipe.environment.test_split
    retrieve = recipe.skills.retrieve
    own = _limited(named_environment(recipe), options).with_bank(bank, retrieve)
    # Everything is refused before the first episode.
    swapped = [_swapped(options, words).with_bank(bank, retrieve) for words in options.swap]
    tokenizer = load_tokenizer(
        folder or recipe.model.name,
        revision=None if folder else recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    sampler = _sampler(recipe, folder, tokenizer, options)
    results = _play(own, sampler, tokenizer, options, split, bank)
    shown = f" under bank {bank.version} ({', '.join(bank.names) or 'empty'})" if bank else ""
    _print_episodes(own, f"split {split}{shown}", results)
    figures: dict[str, Any] = {"evaluations": [result.to_json() for result in results]}
    if own.scope:
        figures["scope"] = own.scope
    if own.made_with:
        figures["made_with"] = own.made_with
    if swapped:
        figures["swaps"] = []
    for words, environment in zip(options.swap, swapped, strict=True):
        elsewhere = _play(environment, sampler, tokenizer, options, split, bank)
        changes = swap_changes(results, elsewhere)
        print_swap(words, results, elsewhere, changes)
        figures["swaps"].append(
            {
                "overrides": words,
                "evaluations": [result.to_json() for result in elsewhere],
                "changes": [change.to_json() for change in changes],
            }
        )
    return figures


def _limited(environment: NamedEnvironment, options: Namespace) -> NamedEnvironment:
    if not options.max_tokens:
        return environment
    limits = replace(environment.limits, completion_tokens=options.max_tokens)
    return replace(environment, limits=limits)


def _swapped(options: Namespace, words: Sequence[str]) -> NamedEnvironment:
    """The environment of the same recipe with some of its keys changed."""
    for word in words:
        if not word.startswith("environment."):
            raise RecipeError(f"--swap {word}: only keys of the environment can be swapped")
    recipe, _ = _find(options.model, options.data, [*options.overrides, *words])
    return _limited(named_environment(recipe), options)


def _play(
    environment: NamedEnvironment,
    sampler: Any,
    tokenizer: Any,
    options: Namespace,
    split: str,
    bank: Bank | None,
) -> list[EpisodeEvaluation]:
    limits = environment.limits
    tasks = environment.tasks(split, options.problems, 0)
    environment.check(tokenizer, context_length(sampler.model.config), tasks, options.seed)
    results = []
    with Progress(disable=options.quiet, transient=True) as bars:
        for name, temperature, samples, ks in _modes(options):
            result = evaluate_episodes(
                sessions(sampler, SamplingParameters(limits.turn_tokens, temperature)),
                tokenizer,
                tasks,
                environment.make,
                limits=limits,
                temperature=temperature,
                samples=samples,
                ks=ks,
                seed=options.seed,
                groups=environment.groups,
                measures=environment.measures,
                levels=environment.levels,
                progress=partial(_advance, bars, bars.add_task(name)),
            )
            results.append(replace(result, bank=bank.version if bank else None))
    return results


def _bank(options: Namespace, recipe: Recipe) -> Bank | None:
    """The bank version that the agent sees: what --bank names, else the one that the run has in use."""
    run, given = Path(options.model), options.bank
    if given == "none" or (given is None and not recipe.skills.on):
        return None
    if given is None:
        if versions(run / "bank"):
            return read_bank_or_skills(run)
        return read_bank_or_skills(recipe.skills.bank, recipe.skills.version) if recipe.skills.bank else None
    if version_problem(given) is None:
        return read_bank_or_skills(run, given)
    return read_bank_or_skills(given)


def _modes(options: Namespace) -> list[tuple[str, float, int, list[int]]]:
    """(name, temperature, samples, k of pass@k) of what is measured."""
    sampled = (f"{options.samples} samples each", options.temperature, options.samples, _ks(options))
    return [("greedy", 0.0, 1, [1]), sampled]


def _sampler(recipe: Recipe, folder: str | None, tokenizer: Any, options: Namespace) -> Any:
    import torch

    from threefold.rollout.samplers.transformers import TransformersSampler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = _load(recipe, folder, dtype).to(device).eval()
    return TransformersSampler(model, tokenizer, batch_size=options.batch_size)


def _advance(bars: Progress, task: Any, done: int, total: int) -> None:
    bars.update(task, completed=done, total=total)


def _check(options: Namespace) -> None:
    for name in ("problems", "samples", "batch_size", "max_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RecipeError(f"--{name.replace('_', '-')} is {value}, and must be at least 1")
    if options.temperature <= 0:
        raise RecipeError(
            "--temperature is that of the samples and must be above 0; greedy is always measured too"
        )
    too_large = [k for k in _ks(options) if not 1 <= k <= options.samples]
    if too_large:
        raise RecipeError(f"--k {too_large[0]} needs 1 <= k <= --samples, which is {options.samples}")


def _ks(options: Namespace) -> list[int]:
    """The k of pass@k: those that were asked for, else those that the samples allow."""
    return options.k or [k for k in (1, 4, 8) if k <= options.samples]


def _find(name: str, problems: str | None, overrides: Sequence[str]) -> tuple[Recipe, str | None]:
    """The recipe to ask as, and the folder of trained weights where `name` is a run directory."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        raise RecipeError(
            f"{path} is a recipe, not a model; train it, and give the run directory that its run.dir names"
        )
    if path.is_dir() and not any((path / file).exists() for file in ("config.yaml", "config.json")):
        raise RecipeError(
            f"{path} holds neither a run (config.yaml) nor a model (config.json); give a run directory, a "
            "model's folder, a hub name, 'embedded' or 'tiny'"
        )
    if not (path / "config.yaml").exists():
        # The way of asking depends on the problems; the tiny model knows one kind alone.
        default = TINY_ARITHMETIC if name == TINY else ARITHMETIC
        data: dict[str, Any] = {"model": {"name": name}, "data": {"train": problems or default}}
        for override in overrides:
            apply_override(data, override)
        return parse_recipe(data), None
    recipe = load_recipe(path / "config.yaml", overrides)
    if (path / "model").is_dir():
        return recipe, str(path / "model")
    # The trainer's state is written last, so a checkpoint that has it is whole.
    states = (path / "checkpoints").glob("checkpoint-*/trainer_state.json")
    checkpoints = sorted((p.parent for p in states), key=lambda p: int(p.name.rpartition("-")[2]))
    if not checkpoints:
        raise RecipeError(
            f"{path} is a run directory without a model or a checkpoint; let the run finish a save"
        )
    return recipe, str(checkpoints[-1])


def _load(recipe: Recipe, folder: str | None, dtype: Any) -> Any:
    options: dict[str, Any] = {
        "revision": recipe.model.revision,
        "trust_remote_code": recipe.model.trust_remote_code,
    }
    if folder is None:
        return load_model(recipe.model.name, dtype, **options)
    if not (Path(folder) / "adapter_config.json").exists():
        return load_model(folder, dtype, trust_remote_code=recipe.model.trust_remote_code)
    from peft import PeftModel

    warm_started = next((p / "base" for p in Path(folder).parents[:2] if (p / "base").is_dir()), None)
    if warm_started is not None:
        base = load_model(str(warm_started), dtype, trust_remote_code=recipe.model.trust_remote_code)
    else:
        base = load_model(recipe.model.name, dtype, **options)
    return PeftModel.from_pretrained(base, folder).merge_and_unload()


def _print(results: list[Evaluation]) -> None:
    table = Table("measure", "right, asked format", "right, last number", "in the format")
    for result in results:
        name = (
            "greedy pass@1"
            if result.mode == "greedy"
            else f"avg@{result.samples} at T = {result.temperature:g}"
        )
        table.add_row(
            name, *(interval_text(result.scores[score]) for score in ("strict", "last_number", "format"))
        )
        if result.mode == "sampled":
            for k in sorted(result.pass_at["strict"]):
                row = (interval_text(result.pass_at[s][k]) for s in ("strict", "last_number", "format"))
                table.add_row(f"pass@{k}", *row)
    console = Console(highlight=False)
    console.print(table)
    for level, scores in sorted(results[-1].by_difficulty.items()):
        console.print(
            f"  {level}: {scores['strict']:.1%} strict, {scores['last_number']:.1%} by the last number"
        )
    for result in results:
        if (measured := result.calibration()) is not None:
            console.print(
                f"calibration, {result.mode}: confidence in the answer {measured.confidence:.1%}, right "
                f"{measured.accuracy:.1%}; Brier {measured.brier:.3f}, ECE {measured.ece_width:.3f} in bins "
                f"of equal width, {measured.ece_mass:.3f} of equal mass; {measured.samples} samples with an "
                f"answer, {measured.no_answer} without"
            )
    last = results[-1]
    console.print(
        f"{last.problems} problems; 95 % intervals, bootstrapped over problems; {last.truncated:.0%} of the "
        f"samples were cut off, mean length {last.mean_length:.0f} tokens"
    )


def _print_episodes(environment: NamedEnvironment, played: str, results: list[EpisodeEvaluation]) -> None:
    console = Console(highlight=False)
    if environment.scope:
        console.print(environment.scope)
    table = Table("measure", *("greedy" if r.mode == "greedy" else f"T = {r.temperature:g}" for r in results))
    for score in dict.fromkeys(score for result in results for score in result.scores):
        cells = [result.scores.get(score) for result in results]
        shown = [interval_text(c, share=score in SHARES) if c is not None else "not scored" for c in cells]
        table.add_row(score, *shown)
    last = results[-1]
    for k, solved in last.pass_at.get("success", {}).items():
        table.add_row(f"pass@{k}", *[""] * (len(results) - 1), interval_text(solved))
    console.print(table)
    for result in results:
        for state, course in result.courses.items():
            means = ", ".join(interval_text(at, share=False) for at in course)
            console.print(f"{state} at the opening and after each turn, {result.mode}: {means}")
    if last.by_group:
        console.print(_group_table(last))
    ended = ", ".join(f"{why} {count}" for why, count in last.ended.items())
    console.print(
        f"{last.problems} tasks of {environment.name}, {played}, {last.samples} episodes each; "
        f"95 % intervals, bootstrapped over tasks. Ended: {ended}. {last.mean_turns:.1f} turns and "
        f"{last.mean_length:.0f} tokens of the agent an episode"
    )
    if last.failures:
        console.print(f"{len(last.failures)} episodes failed and count in no score: {last.failures[0]}")


def _group_table(result: EpisodeEvaluation) -> Table:
    """Success, violations and the turns' sums of each group; the JSON has every score."""
    shown = [name for name in result.scores if name in SHARES or name.endswith("summed over turns")]
    table = Table(f"group, {result.mode}", "tasks", *shown)
    for group, scores in result.by_group.items():
        cells = [
            interval_text(scores[name], share=name in SHARES) if name in scores else "not scored"
            for name in shown
        ]
        table.add_row(group, str(result.group_sizes[group]), *cells)
    return table
