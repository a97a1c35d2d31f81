"""`ThreefoldTrainer` is `GRPOTrainer`, bit for bit, until a component changes the advantages; and then only
they change."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from peft import LoraConfig
from same_training import assert_same_training, trained, weights
from torch import Tensor
from trl import GRPOTrainer

from threefold import GRPO, ISPO, ThreefoldTrainer
from threefold.credit import Advantages, CreditBatch, Signals
from threefold.credit.lens import LENS
from threefold.credit.named_skills import NamedSkills
from threefold.credit.reference_answer import ReferenceAnswer
from threefold.credit.rl_zvp import RLZVP
from threefold.credit.self_certainty import SelfCertainty

LOSSES = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo")
NOTHING_ADDED = {
    "no component": {},
    "GRPO": {"credit": GRPO()},
    "ISPO without its terms": {"credit": ISPO("digit", lambda_ifd=0.0, lambda_token=0.0)},
}


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_component_it_trains_as_trl_does(build, loss, ratio):
    args = {"loss_type": loss, "importance_sampling_level": ratio}
    assert_same_training(trained(build, GRPOTrainer, args=args), trained(build, args=args))


@pytest.mark.parametrize("options", NOTHING_ADDED.values(), ids=NOTHING_ADDED.keys())
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("recorded", [False, True], ids=["unrecorded", "recorded"])
def test_credit_that_adds_nothing_trains_as_trl_does(build, tmp_path, options, ratio, recorded):
    args = {"importance_sampling_level": ratio}
    if recorded:
        options = {**options, "run_dir": tmp_path / "run"}
    assert_same_training(trained(build, GRPOTrainer, args=args), trained(build, args=args, **options))


@pytest.mark.parametrize("name", ["no component", "ISPO without its terms"])
@pytest.mark.parametrize(
    "args",
    [
        {"num_iterations": 2, "max_steps": 4},
        {"steps_per_generation": 4, "max_steps": 4},
        {"beta": 0.1},
        {"scale_rewards": "none"},
        {"mask_truncated_completions": True},
        {"top_entropy_quantile": 0.5},
    ],
    ids=lambda args: next(iter(args)),
)
def test_credit_that_adds_nothing_leaves_trls_other_options_alone(build, model_folder, tmp_path, name, args):
    options = dict(NOTHING_ADDED[name])
    if "credit" in options:
        scale = args.get("scale_rewards", "group")
        options = {"credit": ISPO("digit", lambda_ifd=0.0, lambda_token=0.0, scale=scale)}
    # By folder, because TRL loads the reference model of beta > 0 once more.
    model = str(model_folder)
    options = {**options, "run_dir": tmp_path / "run"}
    reference = trained(build, GRPOTrainer, args=args, model=model)
    assert_same_training(reference, trained(build, args=args, model=model, **options))


@pytest.mark.parametrize("options", NOTHING_ADDED.values(), ids=NOTHING_ADDED.keys())
def test_with_lora_too(build, options):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    reference = trained(build, GRPOTrainer, peft_config=lora)
    assert_same_training(reference, trained(build, peft_config=lora, **options))


def test_ispo_does_change_the_training(build):
    """Or the equalities above would hold for a trainer that ignores its component."""
    credit = ISPO("digit", combine="entropy")
    changed = trained(build, credit=credit, answer_format=r"([0-9])")
    reference = trained(build, GRPOTrainer)
    assert not all(torch.equal(a, b) for a, b in zip(weights(changed), weights(reference), strict=True))


# The component changes the advantages, and nothing else
# -------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """An estimator that keeps what passed through another one."""

    inner: Any
    batches: list[CreditBatch] = field(default_factory=list)
    answers: list[Advantages] = field(default_factory=list)

    @property
    def needs(self):
        return self.inner.needs

    def check(self, reward_names, group_size):
        self.inner.check(reward_names, group_size)

    def assign(self, batch):
        self.batches.append(batch)
        self.answers.append(self.inner.assign(batch))
        return self.answers[-1]


@dataclass
class Replayed:
    """Answers with given advantages, step by step, and measures nothing."""

    values: list[Tensor]
    needs = frozenset()

    def check(self, reward_names, group_size):
        pass

    def assign(self, batch):
        values = self.values.pop(0)
        outcome_B = next(iter(batch.rewards.values()))
        return Advantages(values=values, outcome_B=outcome_B, reward_B=outcome_B)


def test_training_with_signals_is_grpo_with_the_same_advantages(build):
    """No gradient flows through the signals: without them, the same advantages give the same weights."""
    kept = Kept(ISPO("digit", combine="union"))
    with_signals = trained(build, credit=kept, answer_format=r"([0-9])")
    without = trained(build, credit=Replayed([answer.values for answer in kept.answers]))
    assert_same_training(with_signals, without)


def test_signals_and_advantages_carry_no_gradient(build):
    measured = set()
    for credit in (ISPO("digit", combine="union"), SelfCertainty(), ReferenceAnswer(), RLZVP("digit")):
        kept = Kept(credit)
        trained(build, credit=kept, answer_format=r"([0-9])")
        for batch, answer in zip(kept.batches, kept.answers, strict=True):
            signals = {f.name: getattr(batch.signals, f.name) for f in fields(batch.signals)}
            signals = {name: tensor for name, tensor in signals.items() if tensor is not None}
            measured |= signals.keys()
            tensors = [answer.values, *answer.episode_signals.values(), *answer.token_signals.values()]
            assert all(isinstance(tensor, Tensor) for tensor in tensors)
            assert not any(tensor.requires_grad for tensor in [*signals.values(), *tensors])
    assert measured == {f.name for f in fields(Signals)}


def test_twice_the_weight_gives_twice_the_advantages(build):
    """Where all are wrong and nothing is divided by a spread, the advantages are lambda times the centred
    signal; powers of two make it exact."""

    def wrong(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    values = {}
    for weight in (0.25, 0.5):
        kept = Kept(ISPO("wrong", lambda_ifd=weight, lambda_token=0.0, scale="none"))
        options = {"reward_funcs": wrong, "answer_format": r"([0-9])", "args": {"max_steps": 1}}
        trained(build, credit=kept, **options)
        values[weight] = kept.answers[0].values
    assert values[0.25].abs().max() > 0
    assert torch.equal(values[0.5], 2 * values[0.25])


def test_an_estimator_may_answer_for_each_token(build):
    """(B, T) advantages that are constant over a row train like the (B,) ones, to rounding."""

    class Spread(Kept):
        def assign(self, batch):
            answer = super().assign(batch)
            spread = answer.values[:, None] * batch.mask_BT
            return Advantages(values=spread, outcome_B=answer.outcome_B, reward_B=answer.reward_B)

    one, other = trained(build, credit=GRPO()), trained(build, credit=Spread(GRPO()))
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# What is refused before the first step
# ------------------------------------------------------------------------------------------------


def test_an_outcome_that_no_reward_function_has_is_refused(build):
    with pytest.raises(ValueError, match=r"'digits'.*did you mean 'digit'"):
        build(credit=ISPO("digits"))
    with pytest.raises(ValueError, match=r"outcome='right' is not among the reward functions \['digit'\]"):
        build(outcome="right")


@pytest.mark.parametrize(
    "credit", [GRPO(), LENS("digit"), NamedSkills(GRPO())], ids=lambda c: type(c).__name__
)
def test_a_scale_of_trls_that_would_have_no_effect_is_refused(build, credit):
    with pytest.raises(ValueError, match=r"scale_rewards='none' has no effect"):
        build(credit=credit, args={"scale_rewards": "none"})
    build(credit=NamedSkills(GRPO(scale="none")), args={"scale_rewards": "none"})


def test_two_ways_of_playing_episodes_are_refused(build):
    from threefold.envs.toy import EchoThenNext

    with pytest.raises(ValueError, match=r"environment.*rollout_func"):
        build(environment=EchoThenNext, rollout_func=lambda prompts, trainer: {})


def test_an_aggregation_of_trls_own_is_refused_beside_an_estimator(build):
    args = {"multi_objective_aggregation": "normalize_then_sum"}
    with pytest.raises(ValueError, match="multi_objective_aggregation"):
        build(credit=GRPO(), args=args)


def test_a_trl_whose_methods_moved_is_refused_by_name():
    from threefold.training.trl_seam import check_trl

    class Moved(GRPOTrainer):
        def _compute_loss(self, model, batch):
            raise AssertionError

    check_trl()
    with pytest.raises(ImportError, match=r"_compute_loss: expected \['model', 'inputs'\], found"):
        check_trl(Moved)


def test_it_takes_trls_arguments_in_trls_order(config, make_model, tokenizer, dataset):
    def digit(completions: list[str], **columns: Any) -> list[float]:
        return [float(any(map(str.isdigit, text))) for text in completions]

    trainer = ThreefoldTrainer(make_model(), digit, config(), dataset, None, tokenizer)
    assert trainer.reward_func_names == ["digit"]
    assert trainer.train_dataset["prompt"][:2] == ["0+0=", "0+1="]
