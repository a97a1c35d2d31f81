"""Tokens a second beside what the machine's memory and arithmetic allow.

    python benchmarks/floors.py                        # SmolLM2-135M in fp32, on one thread of a CPU
    python benchmarks/floors.py --dtype bfloat16       # on an accelerator, where there is one

What the machine can do is measured here too: bytes a second by summing a tensor far larger than its caches,
operations a second by a product of two matrices. The floors are

    a decoding step   the larger of bytes / bandwidth and operations / arithmetic, where
                      bytes       all weights once, and every row's keys and values; with a shared prompt its
                                  keys and values once
                      operations  2 x (weights that are multiplied) x rows, and 4 x layers x width x context
                                  for each row's attention
    the prompts       operations of their tokens: each row's for transformers, each prompt's once for ours
    an update         3 x the forward's operations (the backward takes twice the forward's) on rows x (P + R)
                      tokens for TRL, on prompts x P + rows x R for ours; the vocabulary's head on R alone

Nothing else is in them: no softmax, no norms, no sampling, no optimizer. Writes results/floors.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Machine:
    """What it can do, measured."""

    bandwidth: float
    """Bytes a second that are read."""
    arithmetic: float
    """Operations a second (a multiplication and an addition are two)."""

    def seconds(self, operations: float, traffic: float = 0.0) -> float:
        """No faster than this."""
        return max(operations / self.arithmetic, traffic / self.bandwidth)


@dataclass(frozen=True)
class Shape:
    """What of a model the floors depend on."""

    body: int
    """Weights of the layers."""
    head: int
    """Weights of the product with the vocabulary."""
    layers: int
    width: int
    """Of the queries of all heads."""
    cached: int
    """Numbers that the cache holds for a token: keys and values of all layers."""
    size: int
    """Bytes of a number."""

    @classmethod
    def of(cls, model: Any) -> Shape:
        config = model.config
        heads = config.num_attention_heads
        each = getattr(config, "head_dim", None) or config.hidden_size // heads
        head = model.get_output_embeddings().weight.numel()
        body = sum(p.numel() for p in model.get_decoder().layers.parameters())
        cached = 2 * config.num_hidden_layers * config.num_key_value_heads * each
        size = next(model.parameters()).element_size()
        return cls(body, head, config.num_hidden_layers, heads * each, cached, size)

    def attention(self, rows: int, start: int, stop: int) -> float:
        """Operations of the attention of tokens at positions `start` to `stop` - 1 of each row."""
        contexts = (stop * (stop + 1) - start * (start + 1)) / 2
        return 4.0 * rows * self.layers * self.width * contexts


@dataclass(frozen=True)
class Setting:
    prompts: int
    group: int
    prompt: int
    completion: int

    @property
    def rows(self) -> int:
        return self.prompts * self.group


def generation_floor(machine: Machine, shape: Shape, setting: Setting, shared: bool) -> float:
    """Seconds that sampling all completions takes at least."""
    forwarded = setting.prompts if shared else setting.rows
    seconds = machine.seconds(
        2.0 * forwarded * (setting.prompt * shape.body + shape.head)
        + shape.attention(forwarded, 0, setting.prompt)
    )
    for written in range(1, setting.completion):  # the first token comes of the prompts
        context = setting.prompt + written
        held = forwarded * setting.prompt + setting.rows * written
        seconds += machine.seconds(
            2.0 * setting.rows * (shape.body + shape.head)
            + shape.attention(setting.rows, context - 1, context),
            shape.size * (shape.body + shape.head + held * shape.cached),
        )
    return seconds


def update_floor(machine: Machine, shape: Shape, setting: Setting, shared: bool) -> float:
    """Seconds that forward and backward take at least."""
    forwarded = setting.prompts if shared else setting.rows
    tokens = forwarded * setting.prompt + setting.rows * setting.completion
    operations = 2.0 * (tokens * shape.body + setting.rows * setting.completion * shape.head)
    operations += shape.attention(forwarded, 0, setting.prompt)
    operations += shape.attention(setting.rows, setting.prompt, setting.prompt + setting.completion)
    return machine.seconds(3.0 * operations)


def measured_machine(device: str, dtype: torch.dtype) -> Machine:
    """The best of five tries each."""
    large = torch.ones(2**28 if device == "cpu" else 2**31, dtype=dtype, device=device)
    side = 1024 if device == "cpu" else 8192
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    read = min(timed(device, lambda: large.sum()) for _ in range(5))
    multiplied = min(timed(device, lambda: left @ right) for _ in range(5))
    return Machine(large.numel() * large.element_size() / read, 2.0 * side**3 / multiplied)


def timed(device: str, work: Callable[[], Any]) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def generate_arms(model: Any, setting: Setting) -> dict[str, Callable[[], Any]]:
    from threefold.rollout.samplers import SamplingParameters
    from threefold.rollout.samplers.transformers import TransformersSampler

    sampler = TransformersSampler(model, batch_size=setting.rows)
    seeds = iter(range(1_000_000))

    def prompts() -> torch.Tensor:
        chance = torch.Generator().manual_seed(next(seeds))
        return torch.randint(1000, 40000, (setting.prompts, setting.prompt), generator=chance)

    def transformers() -> None:
        ids = prompts().repeat_interleave(setting.group, dim=0).to(model.device)
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                max_new_tokens=setting.completion, pad_token_id=0,
            )  # fmt: skip

    def ours() -> None:
        parameters = SamplingParameters(setting.completion)
        sampler.generate(prompts().tolist(), parameters, samples_per_prompt=setting.group, seed=0)

    return {"transformers, as TRL generates": transformers, "our sampler": ours}


def updates(setting: Setting, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of TRL's update and of ours, from `threefold bench update`, none of the groups dead."""
    from threefold.bench.record import Options
    from threefold.bench.update import compare

    cell = compare(
        "update",
        Options(
            prompt=setting.prompt,
            completion=setting.completion,
            groups=setting.prompts,
            group=setting.group,
            rounds=rounds,
            warm_up=0,
            threads=threads,
        ),
    )
    return {"TRL": list(cell.seconds["TRL"]), "Threefold": list(cell.seconds["Threefold"])}


def take_turns(arms: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms)[:: 1 if number % 2 else -1]:
            taken = timed(device, arms[name])
            print(f"round {number}, {name}: {taken:.2f} s", flush=True)
            if number:
                seconds[name].append(taken)
    return seconds


def table(head: str, seconds: dict[str, list[float]], floors: list[float], tokens: float) -> list[str]:
    lines = [
        f"| {head} | seconds, median [least, most] | tokens a second | floor, seconds | floor by measured |",
        "|---|---|---|---|---|",
    ]
    for (name, taken), floor in zip(seconds.items(), floors, strict=True):
        middle = statistics.median(taken)
        lines.append(
            f"| {name} | {middle:.1f} [{min(taken):.1f}, {max(taken):.1f}] | {tokens / middle:.0f} | "
            f"{floor:.1f} | {floor / middle:.0%} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "floors.md")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(options.threads)
    from threefold.bench.record import load_average
    from threefold.models import load_model
    from threefold.training.run_directory import describe_environment

    before, dtype = load_average(), getattr(torch, options.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(options.prompts, options.group, options.prompt, options.completion)
    machine = measured_machine(device, dtype)
    model = load_model("embedded", dtype).to(device)
    model.generation_config.eos_token_id = None
    shape = Shape.of(model)
    made = take_turns(generate_arms(model, setting), device, options.rounds)
    del model
    floors = [generation_floor(machine, shape, setting, shared) for shared in (False, True)]
    facts = describe_environment()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "trl"))
    processor = (
        facts["machine"]["accelerator"] or f"{facts['machine']['processor']}, {options.threads} thread(s)"
    )
    command = " ".join(["python benchmarks/floors.py", *sys.argv[1:]])
    lines = [
        "# Tokens a second beside what the machine allows",
        "",
        f"`{command}`: SmolLM2-135M in {options.dtype}, prompts of {setting.prompt} tokens (so many: "
        f"{setting.prompts}), {setting.group} completions each of {setting.completion}. {processor}; "
        f"{versions}; load {before} before and {load_average()} after. Arms took turns. The arithmetic is "
        "written out in the script.",
        "",
        f"Measured of the machine: {machine.bandwidth / 1e9:.1f} GB a second read, "
        f"{machine.arithmetic / 1e9:.0f} thousand million operations a second.",
        "",
        *table("generation", made, floors, setting.rows * setting.completion),
    ]
    if options.dtype == "float32":
        written = Setting(setting.prompts, setting.group, setting.prompt, round(0.75 * setting.completion))
        floors = [update_floor(machine, shape, written, shared) for shared in (False, True)]
        tokens = written.rows * (written.prompt + written.completion)
        lines += [
            f"The update is of completions of {setting.completion // 2} to {setting.completion} tokens. Its "
            "tokens are those of all rows, prompts included, whoever forwards them.",
            "",
            *table("update", updates(setting, options.threads, options.rounds), floors, tokens),
        ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
