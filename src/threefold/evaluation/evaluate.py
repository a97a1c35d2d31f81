"""Evaluation on problems with verifiable answers: sample, score, and say how sure the numbers are.

Greedy decoding gives pass@1 of the argmax policy; sampled decoding gives avg@k and pass@k. The two are
different measurements, so an `Evaluation` names its mode and temperature and two of different modes are never
compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.calibration import Calibration, by_difficulty, calibrate
from threefold.evaluation.intervals import Interval, bootstrap, paired_bootstrap
from threefold.evaluation.pass_at_k import avg_at_k, pass_at_k
from threefold.rollout.samplers import Sample, Sampler, SamplingParameters

logger = logging.getLogger(__name__)


class Problem(Protocol):
    """What is read from a problem; `threefold.envs.problems.Problem` is one."""

    @property
    def id(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def difficulty(self) -> str: ...


AnyProblem = TypeVar("AnyProblem", bound=Problem)


class Decoder(Protocol):
    """The part of a Hugging Face tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> Any: ...


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Problems and samples are in the order in which they were given and drawn."""

    mode: str
    """"greedy" where the temperature is 0, else "sampled"."""
    temperature: float
    problem_ids: tuple[str, ...]
    samples: int
    """Samples of each problem."""
    outcomes: dict[str, list[list[bool]]]
    """By score: problems x samples."""
    scores: dict[str, Interval]
    """avg@`samples`: mean over problems of the mean over their samples, with a 95% interval over problems."""
    pass_at: dict[str, dict[int, Interval]]
    """By score and k: mean over problems of the unbiased pass@k, with a 95% interval over problems."""
    by_difficulty: dict[str, dict[str, float]]
    """avg@`samples` of the problems of each difficulty; problems without one are left out."""
    mean_length: float
    """Tokens of a sample, the end token included."""
    truncated: float
    """Share of samples that were cut off at `max_new_tokens`."""
    seconds: float
    """Wall-clock time of sampling and scoring."""
    texts: list[list[str]]
    """Problems x samples, without special tokens."""
    failures: tuple[str, ...] = ()
    """Samples on which `score` raised: they count as wrong, and each is named here with its error."""
    confidences: list[list[float | None]] = field(default_factory=list)
    """Problems x samples: the probability of the answer after its reasoning, None without an answer. Empty
    where confidence was not asked for."""
    difficulties: tuple[str, ...] = ()
    """Of each problem; empty in records of an older version."""

    def calibration(self, score: str | None = None) -> Calibration | None:
        """Confidence against correctness by one of the scores, the first by default; None where no confidence
        was measured."""
        score = score or next(iter(self.outcomes))
        if not self.confidences:
            return None
        return calibrate(
            [c for row in self.confidences for c in row], [r for row in self.outcomes[score] for r in row]
        )

    @property
    def problems(self) -> int:
        """Number of problems."""
        return len(self.problem_ids)

    def to_json(self, *, when: str | None = None, step: int | None = None) -> dict[str, Any]:
        """The summary as plain JSON values, without outcomes and texts.

        Args:
            when: What the evaluation stands for in a run, such as "before" or "after".
            step: Optimizer step at which it was made.
        """
        place = {"when": when, "step": step}
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
            "by_difficulty": self.by_difficulty,
            **self._calibration_json(),
            "mean_length": self.mean_length,
            "truncated": self.truncated,
            "seconds": self.seconds,
            "scoring_failures": len(self.failures),
        }

    def _calibration_json(self) -> dict[str, Any]:
        score = next(iter(self.outcomes))
        overall = self.calibration(score)
        if overall is None:
            return {}
        graded = by_difficulty(self.confidences, self.outcomes[score], self.difficulties)
        levels = {name: made.to_json(table=False) for name, made in graded.items()}
        return {"calibration": {"score": score, **overall.to_json(), "by_difficulty": levels}}

    def to_record(self) -> dict[str, Any]:
        """Everything but the texts, as plain JSON values: what `from_record` reads."""
        return {name: value for name, value in asdict(self).items() if name != "texts"}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_record` wrote, without its texts; it can still be compared with another."""
        scores = {name: Interval(**interval) for name, interval in record["scores"].items()}
        pass_at = {
            name: {int(k): Interval(**interval) for k, interval in at.items()}
            for name, at in record["pass_at"].items()
        }
        tuples = {
            name: tuple(record[name])
            for name in ("problem_ids", "failures", "difficulties")
            if name in record
        }
        return cls(**{**record, **tuples, "scores": scores, "pass_at": pass_at, "texts": []})


def evaluate(
    sampler: Sampler,
    tokenizer: Decoder,
    problems: Sequence[AnyProblem],
    *,
    prompt: Callable[[AnyProblem], list[int]],
    score: Callable[[str, AnyProblem], Mapping[str, bool]],
    temperature: float,
    max_new_tokens: int,
    samples: int = 1,
    seed: int = 0,
    ks: Sequence[int] = (1,),
    top_p: float = 1.0,
    top_k: int = 0,
    rows_per_call: int = 256,
    confidence: Callable[[Sample], float | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Sample answers to problems and score them.

    Args:
        sampler: Continues the prompts.
        tokenizer: Turns sampled ids into the text that is scored.
        problems: At least one.
        prompt: Token ids that ask a problem.
        score: (text of the answer, problem) -> whether it is right, by score name; the same names for every
            answer. It is expected not to raise. Where it does, the sample counts as wrong under every name
            and its error is kept in `failures`, so that one odd answer does not lose the evaluation.
        temperature: 0 is greedy.
        max_new_tokens: Most tokens of an answer.
        samples: Samples of each problem, at least 1; exactly 1 where greedy.
        seed: Of the sampling and of the bootstrap. With `rows_per_call` it fixes the samples.
        ks: The k of pass@k, each between 1 and `samples`.
        top_p, top_k: As in `SamplingParameters`.
        rows_per_call: Most samples asked of the sampler at once (at least those of one problem); `progress`
            is called after each such call.
        confidence: How sure the policy was of a sample's answer, in [0, 1], None where it gave none; asked
            for calibration, which is left out without it.
        progress: Called with (problems done, problems in all).

    Returns:
        The measurements, with 95% bootstrap intervals over problems.

    Raises:
        ValueError: There are no problems, an argument is out of range, or the scores' names or values are not
            as described; the message names the problem.
        RuntimeError: `score` raised on every sample, which is a fault of the scorer and no result.
    """
    _check(problems, samples, temperature, ks)
    parameters = SamplingParameters(max_new_tokens, temperature, top_p, top_k)
    begun = time.perf_counter()
    prompts = [prompt(problem) for problem in problems]
    drawn: list[Sample] = []
    texts: list[list[str]] = []
    scored: list[list[Mapping[str, bool] | Exception]] = []
    at_once = max(1, rows_per_call // samples)
    for first in range(0, len(problems), at_once):
        part = problems[first : first + at_once]
        new = sampler.generate(
            prompts[first : first + at_once],
            parameters,
            samples_per_prompt=samples,
            # A seed of its own, or every part would repeat the draws of the first one.
            seed=int(np.random.SeedSequence((seed, first)).generate_state(1)[0]),
        )
        drawn += new
        for i, problem in enumerate(part):
            mine = new[i * samples : (i + 1) * samples]
            texts.append([tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in mine])
            scored.append([_score(score, text, problem) for text in texts[-1]])
        if progress is not None:
            progress(len(scored), len(problems))
    outcomes, failures = _tabulate(scored, problems)
    correct = {name: np.array([sum(row) for row in rows]) for name, rows in outcomes.items()}
    return Evaluation(
        mode="greedy" if temperature == 0 else "sampled",
        temperature=temperature,
        problem_ids=tuple(problem.id for problem in problems),
        samples=samples,
        outcomes=outcomes,
        scores={name: _interval(avg_at_k(samples, c_N), seed) for name, c_N in correct.items()},
        pass_at={
            name: {k: _interval(pass_at_k(samples, c_N, k), seed) for k in sorted(set(ks))}
            for name, c_N in correct.items()
        },
        by_difficulty=_by_difficulty(problems, samples, correct),
        mean_length=float(np.mean([len(sample.token_ids) for sample in drawn])),
        truncated=float(np.mean([sample.finish_reason == "length" for sample in drawn])),
        seconds=time.perf_counter() - begun,
        texts=texts,
        failures=failures,
        confidences=[] if confidence is None else _by_problem([confidence(s) for s in drawn], samples),
        difficulties=tuple(problem.difficulty for problem in problems),
    )


def paired_gain(before: Evaluation, after: Evaluation, score: str, *, seed: int = 0) -> Interval:
    """How much a score rose from one evaluation to another, with a 95% interval over their common problems.

    Args:
        before: The earlier evaluation.
        after: The later one, of the same problems in the same order and at the same temperature. The number
            of samples may differ.
        score: Name of the score.
        seed: Of the bootstrap.

    Returns:
        Mean over problems of the difference in avg@k; a low end above zero is a gain.

    Raises:
        ValueError: The problems or temperatures differ, or one of the two has no such score.
    """
    for name, evaluation in (("before", before), ("after", after)):
        if score not in evaluation.outcomes:
            near = get_close_matches(score, evaluation.outcomes, 1) or sorted(evaluation.outcomes)
            raise ValueError(f"{name} has no score {score!r}; did you mean {', '.join(map(repr, near))}?")
    if before.temperature != after.temperature:
        raise ValueError(
            f"temperature {before.temperature} ({before.mode}) before and {after.temperature} ({after.mode}) "
            "after measure different things: evaluate both alike"
        )
    if before.problem_ids != after.problem_ids:
        raise ValueError(
            f"a paired comparison needs the same problems in the same order: {_mismatch(before, after)}"
        )
    before_N, after_N = (
        np.array([np.mean(row) for row in evaluation.outcomes[score]]) for evaluation in (before, after)
    )
    return paired_bootstrap(before_N, after_N, seed=seed, bounds=(-1.0, 1.0))


def _check(problems: Sequence[Problem], samples: int, temperature: float, ks: Sequence[int]) -> None:
    if not problems:
        raise ValueError("there are no problems to evaluate on")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if temperature == 0 and samples != 1:
        raise ValueError(
            f"greedy decoding (temperature 0) answers alike each time: samples must be 1, got {samples}"
        )
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(
                f"pass@{k} cannot be estimated from {samples} samples: ks must lie in 1 to {samples}"
            )


def _score(
    score: Callable[[str, AnyProblem], Mapping[str, bool]], text: str, problem: AnyProblem
) -> Mapping[str, bool] | Exception:
    try:
        given = dict(score(text, problem))
    except Exception as error:  # a verifier may fail in any way on what a model writes; kept in `failures`
        logger.warning("scoring an answer to %s failed: %s: %s", problem.id, type(error).__name__, error)
        return error
    for name, value in given.items():
        if value not in (True, False):
            raise ValueError(f"problem {problem.id}: score {name!r} must be True or False, got {value!r}")
    return given


def _tabulate(
    scored: Sequence[Sequence[Mapping[str, bool] | Exception]], problems: Sequence[Problem]
) -> tuple[dict[str, list[list[bool]]], tuple[str, ...]]:
    """Outcomes by score name, and the samples on which scoring failed."""
    failures = tuple(
        f"problem {problem.id}, sample {i}: {type(given).__name__}: {given}"
        for problem, row in zip(problems, scored, strict=True)
        for i, given in enumerate(row)
        if isinstance(given, Exception)
    )
    names = next((list(given) for row in scored for given in row if not isinstance(given, Exception)), None)
    if names is None:
        raise RuntimeError(f"score raised on every one of {len(failures)} samples, first: {failures[0]}")
    for problem, row in zip(problems, scored, strict=True):
        for given in row:
            if not isinstance(given, Exception) and set(given) != set(names):
                raise ValueError(
                    f"every answer needs the same scores: the first has {names}, one to problem {problem.id} "
                    f"has {list(given)}"
                )
    outcomes = {
        name: [[not isinstance(given, Exception) and bool(given[name]) for given in row] for row in scored]
        for name in names
    }
    return outcomes, failures


def _by_problem(values: Sequence[float | None], samples: int) -> list[list[float | None]]:
    return [list(values[first : first + samples]) for first in range(0, len(values), samples)]


def _interval(values_N: NDArray[np.float64], seed: int) -> Interval:
    return bootstrap(values_N, seed=seed, bounds=(0.0, 1.0))


def _by_difficulty(
    problems: Sequence[Problem], samples: int, correct: Mapping[str, NDArray[np.int64]]
) -> dict[str, dict[str, float]]:
    difficulties = np.array([problem.difficulty for problem in problems])
    return {
        str(difficulty): {
            name: float(np.mean(avg_at_k(samples, c_N[difficulties == difficulty])))
            for name, c_N in correct.items()
        }
        for difficulty in np.unique(difficulties)
        if difficulty
    }


def _mismatch(before: Evaluation, after: Evaluation) -> str:
    if before.problems != after.problems:
        return f"{before.problems} problems before, {after.problems} after"
    at = next(i for i, (a, b) in enumerate(zip(before.problem_ids, after.problem_ids, strict=True)) if a != b)
    return f"problem {at} is {before.problem_ids[at]!r} before and {after.problem_ids[at]!r} after"
