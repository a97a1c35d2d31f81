"""The KL term on groups without any advantage: TRL's gradient by default, none where it is switched off."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from one_update import ONE_STEP, gradient, relative_difference, rows_forwarded, some_dead
from trl import GRPOTrainer

from threefold import GRPO, Speedups
from threefold.credit import Advantages, CreditBatch, grpo
from threefold.recipe import RecipeError, parse_recipe

LOSSES = ("dapo", "cispo", "grpo", "bnpo")


def drifted(trainer: Any) -> Any:
    """The policy moved off its reference, so that the KL term has a gradient from the first step."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=random)
    return trainer


@pytest.fixture
def make(build, model_folder):
    """A trainer with a KL term; by folder, because TRL loads its reference model once more."""

    def made(*cls: Any, args: dict[str, Any] | None = None, **options: Any) -> Any:
        args = {**ONE_STEP, "beta": 0.5, **(args or {})}
        options = {"model": str(model_folder), "reward_funcs": some_dead, **options}
        return drifted(build(*cls, args=args, **options))

    return made


def all_dead(completions: list[Any], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


@pytest.mark.parametrize("loss", LOSSES)
def test_by_default_the_gradient_is_trls(make, loss):
    expected = gradient(make(GRPOTrainer, args={"loss_type": loss}))
    assert relative_difference(expected, gradient(make(args={"loss_type": loss}))) == 0
    assert relative_difference(expected, gradient(make(args={"loss_type": loss}, credit=GRPO()))) < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("speedups", [None, Speedups()], ids=["plain", "speedups"])
def test_dead_groups_give_no_gradient_where_it_is_off(make, loss, speedups):
    """With every group dead the KL term alone would move the weights; then nothing does, to the bit."""
    args = {"loss_type": loss}
    assert any(change.any() for change in gradient(make(GRPOTrainer, args=args, reward_funcs=all_dead)))
    quiet = make(args=args, reward_funcs=all_dead, kl_on_dead_groups=False, speedups=speedups)
    assert not any(change.any() for change in gradient(quiet))


@pytest.mark.parametrize("loss", LOSSES)
def test_live_groups_keep_trls_gradient(make, loss):
    """The gradient is a sum over rows. TRL's, less that of the KL term of the dead rows alone, is ours.

    The latter is TRL's gradient of a batch in which all is dead, minus that of one in which the other half
    has no KL: which is the switch with the outcomes turned round.
    """

    def others(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
        return some_dead(completions, [str(int(a) + 1) for a in answer], **columns)

    args = {"loss_type": loss}
    whole = gradient(make(GRPOTrainer, args=args))
    live = gradient(make(args=args, kl_on_dead_groups=False))
    kl_of_all = gradient(make(GRPOTrainer, args=args, reward_funcs=all_dead))
    turned_whole = gradient(make(GRPOTrainer, args=args, reward_funcs=others))
    turned_live = gradient(make(args=args, reward_funcs=others, kl_on_dead_groups=False))
    dead = [w - k for w, k in zip(whole, live, strict=True)]
    turned_dead = [w - k for w, k in zip(turned_whole, turned_live, strict=True)]
    assert any(change.abs().max() > 1e-4 for change in dead)
    both = [a + b for a, b in zip(dead, turned_dead, strict=True)]
    assert relative_difference(kl_of_all, both) < 1e-4  # the halves' KL terms are all of it


@pytest.mark.parametrize("loss", ["dapo", "cispo"])
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("more", [{}, {"num_iterations": 2, "max_steps": 2}], ids=["one", "two iterations"])
def test_updates_are_regrouped_with_the_same_gradient(make, loss, on, more):
    args = {"loss_type": loss, **more}
    expected = gradient(make(args=args, kl_on_dead_groups=on))
    trainer = make(args=args, kl_on_dead_groups=on, speedups=Speedups())
    forwarded = rows_forwarded(trainer)
    assert relative_difference(expected, gradient(trainer)) < 1e-5
    steps = more.get("max_steps", 1)
    assert sum(forwarded) == 16 * steps if on else sum(forwarded) < 16 * steps


def test_a_row_without_an_advantage_in_a_live_group_keeps_its_kl(make):
    """Rewards 0, 1, 2 in a group of three, the middle one has none: the group lives, TRL's gradient stays."""

    def middle(completions: list[Any], **columns: Any) -> list[float]:
        return [float(i % 3) for i in range(len(completions))]

    args = {"num_generations": 3, "per_device_train_batch_size": 3}
    expected = gradient(make(GRPOTrainer, args=args, reward_funcs=middle))
    for speedups in (None, Speedups()):
        ours = make(args=args, reward_funcs=middle, kl_on_dead_groups=False, speedups=speedups)
        assert relative_difference(expected, gradient(ours)) < 1e-5


@pytest.mark.parametrize("on", [True, False])
def test_dead_rows_are_counted_and_the_step_is_said_in_words(make, tmp_path, on):
    run = tmp_path / "run"
    trainer = make(reward_funcs=all_dead, credit=GRPO(), run_dir=run, kl_on_dead_groups=on)
    trainer.train()
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["signal/dead_rows"] == 16
    assert ("the KL term, of weight 0.5, alone moves the policy" in trainer.step_in_words) is on
    assert (line["kl"] == 0) is not on


def test_without_a_kl_term_nothing_is_counted(build, tmp_path):
    build(args=ONE_STEP, credit=GRPO(), run_dir=tmp_path / "run").train()
    assert "signal/dead_rows" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_what_has_no_meaning_is_refused(build, model_folder):
    with pytest.raises(ValueError, match="beta is 0, so there is none"):
        build(kl_on_dead_groups=False)
    with pytest.raises(RecipeError, match=r"training\.kl is 0, so there is none: set training\.kl"):
        parse_recipe({"training": {"kl_on_dead_groups": False}})
    assert parse_recipe({"training": {"kl_on_dead_groups": False, "kl": 0.1}}).training.kl == 0.1


class Revive:
    """Gives every episode an advantage, whatever the outcomes."""

    needs: frozenset[Any] = frozenset()

    def check(self, reward_names: Any, group_size: int) -> None: ...

    def assign(self, batch: CreditBatch) -> Advantages:
        reward_B = grpo.combine(batch.rewards, batch.weights)
        return Advantages(values=torch.ones_like(reward_B), outcome_B=0 * reward_B, reward_B=reward_B)


def test_a_group_that_its_credit_revived_keeps_its_kl(make):
    expected = gradient(make(reward_funcs=all_dead, credit=Revive()))
    ours = make(reward_funcs=all_dead, credit=Revive(), kl_on_dead_groups=False)
    assert relative_difference(expected, gradient(ours)) == 0
