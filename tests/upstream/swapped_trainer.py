"""A pytest plugin that puts a trainer of ours where TRL's tests look for `GRPOTrainer`.

THREEFOLD_UPSTREAM says which: "trl" (nothing is swapped), "threefold" (`ThreefoldTrainer` without a
component), or "recorded" (the same with a run directory, so that every batch passes through our side of the
seam).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import trl
import trl.trainer.grpo_trainer

from threefold.training.run_directory import RunDirectory
from threefold.training.trainer import ThreefoldTrainer


class RecordedTrainer(ThreefoldTrainer):
    """Records every batch, which TRL's tests do not ask for."""

    @functools.wraps(ThreefoldTrainer.__init__)
    def __init__(self, *args: Any, **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        super().__init__(*args, run_dir=RunDirectory(self._folder.name), **options)


CLASSES = {"trl": trl.GRPOTrainer, "threefold": ThreefoldTrainer, "recorded": RecordedTrainer}


def _moved(name: str) -> Callable[[], bool]:
    """Stands in for the `is_..._available` functions that a checkout of another version imports."""
    package = name.removeprefix("is_").removesuffix("_available")
    if name != f"is_{package}_available":
        raise AttributeError(f"module 'trl.import_utils' has no attribute {name!r}")
    return lambda: importlib.util.find_spec(package) is not None


def pytest_configure(config: pytest.Config) -> None:
    chosen = CLASSES[os.environ["THREEFOLD_UPSTREAM"]]
    trl.GRPOTrainer = chosen
    trl.trainer.GRPOTrainer = chosen
    trl.trainer.grpo_trainer.GRPOTrainer = chosen
    importlib.import_module("trl.import_utils").__dict__["__getattr__"] = _moved


def pytest_report_header(config: pytest.Config) -> str:
    return f"trainer under test: {trl.GRPOTrainer.__module__}.{trl.GRPOTrainer.__qualname__}"
