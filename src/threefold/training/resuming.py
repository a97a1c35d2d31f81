"""What a resumed run may change: how long and how fast it trains, never what it is.

A checkpoint of one model, task or method under the recipe of another would be trained on, and recorded, as
that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from threefold.recipe import Recipe, RecipeError
from threefold.training.run_directory import RunDirectory

_KEPT = ("model", "data", "prompt", "environment.name", "warm_start", "credit", "run.seed")
"""Sections and keys of a recipe that say what a run is."""


def check_resumed(recipe: Recipe, run: RunDirectory, updates_per_step: int) -> dict[str, tuple[Any, Any]]:
    """Hold a recipe against the run that it is to go on with, before anything is written.

    A run whose config.yaml is missing or damaged is compared in its steps alone; keys that it does not have,
    as those of a later version, are not compared.

    Args:
        updates_per_step: Optimizer updates of a step, which checkpoints count.

    Returns:
        What else has changed: the old and the new value by dotted key.

    Raises:
        RecipeError: The recipe is of another run, or ends before the checkpoint; the message names the keys.
    """
    recorded = _recorded(run.path / "config.yaml")
    differences = _differences(recorded, yaml.safe_load(recipe.to_yaml()))
    changed = {
        key: values
        for key, values in differences.items()
        if any(key == kept or key.startswith(f"{kept}.") for kept in _KEPT)
    }
    if changed:
        changes = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items())
        raise RecipeError(
            f"{run.path} is a run of another recipe, which --resume cannot turn into this one: {changes}; "
            f"resume with {run.path / 'config.yaml'} or its overrides, or give another run.dir"
        )
    checkpoint = run.latest_checkpoint()
    done = int(checkpoint.name.rpartition("-")[2]) // updates_per_step if checkpoint else 0
    if done > recipe.training.steps:
        raise RecipeError(
            f"training.steps = {recipe.training.steps}, but {run.path} has trained {done} steps; raise it to "
            "go on"
        )
    return differences


def _recorded(config: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Both values by dotted key, where both have the key and differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in (key for key in old if key in new):
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            found |= _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            found[f"{prefix}{key}"] = (old[key], new[key])
    return found
