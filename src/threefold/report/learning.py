"""Is it learning? Held-out figures count before those of training, and an interval decides."""

from __future__ import annotations

from collections.abc import Iterable

from threefold.report.findings import (
    Answer,
    Finding,
    Tone,
    course_in_words,
    course_of,
    score_of,
    tone_of,
    weights_of,
)
from threefold.report.intervals import in_words
from threefold.report.reading import Run

PRIMARY = ("strict", "success")
"""Right or wrong, of problems and of an environment's tasks."""


def learning(run: Run) -> Answer:
    findings = []
    gains = [g for name in PRIMARY for g in run.gains if g.score == name]
    gains.sort(key=lambda gain: gain.mode != "sampled")
    percent = {name for e in run.evaluations for name in e.scores if name not in e.in_own_units}
    for gain in gains:
        said = in_words(gain.value, percent=True, signed=True, points=True)
        before, after = (score_of(run, gain.score, gain.mode, when) for when in ("before", "after"))
        course = ""
        if before is not None and after is not None:
            course = f", from {in_words(before, percent=True)} to {in_words(after, percent=True)}"
        tone: Tone = ("plain", "good", "bad")[gain.value.sign]
        findings.append(
            Finding(
                f"Held out, {gain.mode}: {gain.score} {said} paired by problem{course}.", tone, "Held out"
            )
        )
    if not gains:
        findings.append(_no_gain(run))
    rewarded = _rewarded(run, percent)
    findings += rewarded
    courses = {name: course_of(run, metric) for name, metric in _COURSES.items()}
    findings += [
        Finding(
            f"In training, {name}: {course_in_words(moved, percent=name == 'success')}.",
            tone_of(moved),
            "Curves",
        )
        for name, moved in courses.items()
        if moved is not None
    ]
    findings += _only_format(run, percent)
    if run.metrics.last_step is None:
        return Answer("Is it learning?", "No step is recorded", "unknown", tuple(findings))
    decisive = gains[0].value.sign if gains else None
    if decisive is not None:
        verdicts: dict[int, tuple[str, Tone]] = {
            1: ("Yes", "good"),
            0: ("Not shown", "plain"),
            -1: ("No, it got worse", "bad"),
        }
        tones = {finding.tone for finding in rewarded}
        if decisive == 0 and "good" in tones and "bad" not in tones:
            verdicts[0] = ("What is rewarded, yes; success not shown", "good")
        return Answer("Is it learning?", *verdicts[decisive], tuple(findings))
    moved = courses["success"] or courses["mean reward"]
    if moved is None:
        return Answer("Is it learning?", "Too early to say", "unknown", tuple(findings))
    words = {1: "In training, yes; held out not known", 0: "Not shown", -1: "No, training got worse"}
    sign = moved.difference.sign
    return Answer("Is it learning?", words[sign], "bad" if sign < 0 else "plain", tuple(findings))


def _rewarded(run: Run, percent: Iterable[str]) -> list[Finding]:
    """Held-out gains of the rewards that training is paid in beside success, such as a judge's scores."""
    paid = {name for name, weight in weights_of(run).items() if weight and name not in PRIMARY}
    gains = [gain for gain in run.gains if gain.score in paid]
    modes = sorted({gain.mode for gain in gains}, key=lambda mode: mode != "sampled")
    found = []
    for gain in (gain for mode in modes[:1] for gain in gains if gain.mode == mode):
        share = gain.score in percent
        said = in_words(gain.value, percent=share, signed=True, points=share)
        tone: Tone = ("plain", "good", "bad")[gain.value.sign]
        found.append(Finding(f"Held out, {gain.mode}: {gain.score}, a reward, {said}.", tone, "Held out"))
    return found


def _no_gain(run: Run) -> Finding:
    """What is known of held-out problems without a difference paired by problem."""
    after = [e for e in run.evaluations if e.when != "before"]
    for e in after:
        for name in PRIMARY:
            if name in e.scores:
                said = in_words(e.scores[name], percent=True)
                text = f"Held out, {e.mode}: {name} {said} after training; the gain was not measured."
                return Finding(text, "unknown", "Held out")
    if any(e.when == "before" for e in run.evaluations) and not after:
        return Finding("The evaluation after training is not there yet.", "unknown")
    return Finding("Nothing was measured on held-out problems.", "unknown")


_COURSES = {"success": "signal/outcome", "mean reward": "reward"}


def _only_format(run: Run, percent: Iterable[str]) -> list[Finding]:
    """Right in the asked format rises, right as such does not: what was learned is the format."""
    if "last_number" not in percent:
        return []
    by_score = {gain.score: gain.value for gain in run.gains if gain.mode == "sampled"}
    strict, plain = by_score.get("strict"), by_score.get("last_number")
    if strict is None or plain is None or strict.sign <= 0 or plain.sign > 0:
        return []
    text = (
        "Only the asked format was learned, as far as this shows: whatever the format, answers got no better "
        f"(last_number {in_words(plain, percent=True, signed=True, points=True)})."
    )
    return [Finding(text, "bad", "Held out")]
