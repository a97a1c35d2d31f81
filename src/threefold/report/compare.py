"""Which of several runs is better, and is it more than chance: paired differences on the same problems.

Runs that differ only in their seed are one arm. Two arms are compared by the difference of their scores,
problem by problem and seed by seed; its interval resamples problems, and seeds too where there are several
(`evaluation.intervals.crossed_bootstrap`). Of one seed an interval says nothing about training again.

Of m intervals at 95 %, one in twenty excludes zero though nothing differs. So each difference has a second,
wider interval at 1 - 0.05 / m (Bonferroni), m being the number of differences in the table: all of those hold
at once in 95 % of comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from threefold.evaluation.intervals import Interval, crossed_bootstrap, paired_bootstrap
from threefold.report.arms import Arm, Entry, arms_of, control_pairs, differing, read_entries
from threefold.report.beside import Beside, stands_beside
from threefold.report.outcomes import SHARES, held_out

LEVEL = 0.95
_PRIMARY = ("strict", "success")


@dataclass(frozen=True)
class Difference:
    """A score of one arm minus that of another."""

    first: str
    """The arm that is subtracted."""
    second: str
    mode: str
    score: str
    share: bool
    """Whether the score is a share, else it is in its own units."""
    interval: Interval
    """At 95 %."""
    family: Interval
    """At 1 - 0.05 / (number of differences)."""
    problems: int
    seeds: tuple[int | None, ...]
    """Seeds that both arms have, over which the interval is crossed where they are several; empty where they
    have none in common and seeds were averaged instead."""
    by_seed: tuple[float, ...]
    """The difference of each of those seeds."""
    control: bool = False
    """Whether `first` is the noise control of `second`."""

    @property
    def title(self) -> str:
        return f"{self.second} minus {self.first}"

    @property
    def excludes_zero(self) -> bool:
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def chance(self) -> str:
        """Which chance the intervals cover."""
        if not self.seeds:
            return f"{self.problems} problems; seeds not paired"
        if len(self.seeds) == 1:
            return f"{self.problems} problems, one seed ({self.seeds[0]})"
        return f"{self.problems} problems x {len(self.seeds)} seeds"

    def verdict(self) -> str:
        """What the intervals say, in words."""
        if not self.excludes_zero:
            return "not told apart from chance"
        sign = "higher" if self.interval.low > 0 else "lower"
        holds = self.family.low > 0 or self.family.high < 0
        return (
            f"{sign}, with all comparisons allowed for"
            if holds
            else f"{sign} at 95 %, not with all allowed for"
        )


@dataclass(frozen=True)
class Comparison:
    """All that a table, a page or a program says about several runs."""

    arms: tuple[Arm, ...]
    baseline: str
    beside: tuple[Beside, ...]
    differences: tuple[Difference, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    """Settings in which the arms differ: dotted key, and the value of each arm."""
    notes: tuple[str, ...]

    def multiplicity(self) -> str:
        """How far many intervals mislead, in words."""
        m = len(self.differences)
        if not m:
            return "Nothing could be paired."
        found = sum(d.excludes_zero for d in self.differences)
        hold = sum(d.family.low > 0 or d.family.high < 0 for d in self.differences)
        return (
            f"{m} difference{'s' * (m > 1)}: {found} exclude{'s' * (found == 1)} zero at 95 %, where "
            f"{0.05 * m:.2g} would by chance if nothing differed; {hold} "
            f"exclude{'s' * (hold == 1)} zero with all {m} allowed for (Bonferroni, {_level(m):.2%} each)."
            + self._of_seeds()
        )

    def _of_seeds(self) -> str:
        if all(len(d.seeds) > 1 for d in self.differences):
            return " With few seeds intervals are too narrow: look at the single seeds too."
        return " Intervals of one seed cover the choice of problems, not what training again would give."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "baseline": self.baseline,
            "arms": [
                {**asdict(beside), "directories": [str(entry.run.directory) for entry in arm.entries]}
                for arm, beside in zip(self.arms, self.beside, strict=True)
            ],
            "differences": [{**asdict(d), "verdict": d.verdict()} for d in self.differences],
            "multiplicity": self.multiplicity(),
            "settings": {key: list(values) for key, values in self.settings},
            "notes": list(self.notes),
        }


def compare(
    run_dirs: Sequence[Path], *, scores: Sequence[str] = (), baseline: Path | None = None
) -> Comparison:
    """Compare runs by what they left behind.

    Args:
        run_dirs: Two run directories or more, finished or not.
        scores: Scores to compare; empty takes right-or-wrong alone ("strict", in environments "success"), and
            "all" every one. More scores are more comparisons, and wider intervals of the family.
        baseline: The run whose arm the others are compared with; the first one where None.

    Raises:
        FileNotFoundError: A directory is not there or holds no run.
        ValueError: There are fewer than two runs, one is named twice, `baseline` is none of them, or no run
            has one of `scores`.
    """
    notes: list[str] = []
    entries = read_entries(run_dirs, notes)
    arms = arms_of(entries, notes)
    base = _baseline(arms, baseline or run_dirs[0])
    wanted = _scores(entries, scores)
    controls = control_pairs(arms)
    arms = _controls_after_methods(arms, controls)
    pairs = [(base, arm) for arm in arms if arm is not base and (arm, base) not in controls]
    pairs += [pair for pair in controls if pair not in pairs]
    if len(arms) == 1:
        notes.append("All runs differ only in their seed: there is one arm, and nothing to compare it with.")
    notes += [
        f"{arm.name} is a noise control, and the method that it controls for is not among the runs."
        for arm in arms
        if arm.noise is not None and not any(control is arm for control, _ in controls)
    ]
    paired = [p for first, second in pairs for p in _paired(first, second, wanted, notes)]
    differences = [_difference(p, len(paired), controls) for p in paired]
    keys = differing([arm.settings for arm in arms])
    return Comparison(
        arms=tuple(arms),
        baseline=base.name,
        beside=tuple(stands_beside(arm) for arm in arms),
        differences=tuple(differences),
        settings=tuple((key, tuple(str(arm.settings.get(key, "")) for arm in arms)) for key in keys),
        notes=tuple(notes),
    )


def spread(interval: Interval, share: bool) -> str:
    """A difference with its interval: in points of percent where the score is a share."""
    scale, form = (100, "+.1f") if share else (1, "+.3f")
    mean, low, high = (scale * value + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _baseline(arms: Sequence[Arm], run_dir: Path) -> Arm:
    resolved = run_dir.resolve()
    for arm in arms:
        if any(entry.run.directory.resolve() == resolved for entry in arm.entries):
            return arm
    raise ValueError(f"--baseline {run_dir} is none of the runs that are compared")


def _controls_after_methods(arms: list[Arm], controls: Sequence[tuple[Arm, Arm]]) -> list[Arm]:
    placed = [control for control, _ in controls]
    ordered = []
    for arm in arms:
        if not any(arm is control for control in placed):
            ordered += [arm, *(control for control, method in controls if method is arm)]
    return ordered


def _scores(entries: Iterable[Entry], scores: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(name for e in entries for r in e.results for name in r.values))
    if not scores:
        return [name for name in known if name in _PRIMARY] or known[:1]
    if list(scores) == ["all"]:
        return known
    unknown = [name for name in scores if name not in known]
    if unknown:
        raise ValueError(f"no run has the score {unknown[0]!r}; they have {', '.join(known) or 'none'}")
    return list(scores)


# Pairing


@dataclass(frozen=True)
class _Paired:
    first: Arm
    second: Arm
    mode: str
    score: str
    difference_SN: np.ndarray
    seeds: tuple[int | None, ...]


def _paired(first: Arm, second: Arm, scores: Sequence[str], notes: list[str]) -> list[_Paired]:
    """The differences of two arms by mode and score, as far as they can be paired."""
    where = f"{second.name} and {first.name}"
    entries = [entry for arm in (first, second) for entry in arm.entries if entry.results]
    if not all(any(entry.results for entry in arm.entries) for arm in (first, second)):
        return []  # the runs without results are named already
    sources = [held_out(entry.run.config) for entry in entries]
    for other in sources[1:]:
        changed = [key for key in sources[0] if other.get(key) != sources[0][key]] or [
            key for key in other if key not in sources[0]
        ]
        if changed:
            key = changed[0]
            one, two = (
                "not set" if source.get(key) is None else repr(source[key]) for source in (sources[0], other)
            )
            notes.append(
                f"{where} cannot be paired: they were measured on different problems ({key} is {one} and "
                f"{two})."
            )
            return []
    left, right = _by_seed(first), _by_seed(second)
    seeds = [seed for seed in left if seed in right and seed is not None]
    if seeds:
        dropped = sorted(str(seed) for seed in (left.keys() ^ right.keys()))
        if dropped:
            notes.append(f"{where}: seeds that only one of them has are left out: {', '.join(dropped)}.")
        rows = [([left[seed]], [right[seed]]) for seed in seeds]
    else:
        notes.append(
            f"{where} have no seed in common: their runs are averaged, and the interval covers the choice of "
            "problems, not of seeds."
        )
        rows = [(list(left.values()), list(right.values()))]
    modes = dict.fromkeys(results.mode for entry in entries for results in entry.results)
    found = []
    for mode in modes:
        for score in scores:
            difference_SN = _table(rows, mode, score, where, notes)
            if difference_SN is not None:
                found.append(_Paired(first, second, mode, score, difference_SN, tuple(seeds)))
    return found


def _by_seed(arm: Arm) -> dict[int | None, Entry]:
    return {entry.seed: entry for entry in arm.entries if entry.results}


def _table(
    rows: Sequence[tuple[list[Entry], list[Entry]]], mode: str, score: str, where: str, notes: list[str]
) -> np.ndarray | None:
    """(S, N) second minus first over the problems that every run scored; None where nothing pairs."""
    used = [entry for pair in rows for side in pair for entry in side]
    every = [entry.of_mode(mode) for entry in used]
    results = [r for r in every if r is not None and r.values.get(score)]
    if len(results) < len(used):
        if results:
            notes.append(f"{where}: {score} ({mode}) was not measured in every run, so it is left out.")
        return None
    temperatures = sorted({r.temperature for r in results})
    if len(temperatures) > 1:
        notes.append(
            f"{where}: {mode} evaluations at temperatures {', '.join(map(str, temperatures))} measure "
            "different things and are not paired."
        )
        return None
    keys = [key for key in results[0].values[score] if all(key in r.values[score] for r in results[1:])]
    most = max(len(r.values[score]) for r in results)
    if not keys:
        notes.append(f"{where}: they have no {results[0].unit} in common in {score} ({mode}).")
        return None
    if len(keys) < most:
        notes.append(
            f"{where}: {score} ({mode}) is paired on the {len(keys)} {results[0].unit} that all have, of "
            f"{most}."
        )

    def mean_N(side: list[Entry]) -> np.ndarray:
        tables = [r.values[score] for entry in side if (r := entry.of_mode(mode)) is not None]
        return np.array([[table[key] for key in keys] for table in tables]).mean(axis=0)

    return np.stack([mean_N(second) - mean_N(first) for first, second in rows])


def _difference(paired: _Paired, count: int, controls: Sequence[tuple[Arm, Arm]]) -> Difference:
    share = paired.score in SHARES
    difference_SN = paired.difference_SN
    return Difference(
        first=paired.first.name,
        second=paired.second.name,
        mode=paired.mode,
        score=paired.score,
        share=share,
        interval=_interval(difference_SN, LEVEL, share),
        family=_interval(difference_SN, _level(count), share),
        problems=difference_SN.shape[1],
        seeds=paired.seeds,
        by_seed=tuple(float(mean) for mean in difference_SN.mean(axis=1)) if paired.seeds else (),
        control=(paired.first, paired.second) in controls,
    )


def _interval(difference_SN: np.ndarray, level: float, share: bool) -> Interval:
    bounds = (-1.0, 1.0) if share else None
    if len(difference_SN) > 1:
        return crossed_bootstrap(difference_SN, level=level, bounds=bounds)
    only_N = difference_SN[0]
    return paired_bootstrap(np.zeros_like(only_N), only_N, level=level, bounds=bounds)


def _level(count: int) -> float:
    return 1 - (1 - LEVEL) / max(1, count)
