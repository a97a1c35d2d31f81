"""An environment whose openings say in a system message how to answer.

Games describe a world and list actions; a model that was trained on chats answers with prose, which no game
understands. `environment.instruction` of a recipe puts this around any environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from threefold.envs.base import Environment, Message, Observation, Task
from threefold.envs.wrapper import EnvironmentWrapper


def instructed(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """Chat messages with an instruction in their system message, below what stands there."""
    if messages and messages[0]["role"] == "system":
        first, *rest = messages
        return ({**first, "content": f"{first['content']}\n\n{instruction}"}, *rest)
    return ({"role": "system", "content": instruction}, *messages)


class InstructedEnvironment(EnvironmentWrapper):
    """An environment whose opening carries an instruction."""

    def __init__(self, environment: Environment, instruction: str) -> None:
        super().__init__(environment)
        self.instruction = instruction

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        observation = super().reset(task, seed, member)
        return replace(observation, messages=instructed(observation.messages, self.instruction))
