"""The record that everything in Threefold shares: what happened in one episode, and what credit it was given.

An episode is a `Trajectory`: frozen, free of torch, and written to JSONL without loss. Token ids are those
that the sampler produced; nothing here is ever decoded and tokenised again. A mathematics problem is an
episode of one turn, a dialogue has ten, a household task fifty: all are this one record, so a method written
for one works for all.

The loss mask has one source of truth: `turn_ids`. `turn_ids[t] = k` says that the agent wrote token t in its
turn k; -1 marks every token it did not write (prompt, environment, skill text).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Version of the JSON form below. A reader refuses a newer one instead of guessing."""


@dataclass(frozen=True)
class Segment:
    """One contiguous context. One a trajectory is the rule; several are for environments that rewrite the
    context.

    The three tuples have equal length T.
    """

    token_ids: tuple[int, ...]
    turn_ids: tuple[int, ...]
    """Turn whose agent wrote the token, or -1 where the agent did not write it."""
    logprobs: tuple[float | None, ...]
    """Log-probability of the token under the sampler in nats, None where the sampler gave none or it is not
    ours."""

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.turn_ids) == len(self.logprobs):
            raise ValueError(
                "a segment needs one turn id and one log-probability per token, got "
                f"{len(self.token_ids)} tokens, {len(self.turn_ids)} turn ids, {len(self.logprobs)} "
                "log-probabilities"
            )

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the agent's first one."""
        return next((i for i, turn in enumerate(self.turn_ids) if turn >= 0), len(self.turn_ids))


@dataclass(frozen=True)
class Opening:
    """What the agent saw before its first turn, with the state it started from (D_0 and R_0 live here)."""

    text: str
    state: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One turn of the agent and the environment's answer to it."""

    text: str
    """What the agent wrote; where the chat template opens its thinking ("<think>"), that tag comes first."""
    action: str = ""
    """The action that was parsed from the text, as the environment understood it."""
    observation: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Reward of this turn by channel."""
    state: Mapping[str, float] = field(default_factory=dict)
    """State of the environment after the turn, by name."""
    answer_span: tuple[int, int] | None = None
    """Half-open range of the segment's tokens that state the final answer, None where none was found."""
    skills: tuple[str, ...] = ()
    """Names of the skills that entered the prompt of this turn."""


@dataclass(frozen=True)
class Violation:
    """A broken safety rule: which one, and in which turn."""

    rule: str
    turn: int


@dataclass(frozen=True)
class Trajectory:
    """One episode, from the opening to why it ended."""

    task_id: str
    group_id: int
    """Global index of the group, the same on every process. Members of a group share task and seed."""
    member: int
    """Index inside the group, 0 .. G-1."""
    seed: int
    environment: str
    opening: Opening
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """Reward of the whole episode by channel; None where the channel could not be scored."""
    success: bool | None = None
    violation: Violation | None = None
    skill_version: str | None = None
    ended: str = "terminated"
    """Why the episode ended: "terminated" by the environment or the end token, "truncated" by the
    environment's limit on turns, "length" by the limit on tokens, "violation", or "error: ..."."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """The task's own fields that a reader of the record wants to see, such as the question and the true
    answer."""


@dataclass(frozen=True)
class Credited:
    """A trajectory with the credit it was given: one line of `rollouts.jsonl`, and what the report shades."""

    trajectory: Trajectory
    step: int
    advantages: tuple[tuple[float, ...], ...]
    """Advantage of every token, one tuple a segment, zero where the agent did not write the token."""
    outcome_advantage: float | None
    """The advantage that the outcome alone would have given (GRPO's); the difference is what the method
    added."""
    token_texts: tuple[tuple[str, ...], ...]
    """Text of every token, one tuple a segment; joined they give the segment's text."""
    signals: Mapping[str, float | None] = field(default_factory=dict)
    """Measured once an episode: "ifd", "token_reward", ..."""
    token_signals: Mapping[str, tuple[tuple[float | None, ...], ...]] = field(default_factory=dict)
    """Measured once a token, aligned with `advantages`: "entropy", "logp", "base_logp", "critical" (0 or
    1)."""
    split: str = "train"


def to_json(record: Trajectory | Credited) -> str:
    """One line of JSON, keys in a fixed order, floats to full precision."""
    kind = "credited" if isinstance(record, Credited) else "trajectory"
    payload = {"schema": SCHEMA_VERSION, "kind": kind, **dataclasses.asdict(record)}
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)


def from_json(line: str) -> Trajectory | Credited:
    """Read a line that `to_json` wrote: the result equals the original.

    Raises:
        ValueError: The line is not such a record, or it was written by a newer version of the schema.
    """
    data = json.loads(line)
    schema, kind = data.pop("schema", None), data.pop("kind", None)
    if not isinstance(schema, int) or kind not in ("trajectory", "credited"):
        raise ValueError(f"not a trajectory record: schema {schema!r}, kind {kind!r}")
    if schema > SCHEMA_VERSION:
        raise ValueError(
            f"the record has schema version {schema}, this threefold reads up to {SCHEMA_VERSION}: upgrade"
        )
    if kind == "trajectory":
        return _trajectory(data)
    return Credited(
        trajectory=_trajectory(data.pop("trajectory")),
        advantages=_nested(data.pop("advantages")),
        token_texts=_nested(data.pop("token_texts")),
        token_signals={name: _nested(values) for name, values in data.pop("token_signals").items()},
        **data,
    )


def write_jsonl(path: str | Path, records: Iterable[Trajectory | Credited]) -> None:
    """Append records to a JSONL file, one a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(to_json(record) + "\n" for record in records)


def read_jsonl(path: str | Path) -> Iterator[Trajectory | Credited]:
    """Yield the records of a JSONL file. A last line that a crash cut short is left out; any other bad line
    raises.

    Raises:
        ValueError: A line before the last one is not a record; the message names file and line.
    """
    with open(path, encoding="utf-8") as file:
        bad: tuple[int, ValueError] | None = None
        for number, line in enumerate(file, 1):
            if bad is not None:
                raise ValueError(f"{path}, line {bad[0]}: {bad[1]}") from bad[1]
            if not line.strip():
                continue
            try:
                record = from_json(line)
            except ValueError as error:
                bad = (number, error)
                continue
            yield record
        if bad is not None and line.endswith("\n"):
            raise ValueError(f"{path}, line {bad[0]}: {bad[1]}") from bad[1]


def _nested(values: list[list[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in values)


def _trajectory(data: dict[str, Any]) -> Trajectory:
    segments = tuple(
        Segment(tuple(s["token_ids"]), tuple(s["turn_ids"]), tuple(s["logprobs"]))
        for s in data.pop("segments")
    )
    turns = []
    for turn in data.pop("turns"):
        span = turn.pop("answer_span")
        turns.append(
            Turn(answer_span=tuple(span) if span else None, skills=tuple(turn.pop("skills")), **turn)
        )
    violation = data.pop("violation")
    return Trajectory(
        opening=Opening(**data.pop("opening")),
        segments=segments,
        turns=tuple(turns),
        violation=Violation(**violation) if violation else None,
        **data,
    )
