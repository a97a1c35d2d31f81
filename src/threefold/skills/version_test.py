"""The test of a candidate bank inside the GRPO group: Thompson sampling over two versions.

ReSkill (arXiv 2606.01619, section 3.3). While a test runs, every episode draws the bank version under which
it is played, before it starts, and keeps it. With p_v ~ Beta(alpha_v, beta_v), both arms from Beta(1, 1):

    Pr(new) = clip(Pr(p_new > p_old), clamp, 1 - clamp)    drawn for every episode
    w = M / (M + n)                                        discount of an arm with n episodes in the step
    alpha <- w alpha + m,   beta <- w beta + (n - m)       after the step, m successes of n
    accept  <=>  mean_new > mean_old                       after min_steps steps and min_episodes episodes

M, the memory, says how fast old evidence fades while the policy moves; it is estimated from finished tests as
the M of 1..2000 under which their steps were most likely (beta-binomial, one step ahead).

Deviations: probabilities are exact instead of 10,000 draws (see `beta`); discounted parameters are kept at
1e-6 or above, as the reference does where it estimates M. Beyond the paper, off unless asked for: `margin`
and `confidence`, because the paper's rule accepts about half of the bundles that do nothing
(results/skills/version-test.md), and balanced assignment inside each group.
The paper's draft has clamp 0.2, its code 0.15; the draft's is the default here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.skills.beta import log_beta, probability_greater

Arm = tuple[int, int]
"""(successes, episodes) of one arm in one step."""
Decision = Literal["accept", "reject"]
LARGEST_MEMORY = 2000
"""Of the grid 1, 2, ..., that `estimate_memory` searches."""
SMALLEST = 1e-6
"""Of a discounted parameter of a posterior."""
TESTS_NEEDED = 2
"""Finished tests before a memory is estimated; until then nothing is forgotten."""


def discount(n: float, memory: float) -> float:
    """The weight w = M / (M + n) that an arm's past keeps when n new episodes come.

    Args:
        n: Episodes of the arm in this step; 0 keeps all.
        memory: M in episodes, `math.inf` for no discount.
    """
    if n < 0 or math.isnan(n):
        raise ValueError(f"the number of episodes is {n}; it must not be negative")
    _check_memory(memory)
    return 1.0 if n == 0 or math.isinf(memory) else memory / (memory + n)


@dataclass
class Posterior:
    """Beta(alpha, beta) of an arm's probability of success."""

    alpha: float = 1.0
    beta: float = 1.0

    @property
    def mean(self) -> float:
        return self.alpha / (self.alpha + self.beta)

    def update(self, successes: int, episodes: int, weight: float) -> None:
        """Discount the past by `weight`, then count what is new. What is left of the past is at least
        `SMALLEST`: an arm that never succeeds must not fade to 0, which is no Beta distribution."""
        self.alpha = max(weight * self.alpha, SMALLEST) + successes
        self.beta = max(weight * self.beta, SMALLEST) + (episodes - successes)


class VersionTest:
    """One test of a new bank version against its parent.

    Args:
        memory: M of the discount in episodes; inf (default) forgets nothing.
        clamp: Each arm is drawn at least this often, in [0, 0.5]; 0.5 draws both alike, whatever is known.
        min_steps: Steps before a decision (the paper's K_e).
        min_episodes: Episodes of both arms before a decision.
        margin: The new mean must exceed the old by more than this (0: the paper's rule).
        confidence: Accept only if Pr(p_new > p_old) is at least this, None (default) for the paper's rule.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        memory: float = math.inf,
        clamp: float = 0.2,
        min_steps: int = 5,
        min_episodes: int = 50,
        *,
        margin: float = 0.0,
        confidence: float | None = None,
    ) -> None:
        _check_memory(memory)
        if not 0 <= clamp <= 0.5:
            raise ValueError(f"clamp is {clamp}; it must lie in [0, 0.5]")
        if min_steps < 1 or min_episodes < 0:
            raise ValueError(
                f"min_steps {min_steps} must be at least 1, min_episodes {min_episodes} at least 0"
            )
        if not 0 <= margin < 1:
            raise ValueError(f"margin is {margin}; it must lie in [0, 1)")
        if confidence is not None and not 0 <= confidence < 1:
            raise ValueError(f"confidence is {confidence}; it must lie in [0, 1), or be None")
        self.memory = memory
        self.clamp = clamp
        self.min_steps = min_steps
        self.min_episodes = min_episodes
        self.margin = margin
        self.confidence = confidence
        self.new = Posterior()
        self.old = Posterior()
        self.steps: list[dict[str, Arm]] = []
        """What was recorded, one {"new": (m, n), "old": (m, n)} a step: what `estimate_memory` reads."""

    def probability_new(self) -> float:
        """Pr(p_new > p_old) under both posteriors, not clamped."""
        return probability_greater(self.new.alpha, self.new.beta, self.old.alpha, self.old.beta)

    def assign(
        self, rng: np.random.Generator, size: int, group_B: Sequence[int] | NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_]:
        """Draw a version for each episode.

        Args:
            rng: Source of chance; the state of this object does not change.
            size: Number of episodes B.
            group_B: None (the paper): every episode draws on its own, so a group may hold one version only.
                With the group of each episode, every group gets its share of the new version, rounded up or
                down by chance: each episode's own probability is the same, the groups are balanced.

        Returns:
            (B,) True where the episode is played under the new version.
        """
        probability = min(1 - self.clamp, max(self.clamp, self.probability_new()))
        if group_B is None:
            return rng.random(size) < probability
        groups = np.asarray(group_B)
        if groups.shape != (size,):
            raise ValueError(
                f"group_B has shape {groups.shape}; one group for each of {size} episodes is needed"
            )
        new_B = np.zeros(size, dtype=bool)
        for group in dict.fromkeys(groups.tolist()):
            members = np.flatnonzero(groups == group)
            share = probability * len(members)
            count = math.floor(share) + int(rng.random() < share - math.floor(share))
            new_B[rng.permutation(members)[:count]] = True
        return new_B

    def record(self, *, new: Arm, old: Arm) -> None:
        """Count a step: (successes, episodes) of each arm over the whole batch, all processes together.

        Raises:
            ValueError: More successes than episodes, negative numbers or none that are whole.
        """
        step = {"new": _counts("new", new), "old": _counts("old", old)}
        for posterior, (successes, episodes) in ((self.new, step["new"]), (self.old, step["old"])):
            posterior.update(successes, episodes, discount(episodes, self.memory))
        self.steps.append(step)

    @property
    def episodes(self) -> int:
        """Episodes of both arms so far."""
        return sum(step["new"][1] + step["old"][1] for step in self.steps)

    def decide(self) -> Decision | None:
        """ "accept" or "reject" once there are steps and episodes enough, None before. Equal means reject."""
        if len(self.steps) < self.min_steps or self.episodes < self.min_episodes:
            return None
        better = self.new.mean > self.old.mean + self.margin
        sure = self.confidence is None or self.probability_new() >= self.confidence
        return "accept" if better and sure else "reject"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON with every digit; an infinite memory is None."""
        return {
            "memory": memory_to_json(self.memory),
            "clamp": self.clamp,
            "min_steps": self.min_steps,
            "min_episodes": self.min_episodes,
            "margin": self.margin,
            "confidence": self.confidence,
            "new": [self.new.alpha, self.new.beta],
            "old": [self.old.alpha, self.old.beta],
            "steps": [{name: list(arm) for name, arm in step.items()} for step in self.steps],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VersionTest:
        """Read what `to_dict` wrote: every later answer is the same to the last bit."""
        settings = {key: data[key] for key in ("clamp", "min_steps", "min_episodes", "margin", "confidence")}
        test = cls(memory_from_json(data["memory"]), **settings)
        test.new, test.old = Posterior(*data["new"]), Posterior(*data["old"])
        test.steps = [{name: (arm[0], arm[1]) for name, arm in step.items()} for step in data["steps"]]
        return test


class MemoryEstimate:
    """Maximises the predictive likelihood of finished tests over M = 1 .. 2000, adding one test at a time.

    For each arm of each test, from Beta(1, 1):

        log L(M) += sum_t log BetaBinomial(m_t | n_t, w_t alpha, w_t beta)

    with alpha, beta as `VersionTest` under M would have them before step t. Steps without episodes of an arm
    count nothing. The smallest M wins a tie.
    """

    def __init__(self) -> None:
        self.tests = 0
        self.log_likelihood = np.zeros(LARGEST_MEMORY)
        """Of M = index + 1."""

    def add(self, test: Mapping[str, Sequence[Arm]]) -> None:
        """Count a finished test: {"new": [(m, n), ...], "old": [...]}, one pair a step.

        Raises:
            ValueError: A pair is none of successes and episodes; nothing is counted.
        """
        counted = [[_counts(arm, pair) for pair in test[arm]] for arm in ("new", "old")]
        for steps in counted:
            self.log_likelihood = self.log_likelihood + _log_predictive(steps)
        self.tests += 1

    @property
    def memory(self) -> int | float:
        """The best M, `math.inf` before two tests have finished."""
        return int(np.argmax(self.log_likelihood)) + 1 if self.tests >= TESTS_NEEDED else math.inf


def estimate_memory(tests: Sequence[Mapping[str, Sequence[Arm]]]) -> int | float:
    """The memory M that best predicts finished tests, `math.inf` for fewer than two.

    Args:
        tests: One {"new": [(successes, episodes), ...], "old": [...]} a test, one pair a step.

    Raises:
        ValueError: A pair is none of successes and episodes.
    """
    estimate = MemoryEstimate()
    for test in tests:
        estimate.add(test)
    return estimate.memory


def log_beta_binomial(k: int, n: int, alpha: float, beta: float) -> float:
    """log Pr(k successes in n trials) where the probability of success is Beta(alpha, beta)."""
    return (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + log_beta(k + alpha, n - k + beta)
        - log_beta(alpha, beta)
    )


def _log_predictive(steps: Sequence[Arm]) -> NDArray[np.float64]:
    """log likelihood of one arm's steps under every M of the grid."""
    result = np.zeros(LARGEST_MEMORY)
    for index in range(LARGEST_MEMORY):
        alpha = beta = 1.0
        for successes, episodes in steps:
            if episodes == 0:
                continue
            weight = discount(episodes, index + 1)
            alpha, beta = max(weight * alpha, SMALLEST), max(weight * beta, SMALLEST)
            result[index] += log_beta_binomial(successes, episodes, alpha, beta)
            alpha, beta = alpha + successes, beta + episodes - successes
    return result


def _counts(name: str, arm: Arm) -> Arm:
    """(successes, episodes) as whole numbers."""
    successes, episodes = arm
    if not 0 <= successes <= episodes:
        raise ValueError(f"the {name} arm has {successes} successes in {episodes} episodes")
    if (int(successes), int(episodes)) != (successes, episodes):
        raise ValueError(f"the {name} arm has {successes} successes in {episodes} episodes: count whole ones")
    return int(successes), int(episodes)


def memory_to_json(memory: float) -> float | None:
    """JSON has no infinity; None stands for it."""
    return None if math.isinf(memory) else memory


def memory_from_json(memory: float | None) -> float:
    return math.inf if memory is None else memory


def _check_memory(memory: float) -> None:
    if not memory > 0:
        raise ValueError(f"memory is {memory}; it must be positive, or math.inf for no discount")
