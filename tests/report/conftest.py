"""Run directories as training leaves them, and a browser to open their reports in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_parts import start
from run_parts import make_dialogue, make_episode, make_group, write_run, write_study

from threefold.trajectory import Credited


@pytest.fixture
def episode() -> Callable[..., Credited]:
    return make_episode


@pytest.fixture
def group() -> Callable[..., list[Credited]]:
    return make_group


@pytest.fixture
def dialogue() -> Callable[..., Credited]:
    return make_dialogue


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first-run")


@pytest.fixture
def make_study() -> Callable[..., list[Path]]:
    return write_study


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; the test is skipped, with the reason, where there is none."""
    yield from start(tmp_path_factory.mktemp("profile"))
