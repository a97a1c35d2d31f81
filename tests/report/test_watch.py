"""The page is written again as the run goes on, stops with it, and is whole at every moment."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from threefold.report import write_report
from threefold.report.reading import read_run
from threefold.report.watch import Written, complete, watch
from threefold.training.run_directory import RunDirectory
from threefold.trajectory import Credited, to_json

CONFIG = "training: {steps: 4}\n"


def start(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.write_config(CONFIG)
    run.append_metrics(1, {"reward": 0.0})
    return run


def reload_of(page: Path) -> str | None:
    found = re.search(r'<html lang="en" data-reload="([^"]*)">', page.read_text(encoding="utf-8"))
    return found[1] if found else None


def test_it_writes_where_something_changed_and_ends_with_the_run(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    told: list[Written] = []
    looks = 0

    def train(seconds: float) -> None:
        """What goes on in the run while the watcher sleeps."""
        nonlocal looks
        assert seconds == 70
        looks += 1
        assert reload_of(run.path / "report.html") == "70"
        if looks == 2:
            run.append_metrics(2, {"reward": 0.5})
        if looks == 3:
            run.append_metrics(4, {"reward": 1.0})
        if looks == 4:
            run.write_evaluation({"evaluations": [{"when": "after", "mode": "greedy", "scores": {}}]})

    page = watch(
        [run.path], lambda r: write_report(run.path, reload=r), every=70, tell=told.append, sleep=train
    )
    assert [written.done for written in told] == [False, False, False, True]
    assert looks == 4
    assert reload_of(page) is None
    assert "finished, 4 steps" in page.read_text(encoding="utf-8")


def test_ctrl_c_leaves_a_page_that_stays(tmp_path: Path) -> None:
    run = start(tmp_path / "run")

    def enough(seconds: float) -> None:
        raise KeyboardInterrupt

    page = watch([run.path], lambda r: write_report(run.path, reload=r), every=1, sleep=enough)
    assert reload_of(page) is None


def test_a_line_being_written_is_said_and_the_rest_is_shown(
    tmp_path: Path, episode: Callable[..., Credited]
) -> None:
    run = start(tmp_path / "run")
    run.append_rollouts([episode(1, 0, 0), episode(1, 0, 1)])
    line = to_json(episode(1, 0, 2))
    for name, half in (("rollouts.jsonl", line[: len(line) // 2]), ("metrics.jsonl", '{"step": 2, "rew')):
        with open(run.path / name, "a", encoding="utf-8") as file:
            file.write(half)
    text = write_report(run.path).read_text(encoding="utf-8")
    assert "All 2 recorded episodes are here" in text
    assert text.count("a crash cuts the line being written") == 2
    assert not complete(read_run(run.path))


def test_a_run_is_complete_with_its_last_step_and_what_it_saves(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    run.append_metrics(4, {"reward": 1.0})
    assert not complete(read_run(run.path))
    (run.path / "model").mkdir()
    assert complete(read_run(run.path))
    (run.path / "config.yaml").unlink()
    assert not complete(read_run(run.path))


def test_a_missing_run_and_a_short_interval_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        watch([tmp_path / "none"], lambda r: tmp_path, every=1)
    with pytest.raises(ValueError, match=r"at least 0\.2 s, got 0"):
        watch([tmp_path], lambda r: tmp_path, every=0)


def page_of(run_dir: Path) -> str:
    page = run_dir / "report.html"
    return page.read_text(encoding="utf-8") if page.is_file() else ""


def hear_interrupts() -> None:
    """A shell that starts tests in the background has them ignore Ctrl-C, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_command_follows_a_run_and_stops_at_an_interrupt(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    command = [sys.executable, "-m", "threefold.cli", "view", str(run.path), "--watch", "--interval", "0.2"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    ) as process:
        try:
            assert process.stderr is not None
            assert "looking again every 0.2 s" in process.stderr.readline()
            run.append_metrics(3, {"reward": 0.7})
            until = time.monotonic() + 60
            while "stopped at step 3 of 4, or still running" not in page_of(run.path):
                assert time.monotonic() < until, "the page never showed the third step"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()  # or a failure would wait for a command that never ends
    assert "report.html" in errors
    assert process.returncode == 0
    assert output.strip() == str(run.path / "report.html")
    assert "Traceback" not in errors
    assert reload_of(run.path / "report.html") is None


def test_no_reader_ever_sees_half_a_page(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    seen = []

    def look(seconds: float) -> None:
        text = (run.path / "report.html").read_text(encoding="utf-8")
        seen.append(text.endswith("</html>\n"))
        run.append_metrics(2, {"reward": time.time(), "note": json.dumps("x" * 1000)})
        if len(seen) == 3:
            raise KeyboardInterrupt

    watch([run.path], lambda r: write_report(run.path, reload=r), every=1, sleep=look)
    assert seen == [True, True, True]
    assert not list(run.path.glob("*.part"))
