"""Versions on disk: they round-trip, are whole or absent, and broken edits are reported."""

from __future__ import annotations

import builtins
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from errand_play import experiences

from threefold.skills.bank import Add, Bank, apply, operation_to_dict
from threefold.skills.chat_creator import ChatCreator
from threefold.skills.creator import Creator, Evidence
from threefold.skills.memory_creator import MemoryCreator
from threefold.skills.offline_creator import OfflineCreator
from threefold.skills.placebo_creator import PlaceboCreator
from threefold.skills.skill import Skill, SkillError
from threefold.skills.skillrl import read_skillrl
from threefold.skills.store import (
    VersionRecord,
    drop_versions,
    read_bank,
    read_record,
    update_record,
    version_problems,
    versions,
    write_version,
)
from threefold.skills.triggers import Trigger

ASK = Skill("ask-first", "You do not know where the thing is.", "Ask before you open anything.")
LOOK = Skill("look-again", "You have gone somewhere.", "Look.", Trigger("action_pattern", "go .*"), 2, 7)
BANK = Bank("v1", (LOOK, ASK), parent="v0")
RECORD = VersionRecord(
    "v1",
    parent="v0",
    step=7,
    decision="testing",
    operations=(operation_to_dict(Add(ASK, "failures open at once")),),
    evidence={"diagnosis": "half of the failures open the wrong door", "pass rates": {"a": 0.25}},
    test=(
        {
            "step": 8,
            "new": [3, 8],
            "old": [1, 8],
            "posterior_new": [4.0, 6.0],
            "posterior_old": [2.0, 8.0],
            "probability_new": 0.869,
        },
    ),
)


def test_a_version_round_trips(tmp_path: Path) -> None:
    write_version(tmp_path, BANK, RECORD)
    assert read_bank(tmp_path, "v1") == BANK
    assert read_record(tmp_path, "v1") == RECORD
    assert (tmp_path / "v1" / "skills" / "ask-first" / "SKILL.md").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1"]


def test_the_reference_validator_accepts_the_bank(tmp_path: Path) -> None:
    reference = pytest.importorskip("skills_ref", reason="skills-ref is not installed")
    write_version(tmp_path, BANK, RECORD)
    folders = list((tmp_path / "v1" / "skills").iterdir())
    assert [reference.validate(folder) for folder in folders] == [[], []]


class Writer:
    """A language model that adds one skill, whatever it is asked."""

    def __call__(self, messages: Any) -> str:
        skill = {"op": "add", "name": "Ask: first!", "when_to_use": "You begin: yes #1.", "action": "Ask."}
        plan = {"insight": "None ask.", "diagnosis": "Few.", "assertions": []}
        return json.dumps({**plan, "operations": [{**skill, "target": "ask"}]})


@pytest.mark.parametrize(
    "creator", [OfflineCreator(), ChatCreator(Writer()), PlaceboCreator(), MemoryCreator()], ids=type
)
def test_the_reference_validator_accepts_the_bank_of_every_creator(tmp_path: Path, creator: Creator) -> None:
    reference = pytest.importorskip("skills_ref", reason="skills-ref is not installed")
    seen = tuple(experiences())
    evidence = Evidence(3, Bank("v0"), seen, tuple((e,) for e in seen[:2]), capacity=64)
    bank = apply(evidence.bank, creator(evidence).operations, "v1", capacity=64)
    folder = write_version(tmp_path, bank, VersionRecord("v1", "v0"))
    skills = sorted((folder / "skills").iterdir())
    assert [path.name for path in skills] == [*bank.names]
    assert skills
    assert [reference.validate(path) for path in skills] == [[]] * len(skills)


def test_a_version_is_never_overwritten_unless_asked(tmp_path: Path) -> None:
    write_version(tmp_path, BANK, RECORD)
    with pytest.raises(FileExistsError, match="never changed"):
        write_version(tmp_path, BANK, RECORD)
    other = Bank("v1", (ASK,), parent="v0")
    write_version(tmp_path, other, RECORD, replace=True)
    assert read_bank(tmp_path, "v1") == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1"]


def test_the_record_moves_on_with_its_test(tmp_path: Path) -> None:
    write_version(tmp_path, BANK, RECORD)
    decided = VersionRecord("v1", "v0", 7, decision="accept", decided_step=12)
    update_record(tmp_path, decided)
    assert read_record(tmp_path, "v1") == decided
    with pytest.raises(FileNotFoundError, match="no bank version v9; it has v1"):
        update_record(tmp_path, VersionRecord("v9"))


FULL_DISK = """
import resource, sys
from threefold.skills.bank import Bank
from threefold.skills.skill import Skill
from threefold.skills.store import VersionRecord, write_version
bank = Bank(sys.argv[2], (Skill("a-small", "When.", "Do."), Skill("b-large", "When.", "x" * 9000)))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_version(sys.argv[1], bank, VersionRecord(sys.argv[2]), replace=True)
except OSError as error:
    print(type(error).__name__, error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_disk_that_fills_up_leaves_no_half_version(tmp_path: Path, version: str) -> None:
    """The second skill does not fit: the kernel refuses the write in the middle."""
    write_version(tmp_path, BANK, RECORD)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), version], capture_output=True, text=True, check=True
    )
    assert done.stdout == "OSError File too large\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1"]
    assert read_bank(tmp_path, "v1") == BANK  # also where it was to be replaced


SMALL_DISK = """
import os, shutil, subprocess, sys
from pathlib import Path
from threefold.skills.bank import Bank
from threefold.skills.skill import Skill
from threefold.skills.store import VersionFiles, VersionRecord, read_bank, versions
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(root)], check=True)
files = VersionFiles(root)
assert files.write(Bank("v0"), VersionRecord("v0")) == []
large = Bank("v1", (Skill("a-small", "When.", "Do."), Skill("b-large", "When.", "x" * 90_000)), "v0")
((version, problem),) = files.write(large, VersionRecord("v1", "v0", decision="testing"))
print(version, problem.split(":")[0].rsplit("/", 1)[1], "No space left on device" in problem)
print(versions(root), sorted(p.name for p in root.iterdir()), read_bank(root, "v0") == Bank("v0"))
fits = Bank("v2", (Skill("a-small", "When.", "Do."),), "v0")
problems = files.write(fits, VersionRecord("v2", "v0"))  # v1 is tried again, and refused again
print([version for version, _ in problems], versions(root), read_bank(root, "v2") == fits)
subprocess.run(["mount", "-o", "remount,size=1m", str(root)], check=True)
print(files.write(fits, VersionRecord("v2", "v0", decision="accept")), versions(root))
print(read_bank(root, "v1") == large)
"""
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount() -> bool:
    """Whether a process here may have file systems of its own."""
    try:
        command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="needs Linux and the right to mount in a namespace of one's own")
def test_a_real_disk_without_space_leaves_no_half_version_and_gets_it_later(tmp_path: Path) -> None:
    command = [*OWN_MOUNTS, sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "v1 v1 True",
        "['v0'] ['v0'] True",
        "['v1'] ['v0', 'v2'] True",
        "[] ['v0', 'v1', 'v2']",
        "True",
    ]


class Full:
    """A disk on which the n-th call that needs space, and every later one, finds none."""

    def __init__(self, patch: pytest.MonkeyPatch, calls: int) -> None:
        self.left = calls
        for owner, name in ((os, "fsync"), (os, "mkdir"), (builtins, "open")):
            patch.setattr(owner, name, self.limited(getattr(owner, name)))

    def limited(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **keywords: Any) -> Any:
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= 1
            return call(*arguments, **keywords)

        return instead


@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_wherever_the_space_ends_a_version_is_whole_or_not_there(tmp_path: Path, again: bool) -> None:
    other = Bank("v1", (ASK,), parent="v0")
    refused = 0
    for calls in range(99):
        root = tmp_path / f"{calls}"
        root.mkdir()
        if again:
            write_version(root, BANK, RECORD)
        with pytest.MonkeyPatch.context() as patch:
            Full(patch, calls)
            try:
                write_version(root, other, RECORD, replace=True)
            except OSError:
                refused += 1
                there = [BANK] if again else []
            else:
                there = [other]
        # Flushing the folder comes after the rename: a version may be there although its write was refused.
        found = [read_bank(root, version) for version in versions(root)]
        assert found in (there, [other])
        assert all(path.name == "v1" for path in root.iterdir())
        if found == there == [other] and refused >= 8:
            return
    raise AssertionError("the write never succeeded")


def test_broken_edits_are_reported_with_file_and_line(tmp_path: Path) -> None:
    write_version(tmp_path, BANK, RECORD)
    file = tmp_path / "v1" / "skills" / "look-again" / "SKILL.md"
    file.write_text(file.read_text().replace("action_pattern", "acton_pattern"))
    (tmp_path / "v1" / "skills" / "empty").mkdir()
    problems = version_problems(tmp_path, "v1")
    assert len(problems) == 2
    assert "empty/SKILL.md does not exist" in problems[0]
    assert f"{file}, line 6: unknown trigger 'acton_pattern'" in problems[1]
    with pytest.raises(SkillError, match="line 6"):
        read_bank(tmp_path, "v1")


def test_good_edits_are_read(tmp_path: Path) -> None:
    write_version(tmp_path, BANK, RECORD)
    file = tmp_path / "v1" / "skills" / "ask-first" / "SKILL.md"
    file.write_text(file.read_text() + "\nThen open it.\n")
    assert read_bank(tmp_path, "v1")["ask-first"].body == "Ask before you open anything.\n\nThen open it."


def test_records_that_are_none_are_refused(tmp_path: Path) -> None:
    write_version(tmp_path, BANK, RECORD)
    file = tmp_path / "v1" / "version.json"
    for text in ("{", "[]", '{"schema": 99}', '{"schema": 1, "version": "v1", "who": 1}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"version\.json is not the record"):
            read_record(tmp_path, "v1")
    file.unlink()
    write_version(tmp_path, BANK, RECORD, replace=True)
    whole = json.loads(file.read_text())
    edits: list[tuple[str, Any, str]] = [
        ("operations", ["add ask-first"], r"operations\[0\] must be an object"),
        ("test", [{"step": 8}], r"test\[0\] must be an object with new, old"),
        ("test", [{**whole["test"][0], "new": ["3", 8]}], r"test\[0\]\.new must hold numbers"),
        ("test", [{**whole["test"][0], "old": [1]}], r"test\[0\]\.old must be a pair"),
        ("evidence", "none", "evidence must be an object"),
    ]
    for field, value, says in edits:
        file.write_text(json.dumps({**whole, field: value}))
        with pytest.raises(ValueError, match=says):
            read_record(tmp_path, "v1")
        assert len(version_problems(tmp_path, "v1")) == 1
    file.unlink()
    assert read_record(tmp_path, "v1").decision == "imported"


def test_versions_are_listed_in_order_and_dropped_on_resume(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_version(tmp_path, Bank(f"v{number}"), VersionRecord(f"v{number}"))
    (tmp_path / ".v3-half").mkdir()
    (tmp_path / "vx").mkdir()
    assert versions(tmp_path) == ["v1", "v2", "v10"]
    assert drop_versions(tmp_path, keep={"v1", "v2"}) == ["v10"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1", "v2", "vx"]
    with pytest.raises(ValueError, match="'v' and a number"):
        read_bank(tmp_path, "../v1")


def test_banks_of_skillrl_are_imported(tmp_path: Path) -> None:
    file = tmp_path / "bank.json"
    entry = {"skill_id": "gen_001", "title": "Search Everywhere", "principle": "Look in all places."}
    data = {
        "general_skills": [{**entry, "when_to_apply": "The object is not visible."}, {**entry, "title": ""}],
        "task_specific_skills": {"clean": [{**entry, "when_to_apply": "At the sink --- always."}]},
        "common_mistakes": [
            {
                "description": "Looping on one action",
                "why_it_happens": "No memory",
                "how_to_avoid": "Move on.",
            }
        ],
    }
    file.write_text(json.dumps(data))
    skills, notes = read_skillrl(file)
    assert [skill.name for skill in skills] == [
        "search-everywhere",
        "search-everywhere-2",
        "avoid-looping-on-one-action",
    ]
    assert skills[0].description == "The object is not visible."
    assert skills[0].body == "Look in all places."
    assert skills[1].description == "Task type clean: At the sink - always."
    assert skills[1].metadata == {"skillrl-id": "gen_001", "skillrl-task-type": "clean"}
    assert skills[2].body == "Move on.\n- Why: No memory"
    assert notes == ["general_skills[1]: has no title or no text, left out"]
    write_version(tmp_path, Bank("v1", tuple(skills)), VersionRecord("v1", decision="imported"))
    assert read_bank(tmp_path, "v1").skills == tuple(sorted(skills, key=lambda s: s.name))
    odd = {"title": "Go\u200b on", "principle": "Go\u00a0on\u200b.\ud800", "when_to_apply": "Al\u00adways."}
    file.write_text(json.dumps({"general_skills": [odd]}))
    assert read_skillrl(file)[0] == [Skill("go-on", "Always.", "Go on.")]
    for text, says in [("{", "not JSON"), ("{}", "not a SkillRL bank"), ('{"general_skills": {}}', "a list")]:
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_skillrl(file)
