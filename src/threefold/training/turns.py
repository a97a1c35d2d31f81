"""What credit by turn needs of finished episodes, as tensors of the batch of all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threefold.trajectory import Trajectory


@dataclass(frozen=True)
class EpisodeTurns:
    """One episode's turns as plain numbers, small enough to be sent between processes as an object."""

    rewards: tuple[Mapping[str, float], ...]
    """Of each turn, by channel."""
    states: tuple[Mapping[str, float], ...]
    """Before each turn, by name."""
    violation_turn: int | None
    """Turn of the violation, -1 where it has none; None where there was no violation."""
    opening: Mapping[str, float]
    """State of the opening."""
    last: Mapping[str, float]
    """State after the last turn that the environment answered; empty where it answered none."""
    failed: bool
    """The environment raised: the episode counts in no figure but this."""
    unscored: bool
    """The environment did not fail, and yet a reward channel has no score."""
    unjudged: bool
    """No channel has one, and no violation is known: nobody can say that it broke no rule."""


def episode_turns(trajectory: Trajectory) -> EpisodeTurns:
    """The turns of a finished episode. State before turn 0 is the opening's."""
    turns, violation = trajectory.turns, trajectory.violation
    before = (trajectory.opening.state, *(turn.state for turn in turns))[: len(turns)]
    known = violation is not None and 0 <= violation.turn < len(turns)
    failed = trajectory.ended.startswith("error")
    scores = trajectory.rewards.values()
    return EpisodeTurns(
        rewards=tuple(dict(turn.rewards) for turn in turns),
        states=tuple(dict(state) for state in before),
        violation_turn=None if violation is None else violation.turn if known else -1,
        opening=dict(trajectory.opening.state),
        last=next((dict(turn.state) for turn in reversed(turns) if turn.state), {}),
        failed=failed,
        unscored=not failed and any(value is None for value in scores),
        unjudged=violation is None and bool(scores) and all(value is None for value in scores),
    )


def episode_figures(episodes: Sequence[EpisodeTurns]) -> dict[str, float]:
    """How the batch's episodes began and ended: means of each state, and shares of what went wrong."""
    played = [episode for episode in episodes if not episode.failed]
    figures = {"episodes/failed": 1 - len(played) / len(episodes)}
    if not played:
        return figures
    figures["episodes/unscored"] = _mean([float(e.unscored) for e in played])
    if judged := [episode for episode in played if not episode.unjudged]:
        figures["episodes/violations"] = _mean([float(e.violation_turn is not None) for e in judged])
    for place, states in (("first", [e.opening for e in played]), ("last", [e.last for e in played])):
        for name in dict.fromkeys(name for state in states for name in state):
            figures[f"episodes/{place}/{name}"] = _mean([state[name] for state in states if name in state])
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def turn_tensors(episodes: Sequence[EpisodeTurns], device: torch.device) -> dict[str, Any]:
    """The fields of `CreditBatch` that are about turns; K is the largest number of turns, 1 at least."""
    width = max((len(episode.rewards) for episode in episodes), default=0) or 1
    mask_BK = torch.zeros(len(episodes), width, dtype=torch.bool)
    for row, episode in enumerate(episodes):
        mask_BK[row, : len(episode.rewards)] = True
    places = [-1 if e.violation_turn is None else e.violation_turn for e in episodes]
    return {
        "turn_rewards": _columns([e.rewards for e in episodes], width, device),
        "turn_state": _columns([e.states for e in episodes], width, device),
        "turn_mask_BK": mask_BK.to(device),
        "violation_B": torch.tensor([e.violation_turn is not None for e in episodes], device=device),
        "violation_turn_B": torch.tensor(places, dtype=torch.int64, device=device),
    }


def turn_ids(trajectories: Sequence[Trajectory], mask_BT: Tensor) -> Tensor:
    """int64 (B, T): the turn of each trained token by the episode's own record, -1 elsewhere.

    Read from the record and not from the runs of the mask: an environment that answers nothing would let two
    turns run into one.
    """
    turn_BT = torch.full(mask_BT.shape, -1, dtype=torch.int64)
    for row, trajectory in enumerate(trajectories):
        segment = trajectory.segments[0]
        ids = segment.turn_ids[segment.prompt_length :][: mask_BT.shape[1]]
        turn_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return turn_BT.to(mask_BT.device).masked_fill(~mask_BT, -1)


def _columns(
    rows: Sequence[Sequence[Mapping[str, float]]], width: int, device: torch.device
) -> dict[str, Tensor]:
    """(B, K) float32 by name, NaN where nothing finite stands."""
    names = sorted({name for row in rows for values in row for name in values})
    columns = {name: torch.full((len(rows), width), torch.nan) for name in names}
    for index, row in enumerate(rows):
        for turn, values in enumerate(row):
            for name, value in values.items():
                if value is not None and math.isfinite(value):
                    columns[name][index, turn] = value
    return {name: column.to(device) for name, column in columns.items()}
