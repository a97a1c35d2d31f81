"""A page that names a test as its evidence names one that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_tests_that_pages_name_exist() -> None:
    named = {
        (file, name)
        for page in sorted(ROOT.glob("docs/*.md"))
        for file, name in NAMED.findall(page.read_text(encoding="utf-8"))
    }
    assert len(named) > 30
    functions = {
        (file, node.name)
        for file in {file for file, _ in named}
        if (ROOT / file).exists()
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert not named - functions
