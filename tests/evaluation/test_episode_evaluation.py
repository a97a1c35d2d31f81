"""Episodes as a measurement: scores by hand, intervals over tasks, failures that count in no score."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from threefold.envs.base import EpisodeScore, Task
from threefold.envs.toy import EchoThenNext
from threefold.evaluation.episodes import EpisodeEvaluation, evaluate_episodes, paired_gain
from threefold.evaluation.intervals import bootstrap
from threefold.rollout.driver import Limits
from threefold.trajectory import Violation

TASKS = [Task(f"digit-{d}", {"digit": d}) for d in range(4)]


def says(tokenizer, text):
    """Always says the same, whatever it is asked."""
    return lambda seed: lambda contexts, most: [(tokenizer(text)["input_ids"] + [1], None) for _ in contexts]


def measure(tokenizer, text="2", environment=EchoThenNext, **options) -> EpisodeEvaluation:
    defaults = {"limits": Limits(turns=3, turn_tokens=4, completion_tokens=40), "temperature": 1.0}
    return evaluate_episodes(
        says(tokenizer, text), tokenizer, TASKS, environment, **{**defaults, "samples": 2, **options}
    )


def test_scores_are_means_over_tasks(tokenizer):
    result = measure(tokenizer)
    # "2" is right in turn 1 of task 2 and in turn 2 of task 1, and no task is right in both.
    assert result.values["echo"] == [[0.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]
    assert result.scores["echo"].mean == 0.25
    assert result.scores["echo"] == bootstrap([0.0, 0.5, 0.5, 0.0])
    assert result.values["echo, summed over turns"] == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert result.states == {"digit": [1.5, 1.5, 1.5]}
    assert result.scores["success"].mean == 0.0
    assert 0 < result.scores["success"].high < 1  # four tasks do not prove that none can be solved
    assert result.scores["violation"].mean == 0.0
    assert (result.ended, result.mean_turns, result.mean_length) == ({"terminated": 8}, 2.0, 4.0)
    assert result.pass_at["success"][1].mean == 0.0
    assert (result.mode, result.problems) == ("sampled", 4)


def test_parts_do_not_change_what_is_measured(tokenizer):
    done = []
    parts = measure(tokenizer, episodes_at_once=2, progress=lambda *at: done.append(at))
    assert parts.values == measure(tokenizer).values
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


class Odd(EchoThenNext):
    """Fails on 0, breaks a rule on 1, gives no score on 2."""

    def step(self, action_text):
        if self._digit == 0:
            raise ConnectionError("no simulator")
        return super().step(action_text)

    def score(self, episodes):
        digits = [e.task["digit"] for e in episodes]
        return [
            EpisodeScore(
                rewards={"echo": None if digit == 2 else 1.0},
                violation=Violation("rule", 0) if digit == 1 else None,
            )
            for digit in digits
        ]


def test_what_could_not_be_scored_counts_in_no_score_and_is_named(tokenizer):
    result = measure(tokenizer, environment=Odd)
    assert result.values["echo"] == [[None, None], [1.0, 1.0], [None, None], [1.0, 1.0]]
    assert result.values["violation"] == [[None, None], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert result.scores["echo"].mean == 1.0
    assert result.scores["violation"].mean == pytest.approx(1 / 3)
    assert result.pass_at == {}
    assert result.failures == ("digit-0: error: ConnectionError: no simulator",) * 2
    assert result.ended == {"error": 2, "terminated": 6}


def test_states_are_means_over_those_who_got_so_far(tokenizer):
    class Leaves(EchoThenNext):
        """Task 3 ends after its first turn; the state counts the turns."""

        def step(self, action_text):
            observation = super().step(action_text)
            state = {"turn": float(self._turn + self._digit)}
            return replace(observation, state=state, terminated=observation.terminated or self._digit == 3)

    result = measure(tokenizer, environment=Leaves)
    assert result.states["digit"] == [1.5]  # of the opening alone
    # After turn 1: 1, 2, 3, 4; after turn 2 without task 3: 2, 3, 4.
    assert result.states["turn"] == [2.5, 3.0]


def test_an_environment_that_always_fails_is_no_result(tokenizer):
    class Broken(EchoThenNext):
        def reset(self, task, seed, member):
            raise ConnectionError("no simulator")

    with pytest.raises(RuntimeError, match="failed in all 8 episodes; the first: digit-0: error: Conn"):
        measure(tokenizer, environment=Broken)


def test_gains_are_paired_by_task(tokenizer):
    before, after = measure(tokenizer, "9"), measure(tokenizer, "2")
    gain = paired_gain(before, after, "echo")
    assert gain.mean == pytest.approx(np.mean([0.0, 0.5, 0.5, 0.0]))
    assert paired_gain(before, after, "no such score") is None
    # Tasks that one side could not score are left out: task 1 and 3 remain.
    assert paired_gain(before, measure(tokenizer, environment=Odd), "echo").mean == 1.0
    with pytest.raises(ValueError, match="same tasks"):
        paired_gain(before, measure(tokenizer, temperature=0.0, samples=1), "echo")


def test_a_record_reads_back_equal(tokenizer):
    result = measure(tokenizer, environment=Odd)
    again = EpisodeEvaluation.from_record(json.loads(json.dumps(result.to_record())))
    assert again == result
    assert json.loads(json.dumps(again.to_json(when="before", step=0)))["scores"]["echo"]["mean"] == 1.0


def test_bad_calls_are_refused(tokenizer):
    with pytest.raises(ValueError, match="1 where greedy"):
        measure(tokenizer, temperature=0.0)
    with pytest.raises(ValueError, match="no tasks"):
        evaluate_episodes(says(tokenizer, "2"), tokenizer, [], EchoThenNext, limits=Limits(), temperature=1.0)
