"""`threefold eval` refuses what cannot work before it measures anything."""

from pathlib import Path

import pytest

from threefold.cli import main
from threefold.evaluation.command import _find
from threefold.recipe import Recipe, RecipeError


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["eval", *words]) == 2
    return capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    # The model is none: a refusal that names the output came before it was looked for.
    said = refused(capsys, "no-model", "--output", str(tmp_path))
    assert f"--output {tmp_path} is a folder" in said
    assert "cannot be made" in refused(capsys, "no-model", "--output", str(tmp_path / "file" / "x.json"))


def test_the_folder_of_an_output_is_made(tmp_path: Path, capsys) -> None:
    output = tmp_path / "new" / "eval.json"
    words = ["tiny", "--problems", "2", "--samples", "1", "--max-tokens", "4", "--output", str(output)]
    assert main(["eval", *words]) == 0
    assert '"evaluations"' in output.read_text(encoding="utf-8")


def test_a_folder_without_a_run_or_a_model_is_named(tmp_path: Path, capsys) -> None:
    assert "holds neither a run (config.yaml) nor a model" in refused(capsys, str(tmp_path))


def run_with(folder: Path, *whole: int, half_written: int | None = None) -> Path:
    """A run directory with checkpoints of these updates; weights do not matter here."""
    folder.mkdir()
    (folder / "config.yaml").write_text(Recipe().to_yaml(), encoding="utf-8")
    for step in whole:
        made = folder / "checkpoints" / f"checkpoint-{step}"
        made.mkdir(parents=True)
        (made / "trainer_state.json").write_text("{}", encoding="utf-8")
    if half_written is not None:
        made = folder / "checkpoints" / f"checkpoint-{half_written}"
        made.mkdir(parents=True)
        (made / "threefold_state.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_run_that_was_killed_is_evaluated_at_its_last_whole_checkpoint(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 2, 10, half_written=12)
    assert _find(str(run), None, [])[1] == str(run / "checkpoints" / "checkpoint-10")
    cut = run_with(tmp_path / "cut", half_written=2)
    with pytest.raises(RecipeError, match="without a model or a checkpoint"):
        _find(str(cut), None, [])
