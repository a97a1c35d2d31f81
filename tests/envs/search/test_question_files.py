"""Questions and passages from files of one's own, which need no search engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from threefold.envs.search.questions import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the marks that end lines in text files of old, and letters of everywhere."""
    passages = [{"title": "Ύδρα", "text": "Ἴλιος lies\u2028on a hill\x85by the sea."}]
    files = {"passages": passages} | {
        split: [{"question": f"where is {split}?", "answers": ["Ἴλιος"]}]
        for split in ("train", "seen", "unseen")
    }
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_a_line_ends_at_its_newline_alone(folder: Path) -> None:
    found = load(str(folder))
    assert found.passages[0].text == "Ἴλιος lies\u2028on a hill\x85by the sea."
    assert found.questions["train"][0].answers == ("Ἴλιος",)


def test_files_are_utf_8_wherever_they_are_read(folder: Path) -> None:
    code = (
        "from threefold.envs.search.questions import load\n"
        f"print(ascii(load({str(folder)!r}).passages[0].title))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        env={
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ascii("Ύδρα")


def test_a_line_that_is_none_is_named(folder: Path) -> None:
    with open(folder / "seen.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"question": "?"}\n')
    with pytest.raises(ValueError, match=r"seen\.jsonl, line 3: answers is missing"):
        load(str(folder))
