"""Which engines are installed here, and the Java processes below this one."""

from __future__ import annotations

import importlib.util
import os

import psutil
import pytest

from threefold.envs.java import java


def needs(package: str, extra: str, *, runs_on_java: bool = True) -> pytest.MarkDecorator:
    """Skips where the package or Java is missing, and says so."""
    installed = importlib.util.find_spec(package) is not None
    wanted = [] if installed else [f"the package {package} (threefold[{extra}])"]
    wanted += ["a Java runtime"] if runs_on_java and java() is None else []
    return pytest.mark.skipif(bool(wanted), reason=f"needs {' and '.join(wanted)}")


def java_processes(of: int | None = None) -> list[int]:
    """Ids of the Java processes that this process, or process `of`, has started, at any depth."""
    children = psutil.Process(of or os.getpid()).children(recursive=True)
    return [child.pid for child in children if child.is_running() and child.name() == "java"]
