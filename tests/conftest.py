"""Fixtures around the tiny parts: a model, its tokenizer, a configuration and a trainer."""

from __future__ import annotations

import os

# Before torch and transformers are imported: spinning threads and network lookups cost more than the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tiny_parts import digit, sums, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def dataset() -> Any:
    return sums()


@pytest.fixture
def make_model() -> Callable[..., Any]:
    return tiny_model


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Any]:
    """GRPOConfig for the tiny model; keywords replace its fields."""
    return partial(tiny_config, output_dir=tmp_path / "trl")


@pytest.fixture
def build(config: Callable[..., Any]) -> Callable[..., Any]:
    """Make a trainer: `build(cls, credit=..., args={...})`; without a class, a ThreefoldTrainer."""
    from threefold import ThreefoldTrainer

    def make(cls: Any = ThreefoldTrainer, args: dict[str, Any] | None = None, **options: Any) -> Any:
        defaults = {
            "model": options.pop("model", None) or tiny_model(),
            "reward_funcs": digit,
            "train_dataset": sums(),
            "processing_class": tiny_tokenizer(),
        }
        return cls(args=config(**(args or {})), **{**defaults, **options})

    return make


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """The tiny model and tokenizer, saved as a local folder that recipes can name."""
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
