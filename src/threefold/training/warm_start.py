"""A supervised start: a small model learns to speak from an environment's demonstrations before it explores.

GRPO has nothing to compare where no episode of a group succeeds, which is where a small model begins. Here it
first imitates dialogues (`demonstrations` of the environment), on the assistant's tokens alone, in exactly
the tokens that a rollout would have: openings and answers through the chat template, what the agent says with
the end token behind it. The result is the initial model of the run, so it is also the reference of a KL term
and the frozen base of ISPO.

Weights are kept in the cache folder under a fingerprint of everything that made them. A run that is resumed,
and runs that differ in what comes afterwards, start from the same weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from threefold.envs.base import Message
from threefold.models import cache_folder, load_model, resolve
from threefold.recipe import Recipe, RecipeError, load_recipe
from threefold.rollout.driver import between_turns
from threefold.training import launcher
from threefold.training.trl_config import weights_dtype
from threefold.training.work import Episodes, Work, work_of

_FACTS = "warm_start.json"
_PATIENCE = 0.5
"""Seconds between two looks for weights that another process learns."""


def check_warm_start(recipe: Recipe, work: Work) -> None:
    """Look at all demonstrations before any weight is loaded.

    Raises:
        RecipeError: The recipe has no environment, or a demonstration cannot be learnt from.
    """
    _demonstrations(recipe, work)


def warm_started(
    recipe: Recipe,
    work: Work,
    weights: Any,
    say: Callable[[str], None],
    *,
    processes: int = 1,
    bf16: bool = False,
) -> Path:
    """Folder of the warm-started weights; learnt now, or taken from the cache.

    Args:
        recipe: With `warm_start.dialogues` above 0.
        work: The recipe's, an environment.
        weights: Data type of the weights.
        say: Told what was done.
        processes: Of the launcher. With several the first of a machine has a process of its own learn, and
            the others wait for the weights.
        bf16: Compute under bf16 autocast.

    Raises:
        RecipeError: As `check_warm_start`, or the process that was to learn has failed.
    """
    rows = _demonstrations(recipe, work)
    facts = _facts(recipe, rows, str(weights), bf16)
    digest = hashlib.sha256(json.dumps([facts, rows], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"warm-start-{digest}"
    if (folder / _FACTS).exists():
        say(f"warm start: {len(rows)} demonstrations, learnt before ({folder})")
        return folder
    if processes > 1:
        if launcher.is_first_here():
            _learn_apart(recipe)
            if not (folder / _FACTS).exists():
                raise RecipeError(
                    f"environment {work.title} gives other demonstrations in another process; they have to "
                    "follow from the seed alone"
                )
        while not (folder / _FACTS).exists():  # a launcher ends those who wait for one that failed
            time.sleep(_PATIENCE)
    else:
        _learn_into(folder, recipe, work, rows, facts, weights, bf16)
    kept = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    losses = kept["losses"]
    say(
        f"warm start: {len(rows)} demonstrations, loss {losses[0]:.2f} to {losses[-1]:.2f} "
        f"({kept['seconds']:.0f} s), kept in {folder}"
    )
    return folder


def demonstration_tokens(messages: Sequence[Message], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of a dialogue as the driver would build it, and a mask that is 1 where the agent speaks.

    Raises:
        ValueError: The dialogue has no opening, or the agent says nothing in it.
    """
    roles = [message["role"] for message in messages]
    if "assistant" not in roles or roles[0] == "assistant":
        raise ValueError(
            f"a demonstration needs an opening and something said by the assistant, its roles are {roles}"
        )
    first = roles.index("assistant")
    ids: list[int] = tokenizer.apply_chat_template(
        list(messages[:first]), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    ids, mask = list(ids), [0] * len(ids)
    heard: list[Message] = []
    spoken: list[int] | None = None
    for message in messages[first:]:
        if message["role"] != "assistant":
            heard.append(message)
            continue
        if spoken is not None:
            answer = between_turns(spoken, heard, tokenizer)
            ids, mask, heard = [*ids, *answer], [*mask, *[0] * len(answer)], []
        said = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
        spoken = [*said, tokenizer.eos_token_id]
        ids, mask = [*ids, *spoken], [*mask, *[1] * len(spoken)]
    return ids, mask


def _demonstrations(recipe: Recipe, work: Work) -> list[dict[str, list[int]]]:
    if not isinstance(work, Episodes):
        raise RecipeError(
            "warm_start.dialogues needs an environment with demonstrations; set environment.name, or "
            "warm_start.dialogues to 0"
        )
    rows, name = [], work.environment.name
    settings = recipe.warm_start
    found = work.environment.demonstrations(settings.dialogues, recipe.run.seed, settings.source)
    for number, messages in enumerate(found):
        try:
            ids, mask = demonstration_tokens(messages, work.tokenizer)
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"environment {name}, demonstration {number}: {type(error).__name__}: {error}"
            ) from error
        rows.append({"input_ids": ids, "assistant_masks": mask})
    return rows


def _facts(recipe: Recipe, rows: Sequence[Any], weights: str, bf16: bool) -> dict[str, Any]:
    """What decides the weights, beside the demonstrations themselves."""
    folder = Path(resolve(recipe.model.name))
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")) if folder.is_dir() else []
    return {
        "model": recipe.model.name,
        "revision": recipe.model.revision,
        # A local folder may be overwritten under its name.
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "weights": weights,
        "bf16": bf16,
        "demonstrations": len(rows),
        "settings": recipe.warm_start.model_dump(),
        "seed": recipe.run.seed,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "trl")},
    }


def _learn_into(
    folder: Path,
    recipe: Recipe,
    work: Work,
    rows: Sequence[Any],
    facts: dict[str, Any],
    weights: Any,
    bf16: bool,
) -> None:
    """Learn, and put the weights with their facts in their place, whole or not at all."""
    started = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        losses = _learn(recipe, work, rows, weights, bf16, made)
        kept = {**facts, "losses": losses, "seconds": time.perf_counter() - started}
        (made / _FACTS).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        try:
            made.replace(folder)
        except OSError:  # another process was faster; its result is the same
            shutil.rmtree(made)


def _learn_apart(recipe: Recipe) -> None:
    """Learn in a process that no launcher has told of others: SFTTrainer would wait for them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        ended = subprocess.run(
            [sys.executable, "-m", "threefold.training.warm_start", str(path)],
            env=launcher.without_launcher(os.environ),
            stdout=subprocess.DEVNULL,
            check=False,
        )
    if ended.returncode:
        raise RecipeError(f"the warm start ended with status {ended.returncode}; its own message says why")


def _learn(
    recipe: Recipe, work: Work, rows: Sequence[Any], weights: Any, bf16: bool, target: Path
) -> list[float]:
    """Train by TRL's SFTTrainer, save the weights, and answer the loss of each step."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    settings = recipe.warm_start
    model = load_model(
        recipe.model.name,
        weights,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                per_device_train_batch_size=settings.batch_size,
                lr_scheduler_type="linear",
                train_sampling_strategy="group_by_length" if settings.by_length else "random",
                max_length=None,  # a demonstration is never cut
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=recipe.run.seed,
                bf16=bf16,
                gradient_checkpointing=recipe.training.gradient_checkpointing,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=work.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [float(log["loss"]) for log in trainer.state.log_history if "loss" in log]
    trainer.model.save_pretrained(target)
    work.tokenizer.save_pretrained(target)
    return losses


def main(path: str) -> None:
    """Learn what a recipe's warm start is, into the cache."""
    import torch

    recipe = load_recipe(path)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    weights, bf16 = weights_dtype(recipe)
    work = work_of(recipe)
    warm_started(recipe, work, weights, print, bf16=bf16)
    work.close()


if __name__ == "__main__":
    main(sys.argv[1])
