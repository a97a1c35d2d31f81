"""Turns sampled episodes into the JSON that the page embeds: small, bounded, and safe inside a script
element.

A segment becomes runs of tokens of the same turn. A run that the agent did not write is one text without
numbers; an advantage that is constant over a run is one number. That is what keeps the page of an ordinary
run under 3 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from threefold.report.sampling import EpisodeSample, Group
from threefold.trajectory import Credited, Trajectory, from_json

BYTE_LIMIT = 1_500_000
"""Bytes of embedded JSON."""
TOKEN_LIMIT = 4_000
"""Tokens of one episode that are shown; a note in the episode says how many follow."""
TEXT_LIMIT = 20_000
"""Characters of one text (prompt, environment's answer, single token) that are shown."""
FIELD_LIMIT = 1_000
"""Characters of a question, an answer or another short field that are shown."""


@dataclass(frozen=True)
class Embedded:
    """What the page carries."""

    json: str
    """A JSON array of episodes, newest first, safe inside a script element."""
    shown: int
    notes: tuple[str, ...] = ()


def embed(sample: EpisodeSample, byte_limit: int = BYTE_LIMIT) -> Embedded:
    """Encode the sample within a number of bytes: the newest quarter by choice, the rest thinned evenly."""
    notes: list[str] = []
    groups = [encoded for group in sample.groups if (encoded := _encode_group(group, notes))]
    groups = _fit(groups, byte_limit)
    episodes = [text for group in reversed(groups) for text in group]
    while len(episodes) > 1 and _size(episodes) > byte_limit:  # one group alone is over the limit
        episodes.pop()
    if notes:
        notes = [f"{len(notes)} sampled episodes are left out because they are not valid: {notes[0]}"]
    return Embedded(json="[" + ",\n".join(episodes) + "]", shown=len(episodes), notes=tuple(notes))


def script_json(value: Any) -> str:
    """JSON that is safe as the text of a script element, whatever the strings hold.

    "<" never appears, so neither "</script" nor "<!--" can; the two line separators that JavaScript once
    took for line ends are escaped as well. Reading it gives back the value.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _fit(groups: list[list[str]], byte_limit: int) -> list[list[str]]:
    """Drop groups until the rest fits: every second one of the older, as often as it takes."""
    sizes = [_size(group) for group in groups]
    newest_from, room = len(groups), byte_limit // 4
    while newest_from > 0 and sizes[newest_from - 1] <= room:
        newest_from -= 1
        room -= sizes[newest_from]
    newest_from = min(newest_from, max(len(groups) - 1, 0))
    older, newest = groups[:newest_from], groups[newest_from:]
    newest_size = sum(sizes[newest_from:])
    while older and sum(map(_size, older)) + newest_size > byte_limit:
        older = older[::2] if len(older) > 1 else []
    return older + newest


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) + 2 for text in texts)


def _encode_group(group: Group, notes: list[str]) -> list[str]:
    encoded = []
    for line in group.lines:
        try:
            record = from_json(line)
            if not isinstance(record, Credited):
                raise ValueError("a trajectory without credit")
            encoded.append(script_json(_episode(record, group)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"step {group.step}, group {group.group_id}: {type(error).__name__}: {error}.")
    return encoded


def _episode(record: Credited, group: Group) -> dict[str, Any]:
    """The fields of one episode; the script reads exactly these names."""
    episode = record.trajectory
    segments, cut = _segments(record)
    written = [
        advantage
        for segment, advantages in zip(episode.segments, record.advantages, strict=True)
        for turn, advantage in zip(segment.turn_ids, advantages, strict=True)
        if turn >= 0
    ]
    return {
        "split": record.split,
        "step": record.step,
        "group": episode.group_id,
        "member": episode.member,
        "task": _short(episode.task_id),
        "environment": _short(episode.environment),
        "question": _short(_task_field(episode, "question", "problem")) or _end(episode.opening.text),
        "given": _short(_given(record)),
        "truth": _short(_task_field(episode, "answer", "solution", "ground_truth", "target")),
        "success": episode.success,
        "dead": group.dead,
        "reward": _reward(record),
        "advantage": _number(math.fsum(written) / len(written)) if written else None,
        "outcome_advantage": _number(record.outcome_advantage),
        "rewards": _numbers(episode.rewards),
        "signals": _numbers(record.signals),
        "ended": _short(episode.ended),
        "violation": _short(episode.violation.rule) if episode.violation else None,
        "violation_turn": episode.violation.turn if episode.violation else None,
        "skills": _short(episode.skill_version) if episode.skill_version else None,
        "tokens": len(written),
        "cut": cut,
        "start": _numbers(episode.opening.state),
        "turns": _turns(record) if _has_turns(episode) else [],
        "segments": segments,
    }


def _segments(record: Credited) -> tuple[list[list[dict[str, Any]]], int]:
    """Runs of equal turn, segment by segment, and how many tokens were left out at the end."""
    episode = record.trajectory
    left = TOKEN_LIMIT
    total = 0
    segments = []
    for index, segment in enumerate(episode.segments):
        length = len(segment.token_ids)
        texts, advantages = record.token_texts[index], record.advantages[index]
        signals = {name: values[index] for name, values in record.token_signals.items()}
        if "logp" not in signals and any(value is not None for value in segment.logprobs):
            signals["logp"] = segment.logprobs
        for name, values in {"token texts": texts, "advantages": advantages, **signals}.items():
            if len(values) != length:
                raise ValueError(f"segment {index} has {length} tokens but {len(values)} {name}")
        runs = []
        for turn, positions in groupby(range(length), key=segment.turn_ids.__getitem__):
            span = list(positions)
            if turn < 0:
                runs.append({"turn": -1, "text": _cut("".join(texts[i] for i in span), TEXT_LIMIT)})
                continue
            total += len(span)
            span = span[: max(0, left)]
            left -= len(span)
            if span:
                runs.append(_run(turn, span, texts, advantages, signals))
        segments.append(runs)
    return segments, max(0, total - TOKEN_LIMIT)


def _run(
    turn: int,
    span: Sequence[int],
    texts: Sequence[str],
    advantages: Sequence[float],
    signals: Mapping[str, Sequence[float | None]],
) -> dict[str, Any]:
    """Tokens of one turn: texts, advantages (one number where constant) and every token signal by name."""
    values = [_number(advantages[i]) for i in span]
    run: dict[str, Any] = {
        "turn": turn,
        "texts": [_cut(texts[i], TEXT_LIMIT) for i in span],
        "advantage": values[0] if len(set(values)) == 1 else values,
        "signals": {
            name: [_number(value[i]) for i in span]
            for name, value in signals.items()
            if name != "critical" and any(value[i] is not None for i in span)
        },
    }
    if "critical" in signals:
        run["critical"] = [k for k, i in enumerate(span) if signals["critical"][i]]
    return run


def _has_turns(episode: Trajectory) -> bool:
    """Whether a table of turns says more than the episode itself."""
    return len(episode.turns) > 1 or any(turn.rewards or turn.state or turn.skills for turn in episode.turns)


def _turns(record: Credited) -> list[dict[str, Any]]:
    advantage = _by_turn(record, record.advantages)
    entropy = _by_turn(record, record.token_signals.get("entropy", ()))
    return [
        {
            "action": _short(turn.action),
            "rewards": _numbers(turn.rewards),
            "state": _numbers(turn.state),
            "skills": [_short(name) for name in turn.skills],
            "advantage": _mean(advantage.get(number, [])),
            "entropy": _mean(entropy.get(number, [])),
        }
        for number, turn in enumerate(record.trajectory.turns)
    ]


def _by_turn(record: Credited, values: Sequence[Sequence[float | None]]) -> dict[int, list[float]]:
    """The values of the tokens that the agent wrote in each turn."""
    found: dict[int, list[float]] = {}
    for segment, row in zip(record.trajectory.segments, values, strict=False):
        for turn, value in zip(segment.turn_ids, row, strict=False):
            if turn >= 0 and value is not None:
                found.setdefault(turn, []).append(value)
    return found


def _mean(values: Sequence[float]) -> float | int | None:
    return _number(math.fsum(values) / len(values)) if values else None


def _given(record: Credited) -> str:
    """The agent's last answer: the action that was parsed from it, else the tokens that state it."""
    episode = record.trajectory
    for turn in reversed(episode.turns):
        if turn.action:
            return turn.action
        if turn.answer_span is not None and record.token_texts:
            start, end = turn.answer_span
            return "".join(record.token_texts[-1][start:end]).strip()
    return ""


def _task_field(episode: Trajectory, *names: str) -> str:
    return next((str(episode.task[name]) for name in names if episode.task.get(name) is not None), "")


def _reward(record: Credited) -> float | None:
    """The scalar that was normalised, where it is recorded; else the plain sum of the scored channels."""
    if record.signals.get("reward") is not None:
        return _number(record.signals["reward"])
    scored = [value for value in record.trajectory.rewards.values() if value is not None]
    return _number(math.fsum(scored)) if scored else None


def _numbers(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {_short(name): _number(value) for name, value in values.items()}


def _number(value: Any) -> float | int | None:
    """Four significant digits, which is what a tooltip shows; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e9 else rounded


def _short(text: Any) -> str:
    return _cut(str(text), FIELD_LIMIT)


def _end(text: str) -> str:
    """An opening, whose end tells tasks apart: instructions and skills stand before it."""
    if len(text) <= FIELD_LIMIT:
        return text
    return f"[{len(text) - FIELD_LIMIT:,} characters more in rollouts.jsonl] {text[-FIELD_LIMIT:]}"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]} [{len(text) - limit:,} characters more in rollouts.jsonl]"
