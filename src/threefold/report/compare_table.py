"""A comparison of runs on the console: arms by letter, so that a table fits a terminal."""

from __future__ import annotations

from string import ascii_uppercase

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from threefold.report.compare import Comparison, spread
from threefold.report.outcomes import SHARES


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Who is who, the paired differences, what stands beside them, and what to be careful of."""
    console = console or Console(highlight=False)
    letters = {beside.arm: _letter(i) for i, beside in enumerate(comparison.beside)}
    for beside in comparison.beside:
        seeds = ", ".join("unknown" if seed is None else str(seed) for seed in beside.seeds)
        mark = "  (compared with)" if beside.arm == comparison.baseline else ""
        console.print(f"{letters[beside.arm]}  {beside.arm}; seeds {seeds}{mark}", markup=False)
    if comparison.differences:
        console.print(_differences(comparison, letters))
    console.print(comparison.multiplicity(), markup=False)
    console.print(_beside(comparison, letters))
    for key, values in comparison.settings:
        if not key.startswith("credit."):
            console.print(
                f"the arms also differ in {key}: {', '.join(v or 'none' for v in values)}", markup=False
            )
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False)


def _differences(comparison: Comparison, letters: dict[str, str]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "score", "paired, 95 %", "all allowed for", "over", "verdict"):
        table.add_column(name, no_wrap="%" in name or name == "all allowed for")
    for d in sorted(comparison.differences, key=lambda d: (d.control, d.mode, d.score)):
        pair = f"{letters[d.second]} - {letters[d.first]}" + (" (noise)" if d.control else "")
        family = f"[{spread(d.family, d.share).partition('[')[2]}"
        verdict = d.verdict() if d.excludes_zero else "-"
        cells = (pair, f"{d.score}, {d.mode}", spread(d.interval, d.share), family, d.chance, verdict)
        table.add_row(*map(escape, cells))
    return table


def _beside(comparison: Comparison, letters: dict[str, str]) -> Table:
    table = Table("", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for letter in letters.values():
        table.add_column(letter, justify="right")
    for name in dict.fromkeys(name for beside in comparison.beside for name in beside.scores):
        share = name.partition(": ")[2] in SHARES
        values = [beside.scores.get(name) for beside in comparison.beside]
        shown = ["" if v is None else f"{100 * v:.1f}" if share else f"{v:.3f}" for v in values]
        table.add_row(escape(f"{name}, %" if share else name), *shown)
    for name in comparison.beside[0].figures:
        values = [beside.figures[name] for beside in comparison.beside]
        if any(value is not None for value in values):
            table.add_row(escape(name), *("" if value is None else f"{value:.3g}" for value in values))
    return table


def _letter(index: int) -> str:
    """A, B, ... Z, A2, B2, ..."""
    return ascii_uppercase[index % 26] + (str(index // 26 + 1) if index >= 26 else "")
