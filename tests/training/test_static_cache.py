"""TRL's `cache_implementation: static`: our sampler compiles its steps, and TRL's own path takes it."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from threefold import ISPO, Speedups
from threefold.cli import main
from threefold.rollout.samplers.compiled_decoding import CompiledDecoding
from threefold.training.trl_seam import generation


def completions(trainer):
    seen = []
    credit = trainer._credit

    def noting(output, generation):
        seen.append([list(ids) for ids in generation.completion_ids])
        return credit(output, generation)

    trainer._credit = noting
    trainer.train()
    return seen


def test_training_with_compiled_steps_is_training(build, monkeypatch):
    """The same completions while the weights move, beside shared prompts, whose forward is traced along."""
    torch.compiler.reset()
    graphs, made = [], []

    def traced(graph, inputs):
        graphs.append(graph)
        return graph

    def compiled(model):
        made.append(CompiledDecoding(model, backend=traced))
        return made[-1]

    monkeypatch.setattr(generation, "CompiledDecoding", compiled)
    train = functools.partial(
        build, credit=ISPO("digit"), answer_format=r"([0-9])", sampler="threefold", speedups=Speedups()
    )
    static = completions(train(args={"max_steps": 3, "cache_implementation": "static"}))
    assert static == completions(train(args={"max_steps": 3}))
    assert len(made) == 1
    assert 0 < len(graphs) == len(made[0].buckets)


def test_other_caches_are_refused_before_the_first_step(build):
    with pytest.raises(ValueError, match=r"does not serve cache_implementation='offloaded'"):
        build(sampler="threefold", args={"cache_implementation": "offloaded"})


RECIPE = """
model: {{name: {model}}}
data: {{train: {data}, test: {data}}}
prompt: {{style: generic}}
training:
  {{steps: 1, prompts_per_step: 2, group_size: 4, max_completion_tokens: 4,
    trl: {{cache_implementation: static}}}}
evaluation: {{before: false, after: false}}
run: {{dir: {run}, threads: 1}}
"""


@pytest.mark.parametrize("sampler", ["trl", "threefold"])
def test_a_recipe_hands_it_on(tmp_path, model_folder, sampler):
    """Checked for either sampler, and TRL's own path takes a step with it."""
    data, recipe, run = tmp_path / "sums.jsonl", tmp_path / "recipe.yaml", tmp_path / "run"
    rows = [{"question": f"{i}+{j}=", "answer": str(i + j)} for i in range(3) for j in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe.write_text(RECIPE.format(model=model_folder, data=data, run=run), encoding="utf-8")
    train = ["train", str(recipe), f"training.sampler={sampler}"]
    assert main([*train, "--dry-run"]) == 0
    if sampler == "trl":
        assert main([*train, "--quiet"]) == 0
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[0])["step"] == 1
