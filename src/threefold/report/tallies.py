"""Counts over all recorded episodes, not over the sample alone: broken rules, states by turn, skills that
fired.

Memory does not grow with the run. What goes over the course of training is kept in at most `STRETCHES`
stretches of equal numbers of steps: when they are too many, two neighbours become one.

The unit of chance is the group: its members share a task and a seed, so an interval is over groups, each with
the mean of its members.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from threefold.report.intervals import Moments
from threefold.report.records import Head

STRETCHES = 60
NAMES = 40
"""Most states, rules and subtypes that are counted apart."""
VERSIONS = 200
"""Most bank versions that are counted apart; the newest ones of a longer run."""
TURNS = 32
"""Turns that are counted apart; those of a longer dialogue are left out."""


@dataclass
class Stretch:
    """Some steps in a row, from the first to the last."""

    first: int
    last: int
    episodes: int = 0
    violating: Moments = field(default_factory=Moments)
    """Of each group: the share of its episodes that broke a rule."""
    rules: Counter[str] = field(default_factory=Counter)
    """Episodes by the rule that they broke."""
    drops: dict[str, Moments] = field(default_factory=dict)
    """By state, of each group: what its mean fell by from the opening to the last turn."""
    levels: dict[tuple[str, int], Moments] = field(default_factory=dict)
    """By state and turn (0 is the opening), of each group: the mean of its episodes that got so far."""
    turns: int = 0
    turns_with_skill: int = 0

    def merge(self, other: Stretch) -> None:
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.episodes += other.episodes
        self.violating.merge(other.violating)
        self.rules.update(other.rules)
        for name, moments in other.drops.items():
            self.drops.setdefault(name, Moments()).merge(moments)
        for place, moments in other.levels.items():
            self.levels.setdefault(place, Moments()).merge(moments)
        self.turns += other.turns
        self.turns_with_skill += other.turns_with_skill


@dataclass
class Subtype:
    """Episodes of one kind of task."""

    episodes: int = 0
    groups: Moments = field(default_factory=Moments)
    """Of each group: the share of its episodes that broke a rule."""
    rules: Counter[str] = field(default_factory=Counter)


@dataclass
class Use:
    """How often something was in play, and how its episodes ended."""

    episodes: int = 0
    scored: int = 0
    right: int = 0
    turns: int = 0
    """Of a skill: turns whose prompt held it."""

    def add(self, success: bool | None, turns: int) -> None:
        self.episodes += 1
        self.scored += success is not None
        self.right += bool(success)
        self.turns += turns

    def merge(self, other: Use) -> None:
        self.episodes += other.episodes
        self.scored += other.scored
        self.right += other.right
        self.turns += other.turns

    def without(self, other: Use) -> Use:
        """The rest, where `other` is a part of this."""
        return Use(
            self.episodes - other.episodes,
            self.scored - other.scored,
            self.right - other.right,
            self.turns - other.turns,
        )


@dataclass
class Tallies:
    """What was counted. Episodes of the split "train" in which the environment did not fail."""

    stretches: list[Stretch] = field(default_factory=list)
    subtypes: dict[str, Subtype] = field(default_factory=dict)
    violation_turns: Counter[int] = field(default_factory=Counter)
    """Episodes by the turn (counted from 0) in which they broke a rule."""
    versions: dict[str, Use] = field(default_factory=dict)
    """Episodes by bank version."""
    skills: dict[tuple[str, str], Use] = field(default_factory=dict)
    """Episodes by bank version and skill whose prompts held it at least once."""
    failed: int = 0
    environments: tuple[str, ...] = ()

    @property
    def episodes(self) -> int:
        return sum(stretch.episodes for stretch in self.stretches)

    def pooled(self, most: int = 15, groups: int = 8) -> list[Stretch]:
        """The stretches, neighbours put together: at most `most`, each with `groups` groups where that leaves
        at least three."""
        total = sum(stretch.violating.count for stretch in self.stretches)
        count = max(1, min(most, len(self.stretches), max(3, total // groups)))
        ends = [round(i * len(self.stretches) / count) for i in range(count + 1)]
        found = []
        for first, last in pairwise(ends):
            whole = Stretch(self.stretches[first].first, self.stretches[first].last)
            for stretch in self.stretches[first:last]:
                whole.merge(stretch)
            found.append(whole)
        return found if self.stretches else []

    def part(self, first: float, last: float) -> Stretch | None:
        """The stretches of a part of the run as one: from share `first` of it to share `last`."""
        count = len(self.stretches)
        chosen = self.stretches[int(first * count) : max(int(first * count) + 1, math.ceil(last * count))]
        if not chosen:
            return None
        whole = Stretch(chosen[0].first, chosen[0].last)
        for stretch in chosen:
            whole.merge(stretch)
        return whole


class Tally:
    """Collects `Tallies` step by step."""

    def __init__(self, stretches: int = STRETCHES) -> None:
        self._limit = stretches
        self._width = 1
        self._by_place: dict[int, Stretch] = {}
        self._found = Tallies()
        self._environments: dict[str, None] = {}

    def add_step(self, heads: Sequence[Head]) -> None:
        """Take in all episodes of one step; a member that is there twice has its later record."""
        groups: dict[int, dict[int, Head]] = defaultdict(dict)
        for head in heads:
            if head.split == "train":
                groups[head.group_id][head.member] = head
        for members in groups.values():
            played = [head for head in members.values() if not head.failed]
            self._found.failed += len(members) - len(played)
            if played:
                self._add_group(self._stretch(played[0].step), played)

    def tallies(self) -> Tallies:
        self._found.stretches = [self._by_place[place] for place in sorted(self._by_place)]
        self._found.environments = tuple(self._environments)
        return self._found

    def _stretch(self, step: int) -> Stretch:
        place = step // self._width
        if place not in self._by_place:
            self._by_place[place] = Stretch(step, step)
            while len(self._by_place) > self._limit:
                self._halve()
            place = step // self._width
        stretch = self._by_place[place]
        stretch.first, stretch.last = min(stretch.first, step), max(stretch.last, step)
        return stretch

    def _halve(self) -> None:
        self._width *= 2
        merged: dict[int, Stretch] = {}
        for stretch in self._by_place.values():
            place = stretch.first // self._width
            if place in merged:
                merged[place].merge(stretch)
            else:
                merged[place] = stretch
        self._by_place = merged

    def _add_group(self, stretch: Stretch, heads: Sequence[Head]) -> None:
        stretch.episodes += len(heads)
        share = sum(head.rule is not None for head in heads) / len(heads)
        stretch.violating.add(share)
        self._add_rules(stretch, heads)
        _add_states(stretch, heads)
        subtype = self._subtype(heads[0].subtype)
        if subtype is not None:
            subtype.episodes += len(heads)
            subtype.groups.add(share)
            subtype.rules.update(head.rule for head in heads if head.rule is not None)
        for head in heads:
            if len(self._environments) < NAMES:
                self._environments.setdefault(head.environment)
            if head.skill_version is not None:
                self._add_skills(stretch, head, head.skill_version)

    def _add_rules(self, stretch: Stretch, heads: Sequence[Head]) -> None:
        for head in heads:
            if head.rule is None:
                continue
            known = head.rule in stretch.rules or len(stretch.rules) < NAMES
            stretch.rules[head.rule if known else "others"] += 1
            if isinstance(head.violation_turn, int):
                self._found.violation_turns[min(head.violation_turn, TURNS)] += 1

    def _subtype(self, name: str) -> Subtype | None:
        subtypes = self._found.subtypes
        if not name or (name not in subtypes and len(subtypes) >= NAMES):
            return None
        return subtypes.setdefault(name, Subtype())

    def _add_skills(self, stretch: Stretch, head: Head, version: str) -> None:
        versions = self._found.versions
        if version not in versions and len(versions) >= VERSIONS:
            oldest = next(iter(versions))
            del versions[oldest]
            self._found.skills = {key: use for key, use in self._found.skills.items() if key[0] != oldest}
        versions.setdefault(version, Use()).add(head.success, len(head.skills))
        stretch.turns += len(head.skills)
        stretch.turns_with_skill += sum(bool(names) for names in head.skills)
        for name, turns in Counter(name for names in head.skills for name in set(names)).items():
            self._found.skills.setdefault((version, name), Use()).add(head.success, turns)


def _add_states(stretch: Stretch, heads: Sequence[Head]) -> None:
    drops: dict[str, list[float]] = {}
    levels: dict[tuple[str, int], list[float]] = {}
    for head in heads:
        for turn, state in enumerate(head.states[: TURNS + 1]):
            for name, value in _finite(state).items():
                levels.setdefault((name, turn), []).append(value)
        if len(head.states) > 1:
            first, last = _finite(head.states[0]), _finite(head.states[-1])
            for name in first.keys() & last.keys():
                drops.setdefault(name, []).append(first[name] - last[name])
    _add_means(stretch.drops, drops)
    _add_means(stretch.levels, levels)


def _add_means(into: dict, found: Mapping) -> None:  # type: ignore[type-arg]
    for key, values in found.items():
        if key in into or len(into) < NAMES * (TURNS + 1):
            into.setdefault(key, Moments()).add(math.fsum(values) / len(values))


def _finite(state: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in list(state.items())[:NAMES]
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    }
