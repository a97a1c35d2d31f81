"""The swap audit: what a policy is worth in an environment that it was not trained in.

A policy trained against one frozen simulator learns that simulator, its gaps included. So it is played on the
same tasks, from the same seeds, in its own environment and in a changed one (another patient, the same one
with perturbed coefficients), and the difference is taken task by task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from threefold.evaluation.episodes import SHARES, EpisodeEvaluation, paired_gain
from threefold.evaluation.intervals import Interval


@dataclass(frozen=True)
class Change:
    """How far a score moved: elsewhere minus at home, paired by task, with a 95% interval over tasks."""

    score: str
    mode: str
    value: Interval

    def to_json(self) -> dict[str, Any]:
        return {"score": self.score, "mode": self.mode, **asdict(self.value)}


def swap_changes(home: Sequence[EpisodeEvaluation], elsewhere: Sequence[EpisodeEvaluation]) -> list[Change]:
    """Of every score that both could measure.

    Raises:
        ValueError: The swap changed the tasks, so that nothing is paired.
    """
    changes = []
    for own, other in zip(home, elsewhere, strict=True):
        for name in own.scores:
            if own.task_ids != other.task_ids:
                raise ValueError(
                    "--swap changed which tasks are played, so nothing can be compared task by task; swap "
                    "the simulator or the judge, and measure other tasks with a command of their own"
                )
            if name in other.scores and (moved := paired_gain(own, other, name)) is not None:
                changes.append(Change(name, own.mode, moved))
    return changes


def print_swap(
    words: Sequence[str],
    home: Sequence[EpisodeEvaluation],
    elsewhere: Sequence[EpisodeEvaluation],
    changes: Sequence[Change],
) -> None:
    """A table of the swap: each score at home, elsewhere, and the paired change."""
    table = Table(f"swapped: {' '.join(words)}", "decoding", "own", "swapped", "change, paired")
    own, other = ({e.mode: e for e in side} for side in (home, elsewhere))
    for change in changes:
        share = change.score in SHARES
        sides = (side[change.mode].scores[change.score] for side in (own, other))
        cells = (interval_text(value, share=share) for value in sides)
        moved = interval_text(change.value, share=share, signed=True)
        table.add_row(change.score, change.mode, *cells, moved)
    Console(highlight=False).print(table)


def interval_text(value: Interval, *, share: bool = True, signed: bool = False) -> str:
    """Percent with one decimal for a share, three decimals for what has a unit of its own."""
    form = ("+" if signed else "") + (".1%" if share else ".3f")
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"
