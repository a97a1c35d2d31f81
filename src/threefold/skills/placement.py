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

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from threefold.envs.base import Environment, EpisodeScore, Message, Observation, Task
from threefold.skills.bank import Bank
from threefold.skills.skill import Skill
from threefold.skills.triggers import fires
from threefold.trajectory import Trajectory

INTRODUCTION = (
    "Each skill says when to use it. If one fits, name it and follow it; if none does, act on your own."
)

AGAIN = "These skills apply again:"


def triggered(bank: Bank, turn: int, previous_action: str) -> tuple[Skill, ...]:
    """The skills that fire before the agent's turn `turn`, general ones first, then by name."""
    fired = [skill for skill in bank.skills if fires(skill.trigger, turn, previous_action)]
    return tuple(sorted(fired, key=lambda skill: (skill.trigger.kind != "general", skill.name)))


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


class SkilledEnvironment:
    """An environment whose agent sees the skills of one bank version; everything else is passed on.

    `Observation.skills` names the skills that fired for the turn that follows.
    """

    def __init__(self, environment: Environment, bank: Bank) -> None:
        self.environment = environment
        self.bank = bank
        self._turn = 0
        self._shown: set[str] = set()

    @property
    def unwrapped(self) -> Environment:
        """The environment itself, whose name the record gives."""
        return self.environment

    @property
    def concurrency(self) -> int:
        """As the environment's own: skills share nothing between episodes."""
        return getattr(self.environment, "concurrency", 1)

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self._turn, self._shown = 0, set()
        observation = self.environment.reset(task, seed, member)
        skills = triggered(self.bank, 0, "")
        if not skills:
            return observation
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
        skills = triggered(self.bank, self._turn, observation.action)
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

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return self.environment.score(episodes)

    def close(self) -> None:
        self.environment.close()


def skilled(
    make_environment: Callable[[], Environment], banks_B: Sequence[Bank]
) -> Callable[[], Environment]:
    """A maker of environments for `rollout.driver.run_episodes`, which makes one a start, in order: the b-th
    is played under `banks_B[b]`. An episode keeps its bank to its end."""
    remaining = iter(banks_B)
    return lambda: SkilledEnvironment(make_environment(), next(remaining))
