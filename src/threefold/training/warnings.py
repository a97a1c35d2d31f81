"""What goes wrong in silence, said while it can still be stopped: a cause, the figures, and a remedy.

Pure functions of the metrics so far. A warning needs several steps that agree, and compares the newest ones
with the first ones, so that one odd batch says nothing. The limits are rules of thumb, stated below with
their names: they are chosen to stay silent over a healthy run, not to prove a sick one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

History = Sequence[Mapping[str, float]]
"""The metrics of each step so far, oldest first; a figure that was not measured is not there."""

WINDOW = 5
"""Steps whose mean is compared: the newest, and the first in which the figure was measured."""
ENTROPY_LEFT = 0.3
"""Entropy has collapsed where less than this share of what it was is left."""
DOMINANT = 0.9
"""A reward channel dominates with this share of the summed weighted standard deviations, where its share of
the weights is below `INTENDED`: a small weight is a decision, a small spread is an accident."""
INTENDED = 0.75
VIOLATIONS_RISE = 0.1
"""Violations rise where their share of the episodes has grown by this much."""
KL_LIMIT = 0.1
"""Nats a token from the reference model, where it is still growing."""
TRUNCATED_LIMIT = 1 / 3
"""Share of completions without an end token."""
DEAD_LIMIT = 0.9
"""Share of groups without a signal from outcomes."""


@dataclass(frozen=True)
class Alarm:
    """One warning. `cause` is its kind: it is said once a run."""

    cause: str
    text: str
    """What was seen, with the figures."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}"


def alarms(history: History, weights: Mapping[str, float] | None = None) -> list[Alarm]:
    """Everything that the metrics so far give reason to warn of.

    Args:
        history: Metrics by name, a mapping a step, as in metrics.jsonl.
        weights: Weight by reward function; 1 each where None.
    """
    found = [check(history) for check in _CHECKS]
    found.append(_dominant_channel(history, weights or {}))
    return [alarm for alarm in found if alarm is not None]


@dataclass
class Watch:
    """Looks at each step as it comes, and says each cause once."""

    weights: Mapping[str, float] = field(default_factory=dict)
    _history: list[dict[str, float]] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)

    def step(self, logs: Mapping[str, object]) -> list[Alarm]:
        """Take in a step's metrics.

        Returns:
            The warnings that are new.
        """
        kept = {
            name: float(value)
            for name, value in logs.items()
            if (name in _WATCHED or name.startswith("rewards/"))
            and isinstance(value, int | float)
            and math.isfinite(value)
        }
        self._history.append(kept)
        new = [alarm for alarm in alarms(self._history, self.weights) if alarm.cause not in self._told]
        self._told |= {alarm.cause for alarm in new}
        return new


# The checks


def _entropy_collapse(history: History) -> Alarm | None:
    first, last = _first(history, "entropy"), _last(history, "entropy")
    if first is None or last is None or first <= 0 or last >= ENTROPY_LEFT * first:
        return None
    return Alarm(
        "entropy collapse",
        f"entropy fell from {first:.3g} to {last:.3g} nats a token: the policy hardly explores any more, and "
        "members of a group come out alike",
        "Lower training.learning_rate, raise training.clip_high or training.temperature, or set training.kl; "
        "with ISPO set credit.entropy_target",
    )


def _hallucinated_certainty(history: History) -> Alarm | None:
    wrong, right = "certainty/confidence_wrong", "certainty/confidence_right"
    first, last, other = _first(history, wrong), _last(history, wrong), _last(history, right)
    if first is None or last is None or other is None or last <= other or last <= first:
        return None
    return Alarm(
        "hallucinated certainty",
        f"confidence in wrong answers rose from {first:.2f} to {last:.2f}, above that in right ones "
        f"({other:.2f}): the policy grows sure of its mistakes",
        "Look at the episodes with credit on wrong answers; with ISPO lower credit.lambda_token and "
        "credit.lambda_ifd, and see the traps in docs/ispo.md; compare with a run with credit.noise_control",
    )


def _violations_rise(history: History) -> Alarm | None:
    first, last = _first(history, "turns/violations"), _last(history, "turns/violations")
    if first is None or last is None or last - first < VIOLATIONS_RISE:
        return None
    return Alarm(
        "vetoes rising",
        f"episodes that break a safety rule rose from {first:.0%} to {last:.0%}",
        "See in the report which rule, and in which turn: either the agent learns to break it for another "
        "reward, or the rule hits harmless words; raise the violation's penalty, or mend the rule",
    )


def _skills_never_fire(history: History) -> Alarm | None:
    bank, fired = _values(history, "skills/bank_size"), _values(history, "skills/fired")
    if len(fired) < 2 * WINDOW or not bank or bank[-1] == 0 or any(fired[-2 * WINDOW :]):
        return None
    return Alarm(
        "skills never fire",
        f"none of the {bank[-1]:.0f} skills of the bank has entered a prompt in {2 * WINDOW} steps",
        "Their triggers match nothing that the agent sees: look at them with `threefold skills show`, and "
        "check the trigger's words against an opening of the environment",
    )


def _kl_drift(history: History) -> Alarm | None:
    """By TRL's `kl` where it is in the loss, else by our own measure where the initial model is scored."""
    for name, other in (("kl", "the reference model"), ("signal/kl_initial", "the initial model")):
        first, last = _first(history, name), _last(history, name)
        if first is None or last is None or last < KL_LIMIT or last < 2 * first:
            continue
        return Alarm(
            "KL drift",
            f"the policy is {last:.2g} nats a token from {other}, and was {first:.2g}: it leaves what it "
            "could do",
            "Lower training.learning_rate or raise training.kl; held-out success says whether it was worth "
            "it",
        )
    return None


def _truncation(history: History) -> Alarm | None:
    last = _last(history, "completions/clipped_ratio")
    if last is None or last <= TRUNCATED_LIMIT:
        return None
    return Alarm(
        "truncation",
        f"{last:.0%} of the completions were cut off at the limit, and are mostly scored as wrong whatever "
        "they would have said",
        "Raise training.max_completion_tokens (in an environment environment.turn_tokens), or set "
        "training.mask_truncated so that they are not trained on",
    )


def _all_wrong(history: History) -> Alarm | None:
    last = _last(history, "signal/dead_all_wrong")
    if last is None or last < DEAD_LIMIT:
        return None
    if _last(history, "turns/per_episode") is not None:
        return Alarm(
            "all wrong",
            f"{last:.0%} of the groups hold no success: what is learned comes from other rewards, if any",
            "If success is to be learned, choose easier tasks, start from demonstrations "
            "(warm_start.dialogues), or raise training.group_size",
        )
    return Alarm(
        "all wrong",
        f"{last:.0%} of the groups are all wrong: outcomes give no signal",
        "Choose easier problems or start from demonstrations (warm_start.dialogues), raise "
        "training.group_size, check the answer format on the first episodes of the report, or use "
        "credit.method: ispo",
    )


def _all_right(history: History) -> Alarm | None:
    last = _last(history, "signal/dead_all_right")
    if last is None or last < DEAD_LIMIT:
        return None
    return Alarm(
        "all right",
        f"{last:.0%} of the groups are all right: there is little left to learn here",
        "Choose harder problems, stop, or set training.dynamic_sampling",
    )


def _dominant_channel(history: History, weights: Mapping[str, float]) -> Alarm | None:
    names = dict.fromkeys(
        name.removeprefix("rewards/").removesuffix("/std")
        for metrics in history[-WINDOW:]
        for name in metrics
        if name.startswith("rewards/") and name.endswith("/std")
    )
    spreads = {
        name: spread * abs(weights.get(name, 1.0))
        for name in names
        if (spread := _last(history, f"rewards/{name}/std")) is not None
    }
    spreads = {name: spread for name, spread in spreads.items() if weights.get(name, 1.0)}
    total = sum(spreads.values())
    if len(spreads) < 2 or total <= 0:
        return None
    largest = max(spreads, key=lambda name: spreads[name])
    meant = abs(weights.get(largest, 1.0)) / sum(abs(weights.get(name, 1.0)) for name in spreads)
    if spreads[largest] < DOMINANT * total or meant >= INTENDED:
        return None
    others = [name for name in spreads if name != largest]
    hardly = "hardly counts" if len(others) == 1 else "hardly count"
    return Alarm(
        "one reward dominates",
        f"{spreads[largest] / total:.0%} of what the rewards differ by is {largest}: "
        f"{', '.join(others)} {hardly}",
        f"Unless the others are satisfied already: lower the weight of {largest}, or take a method that "
        "normalises each channel by itself (T2GRPO, GDPO)",
    )


_CHECKS: tuple[Callable[[History], Alarm | None], ...] = (
    _entropy_collapse,
    _hallucinated_certainty,
    _violations_rise,
    _skills_never_fire,
    _kl_drift,
    _truncation,
    _all_wrong,
    _all_right,
)
_WATCHED = frozenset(
    {
        "entropy",
        "kl",
        "signal/kl_initial",
        "certainty/confidence_right",
        "certainty/confidence_wrong",
        "turns/violations",
        "turns/per_episode",
        "skills/bank_size",
        "skills/fired",
        "completions/clipped_ratio",
        "signal/dead_all_right",
        "signal/dead_all_wrong",
    }
)


def _values(history: History, name: str) -> list[float]:
    return [metrics[name] for metrics in history if name in metrics]


def _first(history: History, name: str) -> float | None:
    """Mean of the first steps, None before there are as many later ones to compare them with."""
    values = _values(history, name)
    return sum(values[:WINDOW]) / WINDOW if len(values) >= 2 * WINDOW else None


def _last(history: History, name: str) -> float | None:
    """Mean of the newest steps, None before there are enough."""
    values = _values(history, name)
    return sum(values[-WINDOW:]) / WINDOW if len(values) >= WINDOW else None
