"""What a person reads while a run goes on: steps, pace, warnings; and what a program reads instead."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest

from threefold.training.console import Console, Pace, duration

TRUNCATED = {
    "reward": 0.5,
    "completions/clipped_ratio": 0.5,
    "completions/mean_length": 100.0,
    "step_time": 2.0,
}


def show(console: Console, steps: int, words: str = "nothing special", **changes: Any) -> None:
    for number in range(1, steps + 1):
        console.step(number, steps, {**TRUNCATED, **changes}, words)


def test_pace_is_the_clock_s_over_the_newest_ten_steps() -> None:
    pace = Pace()
    assert pace.seconds(1, now=100.0, first=7.0) == 7.0  # nothing to compare with: what the step itself took
    assert pace.seconds(2, now=130.0, first=7.0) == 30.0
    for step in range(3, 13):
        seconds = pace.seconds(step, now=130.0 + 2 * (step - 2), first=7.0)
    assert seconds == 2.0  # the slow second step is forgotten


def test_pace_counts_on_from_a_resumed_step() -> None:
    pace = Pace()
    pace.seconds(101, now=0.0, first=5.0)
    assert pace.seconds(103, now=8.0, first=5.0) == 4.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (12600, "3.5 h"), (200_000, "2.3 days")],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_step_is_a_line_in_words_with_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.step(1, 10, {"reward": 0.5, "signal/outcome": 0.25, "grad_norm": 0.123, "step_time": 2.0,
                         "completions/mean_length": 64.0}, "3 of 4 groups [all wrong]")  # fmt: skip
    line = capsys.readouterr().out
    assert (
        line
        == "step 1/10  right 25%  length 64  gradient 0.12  2.0 s  18 s left  3 of 4 groups [all wrong]\n"
    )


def test_a_terminal_has_a_bar_with_the_pace_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    console = Console()
    console.training(10, done=4)
    console.step(5, 10, {"reward": 0.5, "step_time": 90.0}, "in words")
    console.finish()
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert re.search(r"training .* 4/10 ", said)
    assert re.search(r"training .* 5/10 .*90\.0 s/step, 8 min left", said)
    assert said.count("left") == said.count("s/step")  # the line itself does not repeat it


@pytest.mark.parametrize("quiet", [False, True])
def test_a_warning_is_said_once_and_not_where_quiet(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=quiet)
    show(console, 20)
    console.note("good to know")
    console.print("a result")
    said = capsys.readouterr().out
    assert said.count("warning, truncation: 50% of the completions") == (not quiet)
    assert said.count("Raise training.max_completion_tokens") == (not quiet)
    assert said.count("good to know") == (not quiet)
    assert said.endswith("a result\n")


def test_json_is_one_object_a_step_with_what_is_not_finite_as_null(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(json=True)
    console.print("for people")
    for number in range(1, 7):
        console.step(number, 6, {**TRUNCATED, "grad_norm": float("nan")}, "words [of] a step")
        console.step(number, 6, {"loss": 0.0}, "a second update")
    console.learned({"evaluations": [], "gains": [], "unit": "problems"})
    said = capsys.readouterr()
    assert "for people" in said.err
    events = [json.loads(line) for line in io.StringIO(said.out)]
    assert [event["event"] for event in events] == ["step"] * 6 + ["result"]
    assert events[0]["metrics"]["grad_norm"] is None
    assert events[0]["words"] == "words [of] a step"
    assert events[0]["seconds_left"] == 10.0
    assert [len(event["warnings"]) for event in events[:-1]] == [0, 0, 0, 0, 1, 0]
    assert events[4]["warnings"][0]["cause"] == "truncation"
