"""Skills in the prompt: how they are written, where they stand, and which entered which prompt.

ReSkill writes a prompt anew at every turn and puts the triggered skills into it. Threefold's dialogue grows
instead, so that its prefix is shared between turns and its key/value cache can be kept:

* general and beginning skills stand at the very front, before the task: all episodes of one bank version
  share them as a prefix, whatever their task;
* a skill with an action pattern is appended to the observation that answers the action which it matches. It
  is written out the first time; later one line says that it applies again, for its text is still in the
  context.

Text of a skill is data: `<` and `>` are escaped, so it can neither close our block nor spell a chat
template's special tokens such as `<|im_end|>`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from threefold.envs.base import Environment, Message, Observation, Task
from threefold.envs.wrapper import EnvironmentWrapper
from threefold.skills.bank import Bank
from threefold.skills.skill import Skill
from threefold.skills.triggers import fires

INTRODUCTION = (
    "Each skill says when to use it. If one fits, name it and follow it; if none does, act on your own."
)

AGAIN = "These skills apply again:"


def triggered(bank: Bank, turn: int, previous_action: str) -> tuple[Skill, ...]:
    """The skills that fire before the agent's turn `turn`, general ones first, then by name."""
    fired = [skill for skill in bank.skills if fires(skill.trigger, turn, previous_action)]
    return tuple(sorted(fired, key=lambda skill: (skill.trigger.kind != "general", skill.name)))


def most_like(skills: Sequence[Skill], text: str, count: int) -> tuple[Skill, ...]:
    """The skills that share most with a text, in their own order: by BM25 (k1 = 1.2, b = 0.75) of its words
    over the skills' names, descriptions and bodies. Ties go to the first."""
    words = [_words(f"{skill.name} {skill.description} {skill.body}") for skill in skills]
    asked, length = set(_words(text)), sum(map(len, words)) / max(1, len(words))
    holding = {word: sum(word in mine for mine in words) for word in asked}

    def score(mine: Sequence[str]) -> float:
        total = 0.0
        for word in sorted(asked & set(mine)):
            rarity = math.log(1 + (len(words) - holding[word] + 0.5) / (holding[word] + 0.5))
            often = mine.count(word)
            total += rarity * 2.2 * often / (often + 1.2 * (0.25 + 0.75 * len(mine) / max(1.0, length)))
        return total

    best = sorted(range(len(skills)), key=lambda i: (-score(words[i]), i))[:count]
    return tuple(skills[i] for i in sorted(best))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def render(skills: Iterable[Skill]) -> str:
    """The block that shows skills to the agent, "" for none."""
    blocks = [
        f'<skill name="{skill.name}">\nWhen: {_escape(skill.description)}\n{_escape(skill.body)}\n</skill>'
        for skill in skills
    ]
    return "\n".join(["<available_skills>", *blocks, "</available_skills>"]) if blocks else ""


def without_skills(text: str) -> str:
    """A prompt's text less what this module put into it: what the environment itself said."""
    text = re.sub(r"\s*<available_skills>.*?</available_skills>\s*", "\n", text, flags=re.DOTALL)
    text = re.sub(rf"\s*{re.escape(AGAIN)}[^\n]*", "", text)
    return text.replace(INTRODUCTION, "").strip()


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;")


class SkilledEnvironment(EnvironmentWrapper):
    """An environment whose agent sees the skills of one bank version.

    `Observation.skills` names the skills that fired for the turn that follows.

    Args:
        retrieve: Show only so many of the skills that fire at the start, those most like the opening's text.
            Prompts of different tasks then begin differently. None shows all.
    """

    def __init__(self, environment: Environment, bank: Bank, retrieve: int | None = None) -> None:
        super().__init__(environment)
        self.bank = bank
        self._retrieve = retrieve
        self._turn = 0
        self._shown: set[str] = set()
        self._left_out: set[str] = set()

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self._turn, self._shown, self._left_out = 0, set(), set()
        observation = self.environment.reset(task, seed, member)
        skills = triggered(self.bank, 0, "")
        if not skills:
            return observation
        if self._retrieve is not None:
            opening = "\n".join(message["content"] for message in observation.messages)
            skills = most_like(skills, opening, self._retrieve)
            self._left_out = {s.name for s in triggered(self.bank, 0, "")} - {s.name for s in skills}
        self._shown.update(skill.name for skill in skills)
        block = f"{INTRODUCTION}\n{render(skills)}"
        first, *rest = observation.messages or ({"role": "user", "content": ""},)
        system = first["role"] == "system"
        content = f"{first['content']}\n\n{block}" if system else f"{block}\n\n{first['content']}"
        messages: tuple[Message, ...] = ({**first, "content": content.strip()}, *rest)
        return replace(observation, messages=messages, skills=tuple(skill.name for skill in skills))

    def step(self, action_text: str) -> Observation:
        observation = self.environment.step(action_text)
        self._turn += 1
        if observation.done:
            return observation
        fired = triggered(self.bank, self._turn, observation.action)
        skills = tuple(skill for skill in fired if skill.name not in self._left_out)
        news = [skill for skill in skills if skill.name not in self._shown]
        again = [s.name for s in skills if s.name in self._shown and s.trigger.kind == "action_pattern"]
        lines = [render(news)] if news else []
        if again:
            lines.append(f"{AGAIN} {', '.join(again)}.")
        self._shown.update(skill.name for skill in news)
        names = tuple(skill.name for skill in skills)
        if not lines:
            return replace(observation, skills=names)
        *rest, last = observation.messages or ({"role": "user", "content": ""},)
        content = "\n\n".join([last["content"], *lines]).strip()
        return replace(observation, messages=(*rest, {**last, "content": content}), skills=names)


def skilled(
    make_environment: Callable[[], Environment], banks_B: Sequence[Bank], retrieve: int | None = None
) -> Callable[[], Environment]:
    """A maker of environments for `rollout.driver.run_episodes`, which makes one a start, in order: the b-th
    is played under `banks_B[b]`. An episode keeps its bank to its end."""
    remaining = iter(banks_B)
    return lambda: SkilledEnvironment(make_environment(), next(remaining), retrieve)
