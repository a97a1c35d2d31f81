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


OFFERS = [
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
]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a recipe and a run."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.yaml").touch()
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    return tmp_path


@needs("bash")
@pytest.mark.parametrize(("words", "offered"), OFFERS)
def test_bash_offers(words: str, offered: list[str], project: Path) -> None:
    assert sorted(bash(words, project, project)) == offered


@needs("fish")
def test_fish_offers(project: Path) -> None:
    (project / "threefold.fish").write_text(script("fish"), encoding="utf-8")
    asked = "; ".join(f"complete -C '{words}'; echo ===" for words, _ in OFFERS)
    answer = subprocess.run(
        ["fish", "--no-config", "-c", f"source threefold.fish; {asked}"],
        cwd=project, capture_output=True, text=True, check=True,
        env={**os.environ, "HOME": str(project), "XDG_CONFIG_HOME": str(project / ".config")},
    )  # fmt: skip
    assert answer.stderr == ""
    answers = answer.stdout.split("===\n")[:-1]
    for (words, offered), lines in zip(OFFERS, answers, strict=True):
        found = [line.partition("\t")[0].rstrip("/") for line in lines.splitlines()]
        assert (words, sorted(found)) == (words, offered)


INTERACTIVE = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source ./_threefold"),
    # As the script asks for it: a file in fpath before compinit.
    "zsh": (["zsh", "-f", "-i"], "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D"),
}


def typed(shell: str, lines: list[str], folder: Path) -> str:
    """What an interactive shell prints when these lines are typed, tabs and all."""
    command, setup = INTERACTIVE[shell]
    (folder / "_threefold").write_text(script(shell), encoding="utf-8")
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, start_new_session=True,
        env={**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null", "PS1": "$ ", "HOME": str(folder)},
    )  # fmt: skip
    os.close(terminal)
    words = [setup, "threefold() { printf '<%s>' \"$@\"; printf '\\n'; }", *lines, "exit"]
    os.write(master, "".join(f"{line}\n" for line in words).encode())
    said = b""
    try:
        while chunk := os.read(master, 4096):
            said += chunk
    except OSError:  # what a terminal answers once the other side has gone
        pass
    finally:
        process.wait(timeout=20)
        os.close(master)
    return said.decode()


@pytest.mark.parametrize("shell", [pytest.param(shell, marks=needs(shell)) for shell in INTERACTIVE])
def test_the_tab_key_completes_lines_in_an_interactive_shell(shell: str, project: Path) -> None:
    """A command, a file, a key of a recipe, after which no space may stand before its value, an option."""
    lines = {
        "threefold tr\trecipes/de\ttraining.lea\t1 --ov\t": (
            "<train><recipes/demo.yaml><training.learning_rate=1><--overwrite>"
        ),
        "threefold doctor --no\t": "<doctor><--no-step>",
        "threefold init pr\t": "<init><problems>",
        "threefold skills d\t": "<skills><diff>",
        "threefold completion z\t": "<completion><zsh>",
        "threefold view runs/d\t": "<view><runs/demo",  # zsh takes the slash off again
    }
    said = typed(shell, list(lines), project)
    for expected in lines.values():
        assert expected in said, said


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
