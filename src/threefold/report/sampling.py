"""A bounded sample of the episodes of a run, taken in one pass over `rollouts.jsonl` and its rotated parts.

The sample consists of whole groups, because an advantage means nothing without the other members: the newest
groups, and groups spread evenly over the rest of the run. Memory holds the sample and the lines of one step,
however many episodes there are: every `stride`-th group is kept, and when the sample grows over its bound,
the stride doubles and every second group goes. The choice is a function of the record alone, so the same run
gives the same page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from threefold.report.groups import GroupMap, GroupMapper, cell
from threefold.report.records import Head, read_heads, rollout_files
from threefold.report.tallies import Tallies, Tally

Dead = Literal["right", "wrong"]
"""A dead group by what its members have in common: all right or all wrong. GRPO learns nothing from it."""

CHARACTER_LIMIT = 64_000_000
"""Largest number of characters of JSON that the sample holds: long episodes reach it before the count."""


@dataclass(frozen=True)
class Group:
    """The episodes of one prompt in one step, as lines of JSON."""

    index: int
    """Position in the record, counted in groups."""
    split: str
    step: int
    group_id: int
    lines: tuple[str, ...]
    """One line a member, members ascending."""
    dead: Dead | None
    """Set where the group has at least two members, all with the same outcome."""

    @property
    def key(self) -> tuple[str, int, int]:
        return self.split, self.step, self.group_id

    @property
    def characters(self) -> int:
        return sum(len(line) for line in self.lines)


@dataclass(frozen=True)
class EpisodeSample:
    """What was kept, out of how many."""

    groups: tuple[Group, ...] = ()
    """In the order of the record, oldest first."""
    episodes: int = 0
    """Episodes in the record."""
    map: GroupMap = field(default_factory=GroupMap)
    """What every group of the split "train" gave, of all steps or an even sample of them."""
    tallies: Tallies = field(default_factory=Tallies)
    """Counts over all episodes of the record."""
    notes: tuple[str, ...] = ()


def sample_episodes(run_dir: Path, limit: int = 400) -> EpisodeSample:
    """Sample whole groups from the record of a run.

    Args:
        run_dir: Directory with `rollouts.jsonl` and its rotated parts.
        limit: Largest number of episodes. Where a group is larger than a quarter of it, the newest group and
            one older group stay nevertheless.
    """
    notes: list[str] = []
    files = rollout_files(run_dir)
    if not files:
        return EpisodeSample(notes=("rollouts.jsonl is missing: there are no episodes to read.",))
    sample, mapper, tally = _Sample(limit), GroupMapper(), Tally()
    episodes = 0
    step: list[tuple[Head, str]] = []

    def take_in() -> None:
        sample.add_step(step)
        heads = [head for head, _ in step]
        _add_to_map(mapper, heads)
        tally.add_step(heads)

    for head, line in read_heads(files, notes):
        if step and head.step != step[-1][0].step:
            take_in()
            step.clear()
        step.append((head, line))
        episodes += 1
    take_in()
    if not episodes:
        notes.append("rollouts.jsonl holds no episode.")
    return EpisodeSample(sample.groups(), episodes, mapper.map(), tally.tallies(), tuple(notes))


def _add_to_map(mapper: GroupMapper, heads: list[Head]) -> None:
    groups: dict[int, dict[int, Head]] = {}
    for head in heads:
        if head.split == "train":
            groups.setdefault(head.group_id, {})[head.member] = head
    if groups:
        cells = [cell(group_id, list(members.values())) for group_id, members in groups.items()]
        mapper.add_step(heads[0].step, cells)


class _Bounded:
    """Groups by (split, step, group), in the order in which they came, with their size kept up to date."""

    def __init__(self, episodes: int, characters: int) -> None:
        self._most = episodes, characters
        self._size = 0, 0
        self.groups: dict[tuple[str, int, int], Group] = {}

    def put(self, group: Group) -> None:
        """Take a group in as the newest one, in place of one of its key."""
        self.drop(group.key)
        self.groups[group.key] = group
        self._size = self._size[0] + len(group.lines), self._size[1] + group.characters

    def drop(self, key: tuple[str, int, int]) -> None:
        group = self.groups.pop(key, None)
        if group is not None:
            self._size = self._size[0] - len(group.lines), self._size[1] - group.characters

    def is_over(self) -> bool:
        return len(self.groups) > 1 and any(
            now > most for now, most in zip(self._size, self._most, strict=True)
        )


class _Sample:
    """The newest groups and every `stride`-th of all."""

    def __init__(self, limit: int) -> None:
        newest = max(1, limit // 4)
        self._newest = _Bounded(newest, CHARACTER_LIMIT // 4)
        self._spread = _Bounded(max(1, limit - newest), CHARACTER_LIMIT)
        self._stride = 1
        self._count = 0

    def add_step(self, step: list[tuple[Head, str]]) -> None:
        """Take in all episodes of one step. A member that is there twice (a resume) has its later line."""
        members: dict[tuple[str, int, int], dict[int, tuple[Head, str]]] = {}
        for head, line in step:
            members.setdefault((head.split, head.step, head.group_id), {})[head.member] = (head, line)
        for key, by_member in members.items():
            ordered = [by_member[member] for member in sorted(by_member)]
            dead = _dead([head.success for head, _ in ordered])
            self._add(Group(self._count, *key, tuple(line for _, line in ordered), dead))
            self._count += 1

    def _add(self, group: Group) -> None:
        if group.index % self._stride == 0 or group.key in self._spread.groups:
            self._spread.put(group)
        self._newest.put(group)
        while self._newest.is_over():
            self._newest.drop(next(iter(self._newest.groups)))
        while self._spread.is_over():
            self._stride *= 2
            kept = [g for g in self._spread.groups.values() if g.index % self._stride == 0]
            for key in self._spread.groups.keys() - ({g.key for g in kept} or {group.key}):
                self._spread.drop(key)

    def groups(self) -> tuple[Group, ...]:
        both = {**self._spread.groups, **self._newest.groups}
        return tuple(sorted(both.values(), key=lambda group: group.index))


def _dead(successes: list[bool | None]) -> Dead | None:
    if len(successes) < 2 or None in successes or len(set(successes)) > 1:
        return None
    return "right" if successes[0] else "wrong"
