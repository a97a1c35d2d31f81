"""Dialogues that teach a small model to read skills, without teaching it any that help.

A large instruct model does what a skill in its prompt says, and shrugs at one that says nothing. One of a
million parameters has to learn both first, or a bank of skills is noise to it. Here an agent of the errands
acts at random, but

* it opens the container that was named, where one was;
* where its prompt holds skills "First X. Only then Y.", it does every X first, in any order;
* after an action that a skill "Next, Y." answers, it does Y;
* skills of random words change nothing about it.

Skills look as the offline creator writes them, with and without examples. The two orders that solve errands
(ask, or get the key, before opening) are never among them, nor are the sentences of the placebo: a warm start
on these dialogues knows the actions, the containers and the form of a skill, and no strategy.

    warm_start:
      source: threefold.skills.practice:errand_dialogues
"""

from __future__ import annotations

import random
import re

from threefold.envs.base import Message, Task
from threefold.envs.errands import COLOURS, Errands
from threefold.skills.bank import Bank, kebab
from threefold.skills.offline_creator import order
from threefold.skills.placebo_creator import SENTENCES
from threefold.skills.placement import SkilledEnvironment
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger

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
NEXTS = (("look", "ask"), ("look", "get key"), ("ask", "look"), ("get key", "look"))
"""(last action, next) of those that say what to do after an action."""
SKILLS = (0, 0, 1, 1, 1, 2, 2)
"""How many skills a dialogue shows, drawn from these."""
KINDS = ("order", "order", "order", "next", "words")


def errand_dialogues(split: str, size: int, seed: int) -> list[list[Message]]:
    """Up to `size` dialogues as chat messages, the same for the same arguments."""
    chance = random.Random(f"practice/{seed}")
    pool = Errands.tasks(split, size, seed)
    return [_dialogue(pool[number % len(pool)], chance) for number in range(size)]


def _dialogue(task: Task, chance: random.Random) -> list[Message]:
    kinds = [chance.choice(KINDS) for _ in range(chance.choice(SKILLS))]
    orders = chance.sample(ORDERS, kinds.count("order"))
    nexts = dict(chance.sample(NEXTS, kinds.count("next")))
    skills = [order(*words, _examples(*words, chance)) for words in orders]
    skills += [_next(last, then) for last, then in nexts.items()]
    skills += [_words(number, chance) for number in range(kinds.count("words"))]
    errand = Errands()
    environment = SkilledEnvironment(errand, Bank("v0", tuple(skills)))
    seen = environment.reset(task, chance.randrange(2**31), 0)
    messages, waiting = list(seen.messages), sorted({first for first, _ in orders})
    chance.shuffle(waiting)
    named = action = ""
    while not seen.done:
        text = seen.messages[-1]["content"]
        found = re.search(r"(?:from|is in) the (\w+) ", text)
        named = found[1] if found else named
        action = waiting.pop() if waiting else nexts.get(action) or chance.choice(errand.admissible)
        if action.startswith("open ") and named:
            action = f"open {named}"
        seen = environment.step(action)
        messages += [{"role": "assistant", "content": action}, *(() if seen.done else seen.messages)]
    return messages


def _examples(first: str, second: str, chance: random.Random) -> str:
    """What the offline creator adds to an order: actions of an episode that keeps it and of one that does
    not. Half of the skills have none."""
    if chance.random() < 0.5:
        return ""
    colour, other = chance.sample(COLOURS, 2)
    do = [first, second.replace("something", colour), f"open {colour}"]
    return f"\n- DO: {', '.join(dict.fromkeys(do))}\n- DON'T: {second.replace('something', other)}"


def _next(last: str, then: str) -> Skill:
    return Skill(
        kebab(f"{then} after {last}"),
        f"Your last action was: {last}.",
        f"Next, {then}.",
        Trigger("action_pattern", last),
    )


def _words(number: int, chance: random.Random) -> Skill:
    """A skill that says nothing, in words of the placebo's sentences but none of them."""
    words = sorted({word.strip(".").lower() for sentence in SENTENCES for word in sentence.split()})
    said = [" ".join(chance.choices(words, k=chance.randint(5, 10))).capitalize() + "." for _ in range(3)]
    return Skill(f"words-{number}", "You are at work on a task.", " ".join(said[: chance.randint(1, 3)]))
