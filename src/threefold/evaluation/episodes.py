"""Evaluation in an environment: play held-out tasks, and say how sure the numbers are.

The unit of chance is the task: episodes of one task are not independent, so intervals resample tasks. What is
measured is success, broken rules, and every reward channel of the environment.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from threefold.envs.base import Environment, Task
from threefold.evaluation.intervals import Interval, bootstrap, paired_bootstrap
from threefold.evaluation.pass_at_k import pass_at_k
from threefold.evaluation.share import NumberedSession, Share
from threefold.rollout.driver import GenerateTurn, Limits, Start, Tokenizer, run_episodes
from threefold.rollout.samplers import SamplingParameters, Session
from threefold.trajectory import Trajectory

SUCCESS, VIOLATION = "success", "violation"
SHARES = (SUCCESS, VIOLATION)
"""Scores that are shares of episodes; the others are means of reward channels, in their own units."""

Values = dict[str, list[list[float | None]]]
"""By score: tasks x episodes; None where an episode could not be scored."""


@dataclass(frozen=True)
class EpisodeEvaluation:
    """What was measured. Tasks are in the order in which they were given."""

    mode: str
    """"greedy" where the temperature is 0, else "sampled"."""
    temperature: float
    task_ids: tuple[str, ...]
    samples: int
    """Episodes of each task."""
    values: Values
    scores: dict[str, Interval]
    """Mean over tasks of the mean over their episodes, with a 95% interval over tasks."""
    pass_at: dict[str, dict[int, Interval]]
    """Unbiased pass@k of success, where every episode says whether it succeeded."""
    states: dict[str, list[float]]
    """Mean of each state by turn, the opening first: over tasks of the mean over the episodes that got so
    far."""
    ended: dict[str, int]
    """Episodes by why they ended; all failures of the environment are counted under "error"."""
    mean_turns: float
    mean_length: float
    """Tokens that the agent wrote in an episode."""
    seconds: float
    failures: tuple[str, ...] = ()
    """Episodes in which the environment failed, each with its error; they count in no score."""
    by_group: dict[str, dict[str, Interval]] = field(default_factory=dict)
    """The scores of the tasks of each group that the environment names, as `scores` has those of all."""
    group_sizes: dict[str, int] = field(default_factory=dict)
    """Number of tasks in each group."""
    courses: dict[str, list[Interval]] = field(default_factory=dict)
    """Of the states that the environment names as levels: `states` with an interval over tasks at each turn.
    Later turns are those of the episodes that got so far."""
    bank: str | None = None
    """Version of the skill bank that they were played under, None without skills."""

    @property
    def problems(self) -> int:
        """Number of tasks."""
        return len(self.task_ids)

    def to_json(self, *, when: str | None = None, step: int | None = None) -> dict[str, Any]:
        """The summary as plain JSON values, in the form of `evaluate.Evaluation.to_json`."""
        place = {"when": when, "step": step, "bank": self.bank}
        return {
            **{name: value for name, value in place.items() if value is not None},
            "mode": self.mode,
            "temperature": self.temperature,
            "problems": self.problems,
            "samples": self.samples,
            "scores": {name: asdict(interval) for name, interval in self.scores.items()},
            "pass_at": {
                name: {str(k): asdict(interval) for k, interval in at.items()}
                for name, at in self.pass_at.items()
            },
            "in_own_units": [name for name in self.scores if name not in SHARES],
            "states": self.states,
            "ended": self.ended,
            "mean_turns": self.mean_turns,
            "mean_length": self.mean_length,
            "seconds": self.seconds,
            "environment_failures": len(self.failures),
            "by_group": {
                group: {name: asdict(interval) for name, interval in scores.items()}
                for group, scores in self.by_group.items()
            },
            "group_sizes": self.group_sizes,
            "courses": {name: [asdict(at) for at in course] for name, course in self.courses.items()},
        }

    def to_record(self) -> dict[str, Any]:
        """Everything, as plain JSON values: what `from_record` reads."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EpisodeEvaluation:
        """The evaluation that `to_record` wrote."""
        scores = {name: Interval(**interval) for name, interval in record["scores"].items()}
        pass_at = {
            name: {int(k): Interval(**interval) for k, interval in at.items()}
            for name, at in record["pass_at"].items()
        }
        by_group = {
            group: {name: Interval(**interval) for name, interval in mine.items()}
            for group, mine in record.get("by_group", {}).items()
        }
        courses = {
            name: [Interval(**at) for at in course] for name, course in record.get("courses", {}).items()
        }
        tuples = {name: tuple(record[name]) for name in ("task_ids", "failures")}
        parts = {"scores": scores, "pass_at": pass_at, "by_group": by_group, "courses": courses}
        return cls(**{**record, **tuples, **parts})


def sessions(sampler: Any, parameters: SamplingParameters) -> Callable[[int], Session]:
    """What `evaluate_episodes` generates with, of a sampler that keeps dialogues (`TransformersSampler`)."""
    return lambda seed: sampler.session(parameters, seed=seed)


def evaluate_episodes(
    generate: Callable[[int], GenerateTurn | Session],
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    make_environment: Callable[[], Environment],
    *,
    limits: Limits,
    temperature: float,
    samples: int = 1,
    seed: int = 0,
    ks: Sequence[int] = (1,),
    episodes_at_once: int = 256,
    groups: Callable[[Task], Sequence[str]] | None = None,
    measures: Callable[[Sequence[Trajectory]], Sequence[Mapping[str, float | None]]] | None = None,
    levels: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    share: Share | None = None,
) -> EpisodeEvaluation:
    """Play tasks and score the episodes.

    Args:
        generate: (seed) -> what the driver generates with, for one part of the tasks.
        tokenizer: Renders messages and decodes turns.
        tasks: At least one.
        make_environment: Makes an environment for one episode at a time.
        limits: Bounds of an episode.
        temperature: That of `generate`, for the record; 0 is greedy.
        samples: Episodes of each task. Exactly 1 where greedy.
        seed: Of the starts (task i starts from `seed` + i), of sampling and of the bootstrap.
        ks: The k of pass@k.
        episodes_at_once: Most episodes side by side (at least those of one task).
        groups: Names of the groups that a task belongs to, whose scores are given apart too.
        measures: Further scores of each episode, by name; None where one could not be measured. Called once
            with the episodes in which the environment did not fail, a process's own where several share them.
        levels: Names of states whose course over the turns gets intervals.
        progress: Called with (tasks done, tasks in all) after each part.
        share: The episodes that this process plays, where several do; all of them have to call this.

    Raises:
        ValueError: There are no tasks, or an argument is out of range.
        RuntimeError: The environment failed in every episode, which is a fault of it and no result.
    """
    if not tasks:
        raise ValueError("there are no tasks to evaluate on")
    if samples < 1 or (temperature == 0 and samples > 1):
        raise ValueError(f"samples must be at least 1, and 1 where greedy, got {samples}")
    begun = time.perf_counter()
    share = share or Share()
    episodes: list[Trajectory] = []
    at_once = max(1, episodes_at_once // samples)
    for first in range(0, len(tasks), at_once):
        starts = [
            Start(task, seed=seed + number, group_id=number, member=member)
            for number, task in enumerate(tasks[first : first + at_once], first)
            for member in range(samples)
        ]
        # A seed of its own, or every part would repeat the draws of the first one.
        part_seed = int(np.random.SeedSequence((seed, first)).generate_state(1)[0])
        mine, turns = share.part(len(starts)), generate(part_seed)
        if isinstance(turns, Session):
            turns = NumberedSession(turns, mine.start)
        episodes += share.gather(
            run_episodes(starts[mine], make_environment, turns, tokenizer, limits=limits)
        )
        if progress is not None:
            progress(min(first + at_once, len(tasks)), len(tasks))
    failures = tuple(f"{e.task_id}: {e.ended}" for e in episodes if _failed(e))
    if len(failures) == len(episodes):
        raise RuntimeError(
            f"the environment failed in all {len(episodes)} episodes; the first: {failures[0]}"
        )
    by_task = [episodes[i : i + samples] for i in range(0, len(episodes), samples)]
    values = _values(by_task) | _measured(by_task, measures, share)
    by_turn = _states(by_task)
    of_group: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        for name in groups(task) if groups is not None else ():
            of_group.setdefault(name, []).append(number)
    return EpisodeEvaluation(
        mode="greedy" if temperature == 0 else "sampled",
        temperature=temperature,
        task_ids=tuple(task.id for task in tasks),
        samples=samples,
        values=values,
        scores=_scores(values, seed),
        pass_at=_pass_at(values, samples, ks, seed),
        states={name: [float(np.mean(means)) for means in course] for name, course in by_turn.items()},
        ended=dict(sorted(Counter("error" if _failed(e) else e.ended for e in episodes).items())),
        mean_turns=float(np.mean([len(e.turns) for e in episodes])),
        mean_length=float(np.mean([sum(t >= 0 for s in e.segments for t in s.turn_ids) for e in episodes])),
        seconds=time.perf_counter() - begun,
        failures=failures,
        by_group={
            name: _scores({score: [rows[i] for i in numbers] for score, rows in values.items()}, seed)
            for name, numbers in sorted(of_group.items())
        },
        group_sizes={name: len(numbers) for name, numbers in sorted(of_group.items())},
        courses={
            name: [bootstrap(means, seed=seed) for means in by_turn[name]]
            for name in levels
            if name in by_turn
        },
    )


def paired_gain(
    before: EpisodeEvaluation, after: EpisodeEvaluation, score: str, *, seed: int = 0
) -> Interval | None:
    """How much a score rose between two evaluations of the same tasks, with a 95% interval over tasks.

    Tasks that one of them could not score are left out; None where no task is left.

    Raises:
        ValueError: The tasks or temperatures differ.
    """
    if (before.task_ids, before.temperature) != (after.task_ids, after.temperature):
        raise ValueError("a paired comparison needs the same tasks in the same order at the same temperature")
    first, last = (_means(e.values.get(score, [])) for e in (before, after))
    common = sorted(first.keys() & last.keys())
    if not common:
        return None
    bounds = (-1.0, 1.0) if score in SHARES else None
    return paired_bootstrap([first[i] for i in common], [last[i] for i in common], seed=seed, bounds=bounds)


def _values(by_task: Sequence[Sequence[Trajectory]]) -> Values:
    every = [episode for task in by_task for episode in task if not _failed(episode)]
    channels = dict.fromkeys(name for e in every for name in e.rewards if name not in SHARES)
    of_turns = dict.fromkeys(name for e in every for turn in e.turns for name in turn.rewards)
    measures: dict[str, Callable[[Trajectory], float | None]] = {
        SUCCESS: lambda e: None if e.success is None else float(e.success),
        VIOLATION: lambda e: float(e.violation is not None),
        **{name: partial(_reward, name) for name in channels},
        **{f"{name}, summed over turns": partial(_turn_sum, name) for name in of_turns},
    }
    values = {
        name: [[None if _failed(e) else measure(e) for e in task] for task in by_task]
        for name, measure in measures.items()
    }
    return {name: rows for name, rows in values.items() if any(v is not None for row in rows for v in row)}


def _scores(values: Values, seed: int) -> dict[str, Interval]:
    means = {name: _means(rows) for name, rows in values.items()}
    return {
        name: bootstrap(list(of_task.values()), seed=seed, bounds=_bounds(name))
        for name, of_task in means.items()
        if of_task
    }


def _measured(
    by_task: Sequence[Sequence[Trajectory]],
    measures: Callable[[Sequence[Trajectory]], Sequence[Mapping[str, float | None]]] | None,
    share: Share,
) -> Values:
    """What the environment measures beside its rewards; None for an episode in which it failed."""
    if measures is None:
        return {}
    played = [episode for task in by_task for episode in task if not _failed(episode)]
    given = iter(share.gather(list(measures(played[share.part(len(played))]))))
    found: list[list[Mapping[str, float | None]]] = [
        [{} if _failed(episode) else next(given) for episode in task] for task in by_task
    ]
    names = dict.fromkeys(name for task in found for of_episode in task for name in of_episode)
    return {name: [[of_episode.get(name) for of_episode in task] for task in found] for name in names}


def _reward(channel: str, episode: Trajectory) -> float | None:
    return episode.rewards.get(channel)


def _turn_sum(channel: str, episode: Trajectory) -> float | None:
    given = [turn.rewards[channel] for turn in episode.turns if channel in turn.rewards]
    return float(sum(given)) if given else None


def _states(by_task: Sequence[Sequence[Trajectory]]) -> dict[str, list[list[float]]]:
    """By state, at the opening and after each turn: its mean over each task's episodes that got so far."""
    means: dict[str, list[list[float]]] = {}
    for turn in range(1 + max(len(e.turns) for task in by_task for e in task)):
        here: dict[str, list[float]] = {}
        for task in by_task:
            mine: dict[str, list[float]] = {}
            for e in task:
                if not _failed(e) and turn <= len(e.turns):
                    state = e.turns[turn - 1].state if turn else e.opening.state
                    for name, value in state.items():
                        mine.setdefault(name, []).append(value)
            for name, values in mine.items():
                here.setdefault(name, []).append(float(np.mean(values)))
        for name, values in here.items():
            means.setdefault(name, []).append(values)
    return means


def _means(rows: Sequence[Sequence[float | None]]) -> dict[int, float]:
    """Mean over its scored episodes of each task that has any, by the task's place."""
    scored = {i: [v for v in row if v is not None] for i, row in enumerate(rows)}
    return {i: float(np.mean(row)) for i, row in scored.items() if row}


def _bounds(score: str) -> tuple[float, float] | None:
    return (0.0, 1.0) if score in SHARES else None


def _pass_at(values: Values, samples: int, ks: Sequence[int], seed: int) -> dict[str, dict[int, Interval]]:
    rows = values.get(SUCCESS, [])
    if not rows or any(v is None for row in rows for v in row):
        return {}
    right_N = np.array([sum(v == 1.0 for v in row) for row in rows])
    at = {k: pass_at_k(samples, right_N, k) for k in sorted(set(ks)) if 1 <= k <= samples}
    return {SUCCESS: {k: bootstrap(solved, seed=seed, bounds=(0.0, 1.0)) for k, solved in at.items()}}


def _failed(episode: Trajectory) -> bool:
    return episode.ended.startswith("error")
