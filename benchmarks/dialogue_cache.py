"""What keeping the cache between turns saves: the same dialogues with it, and prefilled at every turn.

Both arms take turns in one process, so a machine that speeds up or slows down does so for both; each round
gives one ratio. Turns have a fixed number of tokens (nothing ends early), so arms do equal work, and the
sampled tokens are compared: they must be the same.

    python benchmarks/dialogue_cache.py                       # the embedded model and a tiny one
    python benchmarks/dialogue_cache.py --models tiny --rounds 5
    python benchmarks/dialogue_cache.py --opening 1200 --turns 20

Arms:
    kept        `TransformersSampler.session`: an opening once for its group, then new tokens only
    prefilled   `TransformersSampler.generate` on the whole dialogue at every turn; members of a group still
                share their opening in turn 1

Writes results/dialogue-cache.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Rollouts with the cache kept between turns, and without.")
    parser.add_argument("--models", nargs="+", default=["embedded", "tiny"], choices=["embedded", "tiny"])
    parser.add_argument("--opening", type=int, default=600, help="tokens of the shared opening")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--agent", type=int, default=24, help="tokens that the agent writes in a turn")
    parser.add_argument("--environment", type=int, default=30, help="tokens that the environment answers")
    parser.add_argument("--dialogues", type=int, default=8, help="of two groups that share an opening each")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    report({name: compare(load(name), options) for name in options.models}, options)


def load(name: str) -> Any:
    """A model without end tokens: every turn has as many tokens as it may have."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from threefold.models import EMBEDDED, load_model

    if name == "embedded":
        model = load_model(EMBEDDED, torch.float32)
    else:
        torch.manual_seed(0)
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 512}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    model.generation_config.eos_token_id = None
    model = model.eval()
    return model.cuda() if torch.cuda.is_available() else model


def compare(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Let the arms take turns; seconds, and whether they drew the same tokens."""
    arms: dict[str, Callable[..., Any]] = {"kept": kept, "prefilled": prefilled}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    short = argparse.Namespace(**{**vars(options), "turns": 2, "opening": 32})
    for arm in arms.values():
        arm(model, short)  # the first forwards of a process are slower
    alike = True
    for number in range(options.rounds):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        said = {}
        for name in order:
            started = time.perf_counter()
            said[name] = arms[name](model, options)
            seconds[name].append(time.perf_counter() - started)
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
        alike &= said["kept"] == said["prefilled"]
    ratios = [b / a for a, b in zip(seconds["kept"], seconds["prefilled"], strict=True)]
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "seconds": seconds, "ratios": ratios, "same_tokens": alike}


def kept(model: Any, options: argparse.Namespace) -> list[list[int]]:
    from threefold.rollout.samplers import SamplingParameters
    from threefold.rollout.samplers.transformers import TransformersSampler

    session = TransformersSampler(model).session(SamplingParameters(options.agent, temperature=0), seed=0)
    limits = [options.agent] * options.dialogues
    return talk(lambda c: session.turn(range(options.dialogues), c, limits), model, options)


def prefilled(model: Any, options: argparse.Namespace) -> list[list[int]]:
    from threefold.rollout.samplers import SamplingParameters
    from threefold.rollout.samplers.transformers import TransformersSampler

    sampler, parameters = TransformersSampler(model), SamplingParameters(options.agent, temperature=0)
    return talk(lambda c: sampler.generate(c, parameters, seed=0), model, options)


def talk(
    generate: Callable[[list[list[int]]], Any], model: Any, options: argparse.Namespace
) -> list[list[int]]:
    """Play the dialogues; the environment's tokens are drawn from a fixed stream and differ by dialogue."""
    import torch

    stream, vocabulary = torch.Generator().manual_seed(0), model.config.vocab_size
    half = -(-options.dialogues // 2)
    openings = torch.randint(vocabulary, (2, options.opening), generator=stream).tolist()
    answers = torch.randint(
        vocabulary, (options.turns, options.dialogues, options.environment), generator=stream
    ).tolist()
    contexts = [list(openings[d // half]) for d in range(options.dialogues)]
    for turn in range(options.turns):
        for context, sample, answer in zip(contexts, generate(contexts), answers[turn], strict=True):
            context += [*sample.token_ids, *answer]
    return contexts


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    from threefold.training.run_directory import describe_environment

    rows = []
    for name, result in results.items():
        kept_s, again_s = (statistics.median(result["seconds"][arm]) for arm in ("kept", "prefilled"))
        ratios = result["ratios"]
        rows.append(
            f"| {name} ({result['parameters'] / 1e6:.1f}M) | {kept_s:.2f} | {again_s:.2f} | "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] | "
            f"{'yes' if result['same_tokens'] else 'no'} |"
        )
    table = [
        "| model | kept, s | prefilled at every turn, s | ratio, median [min, max] | same tokens |",
        "|---|---|---|---|---|",
        *rows,
    ]
    command = " ".join(["python benchmarks/dialogue_cache.py", *sys.argv[1:]])
    facts = describe_environment()
    payload = {"command": command, **facts, "options": vars(options), "models": results}
    target = ROOT / "results" / "dialogue-cache"
    target.with_suffix(".json").write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    machine = facts["machine"]
    lines = [
        "# What keeping the cache between turns saves",
        "",
        f"`{command}`: {options.dialogues} dialogues of two groups, an opening of {options.opening} tokens, "
        f"{options.turns} turns of {options.agent} tokens of the agent and {options.environment} of the "
        f"environment, greedy, fp32, rounds of alternating arms: {options.rounds}. The seconds are those of "
        "whatever else the machine did at the time; each ratio is of two arms run one after the other.",
        "",
        f"{machine['accelerator'] or machine['processor']}, {machine['threads']} threads; torch "
        f"{facts['versions']['torch']}, transformers {facts['versions']['transformers']}.",
        "",
        *table,
        "",
    ]
    target.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
