"""Is the signal real? Dead groups, one channel that decides alone, and what a noise control does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from threefold.report.findings import (
    Answer,
    Finding,
    Tone,
    column,
    course_in_words,
    section_of,
    setting_of,
    warned,
    weights_of,
)
from threefold.report.intervals import change
from threefold.report.reading import Run

DOMINANT = 0.9
"""A reward channel dominates with this share of the summed, weighted standard deviations."""


def signal(run: Run, controls: Sequence[Finding] = ()) -> Answer:
    findings = [*_dead_groups(run), *_dominance(run), *controls, *warned(run, of_signal=True)]
    if not controls and any("noise_control" in method for method in _methods(run)):
        findings.append(_no_control(run))
    dead = column(run, "signal/dead_outcome")
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
        column(run, f"signal/dead_{kind}") for kind in ("outcome", "all_right", "all_wrong")
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
    text += f"; {course_in_words(moved, percent=True)}." if moved is not None else "."
    paid = weights_of(run).get("success") != 0
    if not paid:
        text += " Success is only watched here: other rewards pay."
    findings = [Finding(text, "bad" if paid and mean > 0.9 else "plain", "Groups")]
    weight = column(run, "signal/gradient_share_dead")
    if weight:
        share = math.fsum(weight) / len(weight)
        revived = "They carry" if share else "They carry nothing, and waste their rollouts:"
        findings.append(
            Finding(f"{revived} {share:.0%} of the summed |advantage| of the run.", "plain", "Curves")
        )
    effective = column(run, "signal/effective_tokens")
    idle = sum(value == 0 for value in effective)
    if idle:
        text = f"In {idle} of {len(effective)} steps no token had an advantage: the policy gradient was zero."
        findings.append(Finding(text, "bad" if idle > len(effective) / 2 else "plain", "What happened"))
    unscored = column(run, "signal/unscorable")
    if unscored and (share := math.fsum(unscored) / len(unscored)) > 0.01:
        tone: Tone = "bad" if share > 0.1 else "plain"
        findings.append(Finding(f"{share:.1%} of the episodes could not be scored.", tone, "Curves"))
    return findings


def _dominance(run: Run) -> list[Finding]:
    """Which reward channel the summed reward differs by."""
    weights = weights_of(run)
    spreads = {}
    for metric, values in run.metrics.columns.items():
        if metric.startswith("rewards/") and metric.endswith("/std"):
            name = metric.removeprefix("rewards/").removesuffix("/std")
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
    if over and setting_of(run, "credit", "method") in ("t2grpo", "gdpo"):
        text += " This method normalises each channel by itself, so the others count all the same."
        over = False
    meant = weights.get(ordered[0], 1.0) / (math.fsum(weights.get(name, 1.0) for name in spreads) or 1.0)
    return [Finding(text, "bad" if over and meant < 0.75 else "plain", "Curves")]


def _methods(run: Run) -> list[Mapping[str, Any]]:
    """The sections of the leading method and of those that are added to it."""
    credit = section_of(run.config, "credit")
    added = credit.get("together")
    if not isinstance(added, list):
        return [credit]
    return [credit, *(method for method in added if isinstance(method, Mapping))]


def _no_control(run: Run) -> Finding:
    if any(method.get("noise_control") for method in _methods(run)):
        return Finding(
            "This run is a noise control itself: rewards were dealt out at random.", "plain", "Setup"
        )
    text = (
        "No noise control is beside it: give one of the same recipe with credit.noise_control set, "
        "threefold view RUN CONTROL, to see whether the signal does more than noise would."
    )
    return Finding(text, "unknown")
