"""The credit section of a recipe: a method's name, and the settings of that method.

A method is an estimator with the settings that its name stands for, and its keys are the estimator's own
fields. So a recipe can set what the method has and nothing else: a key of another method is refused with the
methods that it belongs to, and a key that is left out has the method's own value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from threefold.credit import CreditEstimator
from threefold.credit.dr_grpo import DrGRPO
from threefold.credit.gdpo import GDPO
from threefold.credit.gigpo import GiGPO
from threefold.credit.grpo import GRPO
from threefold.credit.gtpo import GRPOS, GTPO
from threefold.credit.ispo import ISPO
from threefold.credit.lens import LENS
from threefold.credit.mt_grpo import MTGRPO
from threefold.credit.ngrpo import NGRPO
from threefold.credit.reference_answer import ReferenceAnswer
from threefold.credit.rl_zvp import RLZVP
from threefold.credit.self_certainty import SelfCertainty
from threefold.credit.summed_grpo import SummedGRPO
from threefold.credit.together import Together
from threefold.credit.turn_trajectory import T2GRPO

OUTCOME = "accuracy"
"""Name of the reward function that a recipe's outcome comes from."""

METHODS: Mapping[str, Any] = {
    "none": None,
    "grpo": GRPO(),
    "dr_grpo": DrGRPO(),
    "rl_zvp": RLZVP(OUTCOME),
    "ngrpo": NGRPO(),
    "lens": LENS(OUTCOME),
    "gtpo": GTPO(OUTCOME),
    "grpo_s": GRPOS(OUTCOME),
    "self_certainty": SelfCertainty(),
    "reference_answer": ReferenceAnswer(),
    "ispo-paper": ISPO.paper(OUTCOME),
    "ispo": ISPO.recommended(OUTCOME),
    "t2grpo": T2GRPO(),
    "gdpo": GDPO(),
    "gigpo": GiGPO(),
    "mt_grpo": MTGRPO(),
    "summed_grpo": SummedGRPO(),
}
"""What each name stands for; "none" keeps TRL's own advantages."""

BY_TURN = ("t2grpo", "gigpo", "mt_grpo")
"""Methods that compare turns, so that they need an environment with turn channels."""


def method_settings(method: str) -> dict[str, Any]:
    """The keys of a method, with its own values."""
    estimator = METHODS[method]
    if estimator is None:
        return {"scale": "group"}
    fields = (field.name for field in dataclasses.fields(estimator))
    own = {name: getattr(estimator, name) for name in fields if name != "outcome"}
    return own | {"turns": None} if "turns" in own else own  # null: those that the environment names


class Method(BaseModel):
    """One method and its settings. A key that is None has the method's own value; see `METHODS`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _apart: ClassVar[tuple[str, ...]] = ("method",)
    """Keys that are no setting of the method."""

    method: Literal[
        "none",
        "grpo",
        "dr_grpo",
        "rl_zvp",
        "ngrpo",
        "lens",
        "gtpo",
        "grpo_s",
        "self_certainty",
        "reference_answer",
        "ispo-paper",
        "ispo",
        "t2grpo",
        "gdpo",
        "gigpo",
        "mt_grpo",
        "summed_grpo",
    ] = "grpo"
    """"none" keeps TRL's own advantages; "grpo" computes the same ones here."""

    # Several methods
    scale: Literal["group", "batch", "none"] | None = None
    eps: float | None = Field(None, gt=0)
    alpha: float | None = Field(None, ge=0)
    outcome_weight: float | None = Field(None, ge=0)
    entropy_weight: float | None = Field(None, ge=0)
    normalise: Literal["apart", "joint", "rank", "zscore", "leave_one_out"] | None = None
    # One method
    max_reward: float | None = None
    # ISPO's paper
    lambda_ifd: float | None = Field(None, ge=0)
    lambda_token: float | None = Field(None, ge=0)
    top_fraction: float | None = Field(None, gt=0, le=1)
    drift_threshold: float | None = Field(None, ge=0)
    combine: Literal["intersection", "entropy", "drift", "union"] | None = None
    hinge: float | None = Field(None, ge=0)
    beta: float | None = Field(None, ge=0)
    symmetric: Literal["none", "correct", "wrong"] | None = None
    # ISPO and T2-GRPO: rewards dealt out at random
    noise_control: Literal["shuffle", "gaussian", "turns", "all"] | None = None
    noise_seed: int | None = None
    # Our answers to ISPO's traps
    std_floor: float | None = Field(None, ge=0)
    intrinsic_cap: float | None = Field(None, gt=0)
    ifd_where_answers_coincide: bool | None = None
    all_wrong_ifd: bool | None = None
    all_wrong_weight: float | None = Field(None, ge=0)
    preserve_sign: bool | None = None
    token_baseline: bool | None = None
    entropy_target: float | None = Field(None, ge=0)
    hinge_quantile: float | None = Field(None, gt=0, le=1)
    token_credit: bool | None = None
    # Credit by turn
    turns: tuple[str, ...] | None = None
    """Turn channels; None takes those that the environment names."""
    violation_penalty: float | None = Field(None, ge=0)
    # T2-GRPO
    trajectory: tuple[str, ...] | None = None
    veto: float | None = Field(None, gt=0)
    horizons: Literal["dual", "summed"] | None = None
    turn_credit: Literal["delta", "return_to_go", "stratified", "headroom"] | None = None
    ended: Literal["absent", "zero"] | None = None
    exclude_violators_from_rank: bool | None = None
    veto_from_turn: bool | None = None
    min_valid: int | None = Field(None, ge=2)
    levels: tuple[str, ...] | None = None
    top_level: float | None = Field(None, gt=0)
    # Its peers
    batch_whitening: bool | None = None
    states: tuple[str, ...] | None = None
    gamma: float | None = Field(None, ge=0, le=1)
    step_weight: float | None = Field(None, ge=0)
    turn_weight: float | None = Field(None, ge=0)
    final_turn: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill in the method's own values; what is written in the recipe stays, an explicit null too."""
        if not isinstance(data, Mapping) or data.get("method", "grpo") not in METHODS:
            return data
        return {**method_settings(data.get("method", "grpo")), **data}

    @model_validator(mode="after")
    def _refuse_keys_of_others(self) -> Self:
        own = method_settings(self.method)
        others = self.model_fields_set - own.keys() - set(self._apart)
        foreign = [name for name in sorted(others) if getattr(self, name) is not None]
        if foreign:
            raise ValueError("; ".join(_whose(name, self.method) for name in foreign))
        for name, value in own.items():
            if getattr(self, name) is None and value is not None and name not in _OFF_WHEN_NONE:
                raise ValueError(f"{name} is null; leave it out for the method's own value {value!r}")
        return self

    @model_serializer
    def _own_keys(self) -> dict[str, Any]:
        """The method's keys alone, so that the complete recipe shows what counts."""
        names = (*self._apart, *method_settings(self.method))
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if name != "together" or value}


class Added(Method):
    """A method whose advantages are added to those of the leading one."""

    _apart: ClassVar[tuple[str, ...]] = ("method", "weight")
    weight: float = Field(1.0, gt=0)
    """How much its advantages count; those of the leading method count 1."""


class Credit(Method):
    """Who deserves what: a leading method, and others that are added to it."""

    _apart: ClassVar[tuple[str, ...]] = ("method", "format_weight", "together")
    format_weight: float = Field(0.0, ge=0)
    """Weight of an extra reward for answering in the asked format, whatever the method; 0 adds none."""
    together: list[Added] = Field(default_factory=list)
    """More methods; see `credit.together`."""

    @model_validator(mode="after")
    def _add_only_what_gives_credit(self) -> Self:
        names = methods_of(self)
        if self.together and "none" in names:
            raise ValueError("together adds advantages of ours, and method: none keeps TRL's; take grpo")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"together names {', '.join(twice)} twice; add one method once")
        return self


_OFF_WHEN_NONE = {name for name, value in method_settings("ispo-paper").items() if value is None} | {"veto"}
"""Options that are off where they are None."""


def _whose(name: str, method: str) -> str:
    owners = [other for other in METHODS if name in method_settings(other)]
    own = ", ".join(method_settings(method)) or "none"
    return f"{name} belongs to the method(s) {', '.join(owners)}, not to {method!r} (its keys: {own})"


def methods_of(credit: Credit) -> list[str]:
    """The leading method and those that are added to it."""
    return [credit.method, *(added.method for added in credit.together)]


def build_credit(
    credit: Credit, fit: Callable[[Method, Any], Any] = lambda method, estimator: estimator
) -> CreditEstimator | None:
    """The estimator that a recipe names; None keeps TRL's own advantages.

    Args:
        credit: The recipe's section.
        fit: Told each method and its estimator, answers the estimator fitted to what is trained on.

    Raises:
        ValueError: Settings that do not go together; the message names them.
    """
    if METHODS[credit.method] is None:
        return None
    leading = fit(credit, _estimator(credit))
    if not credit.together:
        return leading
    added = {str(method.method): fit(method, _estimator(method)) for method in credit.together}
    weights = {str(method.method): method.weight for method in credit.together}
    return Together({credit.method: leading, **added}, {credit.method: 1.0, **weights})


def _estimator(method: Method) -> CreditEstimator:
    settings = {name: getattr(method, name) for name in method_settings(method.method)}
    if settings.get("turns", ()) is None:
        del settings["turns"]  # known once the environment is; see `training.run`
    return dataclasses.replace(METHODS[method.method], **settings)
