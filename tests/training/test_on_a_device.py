"""Training on a device that is not the host: nothing mixes the two, and the figures are the CPU's.

The device pretends (pretend_device.py): it has no speed and no kernels of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from care_parts import SETTINGS as CARE
from pretend_device import DEVICE, OnDevice, pretend_device
from threefold.cli import main
from threefold.trajectory import read_jsonl
from tiny_parts import tiny_model, tiny_tokenizer

QUESTIONS = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
PROBLEMS = {
    "prompt.answer_format": "([0-9])",
    "prompt.style": "generic",
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "training.group_size": 4,
    "training.max_completion_tokens": 8,
    "training.learning_rate": 1e-2,
    "evaluation.problems": 2,
    "run.threads": 1,
}
ERRANDS = {
    "environment.name": "errands",
    "environment.turns": 2,
    "environment.turn_tokens": 2,
    "environment.completion_tokens": 200,
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "training.group_size": 4,
    "evaluation.problems": 2,
    "run.threads": 1,
}
OPTIMIZER = "training.trl={use_cpu: false, optim: adamw_torch}"  # the fused one knows devices by name
RUNS = {
    "ispo": ("problems", ["credit.method=ispo-paper", "evaluation.every=1"]),
    "t2grpo": ("care", ["evaluation.problems=2", "evaluation.before=true"]),
    "TRL's sampler": ("problems", ["credit.method=ispo-paper", "training.sampler=trl"]),
    "a copy in bf16": ("problems", ["credit.method=grpo", "training.sampler=threefold-bf16"]),
    "KL": ("problems", ["credit.method=grpo", "training.kl=0.1"]),
    "dynamic sampling": ("problems", ["credit.method=grpo", "training.dynamic_sampling={max_rounds: 2}"]),
    "LoRA": ("problems", ["credit.method=ispo-paper", "model.lora={r: 2}"]),
    "checkpointing": ("problems", ["credit.method=ispo-paper", "training.gradient_checkpointing=true"]),
    "two updates": (
        "problems",
        ["credit.method=ispo-paper", "training.updates_per_step=2", "training.micro_batch=2"],
    ),
    "self-certainty": ("problems", ["credit.method=self_certainty"]),
    "a reference answer": ("problems", ["credit.method=reference_answer"]),
    "skills": ("errands", ["skills.creator=offline"]),
    "together": ("care", ["credit.together=[{method: ispo}]"]),
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """What `threefold train` is given for a run, in a folder of that name below `where`."""
    folder = tmp_path_factory.mktemp("device")
    tiny_model(max_position_embeddings=8192).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for split, rows in (("train", QUESTIONS), ("test", QUESTIONS[:4])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    data = {f"data.{split}": str(folder / f"{split}.jsonl") for split in ("train", "test")}
    for kind, settings in (("problems", {**PROBLEMS, **data}), ("care", CARE), ("errands", ERRANDS)):
        recipe: dict[str, Any] = {"model": {"name": str(folder / "model")}}
        for key, value in settings.items():
            section, _, name = key.partition(".")
            recipe.setdefault(section, {})[name] = value
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def of(name: str, where: str) -> list[str]:
        kind, overrides = RUNS[name]
        return [str(folder / f"{kind}.yaml"), *overrides, f"run.dir={folder / where / name}"]

    return of


@pytest.fixture(scope="module")
def on_device(arguments: Callable[..., list[str]]) -> Callable[[str], Path]:
    """The run directory of a run on the device; all runs are made at once, in a process of their own."""
    here = Path(__file__).parent
    every = [[*arguments(name, "device"), OPTIMIZER] for name in RUNS]
    answer = subprocess.run(
        [sys.executable, str(here / "on_a_device.py"), json.dumps(every)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(here.parent), os.getenv("PYTHONPATH")])),
        },
    )
    assert answer.returncode == 0, answer.stderr[-4000:]
    return lambda name: Path(arguments(name, "device")[-1].partition("=")[2])


def figures(run: Path) -> dict[str, float]:
    """The first line of metrics.jsonl that trained, without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first = next(row for row in rows if row["split"] == "train")
    clock = ("time", "seconds")
    return {
        name: value
        for name, value in first.items()
        if isinstance(value, float) and not any(word in name for word in clock)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_device_is_the_one_on_the_host(name, on_device, arguments):
    words = [*arguments(name, "host"), OPTIMIZER.replace("use_cpu: false, ", "")]
    assert main(["train", *words, "--quiet"]) == 0
    host = Path(words[-2].partition("=")[2])
    assert figures(on_device(name)) == pytest.approx(figures(host), rel=1e-3, abs=1e-4)
    theirs, ours = (list(read_jsonl(run / "rollouts.jsonl")) for run in (on_device(name), host))
    assert len(theirs) == len(ours)
    for one, other in zip(theirs[: len(ours) // 2], ours, strict=False):  # of the first step
        assert one.trajectory.segments[0].token_ids == other.trajectory.segments[0].token_ids
    assert (on_device(name) / "model").is_dir()


# What the device refuses


def test_what_meets_across_the_two_is_refused():
    with pretend_device():
        there, here = torch.ones(2, 3, device=DEVICE), torch.ones(2, 3)
        assert isinstance(there, OnDevice)
        with pytest.raises(RuntimeError, match="on the host"):
            there + here
        with pytest.raises(RuntimeError, match="on the host"):
            torch.cat([there, here])
        with pytest.raises(TypeError, match="no array"):
            there.numpy()
        assert (there + 1).tolist() == [[2.0] * 3] * 2
        assert (there * torch.tensor(2.0)).cpu().sum() == 12  # a scalar may cross
        assert there[torch.tensor([0])].shape == (1, 3)  # so may an index
        assert torch.equal(here.to(DEVICE).cpu(), here)


def test_gradients_are_the_hosts():
    torch.manual_seed(0)
    model, rows = tiny_model(), torch.randint(0, 90, (2, 9))
    kept = torch.ones_like(rows)
    kept[1, :4] = 0

    def gradients(device: Any) -> list[Any]:
        model.zero_grad()
        logits = model(rows.to(device), attention_mask=kept.to(device)).logits
        logits[:, -1].logsumexp(-1).sum().backward()
        return [weights.grad.cpu() for weights in model.parameters()]

    ours = gradients("cpu")
    with pretend_device():
        model.to(DEVICE)
        theirs = gradients(DEVICE)
    assert len(ours) == len(theirs)
    for one, other in zip(theirs, ours, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
