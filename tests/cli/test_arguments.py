"""What is typed wrongly is refused with the nearest valid word, at once and with status 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from threefold.arguments import build, every, parse
from threefold.cli import main


def refused(capsys: pytest.CaptureFixture[str], line: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND (train, init, doctor, "),
        ("trian r.yaml", "invalid choice: 'trian'; did you mean train? (choose from train, init, "),
        ("train", "the following arguments are required: recipe; for example: threefold train recipes/"),
        ("train r.yaml --dryrun", "--dryrun is no option of threefold train; did you mean --dry-run?"),
        ("train r.yaml --steps 3", "keys of the recipe are given without dashes, such as training.steps=40"),
        ("train r.yaml a=1 --quiet nothing", "one argument too many: nothing"),
        ("train r.yaml --steps=3 a=1", "--steps=3 is no option of threefold train"),
        ("view runs/demo --ouput x", "--ouput is no option of threefold view; did you mean --output?"),
        ("init problem", "invalid choice: 'problem'; did you mean problems?"),
        ("skills shwo runs/demo", "invalid choice: 'shwo'; did you mean show?"),
        ("completion tcsh", "invalid choice: 'tcsh' (choose from bash, zsh, fish)"),
        ("eval runs/demo --samples many", "argument --samples: invalid int value: 'many'"),
        ("compare --json", "the following arguments are required: RUN"),
        ("zzz", "invalid choice: 'zzz' (choose from"),
    ],
)
def test_a_wrong_word(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, line)
    assert message in said
    assert said.startswith("usage: threefold")


def test_overrides_stand_before_and_after_options() -> None:
    arguments = parse(["train", "r.yaml", "a.b=1", "--dry-run", "c.d=2", "--quiet", "e.f=--x"])
    assert arguments.overrides == ["a.b=1", "c.d=2", "e.f=--x"]
    assert arguments.dry_run
    assert arguments.quiet


def test_every_command_says_what_it_does_and_shows_it() -> None:
    parsers = list(every(build()))
    assert {"threefold train", "threefold skills diff", "threefold completion"} <= {p.prog for p in parsers}
    for parser in parsers:
        assert parser.description
        assert parser.examples, parser.prog
        said = parser.format_help()
        assert all(f"\n  {example}\n" in said for example in parser.examples)
        # pages and terminals of 100 columns hold them
        assert max(map(len, parser.examples)) < 98


def test_help_answers_without_heavy_imports() -> None:
    code = (
        "import sys; from threefold.arguments import build; build().format_help(); "
        "print(sorted({'torch', 'transformers', 'trl', 'numpy', 'rich', 'yaml'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_under_a_launcher_only_training_is_for_every_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, status in (("1", 0), ("0", 2)):
        monkeypatch.setenv("RANK", rank)
        assert main(["view", "no-such-run"]) == status
        said = capsys.readouterr()
        assert ("no-such-run" in said.err) == (rank == "0")
