"""Which losses an estimator fits; and why, on TRL's own arithmetic."""

from __future__ import annotations

import pytest
import torch

from threefold.credit.dr_grpo import DrGRPO
from threefold.credit.grpo import GRPO
from threefold.credit.ispo import ISPO
from threefold.credit.losses import check_loss
from threefold.credit.rl_zvp import RLZVP

PER_TOKEN = RLZVP("accuracy")


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_one_advantage_an_episode_fits_every_loss(loss: str, ratio: str) -> None:
    check_loss(GRPO(), loss=loss, ratio=ratio, off_policy_mask=0.5)
    check_loss(ISPO("accuracy"), loss=loss, ratio=ratio)


def test_credit_per_token_fits_token_ratios_and_cispo() -> None:
    for loss in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo"):
        check_loss(PER_TOKEN, loss=loss)
    check_loss(PER_TOKEN, loss="cispo", ratio="sequence")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "vespo"}, "RLZVP gives credit per token.*'vespo' weighs a whole row.*take 'dapo'"),
        ({"loss": "luspo", "ratio": "sequence"}, "the row's mean advantage; take 'token'"),
        ({"loss": "dapo", "ratio": "sequence"}, "the row's mean advantage; take 'token'"),
        ({"loss": "dapo", "off_policy_mask": 0.5}, "off_policy_mask_threshold drops a row.*leave it unset"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_loss(PER_TOKEN, **settings)
    with pytest.raises(ValueError, match="ISPO gives credit per token"):
        check_loss(ISPO("accuracy", token_credit=True), **settings)


def test_dr_grpo_refuses_a_loss_that_divides_by_lengths() -> None:
    check_loss(DrGRPO(), loss="dr_grpo")
    with pytest.raises(ValueError, match=r"set loss_type='dr_grpo'.*or take GRPO\(scale='none'\)"):
        check_loss(DrGRPO(), loss="grpo")


def test_an_estimator_without_the_attributes_is_taken_for_one_advantage_an_episode() -> None:
    class Bare:
        needs = frozenset()

    check_loss(Bare(), loss="vespo", ratio="sequence")  # type: ignore[arg-type]


def test_a_sequence_ratio_forgets_which_token_the_credit_was_for() -> None:
    """On-policy, ratio exp(mean log-ratio): all tokens get the gradient of the row's mean advantage."""
    logp_T = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages_T = torch.tensor([3.0, 0.0, 0.0])
    ratio = (logp_T - logp_T.detach()).mean().exp()
    (ratio * advantages_T).mean().backward()
    assert torch.allclose(logp_T.grad, torch.full((3,), 1 / 3))
