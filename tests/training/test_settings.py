"""The settings that change what is computed all train, are evaluated, and leave a model that `eval` loads."""

import json

import pytest

from threefold.cli import main

RECIPE = """
model: {{name: {model}}}
data: {{train: {data}, test: {data}}}
prompt: {{style: generic}}
credit: {{method: ispo, combine: union, format_weight: 0.1}}
training: {{steps: 2, prompts_per_step: 2, group_size: 4, max_completion_tokens: 8, learning_rate: 0.01}}
evaluation: {{problems: 2, greedy: false}}
run: {{dir: {run}, threads: 1}}
"""


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dtype=bf16"],
        ["model.dtype=bf16-mixed"],
        ["model.lora.r=2", "model.dtype=bf16"],
        ["training.kl=0.05"],
        ["training.updates_per_step=2", "training.sampler=trl"],
        ["training.ratio=sequence", "training.loss=grpo"],
        ["training.gradient_checkpointing=true"],
        ["training.sampler=threefold-bf16"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_a_setting_trains_and_its_model_is_evaluated(tmp_path, model_folder, overrides, capsys) -> None:
    data, run = tmp_path / "sums.jsonl", tmp_path / "run"
    rows = [{"question": f"{i}+{j}=", "answer": str(i + j)} for i in range(3) for j in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model_folder, data=data, run=run), encoding="utf-8")
    assert main(["train", str(recipe), "--quiet", *overrides]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["step"] for line in lines} >= {2}
    assert any("rewards/format/mean" in line for line in lines)
    output = tmp_path / "figures.json"
    command = ["eval", str(run), "--problems", "2", "--samples", "2", "--k", "1", "2", "--quiet"]
    assert main([*command, "--output", str(output)]) == 0
    greedy, sampled = json.loads(output.read_text(encoding="utf-8"))["evaluations"]
    assert (greedy["mode"], sampled["mode"]) == ("greedy", "sampled")
    assert set(sampled["pass_at"]["strict"]) == {"1", "2"}
    assert "2 problems" in capsys.readouterr().out


def test_what_is_said_in_steps_is_meant_in_steps_however_many_updates_one_has(tmp_path, model_folder) -> None:
    data, run = tmp_path / "sums.jsonl", tmp_path / "run"
    data.write_text('{"question": "1+1=", "answer": "2"}\n' * 2, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model_folder, data=data, run=run), encoding="utf-8")
    settings = {
        "credit": "{method: grpo}",
        "training.steps": 4,
        "training.updates_per_step": 2,
        "training.warmup_steps": 2,
        "training.save_every": 1,
        "training.keep_checkpoints": 9,
        "training.signals_every": 2,
        "training.signals_base": "true",
        "evaluation": "{before: false, after: false}",
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    assert main(["train", str(recipe), "--quiet", *words]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["learning_rate"] for line in lines] == pytest.approx([0, 0.0025, 0.005, 0.0075, *[0.01] * 4])
    assert [line["step"] for line in lines if "signal/kl_initial" in line] == [1, 5]
    saved = {path.name for path in (run / "checkpoints").glob("checkpoint-*")}
    assert saved == {f"checkpoint-{update}" for update in (2, 4, 6, 8)}
