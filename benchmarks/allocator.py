"""What keeping freed memory gives a training step on a CPU: the same step with and without it, in turn.

    python benchmarks/allocator.py

Each turn is a process of its own, since the setting cannot be taken back. Writes results/allocator.md.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, STEPS, ROWS, TOKENS = 3, 3, 16, 96


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(step(keep=sys.argv[1] == "kept")))
        return
    turns = [(turn("default"), turn("kept")) for _ in range(ROUNDS)]
    rows = []
    for name, place in (("glibc's default", 0), ("freed memory kept", 1)):
        wall, system = (statistics.median(pair[place][key] for pair in turns) for key in ("wall", "system"))
        rows.append(f"| {name} | {wall:.2f} | {system:.2f} |")
    ratios = [kept["wall"] / default["wall"] for default, kept in turns]
    from threefold.training.run_directory import describe_environment

    facts = describe_environment()
    page = "\n".join(
        [
            "# Keeping freed memory",
            "",
            f"`python benchmarks/allocator.py`: forward and backward of SmolLM2-135M in fp32, {ROWS} rows of "
            f"{TOKENS} tokens, logits of every position; median of {ROUNDS} turns.",
            "",
            f"{facts['machine']['processor']}, {facts['machine']['threads']} threads, torch "
            f"{facts['versions']['torch']}.",
            "",
            "| allocator | seconds a step | of these in the kernel, CPU-seconds |",
            "|---|---|---|",
            *rows,
            "",
            f"Ratio in the same turn: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to "
            f"{max(ratios):.2f}.",
            "",
        ]
    )
    (ROOT / "results/allocator.md").write_text(page, encoding="utf-8")
    print(page)


def turn(name: str) -> dict[str, float]:
    output = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True)
    return json.loads(output.stdout.strip().splitlines()[-1])


def step(*, keep: bool) -> dict[str, float]:
    """Median wall seconds and kernel CPU-seconds of one training step."""
    import torch

    from threefold.memory import keep_freed_memory
    from threefold.models import EMBEDDED, load_model

    if keep:
        keep_freed_memory()
    model = load_model(EMBEDDED, torch.float32)
    ids = torch.randint(1_000, 40_000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    walls, systems = [], []
    for _ in range(STEPS + 1):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
        model(input_ids=ids).logits.float().log_softmax(-1).mean().backward()
        model.zero_grad()
        walls.append(time.perf_counter() - started)
        systems.append(resource.getrusage(resource.RUSAGE_SELF).ru_stime - before)
    return {"wall": statistics.median(walls[1:]), "system": statistics.median(systems[1:])}


if __name__ == "__main__":
    main()
