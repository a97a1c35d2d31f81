"""What the skill bank adds to a step besides the longer prompt: draws, triggers, placement, the loop.

The same 128 episodes of the errands (16 tasks, 8 members, six turns) are played by a fixed agent with and
without the loop around them, in turns, in one process. No language model runs, so nothing hides the cost:
compare it with the seconds that the policy takes for the same episodes.

    python benchmarks/skills_overhead.py

Writes results/skills/overhead.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from threefold.envs.base import Environment, Task
from threefold.envs.errands import Errands, tasks
from threefold.skills.bank import Bank
from threefold.skills.evolution import Evolution
from threefold.skills.offline_creator import OfflineCreator
from threefold.skills.placement import SkilledEnvironment
from threefold.skills.settings import Settings
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger
from threefold.trajectory import Opening, Trajectory, Turn

ROOT = Path(__file__).resolve().parents[1]
TASKS, MEMBERS = 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds that the skill loop adds to a step.")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    pattern = Trigger("action_pattern", "(look|ask) ?.*")
    body = "Look again, and then again. " * 12 + "Look."
    bank = Bank("v0", tuple(Skill(f"skill-{i}", "You look.", body, pattern) for i in range(7)))
    evolution = Evolution(OfflineCreator(), bank, Settings(min_reservoir=40), seed=0)
    plain, with_skills, loop = [], [], []
    for step in range(options.steps):
        chosen = random.Random(step).sample(tasks("train"), TASKS)
        start = time.perf_counter()
        play(chosen, [None] * (TASKS * MEMBERS), step)
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        banks_B = evolution.assign(step, TASKS * MEMBERS)
        assigned = time.perf_counter()
        episodes = play(chosen, banks_B, step)
        played = time.perf_counter()
        evolution.observe(step, episodes, banks_B)
        end = time.perf_counter()
        with_skills.append(end - start)
        loop.append(end - played + assigned - start)
    write(plain, with_skills, loop, evolution)


def play(chosen: Sequence[Task], banks_B: Sequence[Bank | None], step: int) -> list[Trajectory]:
    """Every episode to its end: look until the errand is cut off."""
    episodes = []
    for index, bank in enumerate(banks_B):
        task, member = chosen[index // MEMBERS], index % MEMBERS
        environment: Environment = Errands() if bank is None else SkilledEnvironment(Errands(), bank)
        seen, turns = environment.reset(task, step, member), []
        while not seen.done:
            action = "ask" if member % 2 and not turns else "look"
            skills, seen = seen.skills, environment.step(action)
            turns.append(Turn(action, seen.action, seen.messages[-1]["content"], skills=skills))
        won = bool(member % 2)  # those who ask, so the creator has something to find
        start = (task.id, index // MEMBERS, member, step, "errands", Opening(""), ())
        episodes.append(Trajectory(*start, tuple(turns), success=won))
    return episodes


def write(plain: list[float], with_skills: list[float], loop: list[float], evolution: Evolution) -> None:
    def milliseconds(values: list[float]) -> str:
        return f"{1000 * statistics.median(values):.1f} [{1000 * min(values):.1f}, {1000 * max(values):.1f}]"

    turns = TASKS * MEMBERS * 6
    extra = statistics.median(b - a for a, b in zip(plain, with_skills, strict=True))
    events = ", ".join(f"{kind} {count}" for kind, count in sorted(evolution.counts.items()))
    text = f"""# What the skill bank adds to a step

`python benchmarks/skills_overhead.py`: {TASKS * MEMBERS} episodes of the errands a step, {turns} turns, a
bank of seven skills that fire at nearly every turn, candidates beside it, {len(plain)} steps, one thread of a
shared machine. No language model runs. Milliseconds a step, median [least, most]:

| | ms |
|---|---|
| episodes without skills | {milliseconds(plain)} |
| episodes with skills and the loop | {milliseconds(with_skills)} |
| of it the loop: draws, reservoir, posteriors, offline creator | {milliseconds(loop)} |

The difference is {1000 * extra:.1f} ms a step, {1e6 * extra / turns:.0f} microseconds a turn. What a longer
prompt costs the policy comes on top and depends on the model; it is not measured here. Events: {events}.
"""
    folder = ROOT / "results" / "skills"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overhead.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
