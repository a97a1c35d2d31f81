"""An environment whose openings say in a system message how to answer.

Games describe a world and list actions; a model that was trained on chats answers with prose, which no game
understands. `environment.instruction` of a recipe puts this around any environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from threefold.envs.base import Environment, EpisodeScore, Message, Observation, Task
from threefold.trajectory import Trajectory


def instructed(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """Chat messages with an instruction in their system message, below what stands there."""
    if messages and messages[0]["role"] == "system":
        first, *rest = messages
        return ({**first, "content": f"{first['content']}\n\n{instruction}"}, *rest)
    return ({"role": "system", "content": instruction}, *messages)


class InstructedEnvironment:
    """An environment whose opening carries an instruction; everything else is passed on."""

    def __init__(self, environment: Environment, instruction: str) -> None:
        self.environment = environment
        self.instruction = instruction

    @property
    def unwrapped(self) -> Environment:
        """The environment itself, whose name the record gives."""
        return getattr(self.environment, "unwrapped", self.environment)

    @property
    def concurrency(self) -> int:
        """As the environment's own."""
        return getattr(self.environment, "concurrency", 1)

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        observation = self.environment.reset(task, seed, member)
        return replace(observation, messages=instructed(observation.messages, self.instruction))

    def step(self, action_text: str) -> Observation:
        return self.environment.step(action_text)

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return self.environment.score(episodes)

    def close(self) -> None:
        self.environment.close()
