"""Every method that a recipe can name trains a tiny model; every misfit is refused before the first step."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from threefold import GRPO, ISPO
from threefold.credit.gtpo import GTPO
from threefold.credit.rl_zvp import RLZVP
from threefold.recipe_credit import BY_TURN, METHODS

OUTCOME = "digit"


def estimator_of(method: str):
    estimator = METHODS[method]
    own = {"outcome": OUTCOME, "turns": ()}  # there are no turns in one completion
    changes = {name: value for name, value in own.items() if hasattr(estimator, name)}
    return dataclasses.replace(estimator, **changes) if changes else estimator


@pytest.mark.parametrize("method", [name for name in METHODS if name not in BY_TURN])
def test_a_method_trains_and_says_what_it_did(build, tmp_path, method) -> None:
    credit = estimator_of(method)
    loss = getattr(credit, "loss", "dapo")
    args = {"max_steps": 2, "loss_type": loss}
    trainer = build(credit=credit, args=args, answer_format=r"([0-9])", run_dir=tmp_path / "run")
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert any((p != b).any() for p, b in zip(trainer.model.parameters(), before, strict=True))
    assert len((tmp_path / "run" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()) == 32


def test_our_options_of_ispo_train_per_token(build) -> None:
    credit = dataclasses.replace(
        ISPO.recommended(OUTCOME), combine="entropy", token_credit=True, entropy_target=1.0
    )
    trainer = build(credit=credit, args={"max_steps": 2}, answer_format=r"([0-9])")
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)


class Silent:
    """An estimator that answers per token and does not say so."""

    needs = frozenset()

    def check(self, reward_names, group_size) -> None: ...

    def assign(self, batch):
        answer = GRPO().assign(batch)
        return dataclasses.replace(answer, values=answer.values[:, None] * batch.mask_BT)


def test_an_estimator_that_does_not_say_so_is_refused_at_its_first_answer(build) -> None:
    with pytest.raises(ValueError, match=r"Silent gives credit per token.*'vespo'"):
        build(credit=Silent(), args={"loss_type": "vespo"}).train()


@pytest.mark.parametrize(
    ("credit", "args", "message"),
    [
        (RLZVP(OUTCOME), {"loss_type": "vespo"}, "'vespo' weighs a whole row"),
        (GTPO(OUTCOME), {"importance_sampling_level": "sequence"}, "the row's mean advantage"),
        (ISPO(OUTCOME, token_credit=True), {"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold"),
        (METHODS["dr_grpo"], {"loss_type": "dapo"}, "DrGRPO goes with the loss 'dr_grpo'"),
        (RLZVP("digits"), {}, "RL-ZVP's outcome is 'digits', did you mean 'digit'"),
    ],
)
def test_a_misfit_is_refused_before_the_first_step(build, credit, args, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(credit=credit, args=args)
