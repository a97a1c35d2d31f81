"""`threefold skills`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from threefold import cli
from threefold.skills.bank import Add, Bank, apply, edited, operation_to_dict
from threefold.skills.skill import Skill
from threefold.skills.store import VersionRecord, read_bank, read_record, write_version
from threefold.skills.triggers import Trigger

ASK = Skill("ask-first", "You do not know where it is.", "Ask.")
LOOK = Skill("look-again", "You went.", "Look.", Trigger("action_pattern", "go .*"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with an accepted version and a rejected one."""
    root = tmp_path / "run" / "bank"
    first = apply(Bank(), [Add(ASK, "failures open at once")], "v1")
    second = apply(first, [Add(LOOK)], "v2")
    test = {
        "step": 6,
        "new": [9, 10],
        "old": [3, 10],
        "posterior_new": [10.0, 2.0],
        "posterior_old": [4.0, 8.0],
        "probability_new": 0.995,
    }
    write_version(root, Bank(), VersionRecord("v0"))
    operations = (operation_to_dict(Add(ASK, "failures open at once")),)
    evidence = {"diagnosis": "few ask"}
    write_version(root, first, VersionRecord("v1", "v0", 5, "accept", 10, operations, evidence, (test,)))
    write_version(root, second, VersionRecord("v2", "v1", 10, "reject", 15, (operation_to_dict(Add(LOOK)),)))
    return tmp_path / "run"


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = cli.main(["skills", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_list_marks_the_version_in_use(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = call(capsys, "list", run)
    assert status == 0
    assert text.splitlines() == [
        "  v0    initial      step 0     0 skills",
        "* v1    accept       step 5     1 skills  add ask-first",
        "  v2    reject       step 10    2 skills  add look-again",
    ]
    assert call(capsys, "list", run / "bank")[1] == text


def test_show_a_version_and_a_skill(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "- ask-first (revision 1; general; 32 characters)" in call(capsys, "show", run)[1]
    assert "v2: 2 skills" in call(capsys, "show", run, "--version", "v2")[1]
    assert call(capsys, "show", run, "ask-first")[1].startswith("---\nname: ask-first\n")
    status, text = call(capsys, "show", run, "nobody")
    assert status == 2
    assert "has no skill 'nobody'; it has ask-first" in text


def test_diff(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text = call(capsys, "diff", run, "v1", "v2")
    assert text.startswith("add look-again\n")
    assert "+  threefold-pattern: go .*" in text
    assert "the same skills" in call(capsys, "diff", run, "v1", "v1")[1]
    changed = Bank("v3", (edited(ASK, body="Ask twice."),), "v1")
    write_version(run / "bank", changed, VersionRecord("v3"))
    lines = call(capsys, "diff", run, "v1", "v3")[1].splitlines()
    assert lines[0] == "modify ask-first"
    assert {"-Ask.", "+Ask twice."} <= set(lines)
    assert call(capsys, "diff", run, "v1", "../v2")[0] == 2


def test_history_tells_the_test(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "history", run)[1]
    assert "v1 from v0, proposed at step 5: accept at step 10" in text
    assert "add ask-first (failures open at once)" in text
    assert "step 6: new 9/10, old 3/10; posterior means 0.833 and 0.333, P(new > old) = 0.995" in text


def test_validate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "validate", run)[0] == 0
    file = run / "bank" / "v1" / "skills" / "ask-first" / "SKILL.md"
    file.write_text(file.read_text().replace("name: ask-first", "name: ask"))
    for target in (run, file, file.parent, file.parent.parent):
        status, text = call(capsys, "validate", target)
        assert status == 2
        assert f"{file}, line 2: the name 'ask' differs from its folder's, 'ask-first'" in text
    assert call(capsys, "validate", run / "nothing")[0] == 2
    record = run / "bank" / "v2" / "version.json"
    record.write_text(record.read_text()[:-20])
    for words in (["validate", run], ["list", run], ["history", run], ["show", run, "--version", "v2"]):
        status, text = call(capsys, *words)
        assert status == 2
        assert f"{record} is not the record of a bank version" in text


def test_import_skills_of_others_and_of_skillrl(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = run / "theirs" / "pdf"
    theirs.mkdir(parents=True)
    (theirs / "SKILL.md").write_text("---\nname: pdf\ndescription: PDF.\nversion: 2\n---\nRead it.\n")
    bank = run / "mine"
    assert call(capsys, "import", bank, run / "bank" / "v1" / "skills")[0] == 0
    status, text = call(capsys, "import", bank, run / "theirs")
    assert status == 0
    assert "line 4: unknown field 'version'" in text
    assert read_bank(bank, "v0").skills == (ASK,)
    assert read_bank(bank, "v1").names == ("ask-first", "pdf")
    assert read_record(bank, "v1").decision == "imported"
    for source in (run / "theirs", theirs, theirs / "SKILL.md"):
        status, text = call(capsys, "import", bank, source)
        assert status == 2
        assert "v1 already has pdf" in text
    status, text = call(capsys, "import", bank, run / "nothing")
    assert status == 2
    assert f"{run / 'nothing'} does not exist" in text
    for target in (run, run / "bank"):  # a resume would drop it
        status, text = call(capsys, "import", target, run / "theirs")
        assert status == 2
        assert "is a run, whose bank is its own" in text
    entry = {"title": "Go On", "principle": "Go on.", "when_to_apply": "Always."}
    (run / "rl.json").write_text(json.dumps({"general_skills": [entry]}))
    assert call(capsys, "import", run / "new", run / "rl.json")[0] == 0
    assert read_bank(run / "new", "v0").names == ("go-on",)


def test_export_to_a_folder_that_agents_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = run / ".agents" / "skills"
    assert call(capsys, "export", run, target)[0] == 0
    assert (target / "ask-first" / "SKILL.md").is_file()
    status, text = call(capsys, "export", run, target, "--version", "v2")
    assert status == 2
    assert "already holds ask-first" in text
    assert not (target / "look-again").exists()


def test_a_folder_without_a_bank_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = call(capsys, "list", tmp_path)
    assert status == 2
    assert "holds no bank versions" in text
