"""Dialogues that teach a small model to read skills, without teaching it any that help.

A large instruct model does what a skill in its prompt says. One of a few million parameters has to learn that
first, or a bank of skills is noise to it. Here an agent of the errands acts at random, but

* it opens the container that was named, where one was;
* where its prompt holds skills "First X. Only then Y.", it does every X first, in any order.

The two orders that solve errands (ask, or get the key, before opening) are never among the skills, so a warm
start on these dialogues knows the actions, the containers and the form of a skill, and no strategy.

    warm_start:
      source: threefold.skills.practice:errand_dialogues
"""

from __future__ import annotations

import random
import re

from threefold.envs.base import Message, Task
from threefold.envs.errands import Errands
from threefold.skills.bank import Bank
from threefold.skills.offline_creator import order
from threefold.skills.placement import SkilledEnvironment

ORDERS = (
    ("look", "open something"),
    ("look", "ask"),
    ("look", "get key"),
    ("ask", "look"),
    ("ask", "get key"),
    ("get key", "look"),
    ("get key", "ask"),
)
"""(first, then) of the skills that are practised: none that helps."""
SKILLS = (0, 0, 1, 1, 1, 2, 2)
"""How many skills a dialogue shows, drawn from these."""


def errand_dialogues(split: str, size: int, seed: int) -> list[list[Message]]:
    """Up to `size` dialogues as chat messages, the same for the same arguments."""
    chance = random.Random(f"practice/{seed}")
    pool = Errands.tasks(split, size, seed)
    return [_dialogue(pool[number % len(pool)], chance) for number in range(size)]


def _dialogue(task: Task, chance: random.Random) -> list[Message]:
    orders = chance.sample(ORDERS, chance.choice(SKILLS))
    errand = Errands()
    environment = SkilledEnvironment(errand, Bank("v0", tuple(order(*words) for words in orders)))
    seen = environment.reset(task, chance.randrange(2**31), 0)
    messages, waiting = list(seen.messages), sorted({first for first, _ in orders})
    chance.shuffle(waiting)
    named = ""
    while not seen.done:
        text = seen.messages[-1]["content"]
        found = re.search(r"(?:from|is in) the (\w+) ", text)
        named = found[1] if found else named
        action = waiting.pop() if waiting else chance.choice(errand.admissible)
        if action.startswith("open ") and named:
            action = f"open {named}"
        seen = environment.step(action)
        messages += [{"role": "assistant", "content": action}, *(() if seen.done else seen.messages)]
    return messages
