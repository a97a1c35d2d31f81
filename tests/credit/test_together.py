"""Methods together: advantages add, each method sees what it would see alone, and a veto is the last word."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from threefold.credit import Advantages, CreditBatch
from threefold.credit.dr_grpo import DrGRPO
from threefold.credit.grpo import GRPO
from threefold.credit.ispo import ISPO
from threefold.credit.lens import LENS
from threefold.credit.losses import check_loss
from threefold.credit.named_skills import NamedSkills
from threefold.credit.ngrpo import NGRPO
from threefold.credit.outcomes import given_credit
from threefold.credit.together import Together
from threefold.credit.turn_trajectory import T2GRPO


@dataclass(frozen=True)
class Says:
    """A method that answers what it was told to."""

    values: Tensor
    needs = frozenset()

    def check(self, reward_names: object, group_size: int) -> None: ...

    def assign(self, batch: CreditBatch) -> Advantages:
        zero_B = torch.zeros(len(batch.group_B))
        return Advantages(self.values, outcome_B=zero_B, reward_B=zero_B)


def dialogues(
    turn_rewards: list[list[float]], scores: list[float], violation: list[bool], group_size: int
) -> CreditBatch:
    """Two tokens a turn, all the agent's."""
    rewards_BK = torch.tensor(turn_rewards)
    turn_BT = torch.arange(rewards_BK.size(1)).repeat_interleave(2).expand(len(scores), -1)
    return CreditBatch(
        rewards={"goal": torch.tensor(scores), "success": (torch.tensor(scores) > 0).float()},
        weights={"goal": 1.0, "success": 0.0},
        group_B=torch.arange(len(scores)) // group_size,
        mask_BT=torch.ones_like(turn_BT, dtype=torch.bool),
        turn_BT=turn_BT,
        turn_rewards={"D": rewards_BK},
        turn_mask_BK=torch.ones_like(rewards_BK, dtype=torch.bool),
        violation_B=torch.tensor(violation),
    )


CALM = dialogues([[1, 0], [0, 0], [2, 1], [0, 1]], [0.0, 1.0, 2.0, 3.0], [False] * 4, 4)


def test_weighted_advantages_add_on_the_agents_tokens() -> None:
    row_B, token_BT = torch.tensor([1.0, -1.0, 0.5, 0.0]), torch.full((4, 4), 2.0)
    masked = replace(CALM, mask_BT=CALM.mask_BT & (torch.arange(4) < 3))
    both = Together({"row": Says(row_B), "token": Says(token_BT)}, {"row": 1.0, "token": 0.25})
    assert both.assign(masked).values.tolist() == [
        [1.5, 1.5, 1.5, 0.5],  # the last token is not the agent's: the row's advantage is not spread to it
        [-0.5, -0.5, -0.5, 0.5],
        [1.0, 1.0, 1.0, 0.5],
        [0.5, 0.5, 0.5, 0.5],
    ]


def test_row_constants_stay_row_constants() -> None:
    row_B = torch.tensor([1.0, -1.0, 0.5, 0.0])
    both = Together({"one": Says(row_B), "two": Says(row_B)}, {"one": 1.0, "two": 2.0})
    assert torch.equal(both.assign(CALM).values, 3 * row_B)


def test_one_method_alone_is_itself_bit_for_bit() -> None:
    alone, together = T2GRPO(turns=("D",)), Together({"t2grpo": T2GRPO(turns=("D",))}, {"t2grpo": 1.0})
    assert torch.equal(alone.assign(CALM).values, together.assign(CALM).values)


def test_each_method_sees_the_rewards_that_it_would_see_alone() -> None:
    """The success of weight 0 is ISPO's outcome; T²-GRPO must not rank it as a channel."""
    t2grpo, ispo = T2GRPO(turns=("D",)), ISPO("success", 0.0, 0.0)
    without = replace(CALM, rewards={"goal": CALM.rewards["goal"]})
    both = Together({"t2grpo": t2grpo, "ispo": ispo}, {"t2grpo": 1.0, "ispo": 0.5})
    expected = t2grpo.assign(without).values + 0.5 * ispo.assign(CALM).values[:, None]
    torch.testing.assert_close(both.assign(CALM).values, expected)
    assert both.outcome == "success"
    assert both.turns == ("D",)


def test_shares_say_who_moves_the_weights() -> None:
    one, three = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([3.0, 3.0, -3.0, -3.0])
    metrics = Together({"a": Says(one), "b": Says(three)}, {"a": 1.0, "b": 1.0}).assign(CALM).metrics
    assert metrics == {"together/a": 0.25, "together/b": 0.75}


@settings(max_examples=60, deadline=None)
@given(
    praise=st.lists(st.floats(-40, 40), min_size=8, max_size=8),
    violation=st.lists(st.booleans(), min_size=8, max_size=8),
    weight=st.floats(0.1, 10),
    first=st.booleans(),
)
def test_no_praise_of_another_method_buys_a_veto_back(
    praise: list[float], violation: list[bool], weight: float, first: bool
) -> None:
    turn_rewards = [[float(i % 3), float(i % 2)] for i in range(8)]
    batch = dialogues(turn_rewards, [float(i) for i in range(8)], violation, 4)
    methods = {"says": Says(torch.tensor(praise)), "t2grpo": T2GRPO(turns=("D",))}
    if not first:
        methods = dict(reversed(methods.items()))
    values = Together(methods, {"says": weight, "t2grpo": 1.0}).assign(batch).values
    clean = values[~batch.violation_B]
    vetoed = values[batch.violation_B]
    assert vetoed.numel() == 0 or clean.numel() == 0 or vetoed.max() < clean.min()
    assert vetoed.numel() == 0 or vetoed.max() <= -16


def test_turns_before_the_violation_keep_their_blame_and_get_no_praise() -> None:
    batch = dialogues([[1, 0], [0, 0], [2, 1], [0, 1]], [0.0, 1.0, 2.0, 3.0], [False, False, True, False], 4)
    batch = replace(batch, violation_turn_B=torch.tensor([-1, -1, 1, -1]))
    t2grpo = T2GRPO(turns=("D",), veto_from_turn=True)
    both = Together(
        {"t2grpo": t2grpo, "says": Says(torch.tensor([0.0, 0.0, 9.0, 0.0]))}, {"t2grpo": 1.0, "says": 1.0}
    )
    alone = replace(batch, rewards={"goal": batch.rewards["goal"]})
    assert torch.equal(both.assign(batch).values[2], t2grpo.assign(alone).values[2])


def test_without_a_veto_violators_are_summed_like_others() -> None:
    batch = dialogues([[1, 0], [0, 0], [2, 1], [0, 1]], [0.0, 1.0, 2.0, 3.0], [True, False, False, False], 4)
    says = Says(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    both = Together({"grpo": GRPO(), "says": says}, {"grpo": 1.0, "says": 1.0})
    alone = replace(batch, rewards={"goal": batch.rewards["goal"]})
    assert torch.equal(both.assign(batch).values, GRPO().assign(alone).values + says.values)


def test_signals_and_losses_of_all_are_asked_for() -> None:
    ispo = ISPO.paper("success")
    both = Together({"t2grpo": T2GRPO(turns=("D",)), "ispo": ispo}, {"t2grpo": 1.0, "ispo": 1.0})
    assert both.needs == ispo.needs
    with pytest.raises(ValueError, match="per token"):
        check_loss(both, loss="vespo")
    with pytest.raises(ValueError, match="goes with the loss 'dr_grpo'"):
        check_loss(Together({"a": GRPO(), "b": DrGRPO()}, {"a": 1.0, "b": 1.0}), loss="dapo")
    with pytest.raises(ValueError, match="ISPO's outcome"):
        both.check(["goal"], 8)


def test_what_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="give one or more"):
        Together({}, {})
    with pytest.raises(ValueError, match="one weight for each"):
        Together({"grpo": GRPO()}, {"ngrpo": 1.0})
    with pytest.raises(ValueError, match="weight of ngrpo"):
        Together({"grpo": GRPO(), "ngrpo": NGRPO()}, {"grpo": 1.0, "ngrpo": 0.0})


@pytest.mark.parametrize(("weight", "veto"), [(0.01, 18.0), (0.35, 18.0), (0.7, 18.0)])
def test_a_weight_that_floats_round_lets_no_veto_slip(weight: float, veto: float) -> None:
    """float32 rounds weight x veto otherwise than Python, so the product is not what is compared."""
    batch = dialogues([[1, 0], [0, 0], [2, 1], [0, 1]], [0.0, 1.0, 2.0, 3.0], [False, False, True, False], 4)
    blame = Says(torch.tensor([-40.0, 0.0, 0.0, 0.0]))
    both = Together(
        {"says": blame, "t2grpo": T2GRPO(turns=("D",), veto=veto)}, {"says": 1.0, "t2grpo": weight}
    )
    values = both.assign(batch).values
    assert values[2].max() < values[[0, 1, 3]].min()


def test_each_method_may_have_an_outcome_of_its_own_that_nothing_else_ranks() -> None:
    weights = {"goal": 1.0, "success": 0.0, "honest": 0.0, "watched": 0.0}
    both = Together({"ispo": ISPO("success"), "lens": LENS("honest")}, {"ispo": 1.0, "lens": 1.0})
    assert given_credit(weights, both) == ["goal", "success", "honest"]
    both.check(given_credit(weights, both), 8)
    assert given_credit(weights, NamedSkills(both)) == ["goal", "success", "honest"]
