"""Tables of what was measured: one section a bench, made of its JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from threefold.bench.record import Cell, read

ORDER = ("step", "update", "scaling", "dialogue", "credit")
TITLES = {
    "step": "A whole step",
    "update": "The update alone",
    "scaling": "Where the update's gain comes from",
    "dialogue": "Dialogues",
    "credit": "Credit",
}
PARTS = ("generate", "environment", "signals", "credit", "update")


def performance(folder: Path) -> str:
    """results/performance.md of the figures in a folder.

    Raises:
        FileNotFoundError: There are none.
    """
    found = [folder / f"{name}.json" for name in ORDER if (folder / f"{name}.json").exists()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no figures: run `threefold bench --output {folder}`")
    lines = [
        "# Speed beside TRL's",
        "",
        "Arms took turns in one process; each ratio is of two arms in the same turn, and below 1 where the "
        "arm is faster than the first. Seconds hold for the machine and its load at the time. Made from the "
        f"JSON files in [{folder.name}]({folder.name}) by `python benchmarks/performance_page.py`.",
    ]
    for path in found:
        lines += ["", *section(read(path))]
    return "\n".join(lines) + "\n"


def section(data: Mapping[str, Any]) -> list[str]:
    """One bench: what was run on what, and its tables."""
    machine, versions, options = data["machine"], data["versions"], data["options"]
    load = machine.get("load", {})
    lines = [
        f"## {TITLES.get(data['bench'], data['bench'])}",
        "",
        f"`{data['command']}`: {options['model']}, P = {options['prompt']}, R = {options['completion']}, "
        f"{options['groups']} groups of {options['group']}, rounds: {options['rounds']}, gradient "
        f"checkpointing {'on' if options['gradient_checkpointing'] else 'off'}, seed {options['seed']}, "
        "fp32.",
        "",
        f"{machine['accelerator'] or machine['processor']}, {machine['cores']} cores, {machine['threads']} "
        f"threads, load {load.get('before') or '?'} before and {load.get('after') or '?'} after; torch "
        f"{versions['torch']}, trl {versions['trl']}, transformers {versions['transformers']}; "
        f"{data['started'][:10]}.",
        "",
        *table(data["cells"]),
    ]
    if any(cell.parts for cell in data["cells"]):
        lines += ["", *breakdown(data["cells"])]
    return lines


def table(cells: Sequence[Cell]) -> list[str]:
    """Seconds and ratios of every cell."""
    gradients = any("gradients_apart" in cell.figures for cell in cells)
    tokens = any("times_as_many_tokens" in cell.figures for cell in cells)
    head = ["", "arm", "seconds, median", "ratio to the first arm, median [min, max]", "times faster"]
    head += ["gradients apart, relative"] * gradients + ["tokens, times as many"] * tokens
    lines = [_row(head), _row(["---"] * len(head))]
    for cell in cells:
        for arm, seconds in cell.seconds.items():
            ratios = cell.ratios(arm)
            middle = statistics.median(ratios)
            first = arm not in cell.others
            row = [cell.name if first else "", arm, f"{statistics.median(seconds):.3g}"]
            row += ["", ""] if first else [_spread(ratios), f"{1 / middle:.2f}"]
            for name, shown in (("gradients_apart", gradients), ("times_as_many_tokens", tokens)):
                if shown:
                    row.append("" if first or name not in cell.figures else f"{cell.figures[name]:.2g}")
            lines.append(_row(row))
    return lines


def breakdown(cells: Sequence[Cell]) -> list[str]:
    """Where a step's seconds go."""
    lines = [_row(["", "arm, seconds", *PARTS, "credit's share"]), _row(["---"] * (len(PARTS) + 3))]
    for cell in cells:
        for arm, parts in cell.parts.items():
            medians = {name: statistics.median(values) for name, values in parts.items()}
            whole = statistics.median(cell.seconds[arm])
            share = f"{medians['credit'] / whole:.2%}" if "credit" in medians else ""
            shown = [f"{medians[name]:.3g}" if name in medians else "" for name in PARTS]
            lines.append(_row([cell.name if arm not in cell.others else "", arm, *shown, share]))
    return lines


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
