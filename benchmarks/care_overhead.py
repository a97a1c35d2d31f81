"""What patient and judges cost beside the language model: seconds of each in the same dialogues.

A recipe's environment is played as a training step plays it: groups side by side, the cache kept between
turns. Processor seconds of this process are counted (on one thread, so what else the machine does counts for
neither), apart for the sampler, the patient's answers, safety after every turn, and goal, fit and term.

    python benchmarks/care_overhead.py                       # recipes/caregiver.yaml, the embedded model
    python benchmarks/care_overhead.py --recipe recipes/caregiver-tiny.yaml --rounds 3

Writes results/caregiver/overhead.json and .md, one row a recipe; a recipe that is measured again replaces its
row. Research and training simulation, not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threefold.envs.caregiver.dialogue import Judge

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "results/caregiver/overhead"
MOST = 0.01
"""Share of the generation's time that patient and judges may take together."""


PATIENT_AND_JUDGES = ("patient", "safety", "goal, fit and term", "environment")
"""The environment's own bookkeeping counts with them."""


class Stopwatch:
    """Processor seconds by what they were spent on; what is inside of something else counts for itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self._inside.append(0.0)
            started = time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                whole = time.process_time() - started
                self.seconds[name] += whole - self._inside.pop()
                self._inside[-1] += whole

        return call


class TimedJudge:
    """A judge whose seconds are counted."""

    def __init__(self, judge: Judge, watch: Stopwatch) -> None:
        self.judge = watch.timed("goal, fit and term", judge.judge)
        self.safety = watch.timed("safety", judge.safety)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Patient and judges beside generation, in the same dialogues."
    )
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/caregiver.yaml")
    parser.add_argument("--rounds", type=int, default=1, help="steps' worth of episodes")
    parser.add_argument("--override", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    command = " ".join(["python benchmarks/care_overhead.py", *sys.argv[1:]])
    report({"recipe": options.recipe.name, "command": command, **measure(options)})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Play the rounds; episodes, turns, and seconds by what they were spent on."""
    import torch

    from threefold.environments import named_environment
    from threefold.models import load_model, load_tokenizer
    from threefold.recipe import load_recipe
    from threefold.rollout.driver import Start, run_episodes
    from threefold.rollout.samplers import SamplingParameters
    from threefold.rollout.samplers.transformers import TransformersSampler

    recipe = load_recipe(options.recipe, options.override)
    environment = named_environment(recipe)
    tokenizer = load_tokenizer(recipe.model.name)
    model = load_model(recipe.model.name, torch.float32).eval()
    sampler = TransformersSampler(model)
    parameters = SamplingParameters(recipe.environment.turn_tokens, temperature=recipe.training.temperature)
    groups, size = recipe.training.prompts_per_step, recipe.training.group_size
    tasks = environment.tasks("train", groups * options.rounds, recipe.run.seed)
    watch, episodes = Stopwatch(), []

    def timed_environment() -> Any:
        made: Any = environment.make()
        made.judge = TimedJudge(made.judge, watch)
        for part in ("open", "reply"):
            setattr(made.patient, part, watch.timed("patient", getattr(made.patient, part)))
        for part in ("reset", "step", "score"):
            setattr(made, part, watch.timed("environment", getattr(made, part)))
        return made

    for number in range(options.rounds):
        starts = [
            Start(task, seed=group, group_id=group, member=member)
            for group, task in enumerate(tasks[number * groups : (number + 1) * groups], number * groups)
            for member in range(size)
        ]
        session: Any = sampler.session(parameters, seed=number)
        session.turn = watch.timed("generation", session.turn)
        played = watch.timed("driver", run_episodes)
        episodes += played(starts, timed_environment, session, tokenizer, limits=environment.limits)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "episodes": len(episodes),
        "turns": sum(len(episode.turns) for episode in episodes),
        "tokens": sum(t >= 0 for e in episodes for t in e.segments[0].turn_ids),
        "seconds": dict(watch.seconds),
    }


def report(row: dict[str, Any]) -> None:
    """Replace the recipe's row, and write the page of all rows."""
    from threefold.training.run_directory import describe_environment

    file = TARGET.with_suffix(".json")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    facts = describe_environment()
    row |= {"machine": facts["machine"], "versions": facts["versions"]}
    rows = sorted([*(r for r in rows if r["recipe"] != row["recipe"]), row], key=lambda r: r["recipe"])
    file.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    page = "\n".join(page_lines(rows))
    TARGET.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


def share(row: dict[str, Any], *names: str) -> float:
    """Seconds of these as a share of the generation's."""
    return sum(row["seconds"].get(name, 0.0) for name in names) / row["seconds"]["generation"]


def page_lines(rows: list[dict[str, Any]]) -> list[str]:
    held = [r["recipe"] for r in rows if share(r, *PATIENT_AND_JUDGES) <= MOST]
    above = [r["recipe"] for r in rows if r["recipe"] not in held]
    found = [
        f"Patient and judges by rules take {'no more' if names is held else 'more'} than {MOST:.0%} of the "
        f"generation's time with {' and '.join(names)}."
        for names in (held, above)
        if names
    ]
    table = [
        "| recipe | parameters | turns | generation, ms a turn | patient | safety | goal, fit, term | "
        "patient and judges |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = (("patient",), ("safety",), ("goal, fit and term",), PATIENT_AND_JUDGES)
        shares = " | ".join(f"{share(row, *names):.2%}" for names in parts)
        milliseconds = 1000 * row["seconds"]["generation"] / row["turns"]
        size = f"{row['parameters'] / 1e6:.1f}M"
        table.append(f"| {row['recipe']} | {size} | {row['turns']} | {milliseconds:.1f} | {shares} |")
    machine, versions = rows[-1]["machine"], rows[-1]["versions"]
    commands = ", ".join(f"`{row['command']}`" for row in rows)
    return [
        "# What patient and judges cost beside generation",
        "",
        *found,
        "They cost the same whatever the model: the smaller the model, the larger their share.",
        "",
        "Processor seconds of one thread, as shares of those that the sampler took in the same dialogues:",
        "",
        *table,
        "",
        f"{machine['accelerator'] or machine['processor']}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}. Commands: {commands}.",
        "",
    ]


if __name__ == "__main__":
    main()
