"""A bounded sample of the episodes of a run, taken in one pass over `rollouts.jsonl` and its rotated parts.

The sample consists of whole groups, because an advantage means nothing without the other members: the newest
groups, and groups spread evenly over the rest of the run. Memory holds the sample and the lines of one step,
however many episodes there are: every `stride`-th group is kept, and when the sample grows over its bound,
the stride doubles and every second group goes. The choice is a function of the record alone, so the same run
gives the same page.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from threefold.report.groups import GroupMap, GroupMapper, cell

Dead = Literal["right", "wrong"]
"""A dead group by what its members have in common: all right or all wrong. GRPO learns nothing from it."""

CHARACTER_LIMIT = 64_000_000
"""Largest number of characters of JSON that the sample holds: long episodes reach it before the count."""

_ROLLOUTS = re.compile(r"rollouts(?:\.(\d+))?\.jsonl(\.gz)?")


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
    notes: tuple[str, ...] = ()


def rollout_files(run_dir: Path) -> list[Path]:
    """The parts of the record, oldest first: `rollouts.2.jsonl.gz`, `rollouts.1.jsonl`, `rollouts.jsonl`."""
    parts: dict[int, Path] = {}
    for path in sorted(run_dir.iterdir()):
        match = _ROLLOUTS.fullmatch(path.name)
        if match is None:
            continue
        # A crash during compression leaves a part twice; the uncompressed one is whole and sorts first.
        parts.setdefault(int(match[1] or 0), path)
    return [parts[number] for number in sorted(parts, reverse=True)]


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
    sample, mapper = _Sample(limit), GroupMapper()
    episodes = 0
    step_lines: list[tuple[dict[str, Any], str]] = []
    for head, line in _records(files, notes):
        if step_lines and head["step"] != step_lines[-1][0]["step"]:
            sample.add_step(step_lines)
            _add_to_map(mapper, step_lines)
            step_lines = []
        step_lines.append((head, line))
        episodes += 1
    sample.add_step(step_lines)
    _add_to_map(mapper, step_lines)
    if not episodes:
        notes.append("rollouts.jsonl holds no episode.")
    return EpisodeSample(groups=sample.groups(), episodes=episodes, map=mapper.map(), notes=tuple(notes))


def _add_to_map(mapper: GroupMapper, step_lines: list[tuple[dict[str, Any], str]]) -> None:
    groups: dict[int, dict[int, dict[str, Any]]] = {}
    for head, _ in step_lines:
        if head["split"] == "train":
            groups.setdefault(head["group_id"], {})[head["member"]] = head
    if groups:
        cells = [cell(group_id, list(members.values())) for group_id, members in groups.items()]
        mapper.add_step(step_lines[0][0]["step"], cells)


class _Sample:
    """The newest groups and every `stride`-th of all, by (split, step, group)."""

    def __init__(self, limit: int) -> None:
        self._newest_limit = max(1, limit // 4)
        self._spread_limit = max(1, limit - self._newest_limit)
        self._spread: dict[tuple[str, int, int], Group] = {}
        self._newest: deque[Group] = deque()
        self._stride = 1
        self._count = 0

    def add_step(self, step_lines: list[tuple[dict[str, Any], str]]) -> None:
        """Take in all lines of one step. A member that is there twice (a resume) has its later line."""
        members: dict[tuple[str, int, int], dict[int, tuple[bool | None, str]]] = {}
        for head, line in step_lines:
            key = (head["split"], head["step"], head["group_id"])
            members.setdefault(key, {})[head["member"]] = (head["success"], line)
        for key, by_member in members.items():
            ordered = [by_member[member] for member in sorted(by_member)]
            group = Group(
                self._count, *key, tuple(line for _, line in ordered), _dead([s for s, _ in ordered])
            )
            self._add(key, group)
            self._count += 1

    def _add(self, key: tuple[str, int, int], group: Group) -> None:
        if group.index % self._stride == 0 or key in self._spread:
            self._spread[key] = group
        self._newest = deque(held for held in self._newest if (held.split, held.step, held.group_id) != key)
        self._newest.append(group)
        while len(self._newest) > 1 and _over(self._newest, self._newest_limit, CHARACTER_LIMIT // 4):
            self._newest.popleft()
        while len(self._spread) > 1 and _over(self._spread.values(), self._spread_limit, CHARACTER_LIMIT):
            self._stride *= 2
            kept = {k: held for k, held in self._spread.items() if held.index % self._stride == 0}
            self._spread = kept if kept else {key: group}

    def groups(self) -> tuple[Group, ...]:
        both = {**self._spread, **{(g.split, g.step, g.group_id): g for g in self._newest}}
        return tuple(sorted(both.values(), key=lambda group: group.index))


def _over(groups: Any, episodes: int, characters: int) -> bool:
    groups = list(groups)
    return (
        sum(len(group.lines) for group in groups) > episodes
        or sum(group.characters for group in groups) > characters
    )


def _dead(successes: list[bool | None]) -> Dead | None:
    if len(successes) < 2 or None in successes or len(set(successes)) > 1:
        return None
    return "right" if successes[0] else "wrong"


def _records(files: list[Path], notes: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Place, outcome and line of every readable record; the others are counted into a note per file."""
    for path in files:
        bad: list[int] = []
        number = 0
        try:
            with _open(path) as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    head = _head(line)
                    if head is None:
                        bad.append(number)
                    else:
                        yield head, line
        except (EOFError, OSError, zlib.error) as error:
            notes.append(f"{path.name} cannot be read beyond line {number}: {error}")
        if bad:
            notes.append(
                f"{path.name}: lines left out because they hold no complete episode: {len(bad)}, "
                f"the first at line {bad[0]} (a crash cuts the line being written)."
            )


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return open(path, encoding="utf-8", errors="replace")


def _head(line: str) -> dict[str, Any] | None:
    """Place, outcome and rewards of a record, None where the line is not a credited episode."""
    try:
        data = json.loads(line)
        episode = data["trajectory"]
        head = {
            "split": data.get("split", "train"),
            "step": data["step"],
            "group_id": episode["group_id"],
            "member": episode["member"],
            "success": episode["success"],
            "rewards": episode.get("rewards") or {},
            "reward": (data.get("signals") or {}).get("reward"),
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = all(isinstance(head[name], int) for name in ("step", "group_id", "member"))
    return head if whole and isinstance(head["split"], str) else None
