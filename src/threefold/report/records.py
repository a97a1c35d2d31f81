"""Reads `rollouts.jsonl` and its rotated parts, fast and in bounded memory: a `Head` of every episode.

Most of a line is numbers a token (ids, advantages, signals) that only a reader of that episode needs. They
are cut out of the text before it is parsed, which is several times faster than parsing them. That is safe
where the line is in the form that `trajectory.to_json` writes: inside a JSON string a quotation mark is
always escaped, so the keys looked for cannot be a text that a model wrote. A line in any other form is parsed
whole.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

NAME_LIMIT = 200
"""Characters of a rule's, a subtype's or an environment's name."""
_ROLLOUTS = re.compile(r"rollouts(?:\.(\d+))?\.jsonl(\.gz)?")
_NUMBERS = (
    # (key, what follows its value): numbers a token, or their texts, between the two.
    (', "segments": [', '], "turns": ['),
    (', "advantages": [', '], "outcome_advantage": '),
    (', "token_texts": [', '], "signals": {'),
)


@dataclass(frozen=True)
class Head:
    """What is known of an episode without its tokens."""

    split: str
    step: int
    group_id: int
    member: int
    success: bool | None
    rewards: Mapping[str, Any] = field(default_factory=dict)
    reward: Any = None
    """The scalar that was normalised, None where it is not recorded."""
    environment: str = ""
    subtype: str = ""
    """The task's own field of that name."""
    skill_version: str | None = None
    rule: str | None = None
    """The rule that was broken, in turn `violation_turn`."""
    violation_turn: int | None = None
    failed: bool = False
    """The environment raised, so nothing of the episode counts."""
    states: Sequence[Mapping[str, Any]] = ()
    """The state at the opening and after each turn."""
    skills: Sequence[Sequence[str]] = ()
    """Names of the skills in the prompt of each turn."""


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


def read_heads(files: Sequence[Path], notes: list[str]) -> Iterator[tuple[Head, str]]:
    """Head and line of every readable record; the others are counted into a note per file."""
    for path in files:
        bad: list[int] = []
        number = 0
        try:
            with _open(path) as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    head = read_head(line)
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


def read_head(line: str) -> Head | None:
    """The head of a record, None where the line is not a credited episode."""
    try:
        return _head(json.loads(without_numbers(line)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def without_numbers(line: str) -> str:
    """The line with empty lists in place of what is recorded a token; the line itself in another form."""
    kept, at = [], 0
    for begin, end in _NUMBERS:
        first = line.find(begin, at)
        last = line.find(end, first)
        if first < 0 or last < 0:
            return line
        kept.append(line[at : first + len(begin)])
        at = last
    first, last = line.find(', "token_signals": {', at), line.rfind('}, "split": "')
    if first < 0 or last < first:
        return line
    return "".join([*kept, line[at : first + len(', "token_signals": {')], line[last:]])


def _head(data: Mapping[str, Any]) -> Head | None:
    episode = data["trajectory"]
    violation = episode.get("violation") or {}
    turns = episode.get("turns") or ()
    head = Head(
        split=data.get("split", "train"),
        step=data["step"],
        group_id=episode["group_id"],
        member=episode["member"],
        success=episode["success"],
        rewards=episode.get("rewards") or {},
        reward=(data.get("signals") or {}).get("reward"),
        environment=str(episode.get("environment", ""))[:NAME_LIMIT],
        subtype=str((episode.get("task") or {}).get("subtype", ""))[:NAME_LIMIT],
        skill_version=episode.get("skill_version"),
        rule=None if not violation else str(violation.get("rule", "unnamed"))[:NAME_LIMIT],
        violation_turn=violation.get("turn"),
        failed=str(episode.get("ended", "")).startswith("error"),
        states=[(episode.get("opening") or {}).get("state") or {}, *(t.get("state") or {} for t in turns)],
        skills=[t.get("skills") or () for t in turns],
    )
    whole = all(isinstance(value, int) for value in (head.step, head.group_id, head.member))
    return head if whole and isinstance(head.split, str) else None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return open(path, encoding="utf-8", errors="replace")
