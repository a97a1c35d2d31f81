"""A recipe of care dialogues for a tiny model of characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from care_parts import SETTINGS
from tiny_parts import tiny_model, tiny_tokenizer


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a recipe for two-turn dialogues of a tiny model of characters; keywords are dotted keys."""
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)

    def write(**changes: Any) -> Path:
        paths = {"model.name": str(folder), "run.dir": str(tmp_path / "run")}
        data: dict[str, Any] = {}
        for key, value in {**SETTINGS, **paths, **changes}.items():
            section, _, name = key.partition(".")
            data.setdefault(section, {})[name] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write
