"""How the update's gain over TRL grows with the group, the prompt, the share of dead groups and the model."""

from __future__ import annotations

from dataclasses import replace

from threefold.bench import update
from threefold.bench.parts import RANDOM
from threefold.bench.record import Cell, Options


def measure(options: Options) -> list[Cell]:
    """One axis at a time, around the given point; other sizes than the given model's have random weights."""
    axes: dict[str, list[Options]] = {
        "G": [replace(options, group=size) for size in sorted({2, 4, options.group, 2 * options.group})],
        "P": [
            replace(options, prompt=length)
            for length in (options.prompt // 4, options.prompt // 2, options.prompt, 2 * options.prompt)
        ],
        "R": [
            replace(options, completion=length)
            for length in (options.completion // 2, options.completion, 2 * options.completion)
        ],
        "dead": [replace(options, dead=share, groups=4) for share in (0.0, 0.25, 0.5, 0.75)],
        "model": [replace(options, model=name) for name in sorted({options.model, *RANDOM}, key=_order)],
    }
    names = {"G": "group", "P": "prompt", "R": "completion", "dead": "dead", "model": "model"}
    return [
        update.compare(f"{axis} = {getattr(one, names[axis])}", one)
        for axis, several in axes.items()
        for one in several
    ]


def _order(name: str) -> int:
    order = ["tiny", "small", "medium", "embedded"]
    return order.index(name) if name in order else len(order)
