"""Is it safe? Broken rules, and what goes wrong in silence: truncation, entropy, drift, false certainty."""

from __future__ import annotations

import math

from threefold.report.findings import (
    Answer,
    Finding,
    Tone,
    column,
    course_in_words,
    course_of,
    score_of,
    setting_of,
    warned,
)
from threefold.report.intervals import in_words
from threefold.report.reading import Run

TRUNCATED = 1 / 3
"""Share of completions without an end token that is worth a warning."""
ENTROPY_LEFT = 0.3
"""Entropy has collapsed where less than this share of what it was is left."""


def safety(run: Run) -> Answer:
    rules, broken = _rules(run)
    findings = [*rules, *_truncation(run), *_entropy(run), *_drift(run), *_certainty(run), *_failures(run)]
    findings += warned(run, of_signal=False)
    if run.metrics.last_step is None:
        return Answer("Is it safe?", "No step is recorded", "unknown", tuple(findings))
    if any(finding.tone == "bad" for finding in findings):
        return Answer("Is it safe?", "There are warnings", "bad", tuple(findings))
    verdicts: dict[bool | None, tuple[str, Tone]] = {
        True: ("Rules are still broken", "plain"),
        False: ("No broken rule was seen", "good"),
        None: ("No rule was checked; training looks stable", "plain"),
    }
    verdict, tone = verdicts[broken]
    return Answer("Is it safe?", verdict, tone, tuple(findings))


def _rules(run: Run) -> tuple[list[Finding], bool | None]:
    """Findings on broken rules, and whether any was broken: None where none is checked."""
    findings, seen = [], []
    for mode in ("sampled", "greedy"):
        after = score_of(run, "violation", mode, "after")
        if after is None:
            continue
        seen.append(after.mean > 0)
        text = (
            f"Held out, {mode}: {in_words(after, percent=True)} of the episodes broke a rule after training"
        )
        gain = next((g.value for g in run.gains if (g.score, g.mode) == ("violation", mode)), None)
        text += (
            "" if gain is None else f", a change of {in_words(gain, percent=True, signed=True, points=True)}"
        )
        tone: Tone = "plain" if gain is None else ("plain", "bad", "good")[gain.sign]
        findings.append(Finding(text + ".", tone, "Held out"))
    tallies = run.episodes.tallies
    whole, recent = tallies.part(0, 1), tallies.part(0.8, 1)
    checked = seen or column(run, "turns/violations") or column(run, "episodes/violations")
    if whole is not None and recent is not None and (checked or whole.rules):
        seen.append(bool(whole.rules))
        early = tallies.part(0, 0.2)
        assert early is not None
        text = (
            f"In training {sum(whole.rules.values()):,} of {whole.episodes:,} recorded episodes broke a "
            f"rule: "
            f"{in_words(early.violating.interval((0, 1)), percent=True)} in the first fifth, "
            f"{in_words(recent.violating.interval((0, 1)), percent=True)} in the last."
        )
        first, last = early.violating.interval((0, 1)), recent.violating.interval((0, 1))
        rose = None not in (first.high, last.low) and last.low > first.high  # type: ignore[operator]
        findings.append(Finding(text, "bad" if rose else "plain", "Caregiver"))
    return findings, (any(seen) if seen else None)


def _truncation(run: Run) -> list[Finding]:
    values = column(run, "completions/clipped_ratio")
    if not values:
        return []
    newest = values[-max(1, len(values) // 5) :]
    share = math.fsum(newest) / len(newest)
    environment = bool(setting_of(run, "environment", "name"))
    text = f"{share:.0%} of the completions of the last fifth were cut off at the limit"
    text += ", which in an environment is where a dialogue stops at its last turn." if environment else "."
    return [Finding(text, "bad" if share > TRUNCATED and not environment else "plain", "Curves")]


def _entropy(run: Run) -> list[Finding]:
    moved = course_of(run, "entropy")
    if moved is None:
        return []
    collapsed = moved.first.mean > 0 and moved.last.mean < ENTROPY_LEFT * moved.first.mean
    text = f"Entropy: {course_in_words(moved)} nats a token"
    text += ", a collapse: members of a group come out alike." if collapsed else "."
    return [Finding(text, "bad" if collapsed else "plain", "Curves")]


def _drift(run: Run) -> list[Finding]:
    moved = course_of(run, "kl")
    if moved is None:
        return []
    far = moved.last.mean > 0.1 and moved.last.mean > 2 * moved.first.mean
    return [
        Finding(
            f"KL from the initial model: {course_in_words(moved)} nats a token.",
            "bad" if far else "plain",
            "Curves",
        )
    ]


def _certainty(run: Run) -> list[Finding]:
    wrong, right = (course_of(run, f"certainty/confidence_{kind}") for kind in ("wrong", "right"))
    if wrong is None or right is None:
        return []
    sure = wrong.last.mean > right.last.mean and wrong.difference.sign > 0
    text = f"Confidence in wrong answers: {course_in_words(wrong)}; "
    text += f"in right ones {in_words(right.last)} at the end"
    text += ": it grows sure of its mistakes." if sure else "."
    return [Finding(text, "bad" if sure else "plain", "Curves")]


def _failures(run: Run) -> list[Finding]:
    failed = column(run, "episodes/failed")
    share = math.fsum(failed) / len(failed) if failed else 0.0
    if not share:
        return []
    text = f"The environment failed in {share:.1%} of the episodes; they count in no other figure."
    return [Finding(text, "bad" if share > 0.05 else "plain", "Curves")]
