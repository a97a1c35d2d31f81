"""Dialogues that teach a small model to read skills, without teaching it any that help.

A large instruct model does what a skill in its prompt says. One of a few million parameters has to learn that
first, or a bank of skills is noise to it. Here an agent of the errands acts at random, and in most dialogues
its prompt holds a skill "First X. Only then Y.", which it obeys: where it would do Y and has not done X, it
does X. The two orders that solve errands (ask, or get the key, before opening) are never among them, so a
warm start on these dialogues knows the actions and the form of a skill, and no strategy.

    warm_start:
      source: threefold.skills.practice:errand_dialogues
"""

from __future__ import annotations

import random

from threefold.envs.base import Message
from threefold.envs.errands import Errands, wandering
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
WITH_SKILL = 0.75
"""Share of the dialogues that show a skill."""


def errand_dialogues(split: str, size: int, seed: int) -> list[list[Message]]:
    """Up to `size` dialogues as chat messages, the same for the same arguments."""
    chance = random.Random(f"practice/{seed}")
    pool = Errands.tasks(split, size, seed)
    dialogues = []
    for number in range(size):
        task = pool[number % len(pool)]
        if chance.random() >= WITH_SKILL:
            dialogues.append(wandering(Errands(), task, chance))
            continue
        first, then = chance.choice(ORDERS)
        errand = Errands()
        environment = SkilledEnvironment(errand, Bank("v0", (order(first, then),)))
        seen, obeyed = environment.reset(task, chance.randrange(2**31), 0), False
        messages = list(seen.messages)
        while not seen.done:
            action = chance.choice(errand.admissible)
            if not obeyed and (action == then or (then == "open something" and action.startswith("open "))):
                action = first
            obeyed |= action == first
            seen = environment.step(action)
            messages += [{"role": "assistant", "content": action}, *(() if seen.done else seen.messages)]
        dialogues.append(messages)
    return dialogues
