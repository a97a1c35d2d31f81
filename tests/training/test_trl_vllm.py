"""Training on what TRL's own vLLM sampled, colocated and behind a server: all that is added works on it.

Needs vLLM, and is skipped where it is not installed; docs/speed.md says how to get it for a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trl_vllm
from ragged import Ragged
from trl import GRPOTrainer

from threefold import GRPO, ISPO, T2GRPO, Limits, Speedups, ThreefoldTrainer
from threefold.envs.toy import EchoThenNext
from threefold.trajectory import read_jsonl

pytestmark = pytest.mark.skipif(trl_vllm.missing() is not None, reason=f"needs vLLM: {trl_vllm.missing()}")

MODES = pytest.mark.parametrize("mode", ["colocate", "server"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server in fp32; every trainer pushes its own weights before it first samples."""
    with trl_vllm.served(trl_vllm.save_model(tmp_path_factory.mktemp("served"))) as address:
        yield address


@pytest.fixture
def vllm(request, tmp_path, build):
    """Make trainers on TRL's vLLM from the same weights, one at a time: `vllm(mode, cls, args={...}, ...)`.

    Colocated vLLM samples in bf16, the server in fp32.
    """
    made: list[Any] = []

    def make(mode: str, cls: Any = ThreefoldTrainer, args: dict[str, Any] | None = None, **options: Any):
        settings: dict[str, Any] = {"use_vllm": True, "vllm_mode": mode}
        if mode == "server":
            settings["vllm_server_base_url"] = request.getfixturevalue("server")
            settings["generation_kwargs"] = {"seed": 5}
        else:
            settings["vllm_max_model_length"] = trl_vllm.MAX_LENGTH
            settings["vllm_gpu_memory_utilization"] = 0.1
        settings |= {"model_init_kwargs": {"dtype": "float32"}, **(args or {})}
        while made:
            trl_vllm.close(made.pop())
        made.append(build(cls, args=settings, model=str(folder), **options))
        return made[-1]

    folder = trl_vllm.save_model(tmp_path / "model", torch.bfloat16)
    with trl_vllm.on_a_cpu():
        yield make
        while made:
            trl_vllm.close(made.pop())


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def logged(trainer: Any, *names: str) -> list[list[float]]:
    history = [line for line in trainer.state.log_history if "loss" in line]
    return [[line[name] for name in names] for line in history]


@MODES
def test_without_credit_it_is_trl(vllm, mode):
    """Losses, lengths, importance ratios and the weights after three steps, all to the last bit."""
    names = (
        "loss",
        "grad_norm",
        "reward",
        "completions/mean_length",
        "sampling/importance_sampling_ratio/mean",
    )
    seen = []
    for cls in (GRPOTrainer, ThreefoldTrainer):
        trainer = vllm(mode, cls)
        trainer.train()
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        seen.append((logged(trainer, *names), weights))
    (plain, plain_weights), (ours, our_weights) = seen
    assert plain == ours
    assert len(plain) == 3
    assert any(grad_norm > 0 for _, grad_norm, *_ in plain)
    assert torch.equal(plain_weights, our_weights)


@MODES
def test_the_update_with_speedups_is_the_same(vllm, mode):
    """One step of gradient descent, whose loss carries TRL's importance ratio, apart by rounding alone."""
    args = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
    changes = []
    for speedups in (None, Speedups()):
        trainer = vllm(mode, args=args, credit=GRPO(), speedups=speedups)
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        changes.append(after - before)
        ratio = trainer.state.log_history[0]["sampling/importance_sampling_ratio/max"]
        assert (ratio > 1.001) == (mode == "colocate")  # in bf16; in fp32 there is nothing to correct
    plain, fast = changes
    assert plain.norm() > 0
    assert (fast - plain).norm() < 1e-5 * plain.norm()


@MODES
@pytest.mark.parametrize("method", ["ispo", "t2grpo"])
def test_methods_train_on_it_and_every_update_reaches_it(vllm, tmp_path, mode, method):
    """Signals of the policy and the frozen model on one turn; credit by turn in dialogues, whose tokens from
    the environment are no one's. What vLLM says of its samples is what the policy says of them, at a learning
    rate that moves log-probabilities by far more."""
    options: dict[str, Any] = {
        "ispo": {
            "credit": ISPO("digit", combine="union"),
            "answer_format": r"([0-9])",
        },
        "t2grpo": {
            "reward_funcs": None,
            "environment": Ragged,
            "credit": T2GRPO(turns=("D",)),
            "limits": Limits(turns=4, turn_tokens=4, completion_tokens=64),
        },
    }[method]
    trainer = vllm(mode, args={"learning_rate": 1e-2}, run_dir=tmp_path / "run", **options)
    trainer.train()
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    gap = 1e-4 if mode == "server" else 0.02
    for line in lines:
        assert line["sampling/sampling_logp_difference/mean"] < gap
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=gap)
    assert any(line["grad_norm"] > 0 for line in lines)
    for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl"):
        segment = record.trajectory.segments[0]
        for token, turn, logp in zip(segment.token_ids, segment.turn_ids, segment.logprobs, strict=True):
            assert turn >= 0 or logp is None, token


def test_a_turn_is_no_longer_than_its_limit(vllm, tmp_path):
    vllm(
        "server",
        args={"max_steps": 1, "max_completion_length": 24},
        reward_funcs=None,
        environment=EchoThenNext,
        limits=Limits(turns=2, turn_tokens=3, completion_tokens=24),
        credit=GRPO(),
        run_dir=tmp_path / "run",
    ).train()
    for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl"):
        turns = record.trajectory.segments[0].turn_ids
        assert {turns.count(turn) for turn in set(turns) - {-1}} <= {1, 2, 3}


@pytest.mark.slow
def test_two_processes_ask_one_server_for_dialogues_of_different_lengths(server, tmp_path):
    """Each process has its own dialogues' tokens: what the server said of them is what the policy says."""
    trl_vllm.save_model(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("two_processes_vllm.py")
    answer = subprocess.run(
        [*command, str(script), str(tmp_path), server],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    lines = lines_of(tmp_path / "run")
    assert len(lines) == 3
    for line in lines:
        assert line["sampling/sampling_logp_difference/max"] < 1e-3
    lengths = [len(r.trajectory.turns) for r in read_jsonl(tmp_path / "run" / "rollouts.jsonl")]
    assert lengths == [1, 2, 3, 4] * 3
