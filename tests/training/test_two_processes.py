"""A group that spans two processes is credited as one group, and both processes keep the same weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from threefold import ISPO
from threefold.credit.grpo import advantages
from threefold.trajectory import read_jsonl

pytestmark = pytest.mark.slow


def run_two(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    answer = subprocess.run(
        [*command, str(Path(__file__).with_name("two_processes.py")), str(folder), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]


@pytest.fixture(scope="module", params=["trl", "threefold"])
def ranks(request, tmp_path_factory):
    """What two processes saw with TRL's sampler and with ours, whose scores stand for the signals."""
    folder = tmp_path_factory.mktemp("two")
    run_two(folder, request.param)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_both_processes_keep_the_same_weights(ranks):
    _, (one, other) = ranks
    for a, b in zip(one["weights"], other["weights"], strict=True):
        assert torch.equal(a, b)


def test_both_see_the_same_batch_and_give_the_same_credit(ranks):
    _, (one, other) = ranks
    assert len(one["kept"]) == 4
    for a, b in zip(one["kept"], other["kept"], strict=True):
        assert torch.equal(a["values"], b["values"])
        assert torch.equal(a["batch"].rewards["digit"], b["batch"].rewards["digit"])
        assert a["batch"].step == b["batch"].step
        for field in fields(a["batch"].signals):
            mine, yours = (getattr(kept["batch"].signals, field.name) for kept in (a, b))
            assert (mine is None and yours is None) or torch.equal(mine, yours)
        assert a["batch"].signals.answer_ids_BA is not None
    assert [kept["batch"].step for kept in one["kept"]] == [0, 1, 2, 3]


def test_credit_is_that_of_one_process_and_each_takes_its_part(ranks):
    _, (one, other) = ranks
    for a, b in zip(one["kept"], other["kept"], strict=True):
        assert a["batch"].group_B.tolist() == [0, 0, 0, 0]
        # With the noise control: both processes and this one deal alike.
        alone = ISPO("digit", combine="union", noise_control="shuffle").assign(a["batch"])
        assert torch.equal(alone.values, a["values"])
        assert torch.equal(torch.cat([a["local"], b["local"]]), a["values"])
        # The episodes of one process alone would have been credited otherwise: the group does span both.
        halves = [advantages(alone.reward_B[part], torch.zeros(2)) for part in (slice(2), slice(2, 4))]
        if alone.values.abs().max() > 0:
            assert not torch.allclose(torch.cat(halves), a["values"])
    assert any(kept["values"].abs().max() > 0 for kept in one["kept"])


def test_signals_and_record_keep_the_order_of_the_rows(ranks, make_model):
    """The first batch was scored by the initial model, so its record can be scored again here."""
    folder, (one, _) = ranks
    records = list(read_jsonl(folder / "run" / "rollouts.jsonl"))
    assert [r.trajectory.member for r in records] == [0, 1, 2, 3] * 4
    assert [r.trajectory.group_id for r in records] == [group for group in range(4) for _ in range(4)]
    model, batch = make_model().eval(), one["kept"][0]["batch"]
    for row, record in enumerate(records[:4]):
        segment = record.trajectory.segments[0]
        ids, cut = torch.tensor([segment.token_ids]), segment.prompt_length
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
        logp = logp.gather(1, ids[0, 1:, None])[cut - 1 :, 0]
        torch.testing.assert_close(batch.signals.logp_BT[row, : len(logp)], logp, atol=1e-5, rtol=0)
        assert batch.rewards["digit"][row] == record.trajectory.rewards["digit"]
        assert record.advantages[0][-1] == pytest.approx(float(one["kept"][0]["values"][row]), abs=1e-5)
    # one prompt, and each process has random numbers of its own
    assert len({record.trajectory.segments[0].token_ids for record in records[:4]}) == 4


@pytest.mark.parametrize("update", ["one-update", "dead-end"])
def test_speedups_give_the_same_gradient_on_two_processes(tmp_path, update):
    """Under DDP, with micro-batches that are empty on one process and not on the other; and where the last of
    the update, in whose backward the processes sum their gradients up, has nothing with an advantage."""
    run_two(tmp_path, update)
    for rank in (0, 1):
        plain, fast = (torch.load(tmp_path / f"{name}{rank}.pt") for name in ("plain", "fast"))
        size = sum(float((a**2).sum()) for a in plain) ** 0.5
        apart = sum(float(((a - b) ** 2).sum()) for a, b in zip(plain, fast, strict=True)) ** 0.5
        assert size > 0
        assert apart / size < 1e-5
