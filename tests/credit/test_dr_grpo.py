"""Dr. GRPO: TRL's `scale_rewards="none"`, and the loss that belongs to it."""

from __future__ import annotations

import pytest
from groups import batch_of

from threefold.credit import CreditEstimator
from threefold.credit.dr_grpo import DrGRPO


def test_centred_and_divided_by_nothing() -> None:
    """Three of four right: 0.25 and -0.75; a dead group stays dead."""
    result = DrGRPO().assign(batch_of([1, 1, 1, 0, 1, 1, 1, 1], group_size=4))
    assert result.values.tolist() == [0.25, 0.25, 0.25, -0.75, 0, 0, 0, 0]


def test_measures_nothing_names_its_loss_and_refuses_groups_of_one() -> None:
    estimator = DrGRPO()
    assert isinstance(estimator, CreditEstimator)
    assert estimator.needs == frozenset()
    assert (estimator.loss, estimator.scale, estimator.per_token) == ("dr_grpo", "none", False)
    with pytest.raises(ValueError, match="a group of 1 cannot be compared"):
        estimator.check(["accuracy"], 1)
