"""What an answer rests on: sentences with figures, and how they are taken from a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from threefold.report.intervals import Change, Interval, change, in_words
from threefold.report.reading import Run

Tone = Literal["good", "bad", "plain", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One sentence with its figures."""

    text: str
    tone: Tone = "plain"
    part: str = ""
    """The part of the page that shows more."""


@dataclass(frozen=True)
class Answer:
    question: str
    verdict: str
    tone: Tone
    findings: tuple[Finding, ...]


_OF_SIGNAL = ("give no signal", "left to learn", "the rewards differ by", "skills of the bank")
"""Words of those warnings of a run that are about its signal; the others are about its safety."""


def warned(run: Run, *, of_signal: bool) -> list[Finding]:
    """At which steps the run itself warned, of its signal or of anything else."""
    steps = [
        step for step, text in run.metrics.warnings if any(words in text for words in _OF_SIGNAL) == of_signal
    ]
    if not steps:
        return []
    said = ", ".join(map(str, steps[:8]))
    text = f"The run warned of it at step{'s' * (len(steps) > 1)} {said}: see below."
    return [Finding(text, "bad")]


def column(run: Run, metric: str) -> list[float]:
    """The values of a metric, oldest first; empty where it was not logged."""
    return list(run.metrics.columns.get(metric, {}).values())


def course_of(run: Run, metric: str) -> Change | None:
    """How a metric moved over the run."""
    return change(column(run, metric))


def course_in_words(moved: Change | None, *, percent: bool = False) -> str:
    """Such as "10.0 % in the first fifth of the steps, 20.0 % in the last, a change of ..."."""
    if moved is None:
        return "too few steps to say"
    first, last = (in_words(Interval(side.mean), percent=percent) for side in (moved.first, moved.last))
    return (
        f"{first} in the first fifth of the steps, {last} in the last, a change of "
        f"{in_words(moved.difference, percent=percent, signed=True, points=True)}"
    )


def tone_of(moved: Change | None) -> Tone:
    """Of a figure that is the better the higher it is."""
    tones: dict[int, Tone] = {0: "plain", 1: "good", -1: "bad"}
    return "unknown" if moved is None else tones[moved.difference.sign]


def score_of(run: Run, score: str, mode: str, when: str) -> Interval | None:
    """A held-out score "before" or "after" training."""
    found = [e for e in run.evaluations if e.mode == mode and (e.when == "before") == (when == "before")]
    return found[-1].scores.get(score) if found else None


def weights_of(run: Run) -> Mapping[str, float]:
    """Weight by reward channel, as far as the run says."""
    recorded = run.environment.get("reward_weights") or section_of(run.config, "environment").get("rewards")
    found = recorded if isinstance(recorded, Mapping) else {}
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}


def section_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the recipe, empty where there is none."""
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def setting_of(run: Run, section: str, name: str) -> Any:
    """A key of the recipe, None where it is not set."""
    return section_of(run.config, section).get(name)
