"""What text games have in common: reading an action, answering it, scoring an episode, tasks of all kinds in
turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from threefold.envs.base import EpisodeScore, Message, Observation, Task
from threefold.trajectory import Trajectory


def parse(text: str) -> str:
    """The action in what the agent said: the last `<action>...</action>`, else the first line that is not
    empty; lower case, single spaces, without quotes and full stops. At most 100 characters."""
    tags = re.findall(r"<action>([^<]*)</action>", text[-2000:], re.IGNORECASE)
    lines = [line for line in text[:2000].splitlines() if line.strip()]
    said = tags[-1] if tags else (lines[0] if lines else "")
    said = " ".join(said.lower().split()).removeprefix("action:")
    return said.strip(" .!\"'`>*")[:100]


def told(text: str, actions: Sequence[str] = ()) -> tuple[Message, ...]:
    """What the agent reads: a text, with the actions that are offered below it where there are any."""
    offered = f"\nActions: {', '.join(actions)}" if actions else ""
    return ({"role": "user", "content": text + offered},)


def answered(
    text: str,
    action: str,
    *,
    rewards: Mapping[str, float],
    state: Mapping[str, float],
    success: bool | None,
    out_of_turns: bool,
    actions: Sequence[str] = (),
) -> Observation:
    """What follows an action. The game ends where `success` is known, and is cut off, a failure, where the
    turns are used up before; then no more actions are offered."""
    truncated = success is None and out_of_turns
    done = success is not None or truncated
    return Observation(
        messages=told(text, () if done else actions),
        action=action,
        rewards=rewards,
        state=state,
        terminated=success is not None,
        truncated=truncated,
        success=bool(success) if done else None,
    )


def scored(episode: Trajectory, *states: str) -> EpisodeScore:
    """Success, the share of valid actions, and the last turn's value of each of `states`."""
    turns = episode.turns
    return EpisodeScore(
        rewards={
            **{name: turns[-1].state.get(name, 0.0) if turns else 0.0 for name in states},
            "success": float(bool(episode.success)),
            "valid": sum(turn.rewards.get("valid", 0.0) for turn in turns) / max(1, len(turns)),
        },
        success=bool(episode.success),
    )


def in_turn(kinds: Sequence[Sequence[Task]]) -> list[Task]:
    """One task of each kind, then the next of each, so that the first few are of all kinds."""
    return [task for row in zip_longest(*kinds) for task in row if task is not None]
