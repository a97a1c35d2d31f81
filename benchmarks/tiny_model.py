"""What the tiny model can do before any reinforcement learning, and which groups are then dead.

python benchmarks/tiny_model.py     # trains the model on first use; writes results/ispo/tiny.md
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from threefold.envs import column_addition
from threefold.models import load_model, resolve
from threefold.recipe import parse_recipe
from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.transformers import TransformersSampler
from threefold.tasks import questioner
from threefold.training.run_directory import describe_environment

ROOT = Path(__file__).resolve().parents[1]
GROUP, PROBLEMS, SEED = 8, 400, 7


def main() -> None:
    torch.set_num_threads(1)
    record = json.loads((Path(resolve("tiny")) / "warm_start.json").read_text(encoding="utf-8"))
    problems = column_addition.problems("train", seed=SEED, size=PROBLEMS)
    right = groups_right(problems)
    rows = ["| level | problems | success | groups all right | groups all wrong |", "|---|---|---|---|---|"]
    for level in ("all", *column_addition.LEVELS):
        mine = [n for n, p in zip(right, problems, strict=True) if level in ("all", p.difficulty)]
        shares = (sum(mine) / GROUP, mine.count(GROUP), mine.count(0))
        rows.append(f"| {level} | {len(mine)} | " + " | ".join(f"{s / len(mine):.1%}" for s in shares) + " |")
    environment = describe_environment()
    page = [
        "# The tiny model before reinforcement learning",
        "`python benchmarks/tiny_model.py`",
        f"{environment['machine']['processor']}; "
        + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        f"The supervised training took {record['processor_seconds']:.0f} s of processor time on one thread "
        f"({record['seconds']:.0f} s by the clock, on a machine that others used too) and ended at a loss of "
        f"{record['loss']:.3f} nats a token.",
        f"{PROBLEMS} training problems of the default mix, {GROUP} samples each at temperature 1:",
        "\n".join(rows),
    ]
    target = ROOT / "results/ispo/tiny.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print("\n\n".join(page))


def groups_right(problems: tuple) -> list[int]:
    """How many samples of each problem's group are right."""
    ask = questioner(parse_recipe({"model": {"name": "tiny"}, "data": {"train": "tiny-arithmetic"}}))
    sampler = TransformersSampler(load_model("tiny", torch.float32), ask.tokenizer, batch_size=256)
    samples = sampler.generate(
        [ask.prompt_ids(problem) for problem in problems],
        SamplingParameters(64),
        samples_per_prompt=GROUP,
        seed=0,
    )
    texts = [ask.tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in samples]
    right = [ask.scores(text, problems[i // GROUP])["strict"] for i, text in enumerate(texts)]
    return [sum(right[first : first + GROUP]) for first in range(0, len(right), GROUP)]


if __name__ == "__main__":
    main()
