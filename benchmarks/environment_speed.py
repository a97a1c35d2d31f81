"""How fast the environments are: steps a second, in this process and in pools of processes.

    python benchmarks/environment_speed.py --out results/environment-speed.json

Every engine plays `--episodes` episodes side by side, as the driver does: all are asked for their next step
in a thread of their own where they allow it, and none is asked again before all have answered. Actions are
drawn at random from the admissible ones (of ScienceWorld, whose enumeration of them is slow, from a list that
suits every task), so every step acts. What is reported is the median of `--repeats` rounds after one that
warms up. `reset` is the time to open one episode.

Engines whose package is missing are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from threefold.envs.base import Environment, Observation, Task, is_source
from threefold.envs.pool import EnvironmentPool

SCIENCE_ACTIONS = (
    "look around",
    "inventory",
    "teleport to kitchen",
    "teleport to workshop",
    "open cupboard",
    "pick up thermometer",
    "activate stove",
    "wait1",
)
GAMES = ("cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "peckingorder")
"""Of TextWorldExpress: those that a random player does not end at once."""
LAKE = {
    "id": "FrozenLake-v1",
    "kwargs": {"is_slippery": False, "render_mode": "ansi", "map_name": "8x8"},
    "actions": ["left", "down", "right", "up"],
}


def engines() -> dict[str, Callable[[], tuple[Any, dict[str, Any], Sequence[str]]]]:
    """Class, options and, where they cannot be read off an observation, actions; by name."""

    def errands() -> Any:
        from threefold.envs.errands import Errands

        return Errands, {"turns": 10_000}, ()

    def textworld() -> Any:
        from threefold.envs.textworld_express import TextWorldExpress

        return TextWorldExpress, {"games": GAMES, "unseen_games": (), "turns": 10_000}, ()

    def scienceworld() -> Any:
        from threefold.envs.scienceworld import ScienceWorld

        return ScienceWorld, {"turns": 10_000}, SCIENCE_ACTIONS

    def gymnasium() -> Any:
        from threefold.envs.gymnasium_text import GymnasiumText

        return GymnasiumText, {**LAKE, "turns": 10_000}, ()

    return {"errands": errands, "textworld": textworld, "scienceworld": scienceworld, "gymnasium": gymnasium}


def measure(
    make: Callable[[], Any], tasks: Sequence[Task], actions: Sequence[str], *, turns: int, repeats: int
) -> dict[str, float]:
    """Steps a second of all episodes together, and seconds to open one."""
    environments = [make() for _ in tasks]
    threads = ThreadPoolExecutor(min(getattr(environments[0], "concurrency", 1), len(tasks)))
    chance = random.Random(0)
    speeds, opened = [], []
    try:
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            seen = list(threads.map(_open, environments, tasks))
            opened.append((time.perf_counter() - begun) / len(tasks))
            steps = spent = 0
            live = [True] * len(tasks)
            for _ in range(turns):
                playing = [i for i, alive in enumerate(live) if alive]
                said = [chance.choice(actions or _offered(seen[i])) for i in playing]
                begun = time.perf_counter()
                answers = list(threads.map(_step, [environments[i] for i in playing], said))
                spent += time.perf_counter() - begun
                steps += len(playing)
                for i, answer in zip(playing, answers, strict=True):
                    seen[i], live[i] = answer, not answer.done
            speeds.append(steps / spent)
    finally:
        threads.shutdown()
        for environment in environments:
            environment.close()
    return {
        "steps_per_second": statistics.median(speeds[1:]),
        "reset_seconds": statistics.median(opened[1:]),
        "steps": steps,
    }


def _open(environment: Environment, task: Task) -> Observation:
    return environment.reset(task, 0, 0)


def _step(environment: Environment, text: str) -> Observation:
    return environment.step(text)


def _offered(observation: Any) -> list[str]:
    """The actions that an observation ends with."""
    return observation.messages[-1]["content"].rpartition("\nActions: ")[2].split(", ")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engines", nargs="*", default=list(engines()))
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="0 is without a pool")
    parser.add_argument("--episodes", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.engines:
        try:
            kind, settings, actions = engines()[name]()
            source = kind(**settings) if is_source(kind) else None
        except ImportError as error:
            print(f"{name}: left out: {error}")
            continue
        for workers in options.workers:
            for episodes in options.episodes:
                pool = EnvironmentPool(kind, settings, workers=workers) if workers else None
                tasks = (source or kind).tasks("train", episodes, 0)
                make = pool or source or partial(kind, **settings)
                figures = measure(make, tasks, actions, turns=options.turns, repeats=options.repeats)
                if pool is not None:
                    pool.close()
                rows.append({"engine": name, "workers": workers, "episodes": episodes, **figures})
                speed, opening = figures["steps_per_second"], 1e3 * figures["reset_seconds"]
                where = f"{name:13s} workers {workers}  episodes {episodes:3d}"
                print(f"{where}  {speed:9.1f} steps/s  reset {opening:8.1f} ms", flush=True)
        if source is not None and hasattr(source, "close"):
            source.close()
    if options.out:
        facts = {
            "command": "python benchmarks/environment_speed.py --out results/environment-speed.json",
            "turns": options.turns,
            "repeats": options.repeats,
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        }
        options.out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
