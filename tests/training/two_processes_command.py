"""Environments that do something in the second of two processes alone, for `test_two_processes_command`."""

import os
import signal

from threefold.envs.base import EpisodeScore
from threefold.envs.toy import EchoThenNext


def in_the_second() -> bool:
    return os.environ.get("RANK") == "1"


class Interrupted(EchoThenNext):
    """Sends the second process the signal of Ctrl-C, once, in the first turn that is played."""

    sent = False

    def step(self, action_text):
        if in_the_second() and not Interrupted.sent:
            Interrupted.sent = True
            signal.raise_signal(signal.SIGINT)
        return super().step(action_text)


class Moody(EchoThenNext):
    """Its demonstrations depend on the process."""

    @staticmethod
    def demonstrations(split, size, seed):
        opening = {"role": "user", "content": "say"}
        return [[opening, {"role": "assistant", "content": str(os.getpid())}] for _ in range(size)]


class Rare(EchoThenNext):
    """The second process's episodes lack the channel that the recipe rewards."""

    def score(self, episodes):
        name = "other" if in_the_second() else "echo"
        return [EpisodeScore(rewards={name: 1.0}, success=e.success) for e in episodes]


class Worded(EchoThenNext):
    """The second process's rewards are no numbers, which ends that process."""

    def score(self, episodes):
        reward = "much" if in_the_second() else 1.0
        return [EpisodeScore(rewards={"echo": reward}, success=e.success) for e in episodes]
