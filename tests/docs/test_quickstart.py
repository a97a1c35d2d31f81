"""The quickstart and the tour of `threefold --help` run as they stand, with a small model and few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from threefold.arguments import build
from threefold.cli import main

ROOT = Path(__file__).parents[2]
# The embedded model takes minutes and is not installed everywhere.
SMALLER = ["model.name=model", "training.steps=1", "evaluation.problems=2", "evaluation.greedy=false"]


def commands() -> list[str]:
    """The lines of the page's bash blocks that call threefold, in their order."""
    text = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("threefold ")]


@pytest.mark.parametrize(
    "lines", [commands(), list(build().examples)], ids=["quickstart", "threefold --help"]
)
def test_pasted_lines_run(
    lines: list[str], tmp_path: Path, make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(max_position_embeddings=2048).save_pretrained("model")
    tokenizer.save_pretrained("model")
    assert {"init", "doctor", "train", "view"} <= {line.split()[1] for line in lines}
    for line in lines:
        words = shlex.split(line)[1:]
        assert main(words + SMALLER * (words[0] in ("train", "doctor"))) == 0, line
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 0
