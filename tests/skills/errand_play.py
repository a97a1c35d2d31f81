"""Episodes of the errands under a policy that a test writes: no language model, real environments."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from threefold.envs.base import Observation, Task
from threefold.envs.errands import Errands, tasks
from threefold.skills.bank import Bank
from threefold.skills.placement import SkilledEnvironment
from threefold.skills.reservoir import Experience, experience
from threefold.trajectory import Opening, Trajectory, Turn

Policy = Callable[[random.Random, Sequence[str], Sequence[str], Sequence[Turn]], str]
"""(chance, admissible actions, skills in sight, turns so far) -> action."""


def wanderer(
    chance: random.Random, admissible: Sequence[str], skills: Sequence[str], turns: Sequence[Turn]
) -> str:
    """Chooses any action."""
    return chance.choice(admissible)


def follower(
    chance: random.Random, admissible: Sequence[str], skills: Sequence[str], turns: Sequence[Turn]
) -> str:
    """Wanders, but does what the errands' skills say where it sees them: the agent of a model that reads."""
    done = [turn.action for turn in turns]
    for skill, first in (("ask-before-open-something", "ask"), ("get-key-before-open-something", "get key")):
        if skill in skills and first not in done:
            return first
    told = [turn.observation for turn in turns if turn.action == "ask"]
    named = [a for a in admissible if told and a.startswith("open ") and f"the {a[5:]} " in told[0]]
    return chance.choice(named or admissible)


def play(task: Task, bank: Bank, policy: Policy, *, seed: int, member: int, group: int = 0) -> Trajectory:
    """One episode, as the driver would record it."""
    errand = Errands()
    environment = SkilledEnvironment(errand, bank)
    chance = random.Random(f"{task.id}/{seed}/{member}/{bank.version}")
    seen: Observation = environment.reset(task, seed, member)
    opening = Opening("\n".join(m["content"] for m in seen.messages))
    turns: list[Turn] = []
    shown: set[str] = set()
    while not seen.done:
        shown.update(seen.skills)
        action = policy(chance, errand.admissible, sorted(shown), turns)
        skills, seen = seen.skills, environment.step(action)
        text = "\n".join(m["content"] for m in seen.messages)
        turns.append(Turn(action, seen.action, text, dict(seen.rewards), skills=skills))
    return Trajectory(
        task.id, group, member, seed, "errands", opening, (), tuple(turns), success=seen.success
    )


def experiences(steps: int = 4, bank: Bank | None = None, policy: Policy = wanderer) -> list[Experience]:
    """What a wandering agent meets on 16 training tasks of 8 members a step."""
    chance = random.Random(0)
    bank = bank or Bank()
    return [
        experience(
            play(task, bank, policy, seed=step, member=member), step=step, arm="old", version=bank.version
        )
        for step in range(steps)
        for task in chance.sample(tasks("train"), 16)
        for member in range(8)
    ]
