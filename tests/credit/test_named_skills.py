"""Tokens that name a skill are credited by what naming it was worth, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threefold.credit import CreditBatch
from threefold.credit.grpo import GRPO
from threefold.credit.losses import check_loss
from threefold.credit.named_skills import NamedSkills, naming_advantages
from threefold.credit.turn_trajectory import T2GRPO

ONE = torch.ones(4, 1, dtype=torch.bool)
GROUP = torch.zeros(4, dtype=torch.int64)


def batch(rewards: list[float], naming: list[list[int]], shown: torch.Tensor | None = None) -> CreditBatch:
    """Four tokens an episode, all the agent's; `naming` is the skill that each token names."""
    skill_BT = torch.tensor(naming)
    mask_BT = torch.ones_like(skill_BT, dtype=torch.bool)
    return CreditBatch(
        rewards={"success": torch.tensor(rewards)},
        weights={"success": 1.0},
        group_B=torch.zeros(len(rewards), dtype=torch.int64),
        mask_BT=mask_BT,
        turn_BT=mask_BT.long() - 1,
        named_skill_BT=skill_BT,
        shown_skill_BS=ONE if shown is None else shown,
    )


def test_naming_is_compared_with_members_that_were_shown_the_skill_and_did_not_name_it() -> None:
    named = torch.tensor([[True], [False], [False], [False]])
    shown = torch.tensor([[True], [True], [False], [True]])
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.5])
    worth = naming_advantages(rewards, named, shown, GROUP, scale="none")
    assert worth[0, 0] == pytest.approx(1.0 - 0.25)  # the third was not shown it
    assert worth[1:].isnan().all()


def test_the_difference_is_divided_by_the_groups_deviation() -> None:
    named = torch.tensor([[True], [False], [False], [False]])
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    worth = naming_advantages(rewards, named, ONE, GROUP, eps=0.0)
    assert worth[0, 0] == pytest.approx((1 - 1 / 3) / (1 / 3) ** 0.5)  # unbiased: variance 1/3


def test_where_all_or_none_named_it_there_is_nothing_to_compare() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    for named in (ONE, ~ONE):
        assert naming_advantages(rewards, named, ONE, GROUP).isnan().all()
    unscored = torch.tensor([1.0, torch.nan, torch.nan, torch.nan])
    named = torch.tensor([[True], [False], [False], [False]])
    assert naming_advantages(unscored, named, ONE, GROUP).isnan().all()


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_baseline_of_an_episode_does_not_depend_on_its_own_reward(named: list, rewards: list) -> None:
    named_BS = torch.tensor(named)[:, None]
    rewards_B = torch.tensor(rewards, dtype=torch.float64)
    worth = naming_advantages(rewards_B, named_BS, ONE, GROUP, scale="none")
    moved = naming_advantages(rewards_B + torch.tensor([1.0, 0, 0, 0]), named_BS, ONE, GROUP, scale="none")
    if worth[0].isnan():
        assert moved[0].isnan()
    else:
        assert moved[0] - worth[0] == pytest.approx(1.0)
        assert torch.equal(moved[1:].nan_to_num(9), worth[1:].nan_to_num(9))


def test_other_tokens_keep_the_methods_advantage_and_weight_is_for_naming_tokens_alone() -> None:
    given_batch = batch([1.0, 0.0, 1.0, 0.0], [[-1, 0, 0, -1], [-1] * 4, [-1] * 4, [-1] * 4])
    plain = GRPO().assign(given_batch).values
    for weight in (1.0, 3.0):
        answer = NamedSkills(GRPO(), weight=weight, scale="none").assign(given_batch)
        assert answer.values[0].tolist() == pytest.approx(
            [plain[0].item(), weight * 2 / 3, weight * 2 / 3, plain[0].item()]
        )
        assert torch.equal(answer.values[1:], plain[1:, None].expand(3, 4))
    assert answer.metrics["skills/naming_tokens"] == pytest.approx(2 / 16)
    assert answer.metrics["skills/naming_episodes"] == pytest.approx(1 / 4)
    assert answer.metrics["skills/naming_compared"] == 1.0


def test_where_no_skill_is_named_the_methods_answer_stays_as_it_is() -> None:
    given_batch = batch([1.0, 0.0, 1.0, 0.0], [[-1] * 4] * 4)
    assert torch.equal(NamedSkills(GRPO()).assign(given_batch).values, GRPO().assign(given_batch).values)


def test_a_veto_has_the_last_word() -> None:
    """An episode that broke a rule keeps what the method gave, however well it was rewarded for naming."""
    given_batch = replace(
        batch([1.0, 0.0, 0.0, 0.0], [[0, 0, -1, -1], [-1] * 4, [-1] * 4, [-1] * 4]),
        turn_BT=torch.zeros(4, 4, dtype=torch.int64),
        turn_rewards={"calm": torch.zeros(4, 1)},
        turn_mask_BK=torch.ones(4, 1, dtype=torch.bool),
        violation_B=torch.tensor([True, False, False, False]),
    )
    method = T2GRPO(turns=("calm",))
    answer = NamedSkills(method, weight=100.0).assign(given_batch)
    assert torch.equal(answer.values, method.assign(given_batch).values)
    assert (answer.values[0] < answer.values[1:].min()).all()


def test_it_is_the_method_in_all_else() -> None:
    credit = NamedSkills(T2GRPO(turns=("calm",)))
    assert credit.needs == credit.method.needs
    assert credit.turns == ("calm",)
    with pytest.raises(ValueError, match="importance_sampling_level"):
        check_loss(NamedSkills(GRPO()), loss="dapo", ratio="sequence")
    with pytest.raises(ValueError, match="weight"):
        NamedSkills(GRPO(), weight=0.0)
    without = replace(batch([1.0, 0.0, 1.0, 0.0], [[-1] * 4] * 4), named_skill_BT=None)
    with pytest.raises(ValueError, match="the batch has none"):
        NamedSkills(GRPO()).assign(without)
