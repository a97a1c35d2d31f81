"""What text games have in common: reading an action, scoring an episode, tasks of all kinds in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from threefold.envs.base import EpisodeScore, Task
from threefold.trajectory import Trajectory


def parse(text: str) -> str:
    """The action in what the agent said: the last `<action>...</action>`, else the first line that is not
    empty; lower case, single spaces, without quotes and full stops. At most 100 characters."""
    tags = re.findall(r"<action>([^<]*)</action>", text[-2000:], re.IGNORECASE)
    lines = [line for line in text[:2000].splitlines() if line.strip()]
    said = tags[-1] if tags else (lines[0] if lines else "")
    said = " ".join(said.lower().split()).removeprefix("action:")
    return said.strip(" .!\"'`>*")[:100]


def scored(episode: Trajectory) -> EpisodeScore:
    """The state's "score" at the end, success, and the share of valid actions."""
    turns = episode.turns
    return EpisodeScore(
        rewards={
            "score": turns[-1].state.get("score", 0.0) if turns else 0.0,
            "success": float(bool(episode.success)),
            "valid": sum(turn.rewards.get("valid", 0.0) for turn in turns) / max(1, len(turns)),
        },
        success=bool(episode.success),
    )


def in_turn(kinds: Sequence[Sequence[Task]]) -> list[Task]:
    """One task of each kind, then the next of each, so that the first few are of all kinds."""
    return [task for row in zip_longest(*kinds) for task in row if task is not None]
