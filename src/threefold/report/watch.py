"""Writes a report again and again while its runs go on: `threefold view RUN --watch`.

Nothing is asked of the training process. Its files are looked at, and the page is written anew where one of
them has changed, whole or not at all, so that a browser never sees half a page. A run that crashed, or whose
last line is half written, is shown as far as it got."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from threefold.report.overview import planned_steps
from threefold.report.reading import Run, read_run

_WATCHED = ("*.json", "*.jsonl", "config.yaml", "bank/*/version.json")
LEAST = 0.2
"""Seconds between two looks that are allowed at least."""

REST = 4
"""Seconds of rest for a second of writing: a long run's report shall not slow the run down."""


@dataclass(frozen=True)
class Written:
    """One writing of the page."""

    path: Path
    seconds: float
    done: bool
    """All runs are complete, so the page will not change any more."""


def watch(
    run_dirs: Sequence[Path],
    write: Callable[[float | None], Path],
    *,
    every: float,
    tell: Callable[[Written], None] = lambda written: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Write the page until the runs are complete or Ctrl-C is pressed.

    Args:
        run_dirs: The runs that the page is made of.
        write: Writes the page. Its argument is the number of seconds after which an open page loads itself
            again; None where it shall not.
        every: Seconds between two looks at the files; more where writing takes long, see `REST`.
        tell: Called after each writing.
        sleep: Waits; it raises KeyboardInterrupt where the user has had enough.

    Returns:
        The file, whose last writing does not load itself again.

    Raises:
        FileNotFoundError: A run directory does not exist.
        ValueError: `every` is too short.
    """
    if every < LEAST:
        raise ValueError(f"the interval must be at least {LEAST} s, got {every:g}")
    seen: Mapping[Path, tuple[int, int]] | None = None
    took = 0.0
    try:
        while True:
            found = state(run_dirs)
            if found != seen:
                # What changes while it is read is seen by the next look.
                done = all(map(is_complete, run_dirs))
                begun = time.perf_counter()
                path = write(None if done else every)
                took = time.perf_counter() - begun
                tell(Written(path, took, done))
                if done:
                    return path
                seen = found
            sleep(max(every, REST * took))
    except KeyboardInterrupt:
        return write(None)


def state(run_dirs: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file that a page is made of.

    Raises:
        FileNotFoundError: A run directory does not exist.
    """
    found = {}
    for run_dir in run_dirs:
        if not run_dir.is_dir():
            raise FileNotFoundError(
                f"{run_dir} is not a run directory: give the directory that holds metrics.jsonl"
            )
        for pattern in _WATCHED:
            for path in run_dir.glob(pattern):
                try:
                    known = path.stat()
                except FileNotFoundError:  # replaced or rotated at this moment
                    continue
                found[path] = (known.st_size, known.st_mtime_ns)
    return found


def is_complete(run_dir: Path) -> bool:
    """Whether a run has made all its steps and has saved what it ends with."""
    return complete(read_run(run_dir, episode_limit=0))


def complete(run: Run) -> bool:
    """The same of a run that was read."""
    planned, last = planned_steps(run.config), run.metrics.last_step
    if planned is None or last is None or last < planned:
        return False
    evaluated = any(e.when != "before" for e in run.evaluations)
    return evaluated or (run.directory / "model").is_dir()
