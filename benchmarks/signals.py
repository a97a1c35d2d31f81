"""What ISPO's signals cost beside plain GRPO: forwards, seconds and memory, in one run.

Arms take turns in one process, so a machine that speeds up or slows down does so for all of them; memory is
measured in a process of its own for each arm. All completions have the same length, so arms do equal work.

    python benchmarks/signals.py                    # the embedded model, 2 prompts x 8 episodes of 24 tokens
    python benchmarks/signals.py --prompts 4 --tokens 64 --rounds 5
    python benchmarks/signals.py --memory
    python benchmarks/signals.py --kl

Writes results/signals*.json and .md, and prints the table that docs/ispo.md quotes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "TRL GRPOTrainer": "trl",
    "Threefold, no component": "none",
    "Threefold, GRPO": "grpo",
    "Threefold, ISPO (IFD only)": "ifd",
    "Threefold, ISPO (paper)": "ispo",
}
KL_ARMS = {"TRL GRPOTrainer, beta 0.04": "trl-kl", "Threefold, ISPO (paper), beta 0.04": "ispo-kl"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds, forwards or memory of ISPO's signals beside GRPO.")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of every completion")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm that are counted")
    parser.add_argument("--kl", action="store_true", help="the arms with a reference model instead")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run_steps(make_trainer(options.only, options), 2)
        print(json.dumps(peak_gib()))
        return
    arms = KL_ARMS if options.kl else ARMS
    if options.memory:
        report_memory({name: memory_of(arm) for name, arm in arms.items()}, options)
        return
    results: dict[str, Any] = {name: {"seconds": [], "forwards": []} for name in arms}
    measure({name: make_trainer(arm, options) for name, arm in arms.items()}, results, options.rounds)
    report(results, options)


def measure(trainers: dict[str, Any], results: dict[str, Any], rounds: int) -> None:
    """Let the arms take turns; a step's time is TRL's own step_time."""
    for turn in range(rounds + 1):
        for name, trainer in trainers.items():
            forwards, seconds = run_steps(trainer, 1)
            results[name]["forwards"] = forwards
            if turn:
                results[name]["seconds"].append(seconds)


def run_steps(trainer: Any, steps: int) -> tuple[list[tuple[int, int]], float]:
    """Train and answer the (rows, columns) of every scoring forward and the median seconds of a step."""
    shapes: list[tuple[int, int]] = []
    original = type(trainer)._get_per_token_logps_and_entropies

    def counting(model: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return original(trainer, model, input_ids, *args, **kwargs)

    trainer._get_per_token_logps_and_entropies = counting
    trainer.args.max_steps = steps
    trainer.train()
    times = [log["step_time"] for log in trainer.state.log_history if "step_time" in log]
    return shapes, statistics.median(times)


def make_trainer(arm: str, options: argparse.Namespace) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from threefold import GRPO, ISPO, ThreefoldTrainer
    from threefold.envs import mathematics, procedural
    from threefold.memory import keep_freed_memory
    from threefold.recipe import Recipe
    from threefold.tasks import questioner

    keep_freed_memory()
    ask = questioner(Recipe())
    rows = [
        {"prompt": ask.prompt(p), "answer": p.answer}
        for p in procedural.arithmetic("train", size=max(64, 8 * options.prompts))
    ]
    episodes = options.prompts * options.group
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        learning_rate=1e-6,
        per_device_train_batch_size=min(8, episodes),
        gradient_accumulation_steps=episodes // min(8, episodes),
        num_generations=options.group,
        max_completion_length=options.tokens,
        generation_kwargs={"min_new_tokens": options.tokens},
        beta=0.04 if arm.endswith("-kl") else 0.0,
        max_steps=1,
    )
    credit = {
        "grpo": GRPO(),
        "ifd": ISPO("accuracy", lambda_token=0.0),
        "ispo": ISPO.paper("accuracy"),
        "ispo-kl": ISPO.paper("accuracy"),
    }.get(arm)
    kind = GRPOTrainer if arm.startswith("trl") else ThreefoldTrainer
    extra = {"credit": credit} if kind is ThreefoldTrainer else {}
    import torch

    from threefold.models import EMBEDDED, load_model, resolve

    model = load_model(resolve(EMBEDDED), torch.float32)
    return kind(
        model=model,
        reward_funcs=mathematics.accuracy_reward(ask.answer_format),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=ask.tokenizer,
        **extra,
    )


def memory_of(arm: str) -> float:
    """Peak resident memory of two steps in a process of its own, GiB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", arm]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.strip().splitlines()[-1])


def peak_gib() -> float:
    """This process's own peak. (ru_maxrss would do, but it is inherited from the parent that started us.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write and print the table of times; the first arm is what the others are compared with."""
    plain = next(iter(results.values()))
    plain_tokens = sum(rows * columns for rows, columns in plain["forwards"])
    rows = []
    for name, result in results.items():
        ratios = [a / b for a, b in zip(result["seconds"], plain["seconds"], strict=True)]
        tokens = sum(rows * columns for rows, columns in result["forwards"])
        rows.append(
            f"| {name} | {statistics.median(result['seconds']):.2f} | {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}] | {tokens:,} ({tokens / plain_tokens:.2f}x) |"
        )
    head = [
        "| arm | s/step, median | ratio to TRL in the same turn, median [min, max] "
        "| tokens forwarded for scoring and loss |",
        "|---|---|---|---|",
    ]
    write("signals-kl" if options.kl else "signals", [*head, *rows], results, options)


def report_memory(peaks: dict[str, float], options: argparse.Namespace) -> None:
    """Write and print the table of peak memory."""
    rows = [f"| {name} | {peak:.2f} |" for name, peak in peaks.items()]
    name = "signals-kl-memory" if options.kl else "signals-memory"
    write(name, ["| arm | peak resident memory, GiB |", "|---|---|", *rows], peaks, options)


def write(name: str, table: list[str], results: Any, options: argparse.Namespace) -> None:
    from threefold.training.run_directory import describe_environment

    command = " ".join(["python benchmarks/signals.py", *sys.argv[1:]])
    facts = describe_environment()
    payload = {"command": command, **facts, "options": vars(options), "arms": results}
    target = ROOT / "results" / name
    target.parent.mkdir(exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# What ISPO's signals cost",
        "",
        f"`{command}`: the embedded model in fp32, {options.prompts} prompts x {options.group} episodes of "
        f"{options.tokens} tokens a step, micro-batches of 8.",
        "",
        f"{facts['machine']['processor']}, {facts['machine']['threads']} threads; torch "
        f"{facts['versions']['torch']}, trl {facts['versions']['trl']}, transformers "
        f"{facts['versions']['transformers']}.",
        "",
        *table,
        "",
    ]
    target.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
