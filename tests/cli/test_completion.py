"""Completion in real shells: bash always, zsh and fish where they are installed."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from threefold.cli import main
from threefold.completion import recipe_keys, script
from threefold.recipe import RecipeError, parse_recipe


def bash(words: str, folder: Path, tmp_path: Path) -> list[str]:
    """What bash offers for the last of the words, after sourcing the script."""
    source = tmp_path / "threefold.bash"
    if not source.exists():
        source.write_text(script("bash"), encoding="utf-8")
    code = f"""
        source {source}
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        $(complete -p threefold | sed 's/.*-F \\([^ ]*\\) .*/\\1/') 2>/dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    answer = subprocess.run(
        ["bash", "--norc", "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert answer.stderr == ""
    return answer.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("threefold tr", ["train"]),
        ("threefold co", ["compare", "completion"]),
        ("threefold train --dr", ["--dry-run"]),
        ("threefold train rec", ["recipes"]),
        ("threefold train recipes/demo.yaml training.lea", ["training.learning_rate="]),
        ("threefold train recipes/demo.yaml a=1 credit.noise_c", ["credit.noise_control="]),
        ("threefold doctor recipes/demo.yaml --no", ["--no-step"]),
        ("threefold init pr", ["problems"]),
        ("threefold skills d", ["diff"]),
        ("threefold view runs/d", ["runs/demo"]),
        ("threefold view r", ["recipes", "runs"]),
        ("threefold completion z", ["zsh"]),
        ("threefold train recipes/demo.yaml nonsense", []),
    ],
)
def test_bash_offers(words: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.yaml").touch()
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert sorted(bash(words, tmp_path, tmp_path)) == offered


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_the_tab_key_completes_a_line_in_an_interactive_bash(tmp_path: Path) -> None:
    """Tab after `training.lea` and after `--ov`; no space may stand between a key and its value."""
    (tmp_path / "threefold.bash").write_text(script("bash"), encoding="utf-8")
    (tmp_path / "demo.yaml").touch()
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path, start_new_session=True,
        env={**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null", "PS1": "$ "},
    )  # fmt: skip
    os.close(terminal)
    typed = (
        "source threefold.bash; threefold() { printf '<%s>' \"$@\"; }\n"
        "threefold tr\tde\ttraining.lea\t1 --ov\t\nexit\n"
    )
    os.write(master, typed.encode())
    said = b""
    try:
        while chunk := os.read(master, 4096):
            said += chunk
    except OSError:  # what a terminal answers once the other side has gone
        pass
    finally:
        process.wait(timeout=20)
        os.close(master)
    assert "<train><demo.yaml><training.learning_rate=1><--overwrite>" in said.decode(), said.decode()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_a_script_that_its_shell_reads(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "training.learning_rate=" in said
    assert "rehearse no step" in said or shell == "bash"  # the others show what an option does
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; its script is written, not read")
    file = tmp_path / "script"
    file.write_text(said, encoding="utf-8")
    subprocess.run([shell, "-n", str(file)], check=True)


def test_every_key_that_is_offered_is_a_key() -> None:
    keys = list(recipe_keys())
    assert len(keys) == len(set(keys))
    assert {"training.steps", "model.lora.r", "training.speedups.repack", "skills.chat.base_url"} <= set(keys)
    for key in keys:
        nested: object = object()  # of no type that a key has
        for name in reversed(key.split(".")):
            nested = {name: nested}
        assert isinstance(nested, dict)
        with pytest.raises(RecipeError) as refusal:
            parse_recipe(nested)
        assert f"unknown key '{key}'" not in str(refusal.value)
