"""`threefold eval` refuses what cannot work before it measures anything."""

from pathlib import Path

import pytest

from threefold.cli import main


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
