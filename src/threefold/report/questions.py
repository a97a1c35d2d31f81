"""Three questions to a run, answered in words with numbers: is it learning, is the signal real, is it safe?

An answer is a verdict and the findings that it rests on. Held-out figures count before those of training, and
an interval decides, never a mean alone. What was not measured is said, not passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from threefold.report.intervals import Change, Interval, change, in_words
from threefold.report.reading import Run

Tone = Literal["good", "bad", "plain", "unknown"]

PRIMARY = ("strict", "success")
"""Right or wrong, of problems and of an environment's tasks."""
DOMINANT = 0.9
"""A reward channel dominates with this share of the summed, weighted standard deviations."""
TRUNCATED = 1 / 3
"""Share of completions without an end token that is worth a warning."""
ENTROPY_LEFT = 0.3
"""Entropy has collapsed where less than this share of what it was is left."""


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


def answers(run: Run, controls: Sequence[Finding] = ()) -> tuple[Answer, Answer, Answer]:
    """The three answers.

    Args:
        run: What was read.
        controls: What a noise control among the runs says of this one, the decisive finding first; see
            `arms.control_pairs`.
    """
    return learning(run), signal(run, controls), safety(run)


# Is it learning?


def learning(run: Run) -> Answer:
    findings = []
    gains = [g for name in PRIMARY for g in run.gains if g.score == name]
    gains.sort(key=lambda gain: gain.mode != "sampled")
    percent = {name for e in run.evaluations for name in e.scores if name not in e.in_own_units}
    for gain in gains:
        said = in_words(gain.value, percent=True, signed=True, points=True)
        before, after = (_score(run, gain.score, gain.mode, when) for when in ("before", "after"))
        course = ""
        if before is not None and after is not None:
            course = f", from {in_words(before, percent=True)} to {in_words(after, percent=True)}"
        tone: Tone = ("plain", "good", "bad")[gain.value.sign]
        findings.append(
            Finding(
                f"Held out, {gain.mode}: {gain.score} {said} paired by problem{course}.", tone, "Held out"
            )
        )
    if not gains and any(e.when == "before" for e in run.evaluations):
        findings.append(Finding("The evaluation after training is not there yet.", "unknown"))
    elif not gains:
        findings.append(Finding("Nothing was measured on held-out problems.", "unknown"))
    courses = {name: _moved(run, metric) for name, metric in _COURSES.items()}
    findings += [
        Finding(
            f"In training, {name}: {_in_course(moved, percent=name == 'success')}.", _tone(moved), "Curves"
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
        return Answer("Is it learning?", *verdicts[decisive], tuple(findings))
    moved = courses["success"] or courses["mean reward"]
    if moved is None:
        return Answer("Is it learning?", "Too early to say", "unknown", tuple(findings))
    words = {1: "In training, yes; held out not known", 0: "Not shown", -1: "No, training got worse"}
    return Answer("Is it learning?", words[moved.difference.sign], _tone(moved), tuple(findings))


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


# Is the signal real?


def signal(run: Run, controls: Sequence[Finding] = ()) -> Answer:
    findings = [*_dead_groups(run), *_dominance(run), *controls, *_warned(run, of_signal=True)]
    if not controls and "noise_control" in _section(run.config, "credit"):
        findings.append(_no_control(run))
    dead = _values(run, "signal/dead_outcome")
    if not dead and not findings:
        return Answer("Is the signal real?", "Not recorded", "unknown", ())
    bad = any(finding.tone == "bad" for finding in findings)
    mean = math.fsum(dead) / len(dead) if dead else 0.0
    if controls and controls[0].tone != "good":
        worse = controls[0].tone == "bad"
        verdict, tone = ("No, less than noise gives" if worse else "Not shown to be more than noise"), "plain"
    elif bad:
        verdict, tone = "Partly", "bad"
    elif controls:
        verdict, tone = "Yes, more than its noise control", "good"
    elif mean > 0.5:
        verdict, tone = "From less than half of the groups", "plain"
    else:
        verdict, tone = "Mostly", "good"
    return Answer("Is the signal real?", verdict, tone, tuple(findings))  # type: ignore[arg-type]


def _dead_groups(run: Run) -> list[Finding]:
    dead, right, wrong = (
        _values(run, f"signal/dead_{kind}") for kind in ("outcome", "all_right", "all_wrong")
    )
    if not dead:
        return []
    mean, moved = math.fsum(dead) / len(dead), change(dead)
    parts = ", ".join(
        f"{math.fsum(values) / len(values):.0%} all {kind}"
        for kind, values in (("wrong", wrong), ("right", right))
        if values
    )
    text = f"Dead groups, whose outcomes are all equal: {mean:.0%} of all ({parts})"
    text += f"; {_in_course(moved, percent=True)}." if moved is not None else "."
    findings = [Finding(text, "bad" if mean > 0.9 else "plain", "Groups")]
    weight = _values(run, "signal/gradient_share_dead")
    if weight:
        share = math.fsum(weight) / len(weight)
        revived = "They carry" if share else "They carry nothing, and waste their rollouts:"
        findings.append(
            Finding(f"{revived} {share:.0%} of the summed |advantage| of the run.", "plain", "Curves")
        )
    effective = _values(run, "signal/effective_tokens")
    idle = sum(value == 0 for value in effective)
    if idle:
        text = f"In {idle} of {len(effective)} steps no token had an advantage: the policy gradient was zero."
        findings.append(Finding(text, "bad" if idle > len(effective) / 2 else "plain", "What happened"))
    unscored = _values(run, "signal/unscorable")
    if unscored and (share := math.fsum(unscored) / len(unscored)) > 0.01:
        tone: Tone = "bad" if share > 0.1 else "plain"
        findings.append(Finding(f"{share:.1%} of the episodes could not be scored.", tone, "Curves"))
    return findings


def _dominance(run: Run) -> list[Finding]:
    """Which reward channel the summed reward differs by."""
    weights = _weights(run)
    spreads = {}
    for column, values in run.metrics.columns.items():
        if column.startswith("rewards/") and column.endswith("/std"):
            name = column.removeprefix("rewards/").removesuffix("/std")
            newest = list(values.values())[-max(1, len(values) // 5) :]
            spreads[name] = math.fsum(newest) / len(newest) * abs(weights.get(name, 1.0))
    total = math.fsum(spreads.values())
    if len(spreads) < 2 or total <= 0:
        return []
    ordered = sorted(spreads, key=lambda name: -spreads[name])
    shares = ", ".join(f"{name} {spreads[name] / total:.0%}" for name in ordered[:6])
    over = spreads[ordered[0]] >= DOMINANT * total
    text = f"What the weighted rewards differ by, over the last fifth of the steps: {shares}"
    text += f". One channel, {ordered[0]}, decides nearly alone." if over else "; no channel decides alone."
    if over and _setting(run, "credit", "method") in ("t2grpo", "gdpo"):
        text += " This method normalises each channel by itself, so the others count all the same."
        over = False
    meant = weights.get(ordered[0], 1.0) / (math.fsum(weights.get(name, 1.0) for name in spreads) or 1.0)
    return [Finding(text, "bad" if over and meant < 0.75 else "plain", "Curves")]


def _no_control(run: Run) -> Finding:
    if _setting(run, "credit", "noise_control"):
        return Finding("This run is a noise control itself: its intrinsic reward is noise.", "plain", "Setup")
    text = (
        "No noise control is beside it: give one of the same recipe with credit.noise_control set, "
        "threefold view RUN CONTROL, to see whether the intrinsic reward does more than noise would."
    )
    return Finding(text, "unknown")


# Is it safe?


def safety(run: Run) -> Answer:
    rules, broken = _rules(run)
    findings = [*rules, *_truncation(run), *_entropy(run), *_drift(run), *_certainty(run), *_failures(run)]
    findings += _warned(run, of_signal=False)
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
        after = _score(run, "violation", mode, "after")
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
    checked = seen or _values(run, "turns/violations") or _values(run, "episodes/violations")
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
    values = _values(run, "completions/clipped_ratio")
    if not values:
        return []
    newest = values[-max(1, len(values) // 5) :]
    share = math.fsum(newest) / len(newest)
    environment = bool(_setting(run, "environment", "name"))
    text = f"{share:.0%} of the completions of the last fifth were cut off at the limit"
    text += ", which in an environment is where a dialogue stops at its last turn." if environment else "."
    return [Finding(text, "bad" if share > TRUNCATED and not environment else "plain", "Curves")]


def _entropy(run: Run) -> list[Finding]:
    moved = _moved(run, "entropy")
    if moved is None:
        return []
    collapsed = moved.first.mean > 0 and moved.last.mean < ENTROPY_LEFT * moved.first.mean
    text = f"Entropy: {_in_course(moved)} nats a token"
    text += ", a collapse: members of a group come out alike." if collapsed else "."
    return [Finding(text, "bad" if collapsed else "plain", "Curves")]


def _drift(run: Run) -> list[Finding]:
    moved = _moved(run, "kl")
    if moved is None:
        return []
    far = moved.last.mean > 0.1 and moved.last.mean > 2 * moved.first.mean
    return [
        Finding(
            f"KL from the initial model: {_in_course(moved)} nats a token.",
            "bad" if far else "plain",
            "Curves",
        )
    ]


def _certainty(run: Run) -> list[Finding]:
    wrong, right = (_moved(run, f"certainty/confidence_{kind}") for kind in ("wrong", "right"))
    if wrong is None or right is None:
        return []
    sure = wrong.last.mean > right.last.mean and wrong.difference.sign > 0
    text = (
        f"Confidence in wrong answers: {_in_course(wrong)}; in right ones {in_words(right.last)} at the end"
    )
    text += ": it grows sure of its mistakes." if sure else "."
    return [Finding(text, "bad" if sure else "plain", "Curves")]


def _failures(run: Run) -> list[Finding]:
    failed = _values(run, "episodes/failed")
    share = math.fsum(failed) / len(failed) if failed else 0.0
    if not share:
        return []
    text = f"The environment failed in {share:.1%} of the episodes; they count in no other figure."
    return [Finding(text, "bad" if share > 0.05 else "plain", "Curves")]


# What they share


_OF_SIGNAL = ("give no signal", "left to learn", "the rewards differ by", "skills of the bank")
"""Words of those warnings of a run that are about its signal; the others are about its safety."""


def _warned(run: Run, *, of_signal: bool) -> list[Finding]:
    steps = [
        step for step, text in run.metrics.warnings if any(words in text for words in _OF_SIGNAL) == of_signal
    ]
    if not steps:
        return []
    said = ", ".join(map(str, steps[:8]))
    text = f"The run warned of it at step{'s' * (len(steps) > 1)} {said}: see below."
    return [Finding(text, "bad")]


def _values(run: Run, metric: str) -> list[float]:
    return list(run.metrics.columns.get(metric, {}).values())


def _moved(run: Run, metric: str) -> Change | None:
    return change(_values(run, metric))


def _in_course(moved: Change | None, *, percent: bool = False) -> str:
    if moved is None:
        return "too few steps to say"
    first, last = (in_words(Interval(side.mean), percent=percent) for side in (moved.first, moved.last))
    return (
        f"{first} in the first fifth of the steps, {last} in the last, a change of "
        f"{in_words(moved.difference, percent=percent, signed=True, points=True)}"
    )


def _tone(moved: Change | None) -> Tone:
    return "unknown" if moved is None else ("plain", "good", "bad")[moved.difference.sign]  # type: ignore[return-value]


def _score(run: Run, score: str, mode: str, when: str) -> Interval | None:
    found = [e for e in run.evaluations if e.mode == mode and (e.when == "before") == (when == "before")]
    return found[-1].scores.get(score) if found else None


def _weights(run: Run) -> Mapping[str, float]:
    """Weight by reward channel, as far as the run says."""
    recorded = run.environment.get("reward_weights") or _section(run.config, "environment").get("rewards")
    found = recorded if isinstance(recorded, Mapping) else {}
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _setting(run: Run, section: str, name: str) -> Any:
    return _section(run.config, section).get(name)
