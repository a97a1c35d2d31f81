"""Who deserves what: advantage estimators as pure functions on tensors, and the one door they all go through.

Shapes are in the names, here and everywhere in Threefold:

    B  episodes of the generation batch (all processes together)
    G  members of a group, the episodes of one prompt
    K  turns of an episode
    T  tokens of a completion, padded on the right
    A  tokens of a final answer, padded on the right
    R  tokens of a reference answer, padded on the right
    V  vocabulary (no tensor of ours ever has this axis together with B and T)

An estimator sees the whole generation batch of all processes, so its answer is the same on each of them, and
the trainer stays blind to the algorithm: it measures the signals that `needs` names, calls `assign`, and
hands the values to TRL's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

Signal = Literal["policy", "base", "ablated_answer", "self_certainty", "reference_answer"]
"""A measurement on a model, by what it costs: "policy" (one forward without gradient: log-probabilities and
entropies; free where TRL computes old log-probabilities anyway, or our sampler drew the tokens), "base" (one
forward of the frozen initial model), "ablated_answer" (one short forward of the answers without their
reasoning; implies "policy"), "self_certainty" (comes with the policy's forward, which then is always made)
and "reference_answer" (one forward with the task's true answer in place of the episode's, and a short one
without reasoning)."""


@dataclass(frozen=True)
class Signals:
    """What was measured on the models before credit is given; a field is None where it was not asked for.

    All log-probabilities are of the sampled tokens, in nats, at the sampling temperature, without gradient.
    """

    logp_BT: Tensor | None = None
    """Under the policy that sampled them."""
    entropy_BT: Tensor | None = None
    """Entropy of the policy's full next-token distribution, in nats."""
    base_logp_BT: Tensor | None = None
    """Under the frozen initial model."""
    thinking_BT: Tensor | None = None
    """bool: the tokens of the reasoning, before the answer and its lead-in; the whole completion where no
    answer was found."""
    answer_BA: Tensor | None = None
    """bool: valid entries of the three tensors below. A row without an answer has none."""
    answer_ids_BA: Tensor | None = None
    """int64: token ids of the answer, as sampled."""
    answer_logp_BA: Tensor | None = None
    """log p(A | Q, T): the answer's tokens after the reasoning."""
    ablated_answer_logp_BA: Tensor | None = None
    """log p(A | Q): the same tokens teacher-forced without the reasoning."""
    self_certainty_BT: Tensor | None = None
    """logsumexp(z) - mean_j z_j of the policy's logits z, in nats: KL(uniform || p) plus a constant."""
    reference_BR: Tensor | None = None
    """bool: valid entries of the two tensors below. A row whose own answer has no place has none."""
    reference_logp_BR: Tensor | None = None
    """The task's true answer in the place of the episode's own, after the episode's reasoning."""
    ablated_reference_logp_BR: Tensor | None = None
    """The same tokens without the reasoning."""


@dataclass(frozen=True)
class CreditBatch:
    """The episodes of one generation step, on all processes."""

    rewards: Mapping[str, Tensor]
    """(B,) by reward function, in the trainer's order; NaN where a function gave no score."""
    weights: Mapping[str, float]
    """Weight of each reward function."""
    group_B: Tensor
    """Group index of each episode, int64. Groups may have any size."""
    mask_BT: Tensor
    """bool: tokens that the agent wrote and that are trained (`turn_ids >= 0`)."""
    turn_BT: Tensor
    """Turn index of each token, -1 where masked; int64."""
    signals: Signals = field(default_factory=Signals)
    truncated_B: Tensor | None = None
    """bool: the completion was cut off by a limit."""
    step: int = 0
    """Optimizer updates before this batch: the same on all processes and after a resume. With a seed it makes
    random numbers that every process draws alike."""
    turn_rewards: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, K) by turn channel; NaN where a turn was not scored in it, or did not take place."""
    turn_state: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, K) by name, the environment's state *before* each turn (the opening's for turn 0); NaN as above."""
    turn_mask_BK: Tensor | None = None
    """bool: the turns that took place; None where episodes were not played by the trainer."""
    violation_B: Tensor | None = None
    """bool: the episode broke a safety rule; None where nothing is known of any. Estimators that do not
    speak of it, such as GRPO and ISPO, do not see it: give them a reward function that penalises it."""
    violation_turn_B: Tensor | None = None
    """int64: the turn in which it did, -1 where it did not or the turn is unknown."""
    named_skill_BT: Tensor | None = None
    """int64: which of S skills a token of the agent names, -1 where none; None where nobody looked."""
    shown_skill_BS: Tensor | None = None
    """bool: the skill stood in the episode's prompt; None as above."""


@dataclass(frozen=True)
class Advantages:
    """What an estimator answers."""

    values: Tensor
    """(B,) where constant over a row, else (B, T) and zero where masked. The difference matters: with
    sequence-level ratios an expanded constant is not bit-equal."""
    outcome_B: Tensor
    """(B,) the advantage that outcomes alone would have given: what the method is compared with."""
    reward_B: Tensor
    """(B,) the scalar reward that was normalised, NaN where unscorable."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    episode_signals: Mapping[str, Tensor] = field(default_factory=dict)
    """(B,) each, for the record and the report."""
    token_signals: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, T) each, for the record and the report."""


@runtime_checkable
class CreditEstimator(Protocol):
    """The door. Twenty lines make a new one: see docs/credit.md.

    Two attributes may be added, and are read where they are there: `per_token`, a bool that says whether
    `values` may be (B, T), for which some losses are not made (`threefold.credit.losses`); and `loss`, the
    one `loss_type` of TRL that belongs to the method.
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """The signals to be measured before `assign`; an empty set costs nothing."""
        ...

    def check(self, reward_names: Sequence[str], group_size: int) -> None:
        """Raise ValueError before the first step if this estimator cannot work with these rewards and
        groups."""
        ...

    def assign(self, batch: CreditBatch) -> Advantages: ...
