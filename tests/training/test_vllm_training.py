"""Training on what vLLM sampled: weights are pushed, ratios are near 1, and the policy learns.

What needs vLLM is skipped where it is not installed; docs/speed.md says how to get it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from threefold import GRPO, Limits
from threefold.cli import main
from threefold.credit.importance import Importance
from threefold.envs.toy import EchoThenNext
from threefold.recipe import RecipeError, parse_recipe
from threefold.rollout.samplers.vllm import VllmSampler, missing
from threefold.training import engine as engines
from tiny_parts import tiny_model, tiny_tokenizer

needs_vllm = pytest.mark.skipif(missing() is not None, reason=f"needs vLLM: {missing()}")

SIZES = {"hidden_size": 128, "intermediate_size": 128}
"""Heads of 32, the smallest that vLLM's CPU kernels know."""


@pytest.fixture
def engine(request):
    made = VllmSampler(tiny_tokenizer(), dtype=request.param, cache_gib=0.25)
    yield made
    made.close()


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


@needs_vllm
@pytest.mark.parametrize("engine", ["bfloat16"], indirect=True)
def test_the_policy_learns_from_an_engine_in_bf16(build, tmp_path, engine):
    args = {"max_steps": 20, "learning_rate": 3e-3, "lr_scheduler_type": "constant", "num_generations": 8}
    trainer = build(
        args={**args, "per_device_train_batch_size": 16},
        model=tiny_model(**SIZES),
        credit=GRPO(),
        sampler=engine,
        importance=Importance(),
        run_dir=tmp_path / "run",
    )
    trainer.train()
    lines = lines_of(tmp_path / "run")
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[:3]) / 3 < 0.75
    assert sum(rewards[-3:]) / 3 > 0.95
    for line in lines:
        assert line["importance/ratio"] == pytest.approx(1, abs=0.05)
        assert 0 < line["importance/gap"] < 0.05
        assert line["importance/capped"] < 0.05


@needs_vllm
@pytest.mark.parametrize("engine", ["float32"], indirect=True)
def test_in_fp32_every_update_reaches_the_engine_and_nothing_is_left_to_correct(build, tmp_path, engine):
    """At a learning rate that moves log-probabilities by far more than what is allowed here, in dialogues."""
    build(
        args={"max_completion_length": 24, "learning_rate": 1e-2, "max_steps": 4},
        model=tiny_model(**SIZES),
        reward_funcs=None,
        environment=EchoThenNext,
        limits=Limits(turns=2, turn_tokens=4, completion_tokens=24),
        credit=GRPO(),
        sampler=engine,
        importance=Importance(),
        run_dir=tmp_path / "run",
    ).train()
    lines = lines_of(tmp_path / "run")
    assert len(lines) == 4
    for line in lines:
        assert line["importance/gap"] < 1e-4
        assert line["importance/ratio"] == pytest.approx(1, abs=1e-4)
        assert line["importance/capped"] == 0
    assert any(line["grad_norm"] > 0 for line in lines)


RECIPE = """
model: {{name: {model}}}
data: {{train: {data}, test: {data}}}
prompt: {{style: generic}}
credit: {{method: ispo, combine: union, format_weight: 0.1}}
training: {{steps: 2, prompts_per_step: 2, group_size: 4, max_completion_tokens: 8, sampler: vllm}}
evaluation: {{problems: 2, greedy: false}}
run: {{dir: {run}, threads: 1}}
"""


@needs_vllm
def test_a_recipe_names_the_engine_and_goes_on_from_its_checkpoint(tmp_path):
    folder, run = tmp_path / "model", tmp_path / "run"
    tiny_model(**SIZES).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    rows = [{"question": f"{i}+{j}=", "answer": str(i + j)} for i in range(3) for j in range(3)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=folder, data=data, run=run), encoding="utf-8")
    small = ["training.vllm.cache_gib=0.25", "training.vllm.dtype=fp32", "training.save_every=2"]
    small.append("training.speedups.drop_dead=false")  # no answer is right: the update would take no row
    assert main(["train", str(recipe), "--quiet", *small]) == 0
    assert main(["train", str(recipe), "--quiet", "--resume", *small, "training.steps=3"]) == 0
    lines = lines_of(run)
    assert [line["step"] for line in lines if "importance/gap" in line] == [1, 2, 3]
    assert all(line["importance/gap"] < 1e-4 for line in lines if "importance/gap" in line)


@needs_vllm
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("engine", ["bfloat16"], indirect=True)
def test_the_embedded_model_trains_from_it(build, tmp_path, engine):
    """SmolLM2 in bf16 beside fp32: about 0.03 nats a token apart."""
    from threefold.models import load_model, load_tokenizer

    tokenizer = load_tokenizer("embedded")
    engine.tokenizer = tokenizer
    build(
        args={"learning_rate": 1e-5, "max_completion_length": 16, "max_steps": 3},
        model=load_model("embedded", torch.float32),
        processing_class=tokenizer,
        credit=GRPO(),
        sampler=engine,
        importance=Importance(),
        run_dir=tmp_path / "run",
    ).train()
    for line in lines_of(tmp_path / "run"):
        assert 0.003 < line["importance/gap"] < 0.08
        assert line["importance/ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({"training": {"kl": 0.1}}, 1, "training.kl=0 or training.importance=off"),
        ({"training": {"ratio": "sequence"}}, 1, "set training.importance=sequence"),
        ({"training": {"loss": "vespo"}}, 1, "vespo is not linear"),
        ({"training": {"trl": {"use_vllm": True}}}, 1, "another backend"),
        ({"model": {"lora": {}}}, 1, "leave out model.lora"),
        ({}, 2, "one process, this run has 2"),
    ],
)
@pytest.mark.parametrize("sampler", ["vllm", "threefold-bf16"])
def test_what_an_engine_does_not_serve_is_refused_by_key(sampler, settings, processes, message):
    training = {"sampler": sampler, **settings.get("training", {})}
    recipe = parse_recipe({**settings, "training": training})
    with pytest.raises(RecipeError, match=message):
        engines.check_sampler(recipe, processes)


@pytest.mark.parametrize(
    ("trl", "launched", "sampler"),
    [
        ({}, {}, "threefold"),
        ({}, {"WORLD_SIZE": "2"}, "threefold"),
        ({"use_vllm": True}, {}, "trl"),
        ({"use_vllm": False}, {}, "threefold"),
        ({"use_transformers_continuous_batching": True}, {}, "trl"),
        ({"fsdp": "full_shard"}, {}, "trl"),
        ({"deepspeed": "zero3.json"}, {}, "trl"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "trl"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "trl"),
    ],
)
def test_our_sampler_is_taken_but_for_another_backend_or_sharded_weights(monkeypatch, trl, launched, sampler):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert engines.build_sampler(parse_recipe({"training": {"trl": trl}}), None) == (sampler, None)


@pytest.mark.skipif(missing() is None, reason="vLLM is installed here")
def test_a_recipe_that_names_it_where_it_is_not_installed_says_how_to_get_it():
    with pytest.raises(RecipeError, match=r"training\.sampler = vllm: .*not installed.*docs/speed\.md"):
        engines.check_sampler(parse_recipe({"training": {"sampler": "vllm"}}), 1)
