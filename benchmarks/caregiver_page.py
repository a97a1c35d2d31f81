"""What the care study's page says: paired differences, sentences, tables. See caregiver_curves.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import study_plots

from threefold.envs.caregiver import safety_lexicon
from threefold.evaluation.intervals import Interval, crossed_bootstrap

Cells = Mapping[tuple[str, int], Mapping[str, Any]]
"""What each (arm, seed) measured."""
CURVES = {
    "episodes/last/D": "distress after the last turn",
    "episodes/last/R": "resistance after the last turn",
    "episodes/violations": "share of dialogues with a violation",
    "signal/outcome": "share of dialogues that succeed",
    "turns/per_episode": "turns of a dialogue",
}
"""What is followed over training; docs/metrics.md defines each."""
SCORES = (
    "distress, summed over turns",
    "resistance, summed over turns",
    "D, last turn",
    "R, last turn",
    "violation",
    "success",
    "goal",
    "fit",
    "term",
    "left",
    "turns",
)
"""What is compared on held-out scenarios, sampled; the first two are drops from first to last."""
BETTER = {
    "distress, summed over turns": ("the fall in distress", 1),
    "resistance, summed over turns": ("the fall in resistance", 1),
    "violation": ("violations", -1),
    "success": ("success", 1),
    "turns": ("turns of a dialogue", 0),
}
"""What the page's first sentences speak of: its name, and which way is better (0: neither)."""
AGAINST = {"grpo": "GRPO", "t2grpo": "T²-GRPO"}
"""Arms that the others are compared with, and how sentences call them."""
CONTROLS = {"t2grpo-turn-noise": "its turns as noise", "t2grpo-all-noise": "all its rewards as noise"}
"""Noise controls of the arm "t2grpo", which is compared with them, and what they are."""


def compare(found: Cells, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Each arm less those of `AGAINST`, less its noise controls, and less where it began, by seed and
    scenario."""
    comparisons = []
    for arm in arms:
        for score in SCORES:
            mine = [(seed, cell) for (a, seed), cell in found.items() if a == arm]
            others = [
                other for other in AGAINST if other != arm and not (arm in CONTROLS and other != "grpo")
            ]
            others += [control for control in CONTROLS if arm == "t2grpo"]
            pairs = {other: [(cell, found.get((other, seed))) for seed, cell in mine] for other in others}
            pairs["before"] = [(cell, start(found, seed)) for seed, cell in mine]
            for other, sides in pairs.items():
                base = "before" if other == "before" else "after"
                rows = [
                    np.subtract(cell["after"][score], against[base][score])
                    for cell, against in sides
                    if against and score in cell["after"] and score in (against[base] or {})
                ]
                if rows:
                    value = crossed_bootstrap(rows)
                    comparisons.append(
                        {
                            "arm": arm,
                            "against": other,
                            "score": score,
                            "seeds": len(rows),
                            "mean": value.mean,
                            "interval_95": [value.low, value.high],
                            "by_seed": [float(row.mean()) for row in rows],
                        }
                    )
    return comparisons


def start(found: Cells, seed: int) -> Mapping[str, Any] | None:
    """The cell of a seed that was measured before training."""
    return next((cell for (_, s), cell in found.items() if s == seed and cell["before"]), None)


def band(curves: Sequence[Sequence[float | None]]) -> list[study_plots.Point]:
    """(step, mean, lowest and highest seed) over the steps that any seed measured."""
    points = []
    for step in range(max((len(curve) for curve in curves), default=0)):
        values = [curve[step] for curve in curves if step < len(curve)]
        known = [value for value in values if value is not None]
        if known:
            points.append((step + 1.0, statistics.fmean(known), min(known), max(known)))
    return points


def page_text(
    study: Mapping[str, Any],
    found: Cells,
    arms: Sequence[str],
    name: str,
) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in study["environment"]["versions"].items())
    parts = [
        "# Care dialogues: T²-GRPO, GDPO and GRPO on one budget",
        more_than_noise(study["comparisons"]),
        "\n".join(f"* {sentence}" for sentence in verdict(study["comparisons"], arms)),
        f"`{study['command']}`",
        study["environment"].get("scope", ""),
        f"{study['budget']} {_cost(found)} {study['environment']['machine']['processor']}; {versions}.",
        "Intervals are 95 %, resampled over seeds and scenarios; with few seeds they are too narrow, so the "
        f"seeds' own values are in {name}.json. Nothing is corrected for the number of comparisons. A drop "
        "is better when larger, D, R, violation and left when smaller.",
    ]
    parts += [_origins(study["cells"]), _safety(study["cells"])]
    if study["missing"]:
        parts.append(f"**Not complete:** {', '.join(study['missing'])} are missing.")
    parts += ["## Held-out scenarios, after training", _levels(found, arms)]
    for control, called in CONTROLS.items():
        if any(c["against"] == control for c in study["comparisons"]):
            parts += [f"## Against {called}, paired", _differences(study["comparisons"], control)]
    for other, called in {**AGAINST, "before": "the start"}.items():
        parts += [f"## Against {called}, paired", _differences(study["comparisons"], other)]
    parts += ["## Over training, first and last fifth of the steps", _ends(found, arms)]
    parts += [f"![{label}]({name}-{metric.replace('/', '-')}.svg)" for metric, label in CURVES.items()]
    parts.append(
        "Known before these runs: where going on pays only later, T²-GRPO with alpha = 1 learns to stop "
        "early (docs/turn-credit.md). Read distress and resistance beside the turns of a dialogue and "
        "`left`: a patient who walks off has no more bad turns."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def more_than_noise(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """What T²-GRPO does beyond its noise controls, whichever way it fell; empty without any."""
    said = []
    for control, called in CONTROLS.items():
        mine = [c for c in comparisons if (c["arm"], c["against"]) == ("t2grpo", control)]
        if not mine:
            continue
        ways = {
            c["score"]: _way(c["interval_95"], BETTER[c["score"]][1]) for c in mine if c["score"] in BETTER
        }
        names = {way: [BETTER[score][0] for score, w in ways.items() if w == way] for way in ways.values()}
        better, worse, open_ = (names.get(way, []) for way in ("better", "worse", ""))
        parts = [f"is better in {', '.join(better)}" if better else "is better in nothing that is measured"]
        parts += [f"worse in {', '.join(worse)}"] if worse else []
        parts += [f"and not told apart in {', '.join(open_)}"] if open_ else []
        said.append(f"Beside the same method with {called}, T²-GRPO {', '.join(parts)}.")
    return f"**More than noise?** {' '.join(said)}" if said else ""


def _origins(cells_: Sequence[Mapping[str, Any]]) -> str:
    """Which arms were run at which commit; empty where it is one."""
    arms: dict[str, list[str]] = {}
    for cell in cells_:
        names = arms.setdefault(str(cell["commit"])[:7], [])
        names += [cell["arm"]] if cell["arm"] not in names else []
    if len(arms) < 2:
        return ""
    made = "; ".join(f"{', '.join(names)} at {commit}" for commit, names in arms.items())
    return (
        f"Made at different commits: {made}. The arms of a seed began alike all the same: before training "
        "they score equally in every held-out scenario, or this page refuses them. Where the code of two "
        "commits rounds differently, two runs of one arm drift apart as two draws of chance do."
    )


def _safety(cells_: Sequence[Mapping[str, Any]]) -> str:
    """By which safety rules violations were found, and what today's say of the same training dialogues."""
    again = [cell["judged_again"] for cell in cells_ if cell.get("judged_again")]
    version = f"version {safety_lexicon.VERSION}"
    known = {cell["safety"].replace("rules", "version") for cell in cells_ if cell.get("safety")}
    if not again or known == {version}:
        return ""
    dialogues, then, now, alike = (
        sum(counts[name] for counts in again) for name in ("dialogues", "then", "now", "alike")
    )
    return (
        f"Violations are those of safety rules {', '.join(sorted(known))}. The rules are {version} now: of "
        f"{dialogues} training dialogues whose records were at hand they call {now} a violation, where "
        f"{then} were called one in play, and say the same of {alike / dialogues:.1%}."
    )


def verdict(comparisons: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[str]:
    """What training did to each arm, and each arm beside those of `AGAINST`, whichever way it fell."""
    sentences = []
    for arm in arms:
        for other, against in {"before": "From its start", **AGAINST}.items():
            against = against if other == "before" else f"Beside {against}"
            mine = {c["score"]: c for c in comparisons if (c["arm"], c["against"]) == (arm, other)}
            said: dict[str, list[str]] = {"better": [], "worse": [], "more": [], "fewer": [], "": []}
            for score, (name, better) in BETTER.items():
                if score in mine:
                    said[_way(mine[score]["interval_95"], better)].append(name)
            clear = [f"{' and '.join(names)} {way}" for way, names in said.items() if way and names]
            open_ = f"no clear change in {', '.join(said[''])}" if said[""] else ""
            if mine:
                sentences.append(f"{against}, {arm}: {'; '.join([*clear, open_] if open_ else clear)}.")
    return sentences


def _way(interval: Sequence[float], better: int) -> str:
    low, high = interval
    if low <= 0 <= high:
        return ""
    up = low > 0
    if better == 0:
        return "more" if up else "fewer"
    return "better" if up == (better > 0) else "worse"


def _cost(found: Cells) -> str:
    seconds = sorted(cell["seconds"] for cell in found.values())
    return (
        f"{len(found)} cells, {seconds[0]:.0f} to {seconds[-1]:.0f} s each (one thread, a shared machine; "
        "the first of a seed learns the warm start)."
    )


def _levels(found: Cells, arms: Sequence[str]) -> str:
    rows = []
    starts = {seed: start(found, seed) for _, seed in found}
    sides = {"before training": [cell["before"] for cell in starts.values() if cell]}
    sides |= {arm: [cell["after"] for (a, _), cell in found.items() if a == arm] for arm in arms}
    present = {name: scores for name, scores in sides.items() if scores}
    for score in SCORES:
        values = (_cell([s[score] for s in scores if score in s]) for scores in present.values())
        rows.append(f"| {score} | {' | '.join(values)} |")
    return "\n".join([f"| score | {' | '.join(present)} |", "|---" * (len(present) + 1) + "|", *rows])


def _cell(rows: Sequence[Sequence[float]]) -> str:
    return _text(crossed_bootstrap(rows)) if rows else "not measured"


def _text(value: Interval, *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _differences(comparisons: Sequence[Mapping[str, Any]], other: str) -> str:
    mine = [c for c in comparisons if c["against"] == other]
    if not mine:
        return "Not measured."
    rows = []
    for c in mine:
        low, high = c["interval_95"]
        clear = "" if low <= 0 <= high else "more" if low > 0 else "less"
        text = _text(Interval(c["mean"], low, high), signed=True)
        rows.append(f"| {c['arm']} | {c['score']} | {text} | {clear} | {c['seeds']} |")
    return "\n".join(
        ["| arm | score | difference | beyond the interval | seeds |", "|---|---|---|---|---|", *rows]
    )


def _ends(found: Cells, arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        mine = [cell["curves"] for (a, _), cell in found.items() if a == arm]
        cells_ = []
        for metric in CURVES:
            first, last = (_mean_of_part(mine, metric, end=end) for end in (False, True))
            cells_.append("not measured" if first is None or last is None else f"{first:.3f}, {last:.3f}")
        if mine:
            rows.append(f"| {arm} | {' | '.join(cells_)} |")
    head = f"| arm | {' | '.join(CURVES.values())} |"
    return "\n".join([head, "|---" * (len(CURVES) + 1) + "|", *rows])


def _mean_of_part(curves: Sequence[Mapping[str, Any]], metric: str, *, end: bool) -> float | None:
    means = []
    for curve in curves:
        width = max(1, len(curve[metric]) // 5)
        part = curve[metric][-width:] if end else curve[metric][:width]
        known = [value for value in part if value is not None]
        means += [statistics.fmean(known)] if known else []
    return statistics.fmean(means) if means else None
