"""The update of TRL's GRPOTrainer and of ThreefoldTrainer with its speed-ups, on the same episodes.

Episodes are given (random completions, so that nothing is generated): what is timed is the policy update
alone, forward, backward and optimizer. Arms take turns in one process, and their gradients are compared.

    python benchmarks/update.py                          # prompt 512, completion 128, groups of 8
    python benchmarks/update.py --prompt 128 --completion 256
    python benchmarks/update.py --model tiny             # a Llama of a million parameters

Writes results/update.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEAD_SHARES = (0.0, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of an update beside TRL's on the same episodes.")
    parser.add_argument("--model", default="embedded", choices=["embedded", "tiny"])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=128, help="tokens of the longest completion")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--equal-lengths", action="store_true", help="every completion has the longest's length"
    )
    options = parser.parse_args()
    results = {f"{share:.0%} of the groups dead": compare(share, options) for share in DEAD_SHARES}
    report(results, options)


def compare(dead_share: float, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an update by arm, and how far the gradients are apart."""
    trainers = {name: make_trainer(name, dead_share, options) for name in ("TRL", "Threefold")}
    gradients = {name: one_gradient(trainer) for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(options.rounds + 1):
        for name, trainer in trainers.items():
            taken = update_seconds(trainer)
            if turn:
                seconds[name].append(taken)
    difference = sum(float(((a - b) ** 2).sum()) for a, b in zip(*gradients.values(), strict=True)) ** 0.5
    size = sum(float((a**2).sum()) for a in gradients["TRL"]) ** 0.5
    return {"seconds": seconds, "gradient_difference": difference / size}


def make_trainer(name: str, dead_share: float, options: argparse.Namespace) -> Any:
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed
    from trl import GRPOConfig, GRPOTrainer

    from threefold import Speedups, ThreefoldTrainer
    from threefold.memory import keep_freed_memory
    from threefold.models import EMBEDDED, load_model, load_tokenizer, resolve

    keep_freed_memory()
    set_seed(0)
    if options.model == "embedded":
        model: Any = load_model(resolve(EMBEDDED), torch.float32)
    else:
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 49152}
        model = LlamaForCausalLM(
            LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
        )
    episodes = options.groups * options.group
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(100, 40_000, (count,), generator=generator).tolist()

    prompts = [tokens(options.prompt) for _ in range(options.groups)]
    shortest = options.completion if options.equal_lengths else options.completion // 2
    lengths = torch.linspace(shortest, options.completion, options.group).int().tolist()
    rows = [(prompt, tokens(length)) for prompt in prompts for length in lengths]
    alive = options.groups - round(dead_share * options.groups)
    rewards = [float(i % 2) if i // options.group < alive else 1.0 for i in range(episodes)]

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        return {"prompt_ids": [r[0] for r in rows], "completion_ids": [r[1] for r in rows], "logprobs": None}

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        return rewards

    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        optim="sgd",
        learning_rate=1e-4,
        max_grad_norm=0.0,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=episodes // options.micro_batch,
        num_generations=options.group,
        max_completion_length=options.completion,
        max_steps=1,
    )
    kind, extra = (GRPOTrainer, {}) if name == "TRL" else (ThreefoldTrainer, {"speedups": Speedups()})
    return kind(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "x"} for _ in range(options.groups)]),
        processing_class=load_tokenizer(EMBEDDED),
        rollout_func=rollout,
        **extra,
    )


def one_gradient(trainer: Any) -> list[Any]:
    """The gradient of the first update: plain SGD's change of the weights, by its learning rate."""
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    return [(b - p.detach()) / 1e-4 for b, p in zip(before, trainer.model.parameters(), strict=True)]


def update_seconds(trainer: Any) -> float:
    """Seconds of one step, nothing of which is generated."""
    trainer.train()
    return [log["step_time"] for log in trainer.state.log_history if "step_time" in log][-1]


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    from threefold.training.run_directory import describe_environment

    command = " ".join(["python benchmarks/update.py", *sys.argv[1:]])
    facts = describe_environment()
    table = [
        "| episodes | TRL, s/update | Threefold, s/update "
        "| TRL / Threefold in the same turn, median [min, max] | gradients apart, relative |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        plain, ours = result["seconds"].values()
        ratios = [a / b for a, b in zip(plain, ours, strict=True)]
        table.append(
            f"| {name} | {statistics.median(plain):.2f} | {statistics.median(ours):.2f} "
            f"| {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] "
            f"| {result['gradient_difference']:.1e} |"
        )
    name = "update" if options.model == "embedded" else f"update-{options.model}"
    target = ROOT / "results" / name
    payload = {"command": command, **facts, "options": vars(options), "arms": results}
    target.with_suffix(".json").write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    machine, versions = facts["machine"], facts["versions"]
    lines = [
        "# The update beside TRL's",
        "",
        f"`{command}`: {options.groups} groups of {options.group} episodes, prompts of {options.prompt} "
        f"tokens, completions of up to {options.completion}, micro-batches of {options.micro_batch}, fp32.",
        "",
        f"{machine['accelerator'] or machine['processor']}, {machine['threads']} threads; torch "
        f"{versions['torch']}, trl {versions['trl']}, transformers {versions['transformers']}.",
        "",
        *table,
        "",
    ]
    target.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
