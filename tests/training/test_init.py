"""What `threefold init` writes is a recipe that runs, and every line of it is explained."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from threefold.cli import STARTERS, main
from threefold.environments import SHORT_NAMES


def test_every_starter_has_its_file() -> None:
    files = {Path(str(f)).stem for f in (resources.files("threefold") / "starters").iterdir()}
    assert files == set(STARTERS)


@pytest.mark.parametrize("kind", STARTERS)
def test_a_dry_run_accepts_what_is_written(
    kind: str, tmp_path: Path, make_model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "caregiver" and "caregiver" not in SHORT_NAMES:
        pytest.skip("recipes cannot name the caregiver environment yet")
    make_model(max_position_embeddings=8192).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "recipe.yaml"
    assert main(["init", kind, str(path)]) == 0
    assert f"threefold train {path}" in capsys.readouterr().out
    # Another model, since the embedded one is not installed everywhere; a character is a token of this one.
    model = f"model.name={tmp_path / 'model'}"
    assert main(["train", str(path), "--dry-run", model]) == 0
    assert "in order" in capsys.readouterr().out


@pytest.mark.parametrize("kind", STARTERS)
def test_starters_explain_themselves(kind: str) -> None:
    lines = (
        (resources.files("threefold") / "starters" / f"{kind}.yaml").read_text(encoding="utf-8").splitlines()
    )
    assert sum("#" in line for line in lines) >= len(lines) / 3
    assert all(len(line) <= 120 for line in lines)


def test_the_environment_starter_names_every_environment_of_the_package() -> None:
    text = (resources.files("threefold") / "starters" / "environment.yaml").read_text(encoding="utf-8")
    about = text.partition("environment:")[2].partition("name: toy")[0]
    missing = [name for name in SHORT_NAMES if not re.search(rf"\b{name}\b", about)]
    assert missing == []
    recipes = Path(__file__).parents[2] / "recipes"
    assert [name for name in SHORT_NAMES if not (recipes / f"{name}.yaml").exists()] == ["gymnasium"]


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("mine", encoding="utf-8")
    assert main(["init", "problems", str(path)]) == 2
    assert "exists; give another path" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"
    assert main(["init", "problems", str(path), "--overwrite"]) == 0
    assert path.read_text(encoding="utf-8").startswith("# A recipe to start from")
