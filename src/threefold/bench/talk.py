"""Dialogues of a fixed shape: an opening, and so many turns, each answered by the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from threefold.envs.base import EpisodeScore, Observation, Task
from threefold.trajectory import Trajectory


class Talk:
    """An environment whose answers cost nothing. Turn channels "D" and "R", episode channel "goal", all read
    off what was said, so that members of a group differ.

    Args:
        turns: Turns of an episode.
        answer: What every turn is answered.
        watch: A `parts.Stopwatch` that runs while the environment does.
    """

    channels = ("goal",)
    answer_tokens = 12
    """Tokens of an answer with the chat template's markers, about."""
    markers = 5
    """Of these the template's, about."""

    def __init__(self, turns: int, answer: str, watch: Any) -> None:
        self._turns, self._answer, self._watch = turns, answer, watch
        self._turn = 0

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self._turn = 0
        return Observation(messages=({"role": "user", "content": str(task.fields["opening"])},))

    def step(self, action_text: str) -> Observation:
        with self._watch.running():
            self._turn += 1
            done = self._turn == self._turns
            said = sum(map(ord, action_text))
            return Observation(
                messages=() if done else ({"role": "user", "content": self._answer},),
                action=action_text[:1],
                rewards={"D": float(said % 3), "R": float(said % 2)},
                truncated=done,
                success=said % 2 == 0 if done else None,
            )

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        with self._watch.running():
            return [
                EpisodeScore(
                    rewards={"goal": float(sum(turn.rewards["D"] for turn in e.turns))}, success=e.success
                )
                for e in episodes
            ]

    def close(self) -> None:
        """There is nothing to give back."""
