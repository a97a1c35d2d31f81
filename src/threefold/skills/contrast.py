"""What successful episodes do that failed ones do not: the contrast that skills are written from.

Actions are generalised to patterns that leave out names of things: actions that begin with the same word
share the words that all of them begin with, and the rest is free once it takes more than two values ("open
red", "open blue", "open green" -> `open .*`; "get key" stays). A *habit* is a statement about the order of
actions in an episode; its lift is

    lift = Pr(success | habit) - Pr(success | no habit)

over tasks that were both solved and failed, so a habit is not praised for tasks that are easy anyway.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from threefold.skills.reservoir import Experience

EXACT_VALUES = 2
"""Up to so many different endings after a common beginning are kept word by word."""

HabitKind = Literal["before", "after", "no_repeat"]


@dataclass(frozen=True)
class Habit:
    """before: `first` occurs before `second` first does (asked of episodes in which `second` occurs).
    after: some `first` is directly followed by `second` (asked of episodes in which `first` is followed by
    anything). no_repeat: no action is said twice in a row."""

    kind: HabitKind
    first: str = ""
    second: str = ""


@dataclass(frozen=True)
class Contrast:
    """A habit and how well it tells success from failure."""

    habit: Habit
    with_success: int
    with_failure: int
    without_success: int
    without_failure: int

    @property
    def lift(self) -> float:
        yes = self.with_success + self.with_failure
        no = self.without_success + self.without_failure
        return self.with_success / max(1, yes) - self.without_success / max(1, no)

    @property
    def support(self) -> int:
        """Episodes on the rarer side."""
        return min(self.with_success + self.with_failure, self.without_success + self.without_failure)

    @property
    def score(self) -> float:
        """Lift in units of its chance spread: the two-proportion z statistic."""
        yes = self.with_success + self.with_failure
        no = self.without_success + self.without_failure
        if not yes or not no:
            return 0.0
        pooled = (self.with_success + self.without_success) / (yes + no)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / yes + 1 / no))
        return self.lift / spread if spread else 0.0


def patterns(actions: Iterable[str]) -> dict[str, str]:
    """The pattern of each distinct action, as RE2 would search it."""
    by_word: dict[str, set[str]] = {}
    for action in actions:
        if action.strip():
            by_word.setdefault(action.split()[0], set()).add(action)
    result = {}
    for group in by_word.values():
        split = [action.split() for action in sorted(group)]
        common = []
        for words in zip(*split, strict=False):
            if len(set(words)) > 1:
                break
            common.append(words[0])
        free = len(group) > EXACT_VALUES
        for action in group:
            general = re.escape(" ".join(common)).replace(r"\ ", " ") + " .*"
            result[action] = general if free else re.escape(action).replace(r"\ ", " ")
    return result


def mixed(experiences: Iterable[Experience]) -> list[Experience]:
    """The episodes of tasks that were both solved and failed."""
    outcomes: dict[str, set[bool]] = {}
    entries = list(experiences)
    for entry in entries:
        outcomes.setdefault(entry.task_id, set()).add(entry.success)
    return [entry for entry in entries if len(outcomes[entry.task_id]) == 2]


def shows(habit: Habit, actions: Sequence[str], pattern_of: Mapping[str, str]) -> bool | None:
    """Whether an episode has a habit, None where the question does not arise."""
    if habit.kind == "no_repeat":
        return all(one != two for one, two in pairwise(actions)) if actions else None
    said = [pattern_of.get(action, "") for action in actions]
    if habit.kind == "before":
        return habit.first in said[: said.index(habit.second)] if habit.second in said else None
    nexts = [two for one, two in pairwise(said) if one == habit.first]
    return habit.second in nexts if nexts else None


def contrasts(experiences: Sequence[Experience], *, support: int = 3, lift: float = 0.2) -> list[Contrast]:
    """Habits that tell success from failure, strongest first; the order depends on the episodes alone.

    Args:
        experiences: Episodes; those of tasks with one outcome only are left out.
        support: Least number of episodes with and without the habit.
        lift: Least difference of the success rates.
    """
    if support < 1:
        raise ValueError(f"support is a number of episodes, at least 1, got {support}")
    episodes = mixed(experiences)
    pattern_of = patterns(action for episode in episodes for action in episode.actions)
    asked: Counter[tuple[HabitKind, str, bool]] = Counter()
    shown: Counter[tuple[Habit, bool]] = Counter()
    for episode in episodes:
        _count(episode, pattern_of, asked, shown)
    result = []
    for habit in {habit for habit, _ in shown}:
        subject = habit.first if habit.kind == "after" else habit.second
        yes = [shown[habit, won] for won in (True, False)]
        no = [asked[habit.kind, subject, won] - shown[habit, won] for won in (True, False)]
        found = Contrast(habit, *yes, *no)
        if found.support >= support and found.lift >= lift:
            result.append(found)
    return sorted(result, key=lambda c: (-c.score, c.habit.kind, c.habit.first, c.habit.second))


def _count(
    episode: Experience,
    pattern_of: Mapping[str, str],
    asked: Counter[tuple[HabitKind, str, bool]],
    shown: Counter[tuple[Habit, bool]],
) -> None:
    """Add an episode to how often each habit was asked for and shown, as `shows` says of one habit at a time.

    Only habits that it shows are looked at, so actions that are all different cost no more than others.
    """
    won, actions = episode.success, episode.actions
    said = [pattern_of.get(action, "") for action in actions]
    if actions:
        asked["no_repeat", "", won] += 1
        shown[Habit("no_repeat"), won] += all(one != two for one, two in pairwise(actions))
    for second in {*said} - {""}:
        asked["before", second, won] += 1
        for first in {*said[: said.index(second)]} - {""}:
            shown[Habit("before", first, second), won] += 1
    for first in {*said[:-1]} - {""}:
        asked["after", first, won] += 1
    for one, two in {*pairwise(said)}:
        if one and two and one != two:
            shown[Habit("after", one, two), won] += 1
