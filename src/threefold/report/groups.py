"""The map of groups: what each group of each step gave, small enough to hold however long the run.

A group is dead by outcome where all its scored members have the same one. That alone does not say whether it
taught anything: where the reward that was normalised differs inside the group (a format reward, an intrinsic
one), the method had something to rank. So a map has both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from threefold.report.records import Head

State = Literal["wrong", "wrong_ranked", "alive", "equal", "right_ranked", "right", "unscored"]

LABELS: Mapping[State, str] = {
    "wrong": "dead, all wrong",
    "wrong_ranked": "all wrong, but the reward differs",
    "alive": "alive: outcomes differ",
    "equal": "dead: rewards are equal (no outcome)",
    "right_ranked": "all right, but the reward differs",
    "right": "dead, all right",
    "unscored": "not scored",
}
"""In the order of the map, from the bottom of a column to its top."""

STEP_LIMIT = 400
"""Most steps that the map holds; of a longer run every 2nd, 4th, ... is kept."""
CELL_LIMIT = 12_000
"""Most groups that the map holds."""


@dataclass(frozen=True)
class Cell:
    """One group of one step."""

    group_id: int
    state: State
    right: int
    """Members whose outcome is right."""
    members: int


@dataclass(frozen=True)
class GroupMap:
    """Groups by step, ascending; whole steps, an even sample of a long run."""

    steps: Mapping[int, tuple[Cell, ...]] = field(default_factory=dict)
    seen: int = 0
    """Steps in the record."""


def cell(group_id: int, members: Sequence[Head]) -> Cell:
    """What a group gave: what its members' outcomes and rewards differ in."""
    successes = [m.success for m in members if m.success is not None]
    # A scalar that is recorded for all is what the method ranked; else the channels have to do.
    scalars = [m.reward for m in members]
    compared = scalars if None not in scalars else [m.rewards for m in members]
    differ = any(value != compared[0] for value in compared[1:])
    return Cell(group_id, _state(successes, compared, differ), sum(successes), len(members))


def _state(successes: Sequence[bool], compared: Sequence[Any], differ: bool) -> State:
    if len(set(successes)) > 1:
        return "alive"
    if successes:
        if successes[0]:
            return "right_ranked" if differ else "right"
        return "wrong_ranked" if differ else "wrong"
    if differ:
        return "alive"
    scored = any(value is not None and value != {} for value in _flat(compared))
    return "equal" if scored else "unscored"


def _flat(values: Sequence[Any]) -> list[Any]:
    return [x for value in values for x in (value.values() if isinstance(value, Mapping) else [value])]


class GroupMapper:
    """Collects the map in one pass over the record; memory is bounded by the two limits."""

    def __init__(self, step_limit: int = STEP_LIMIT, cell_limit: int = CELL_LIMIT) -> None:
        self._step_limit, self._cell_limit = step_limit, cell_limit
        self._kept: dict[int, tuple[int, tuple[Cell, ...]]] = {}
        self._cells = 0
        self._stride = 1
        self._count = 0
        self._last: int | None = None

    def add_step(self, step: int, cells: Sequence[Cell]) -> None:
        """Take in a step; one that was there before (a resume made it again) is replaced."""
        if step in self._kept:
            index, before = self._kept[step]
            self._keep(step, index, cells, len(before))
        elif self._last is None or step > self._last:
            index, self._count, self._last = self._count, self._count + 1, step
            if index % self._stride == 0:
                self._keep(step, index, cells, 0)

    def _keep(self, step: int, index: int, cells: Sequence[Cell], replaced: int) -> None:
        self._kept[step] = (index, tuple(cells))
        self._cells += len(cells) - replaced
        while len(self._kept) > 1 and (len(self._kept) > self._step_limit or self._cells > self._cell_limit):
            self._stride *= 2
            self._kept = {s: held for s, held in self._kept.items() if held[0] % self._stride == 0}
            self._cells = sum(len(cells) for _, cells in self._kept.values())

    def map(self) -> GroupMap:
        return GroupMap({step: cells for step, (_, cells) in sorted(self._kept.items())}, self._count)


def groups_data(groups: GroupMap) -> dict[str, Any]:
    """What the page's script draws: states by name, and the cells of each step from bottom to top."""
    order = list(LABELS)
    return {
        "states": [[state, label] for state, label in LABELS.items()],
        "steps": [
            {
                "step": step,
                "cells": [
                    [c.group_id, order.index(c.state), c.right, c.members]
                    for c in sorted(
                        cells, key=lambda c: (order.index(c.state), c.right / max(1, c.members), c.group_id)
                    )
                ],
            }
            for step, cells in groups.steps.items()
        ],
    }


def groups_html(groups: GroupMap) -> str:
    """The section that holds the map, with its counts in words; empty where there is no group."""
    counts = Counter(c.state for cells in groups.steps.values() for c in cells)
    total = sum(counts.values())
    if not total:
        return ""
    said = "; ".join(f"{counts[state]:,} {label}" for state, label in LABELS.items() if counts[state])
    lead = f"A column a step, a cell a group: of {total:,} groups, {said}."
    if len(groups.steps) < groups.seen:
        lead += f" {len(groups.steps):,} of {groups.seen:,} steps are here, spread evenly."
    legend = "".join(
        f'<span class="key g-{state}"><i></i>{escape(label)}</span>'
        for state, label in reversed(list(LABELS.items()))
        if counts[state]
    )
    lead += (
        " Choose a cell to read its episodes (those of cells with a dot are on this page); with the "
        "keyboard, arrows move and Enter opens."
    )
    return (
        f"<section><h2>Groups</h2><p class=lead>{escape(lead)}</p><noscript><p>The map needs JavaScript; the "
        f'curves of dead groups above do not.</p></noscript><div class="legend">{legend}</div>'
        '<div id="groupmap" class="scroll map"></div><p id="groupat" class="muted" aria-live="polite"></p>'
        "</section>"
    )
