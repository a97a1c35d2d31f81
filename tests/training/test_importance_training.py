"""Importance correction in training: the folded gradient is the importance-weighted one, and TRL's own."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from threefold import GRPO, Limits, Speedups, ThreefoldTrainer
from threefold.credit.importance import Importance
from threefold.envs.base import Observation
from threefold.envs.toy import EchoThenNext
from threefold.rollout.samplers.half import HalfSampler
from threefold.rollout.samplers.transformers import TransformersSampler
from tiny_parts import tiny_model

CAP = 1.2
"""Low, so that the perturbed engine's ratios reach it."""


class Kept(ThreefoldTrainer):
    """Keeps what the estimator answered and every loss's inputs, with the gradient summed over the update."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.answers: list[torch.Tensor] = []
        self.outputs: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.gradient: list[torch.Tensor] = []
        super().__init__(*args, **options)

    def _assign(self, batch, output):
        answer = super()._assign(batch, output)
        self.answers.append(answer.values.clone())
        return answer

    def _generate_and_score_completions(self, inputs):
        self.outputs.append(super()._generate_and_score_completions(inputs))
        return self.outputs[-1]

    def training_step(self, *args, **options):
        loss = super().training_step(*args, **options)
        self.gradient = [p.grad.clone() for p in self.model.parameters()]  # they add up
        return loss

    def log(self, logs, *args, **options):
        self.logged.append(logs)
        return super().log(logs, *args, **options)


def perturbed() -> Any:
    """The tiny model's weights, all moved a little: an engine that is clearly not the policy."""
    engine = copy.deepcopy(tiny_model())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in engine.parameters():
            weight += weight.std().nan_to_num() * torch.randn(weight.shape, generator=generator)
    return engine


def step(build, args=None, **options) -> Any:
    """A trainer after one update; the learning rate is 0, so the weights are still the initial ones."""
    args = {"max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0, **(args or {})}
    trainer = build(Kept, args=args, **{"credit": GRPO(), **options})
    trainer.train()
    return trainer


def scored(trainer: Any, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (B, T) of the sampled tokens under a model by a plain forward, and the loss mask."""
    output = trainer.outputs[0]
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    keep = output["completion_ids"].size(1)
    logits = model(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, -keep - 1 : -1]
    logp = logits.log_softmax(-1).gather(-1, output["completion_ids"][..., None])[..., 0]
    mask = output["completion_mask"] * output.get("tool_mask", torch.ones_like(output["completion_mask"]))
    return logp, mask.bool()


def by_hand(trainer: Any, engine: Any, importance: Importance) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradient of -sum w A log p / N (dapo's, at the first update), and w (B, T) or (B, 1)."""
    with torch.no_grad():
        sampled, mask = scored(trainer, engine)
    policy = tiny_model()
    logp, _ = scored(trainer, policy)
    gap = (logp.detach() - sampled) * mask
    if importance.level == "sequence":
        gap = gap.sum(dim=1, keepdim=True)
    weights = gap.exp().clamp(max=importance.cap)
    advantages = trainer.answers[0][:, None]
    (-(weights * advantages * logp * mask).sum() / mask.sum()).backward()
    return [p.grad for p in policy.parameters()], weights


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    found_all, wanted_all = (torch.cat([g.flatten() for g in side]) for side in (found, wanted))
    return bool((found_all - wanted_all).norm() < 1e-5 * wanted_all.norm())


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("speedups", [None, Speedups(drop_dead=False)], ids=["plain", "speedups"])
def test_the_folded_gradient_is_the_importance_weighted_one(build, level, speedups):
    engine, importance = perturbed(), Importance(level, cap=CAP)
    trainer = step(build, sampler=TransformersSampler(engine), importance=importance, speedups=speedups)
    wanted, weights = by_hand(trainer, engine, importance)
    assert close(trainer.gradient, wanted)

    # The comparison can fail: without weights the gradient is another one, and the cap was reached.
    _, ones = by_hand(trainer, tiny_model(), importance)
    assert torch.allclose(ones, torch.ones_like(ones), atol=1e-5)
    plain, _ = by_hand(trainer, tiny_model(), importance)
    assert not close(trainer.gradient, plain)
    assert (weights == importance.cap).any()
    assert (weights < 1).any()

    logged = trainer.logged[0]
    assert 0 < logged["importance/capped"] < 1
    assert logged["importance/gap"] > 0.01
    counted = weights if importance.level == "sequence" else weights[scored(trainer, engine)[1]]
    assert logged["importance/ratio"] == pytest.approx(float(counted.mean()), abs=1e-5)


def test_with_the_policy_as_its_own_engine_nothing_changes(build):
    plain = step(build, sampler="threefold")
    weighed = step(build, sampler="threefold", importance=Importance())
    assert plain.outputs[0]["completion_ids"].equal(weighed.outputs[0]["completion_ids"])
    assert any(g.abs().max() > 0 for g in plain.gradient)
    assert close(weighed.gradient, plain.gradient)
    assert weighed.logged[0]["importance/ratio"] == pytest.approx(1, abs=1e-5)
    assert weighed.logged[0]["importance/capped"] == 0
    assert weighed.logged[0]["importance/gap"] < 1e-5
    assert not any(name.startswith("importance/") for name in plain.logged[0])


class SayDigits(EchoThenNext):
    """Rewards a digit said first in a turn; two turns."""

    def step(self, action_text: str) -> Observation:
        self._turn += 1
        done = self._turn == 2
        messages = () if done else ({"role": "user", "content": "+"},)
        right = float(action_text.strip()[:1].isdigit())
        self._right += int(right)
        return Observation(messages=messages, rewards={"echo": right}, terminated=done, success=None)


@pytest.mark.parametrize("with_session", [True, False], ids=["session", "turn by turn"])
def test_dialogues_are_weighed_on_the_agents_tokens_alone(build, with_session):
    engine = perturbed()
    sampler = TransformersSampler(engine)
    if not with_session:

        class OneTurn:
            generate = sampler.generate

        sampler = OneTurn()
    trainer = step(
        build,
        {"max_completion_length": 24, "num_generations": 8},
        reward_funcs=None,
        environment=SayDigits,
        limits=Limits(turns=2, turn_tokens=4, completion_tokens=24),
        sampler=sampler,
        importance=Importance(cap=CAP),
    )
    _, mask = scored(trainer, engine)
    assert (~mask & trainer.outputs[0]["completion_mask"].bool()).any()  # the environment has spoken
    wanted, weights = by_hand(trainer, engine, Importance(cap=CAP))
    assert any(g.abs().max() > 0 for g in wanted)
    assert close(trainer.gradient, wanted)
    assert (weights[mask] != 1).any()


def test_several_updates_a_batch_are_weighed_by_the_policy_that_they_start_from(build):
    """TRL has scored the old policy then, and advantages are weighed once, before they are shuffled."""
    engine, importance = perturbed(), Importance(cap=CAP)
    args = {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "max_steps": 2}
    trainer = step(build, args, sampler=TransformersSampler(engine), importance=importance)
    assert len(trainer.outputs) == 1
    _, weights = by_hand(trainer, engine, importance)
    _, mask = scored(trainer, engine)
    wanted = trainer.answers[0][:, None] * weights * mask
    assert torch.allclose(trainer.outputs[0]["advantages"], wanted, atol=1e-5)
    assert (weights[mask] == CAP).any()


def test_the_ratio_costs_no_pass(build):
    """The policy is scored by the update's own forwards, with a gradient, and by nothing else."""
    scorings = []

    class Watched(Kept):
        def _get_per_token_logps_and_entropies(self, *args, **options):
            scorings.append(torch.is_grad_enabled())
            return super()._get_per_token_logps_and_entropies(*args, **options)

    step(lambda cls, **o: build(Watched, **o), sampler=HalfSampler(), importance=Importance())
    assert scorings == [True, True]  # two micro-batches


def test_a_rollout_function_of_ones_own_is_weighed_too(build):
    engine = perturbed()
    sampler = TransformersSampler(engine)

    def rollout(prompts, trainer):
        prompt_ids = [trainer._tokenizer.encode(p) for p in prompts]
        samples = sampler.generate(prompt_ids, trainer._sampling(), seed=5)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [list(s.token_ids) for s in samples],
            "logprobs": [list(s.logprobs) for s in samples],
        }

    trainer = step(build, rollout_func=rollout, importance=Importance(cap=CAP))
    assert close(trainer.gradient, by_hand(trainer, engine, Importance(cap=CAP))[0])


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo"])
def test_folding_is_what_trl_does_for_its_own_vllm(build, loss):
    """TRL multiplies its loss by the ratio; an advantage that carries it gives the same, clipped or not."""
    trainer = step(build, {"loss_type": loss, "gradient_accumulation_steps": 1})
    inputs = dict(trainer.outputs[0])
    logp, mask = scored(trainer, trainer.model)
    generator = torch.Generator().manual_seed(0)
    inputs["old_per_token_logps"] = logp.detach() + 0.4 * torch.randn(logp.shape, generator=generator)
    inputs["advantages"] = torch.randn(len(logp), generator=generator)
    weights = torch.rand(logp.shape, generator=generator) * 3

    def gradient(inputs: dict[str, Any]) -> list[torch.Tensor]:
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        return [p.grad.clone() for p in trainer.model.parameters()]

    trainer.model.train()
    folded = gradient({**inputs, "advantages": inputs["advantages"][:, None] * weights * mask})
    unweighed = gradient(inputs)
    trainer.use_vllm = True  # read by TRL's loss only
    assert close(folded, gradient({**inputs, "importance_sampling_ratio": weights}))
    assert not close(folded, unweighed)


class Counted:
    """An engine that counts what it is given: weights, and whether they are the policy's when it samples."""

    def __init__(self) -> None:
        self.model = tiny_model(seed=7)
        self.pushes = 0
        self.versions: list[float] = []

    def push(self, model: Any) -> None:
        self.model.load_state_dict(model.state_dict())
        self.pushes += 1

    def generate(self, prompts, parameters, **options):
        self.versions.append(sum(p.double().sum().item() for p in self.model.parameters()))
        return TransformersSampler(self.model).generate(prompts, parameters, **options)


def test_an_engine_gets_the_weights_of_every_update_once(build, tmp_path):
    """Ratios are 1 at every step, so what sampled were each step's weights; they were pushed once a step, and
    once before the first."""
    engine = Counted()
    trainer = build(Kept, credit=GRPO(), sampler=engine, importance=Importance(), run_dir=tmp_path / "run")
    assert engine.pushes == 1
    trainer.train()
    assert engine.pushes == 1 + 3
    assert len(set(engine.versions)) == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["importance/gap"] < 1e-5
        assert line["engine/push_seconds"] >= 0
    trainer.train()  # counts its steps from 0 again, with the weights that the first training left
    assert engine.pushes == 1 + 3 + 3
    assert trainer.logged[-2]["importance/gap"] < 1e-5


def test_a_copy_in_bf16_trains_and_is_weighed(build):
    """What the trainer has patched on the policy does not reach the copy; ratios are near 1, and not 1."""
    trainer = step(
        build, {"max_steps": 3, "learning_rate": 1e-3}, sampler=HalfSampler(), importance=Importance()
    )
    assert len(trainer.outputs) == 3
    for logged in trainer.logged[:3]:
        assert 1e-5 < logged["importance/gap"] < 0.02
        assert logged["importance/ratio"] == pytest.approx(1, abs=0.01)
        assert logged["importance/capped"] == 0


def test_an_engine_is_never_taken_for_the_policy(build):
    """Its log-probabilities do not stand in for the policy's where the estimator asks for those."""
    engine = perturbed()
    seen = []

    class Watched(Kept):
        def _assign(self, batch, output):
            seen.append(batch.signals.logp_BT)
            return super()._assign(batch, output)

    trainer = step(lambda cls, **o: build(Watched, **o), sampler=TransformersSampler(engine), signals_every=1)
    with torch.no_grad():
        policy, mask = scored(trainer, tiny_model())
        sampled, _ = scored(trainer, engine)
    assert torch.allclose(seen[0][mask], policy[mask], atol=1e-5)
    assert not torch.allclose(seen[0][mask], sampled[mask], atol=1e-2)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ({"beta": 0.1}, {}, "beta=0.1 would stay the engine's: set beta=0"),
        ({"loss_type": "vespo"}, {}, "vespo.*not linear"),
        (
            {"importance_sampling_level": "sequence"},
            {},
            "importance_sampling_level='sequence'.*level='sequence'",
        ),
        ({"use_liger_kernel": True}, {}, "use_liger_kernel scores it inside"),
        ({"off_policy_mask_threshold": 0.5}, {}, "off_policy_mask_threshold.*level='sequence'"),
        ({}, {"sampler": "trl"}, "needs the log-probabilities of whoever sampled"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(build, model_folder, args, options, message):
    options = {"sampler": "threefold", "importance": Importance(), "model": str(model_folder), **options}
    with pytest.raises(ValueError, match=message):
        build(args=args, credit=GRPO(), **options)


def test_ratios_of_episodes_go_with_ratios_of_sequences(build):
    trainer = step(
        build,
        {"importance_sampling_level": "sequence"},
        sampler="threefold",
        importance=Importance("sequence"),
    )
    assert trainer.outputs[0]["advantages"].dim() == 1
