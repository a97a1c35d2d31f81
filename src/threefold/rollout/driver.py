"""Episodes of many turns, side by side: one environment a row, one batched call of the sampler a turn.

The dialogue grows and is never tokenised twice: what the agent wrote stays as the sampler's ids, and only the
environment's new messages are tokenised, each with the chat template's own markers around it. A sampler that
remembers dialogues (a `Session`) forwards only what is new; any other gets whole contexts.

Environments answer one after the other, unless they say that so many may be asked at the same time
(`concurrency`, as those of `envs.pool` do): then each is asked in a thread. Only they run in threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from threefold.envs.base import Environment, Message, Observation, Task
from threefold.rollout.samplers import Session
from threefold.trajectory import Opening, Segment, Trajectory, Turn, Violation

_OPENED = re.compile(r"<think(?:ing)?>\s*\Z", re.IGNORECASE)
"""Where thinking goes on, a turn that was cut off within it would else look as if all of it were said."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is needed here."""

    eos_token_id: int | None

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> Any: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


GenerateTurn = Callable[[Sequence[Sequence[int]], int], list[tuple[list[int], list[float] | None]]]
"""(contexts, max_new_tokens) -> (token ids, log-probabilities or None) of one turn for each context."""


@dataclass(frozen=True)
class Limits:
    """Bounds of an episode."""

    turns: int = 16
    turn_tokens: int = 64
    """New tokens the agent may write in one turn."""
    completion_tokens: int = 512
    """Tokens after the opening, the environment's included."""


@dataclass(frozen=True)
class Start:
    """Where one episode starts: the members of a group share all but `member`."""

    task: Task
    seed: int
    group_id: int
    member: int


class _Row:
    """One running episode."""

    def __init__(self, start: Start, environment: Environment) -> None:
        self.start = start
        self.environment = environment
        self.token_ids: list[int] = []
        self.turn_ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.turns: list[Turn] = []
        self.opening = Opening("")
        self.prompt_length = 0
        self.opened = ""
        """A tag of thinking with which the template opens every turn of the agent, such as "<think>"."""
        self.last = Observation()
        self.ended = ""

    def begin(self) -> Observation:
        return self.environment.reset(self.start.task, self.start.seed, self.start.member)

    def append(self, ids: Sequence[int], turn: int, logprobs: Sequence[float | None] | None = None) -> None:
        self.token_ids.extend(ids)
        self.turn_ids.extend([turn] * len(ids))
        self.logprobs.extend(logprobs if logprobs is not None else [None] * len(ids))

    @property
    def completion_length(self) -> int:
        return len(self.token_ids) - self.prompt_length


def run_episodes(
    starts: Sequence[Start],
    make_environment: Callable[[], Environment],
    generate: GenerateTurn | Session,
    tokenizer: Tokenizer,
    *,
    limits: Limits | None = None,
    environment_name: str = "",
) -> list[Trajectory]:
    """Play every episode of `starts` to its end and score it.

    Rows that have ended cost nothing more: they are not generated again, and a session gives their memory
    back. A session is closed in the end, whatever happens. An environment that raises ends its own episode
    with `ended="error: ..."` and a None reward; the others go on.

    Returns:
        One `Trajectory` for each start, in order.
    """
    limits = limits or Limits()
    with ExitStack() as open_environments:  # closes each one, whatever happens here or in another's close()
        rows = []
        for start in starts:
            environment = make_environment()
            open_environments.callback(environment.close)
            rows.append(_Row(start, environment))
        ask = _asking(rows, open_environments)
        for row, opening in zip(rows, ask([row.begin for row in rows]), strict=True):
            _guarded(row, partial(_open, row, opening, tokenizer))
        if isinstance(generate, Session):
            open_environments.callback(generate.close)
        for turn in range(limits.turns):
            live = [number for number, row in enumerate(rows) if not row.ended]
            if not live:
                break
            contexts = [rows[number].token_ids for number in live]
            room = [
                min(limits.turn_tokens, limits.completion_tokens - rows[number].completion_length)
                for number in live
            ]
            outputs = _generate(generate, live, contexts, room)
            texts = [
                rows[number].opened
                + _said(ids, rows[number].token_ids[: rows[number].prompt_length], tokenizer)
                for number, (ids, _) in zip(live, outputs, strict=True)
            ]
            answers = ask(
                [partial(rows[i].environment.step, said) for i, said in zip(live, texts, strict=True)]
            )
            for number, (ids, logprobs), text, answer in zip(live, outputs, texts, answers, strict=True):
                rows[number].append(ids, turn, logprobs)
                _take_turn(rows[number], turn, ids, text, answer, tokenizer, limits)
        for row in rows:
            row.ended = row.ended or "truncated"
        return _score(rows, environment_name)


def _said(ids: Sequence[int], prompt: Sequence[int], tokenizer: Tokenizer) -> str:
    """A turn as text, without special tokens but for the markers of its template that stand inside it.

    An agent that opens another role's turn writes such markers; left out, what it says as somebody else would
    run into its own words, and no environment could tell.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    own = list(ids)
    while own and own[-1] in special:  # the end of the turn, whichever token ends it
        own.pop()
    markers = special.intersection(own, prompt)
    if not markers:
        return tokenizer.decode(ids, skip_special_tokens=True)
    shown = [token for token in own if token in markers or token not in special]
    return tokenizer.decode(shown, skip_special_tokens=False)


def _generate(
    generate: GenerateTurn | Session,
    dialogues: Sequence[int],
    contexts: Sequence[Sequence[int]],
    room: Sequence[int],
) -> list[tuple[Sequence[int], Sequence[float] | None]]:
    """One turn of each dialogue, of at most `room` tokens each."""
    if isinstance(generate, Session):
        samples = generate.turn(dialogues, contexts, room)
        return [(sample.token_ids, sample.logprobs) for sample in samples]
    outputs = generate(contexts, max(room))
    return [
        (ids[:most], logprobs[:most] if logprobs else None)
        for (ids, logprobs), most in zip(outputs, room, strict=True)
    ]


Answer = Observation | Exception
"""What an environment came up with: its failure ends one episode, so it is handed on like an answer."""


def _asking(
    rows: Sequence[_Row], closing: ExitStack
) -> Callable[[Sequence[Callable[[], Observation]]], list[Answer]]:
    """How the environments are asked: in turn, or as many at a time as all of them allow."""
    most = min((getattr(row.environment, "concurrency", 1) for row in rows), default=1)
    if most < 2 or len(rows) < 2:
        return lambda calls: [_answer(call) for call in calls]
    threads = ThreadPoolExecutor(min(most, len(rows)), "environments")
    closing.callback(threads.shutdown)
    return lambda calls: list(threads.map(_answer, calls))


def _answer(call: Callable[[], Observation]) -> Answer:
    try:
        return call()
    except Exception as error:  # an environment may fail in any way; the others' episodes must not be lost
        return error


def _guarded(row: _Row, act: Callable[[], None]) -> None:
    """An environment's failure ends its own episode; the reason goes into the record."""
    try:
        act()
    except Exception as error:  # an environment may fail in any way; the others' episodes must not be lost
        row.ended = f"error: {type(error).__name__}: {error}"


def _open(row: _Row, observation: Answer, tokenizer: Tokenizer) -> None:
    if isinstance(observation, Exception):
        raise observation
    ids = tokenizer.apply_chat_template(
        list(observation.messages), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    row.append(ids, -1)
    row.prompt_length = len(ids)
    opened = _OPENED.search(tokenizer.decode(ids[-8:], skip_special_tokens=False))
    row.opened = opened[0] if opened else ""
    row.opening = Opening("\n".join(m["content"] for m in observation.messages), dict(observation.state))
    row.last = observation


def _take_turn(
    row: _Row,
    turn: int,
    ids: Sequence[int],
    text: str,
    observation: Answer,
    tokenizer: Tokenizer,
    limits: Limits,
) -> None:
    """What the environment's answer to the agent's `text` means for a row."""
    skills = row.last.skills  # those of the prompt that this turn answers

    def act() -> None:
        if isinstance(observation, Exception):
            raise observation
        row.last = observation
        row.turns.append(
            Turn(
                text=text,
                action=observation.action,
                observation="\n".join(m["content"] for m in observation.messages),
                rewards=dict(observation.rewards),
                state=dict(observation.state),
                skills=skills,
            )
        )
        if observation.violation is not None:
            row.ended = "violation"
        elif observation.done:
            row.ended = "terminated" if observation.terminated else "truncated"
        else:
            answer = between_turns(ids, observation.messages, tokenizer)
            if row.completion_length + len(answer) >= limits.completion_tokens:
                row.ended = "length"
            else:
                row.append(answer, -1)

    _guarded(row, act)
    if len(row.turns) == turn:  # the environment failed: the text is kept, the turn has no answer
        row.turns.append(Turn(text=text, skills=skills))


def between_turns(written: Sequence[int], messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Tokens that close the agent's turn, say the environment's messages and open the next turn.

    A chat template renders whole conversations, so the piece is cut out of two renderings that differ only in
    what follows a fixed assistant message. The agent's own end token is not written twice.
    """
    stub: list[Message] = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
    render = {"tokenize": True, "return_dict": False}
    before = tokenizer.apply_chat_template(stub, **render)
    after = tokenizer.apply_chat_template([*stub, *messages], add_generation_prompt=True, **render)
    if after[: len(before)] != before:
        raise ValueError(
            "the chat template changes earlier turns when messages are added, so a dialogue cannot be "
            "continued token by token; use a template whose rendering only grows"
        )
    eos = tokenizer.eos_token_id
    closing = before[len(before) - before[::-1].index(eos) - 1 :] if eos in before else []
    if closing and written and written[-1] == eos:
        closing = closing[1:]
    return [*closing, *after[len(before) :]]


def _score(rows: Sequence[_Row], environment_name: str) -> list[Trajectory]:
    """Assemble the trajectories and let an environment give each its episode rewards."""
    trajectories = [_trajectory(row, environment_name) for row in rows]
    whole = [i for i, row in enumerate(rows) if not row.ended.startswith("error")]
    if not whole:
        return trajectories
    try:
        scores = list(rows[whole[0]].environment.score([trajectories[i] for i in whole]))
        if len(scores) != len(whole):
            raise ValueError(f"score() gave {len(scores)} scores for {len(whole)} episodes")
    except Exception as error:  # a judge may fail in any way; its episodes stay, unscored
        ended = f"error: {type(error).__name__}: {error}"
        for i in whole:  # what was found at the end, such as a violation, is not known: turns earn nothing
            trajectories[i] = replace(_unrewarded(trajectories[i]), ended=ended)
        return trajectories
    for i, score in zip(whole, scores, strict=True):
        played = _unrewarded(trajectories[i]) if score.void else trajectories[i]
        success = score.success if score.success is not None else played.success
        violation = score.violation or played.violation
        trajectories[i] = replace(played, rewards=dict(score.rewards), success=success, violation=violation)
    return trajectories


def _unrewarded(trajectory: Trajectory) -> Trajectory:
    """The episode with the rewards of its turns taken out; their states stay."""
    return replace(trajectory, turns=tuple(replace(turn, rewards={}) for turn in trajectory.turns))


def _trajectory(row: _Row, environment_name: str) -> Trajectory:
    violation: Violation | None = row.last.violation
    played = getattr(row.environment, "unwrapped", row.environment)  # a wrapper is not what was played
    return Trajectory(
        task_id=row.start.task.id,
        group_id=row.start.group_id,
        member=row.start.member,
        seed=row.start.seed,
        environment=environment_name or getattr(played, "played_as", type(played).__name__),
        opening=row.opening,
        segments=(Segment(tuple(row.token_ids), tuple(row.turn_ids), tuple(row.logprobs)),),
        turns=tuple(row.turns),
        success=row.last.success,
        violation=violation,
        ended=row.ended,
        task=dict(row.start.task.fields),
    )
