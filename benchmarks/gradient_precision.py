"""How far TRL's gradient and ours lie from the same gradient in double precision.

Speed-ups that leave the gradient unchanged still round differently, and a real model enlarges rounding:
many layers, large activations, advantages that cancel. So the two gradients in fp32 differ by more than the
tests on small models allow, and the question is which of them is wrong by how much. Each arm is one update
of the bench (`threefold bench update`), once in fp32 and once in fp64; the distance is relative, in the
Euclidean norm of the whole gradient. Two more arms are TRL on the same rows, with attention written out
(transformers' "eager"), and with a few columns of padding more before each prompt, as a longer prompt in the
batch would bring them: nothing that a gradient may depend on.

    python benchmarks/gradient_precision.py                  # the embedded model, 6 GB, a few minutes

Writes results/gradient-precision.md.
"""

from __future__ import annotations

import argparse
import gc
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.functional import pad

from threefold.bench import parts, update
from threefold.bench.record import Options

RESULT = Path(__file__).resolve().parents[1] / "results/gradient-precision.md"
PADDING = 3
PADDED = f"TRL, {PADDING} columns of padding more"
EAGER = "TRL, eager attention"
ARMS = ("TRL", EAGER, PADDED, "Threefold")
KINDS = (torch.float64, torch.float32)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--group", type=int, default=2)
    given = parser.parse_args()
    options = Options(
        model=given.model,
        prompt=given.prompt,
        completion=given.completion,
        groups=1,
        group=given.group,
        rounds=1,
        warm_up=0,
        threads=1,
    )
    torch.set_num_threads(1)
    exact = gradient(ARMS[0], options, KINDS[0])
    rows = [
        f"| {arm} | {str(kind).removeprefix('torch.')} | {apart(gradient(arm, options, kind), exact):.1e} |"
        for kind in KINDS
        for arm in ARMS
        if (arm, kind) != (ARMS[0], KINDS[0])
    ]
    page = [
        "# How exact the gradients are",
        "",
        f"`python {' '.join(['benchmarks/gradient_precision.py', *sys.argv[1:]])}`: {given.model}, "
        f"P = {given.prompt}, R = {given.completion}, one group of {given.group}. "
        + ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl"))
        + ", CPU, one thread, seed 0.",
        "",
        "| arm | precision | distance from TRL's gradient in fp64, relative |",
        "|---|---|---|",
        *rows,
        "",
        "TRL's own rows say what rounding does to this gradient: the order of sums in attention, and where a",
        "row stands, for angles of rotary positions are computed in fp32 at any precision of the weights, as",
        "is some of TRL's loss.",
    ]
    RESULT.write_text("\n".join(page) + "\n", encoding="utf-8")
    Console().print("\n".join(page))
    return 0


def gradient(arm: str, options: Options, kind: torch.dtype) -> list[torch.Tensor]:
    """The first gradient of an arm, whose weights are of this precision."""
    kept: dict[str, list[Any]] = {}
    load = parts.load
    attention = "eager" if arm == EAGER else "sdpa"
    parts.load = lambda name: _as(kind, attention, *load(name))
    try:
        bench = update._Arm("Threefold" if arm == "Threefold" else "TRL", options, kept)
        if arm == PADDED:
            pad_more(bench._trainer)
        bench()
    finally:
        parts.load = load
    del bench
    gc.collect()
    (found,) = kept.values()
    return [part.double() for part in found]


def pad_more(trainer: Any) -> None:
    """Let a trainer's prompts stand `PADDING` columns further to the right."""
    prepare = trainer._prepare_inputs

    def wider(batch: Any) -> dict[str, Any]:
        inputs = prepare(batch)
        prompts = {name: inputs[name] for name in ("prompt_ids", "prompt_mask")}
        return inputs | {name: pad(value, (PADDING, 0)) for name, value in prompts.items()}

    trainer._prepare_inputs = wider


def _as(kind: torch.dtype, attention: str, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    model.set_attn_implementation(attention)
    return model.to(kind), tokenizer


def apart(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """|found - exact| / |exact|."""
    distance = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, exact, strict=True))
    return (distance / sum(float((b**2).sum()) for b in exact)) ** 0.5


if __name__ == "__main__":
    sys.exit(main())
