"""Which curves the report shows, and what it says about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from threefold.report.curves import Chart, Series
from threefold.report.reading import Metrics

RIGHT, WRONG = 0, 1
"""Colours: right is blue and wrong is orange wherever both are drawn."""
HELD_OUT = "held_out: "
"""What the columns of evaluations in between begin with."""
_HELD_OUT_ABOUT = "Mean over held-out problems or tasks with its 95 % interval."
CHART_LIMIT = 150
"""Most charts in the section of all metrics."""


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    lead: str
    """A finding of this run in a sentence or two, or what the section shows."""
    charts: tuple[Chart, ...]


def curve_sections(metrics: Metrics) -> list[Section]:
    """The sections that have something to show, the one with every metric last."""
    sections = [
        _progress(metrics),
        _held_out(metrics),
        _dead_groups(metrics),
        _certainty(metrics),
        _ispo(metrics),
        _time(metrics),
    ]
    # Where there are too many to draw, those that no section shows come first. Charts hold the columns
    # themselves, so identity tells which are shown.
    drawn = {id(series.values) for section in sections for chart in section.charts for series in chart.series}
    whole = [name for name in metrics.columns if not name.startswith(HELD_OUT)]
    names = sorted(whole, key=lambda name: id(metrics.columns[name]) in drawn)[:CHART_LIMIT]
    lead = "Every number of metrics.jsonl."
    if len(names) < len(whole):
        lead = f"{len(names)} of {len(whole)} metrics, those that no section above shows first."
    everything = tuple(Chart(name, (Series(name, metrics.columns[name]),)) for name in sorted(names))
    return [section for section in [*sections, Section("All metrics", lead, everything)] if section.charts]


def _progress(metrics: Metrics) -> Section:
    rewards = {
        name: name.removeprefix("rewards/").removesuffix("/mean")
        for name in metrics.columns
        if name.startswith("rewards/") and name.endswith("/mean")
    }
    charts = (
        _chart(metrics, "Reward", {"reward": "reward"}, "Mean reward of the episodes of a step."),
        _chart(
            metrics,
            "Success",
            {"signal/outcome": "outcome"},
            "Mean outcome of the scored episodes.",
            share=True,
        ),
        _chart(
            metrics, "Reward by function", dict(list(rewards.items())[:6]), "Mean of each reward function."
        ),
        _chart(
            metrics,
            "Loss",
            {"loss": "loss"},
            "Near 0 where each batch is used once, whatever is learned: advantages cancel. It is no "
            "measure of "
            "progress.",
        ),
        _chart(metrics, "Gradient norm", {"grad_norm": "gradient norm"}, "Before clipping."),
        _chart(
            metrics,
            "Completion length",
            {"completions/mean_length": "mean length"},
            "Tokens of a completion, mean over a step.",
        ),
    )
    return Section("Reward and success", _trend(metrics, "reward"), _present(charts))


def _held_out(metrics: Metrics) -> Section:
    """A chart a score, a curve for each way of decoding; none where nothing was measured in between."""
    by_score: dict[str, dict[str, Series]] = {}
    columns = {
        name[len(HELD_OUT) :]: values for name, values in metrics.columns.items() if name.startswith(HELD_OUT)
    }
    for name, values in columns.items():
        low, high = columns.get(f"{name}/low", {}), columns.get(f"{name}/high", {})
        if not name.endswith(("/low", "/high")):
            mode, _, score = name.partition("/")
            band = {step: (low[step], high[step]) for step in values if step in low and step in high}
            colour = 2 if mode == "sampled" else 3
            by_score.setdefault(score, {})[mode] = Series(mode, values, colour, band)
    charts = tuple(
        Chart(score, tuple(modes[mode] for mode in sorted(modes, reverse=True)), _HELD_OUT_ABOUT)
        for score, modes in sorted(by_score.items())
    )
    lead = "The same held-out problems or tasks, measured again and again while the run went on."
    return Section("Held out, over training", lead, charts)


def _dead_groups(metrics: Metrics) -> Section:
    thresholds = {
        name: f"composite, spread up to {name.partition('@')[2]}"
        for name in metrics.columns
        if name.startswith("signal/dead_composite@")
    }
    thresholds = dict(sorted(thresholds.items(), key=lambda item: _threshold(item[0])))
    charts = (
        _chart(
            metrics,
            "Dead by outcome",
            {"signal/dead_all_right": "all right", "signal/dead_all_wrong": "all wrong"},
            "Share of groups whose members all have the same outcome. GRPO learns nothing from these.",
            share=True,
            stacked=True,
        ),
        _chart(
            metrics,
            "Dead by outcome and by composite reward",
            {"signal/dead_outcome": "outcome", **dict(list(thresholds.items())[:4])},
            "A group is dead in the composite reward where its rewards span at most the threshold.",
            share=True,
            first_colour=2,
        ),
        _chart(
            metrics,
            "Weight of dead groups in the gradient",
            {"signal/gradient_share_dead": "share"},
            "Share of the summed absolute advantage that comes from groups that are dead by outcome.",
            share=True,
        ),
        _chart(
            metrics,
            "Advantage",
            {"signal/advantage_mean": "mean", "signal/advantage_std": "standard deviation"},
            first_colour=2,
        ),
    )
    dead = _mean(metrics.columns.get("signal/dead_outcome", {}))
    lead = "Groups whose members all have the same outcome."
    if dead is not None:
        parts = [
            f"{_percent(share)} {label}"
            for name, label in (("all_right", "all right"), ("all_wrong", "all wrong"))
            if (share := _mean(metrics.columns.get(f"signal/dead_{name}", {}))) is not None
        ]
        lead = f"On average {_percent(dead)} of the groups of a step gave no signal from outcomes"
        lead += f" ({', '.join(parts)})." if parts else "."
    return Section("Dead groups", lead, _present(charts))


def _certainty(metrics: Metrics) -> Section:
    places = {
        "all": ("Entropy on all tokens", "Mean entropy of the next-token distribution, in nats."),
        "top": (
            "Entropy on the top-entropy tokens",
            "The tokens of highest entropy of each episode, in nats.",
        ),
        "critical": (
            "Entropy on critical tokens",
            "High entropy and more likely than under the initial model, as the method defines them. A wrong "
            "curve that falls below the right one is hallucinated certainty.",
        ),
        "drifted": (
            "Entropy on critical tokens, defined alike for every method",
            "Those of ISPO's paper, in the steps in which the initial model was scored too.",
        ),
    }
    charts = [
        _by_outcome(metrics, title, f"certainty/entropy_{place}", about)
        for place, (title, about) in places.items()
    ]
    charts.append(
        _by_outcome(
            metrics,
            "Confidence in the answer",
            "certainty/confidence",
            "Probability of the final answer's tokens.",
            share=True,
        )
    )
    charts.append(
        _chart(
            metrics,
            "Calibration",
            {"certainty/brier": "Brier", "certainty/ece": "ECE"},
            "Confidence in the answer against the outcome, over the episodes of a step; 0 is best.",
            first_colour=2,
        )
    )
    charts.append(
        _chart(metrics, "Policy entropy", {"entropy": "entropy"}, "As the trainer logs it, in nats.")
    )
    return Section("Certainty", "How sure the policy is, by whether it is right.", _present(charts))


def _ispo(metrics: Metrics) -> Section:
    charts = (
        _by_outcome(
            metrics,
            "Conditional IFD",
            "ispo/ifd",
            "How much the reasoning raises the log-probability of the answer's tokens, nats per token.",
        ),
        _chart(
            metrics,
            "Token sets",
            {
                "ispo/entropy_set": "high entropy",
                "ispo/drift_set": "drifted",
                "ispo/critical_set": "critical (both)",
            },
            "Share of the tokens in each set.",
            share=True,
            first_colour=2,
        ),
        _chart(
            metrics,
            "Where the signal is absent or acts",
            {
                "ispo/hinge_active": "hinge active",
                "ispo/empty_critical": "no critical token",
                "ispo/no_answer": "no answer",
            },
            "Hinge: critical tokens of wrong episodes under the entropy threshold. The others: episodes.",
            share=True,
            first_colour=2,
        ),
    )
    return Section("ISPO signals", "What the method measured on its own policy.", _present(charts))


def _time(metrics: Metrics) -> Section:
    parts = {name: name.removeprefix("time/") for name in metrics.columns if name.startswith("time/")}
    order = ["time/generate", "time/signals", "time/credit", "time/update"]
    known = {name: parts.pop(name) for name in order if name in parts}
    parts = dict(list({**known, **parts}.items())[:6])
    charts = (
        _chart(
            metrics,
            "Seconds by part of the step",
            parts,
            "Parts on top of each other.",
            stacked=True,
            first_colour=2,
        ),
        _chart(metrics, "Seconds per step", {"step_time": "step"}, "As the trainer logs it."),
    )
    means = {
        label: mean for name, label in parts.items() if (mean := _mean(metrics.columns[name])) is not None
    }
    whole = sum(means.values())
    lead = "Seconds of a step."
    if whole > 0:
        shares = ", ".join(
            f"{label} {seconds:.3g} s ({_percent(seconds / whole)})" for label, seconds in means.items()
        )
        lead = f"A step took {whole:.3g} s on average: {shares}."
    return Section("Time", lead, _present(charts))


def _by_outcome(metrics: Metrics, title: str, name: str, about: str, *, share: bool = False) -> Chart:
    return _chart(metrics, title, {f"{name}_right": "right", f"{name}_wrong": "wrong"}, about, share=share)


def _chart(
    metrics: Metrics,
    title: str,
    labels: Mapping[str, str],
    about: str = "",
    *,
    share: bool = False,
    stacked: bool = False,
    first_colour: int = RIGHT,
) -> Chart:
    """A chart of those metrics that the run has, colours in the order of `labels`."""
    series = tuple(
        Series(label, metrics.columns[name], (first_colour + i) % 6)
        for i, (name, label) in enumerate(labels.items())
        if name in metrics.columns
    )
    negative = any(value < 0 for s in series for value in s.values.values())
    return Chart(title, series, about, share, stacked and not negative)


def _present(charts: tuple[Chart, ...] | list[Chart]) -> tuple[Chart, ...]:
    return tuple(chart for chart in charts if chart.series)


def _trend(metrics: Metrics, name: str) -> str:
    values = list(metrics.columns.get(name, {}).values())
    tenth = max(1, len(values) // 10)
    if len(values) < 2:
        return "What the training optimised, and the course of the optimisation."
    first, last = math.fsum(values[:tenth]) / tenth, math.fsum(values[-tenth:]) / tenth
    steps = "step" if tenth == 1 else f"{tenth} steps"
    return f"Mean reward went from {first:.3g} in the first {steps} to {last:.3g} in the last {steps}."


def _threshold(name: str) -> float:
    try:
        return float(name.partition("@")[2])
    except ValueError:  # a threshold that is no number sorts last
        return math.inf


def _mean(values: Mapping[int, float]) -> float | None:
    return math.fsum(values.values()) / len(values) if values else None


def _percent(share: float) -> str:
    return f"{share:.0%}"
