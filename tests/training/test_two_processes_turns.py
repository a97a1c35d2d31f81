"""Credit by turn over two processes: episodes of different lengths and channels, credited as one group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from threefold import T2GRPO
from threefold.trajectory import read_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["trl", "threefold"])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_turns")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    answer = subprocess.run(
        [*command, str(Path(__file__).with_name("two_processes_turns.py")), str(folder), request.param],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_both_processes_keep_the_same_weights(ranks):
    _, (one, other) = ranks
    for a, b in zip(one["weights"], other["weights"], strict=True):
        assert torch.equal(a, b)


def test_both_see_the_same_turns_and_give_the_same_credit(ranks):
    _, (one, other) = ranks
    assert len(one["kept"]) == 3
    for a, b in zip(one["kept"], other["kept"], strict=True):
        assert torch.equal(a["values"], b["values"])
        for batch in (a["batch"], b["batch"]):
            assert batch.turn_mask_BK.sum(dim=1).tolist() == [1, 2, 3, 4]
            assert batch.violation_B.tolist() == [False, True, False, False]
            assert batch.violation_turn_B.tolist() == [-1, 1, -1, -1]
            assert batch.turn_rewards["extra"][3].tolist() == [1, 2, 3, 4]
            assert batch.turn_rewards["extra"][:3].isnan().all()
        for name in ("D", "extra"):
            torch.testing.assert_close(
                a["batch"].turn_rewards[name], b["batch"].turn_rewards[name], equal_nan=True
            )


def test_credit_is_that_of_one_process_and_each_takes_its_part(ranks):
    _, (one, other) = ranks
    for a, b in zip(one["kept"], other["kept"], strict=True):
        alone = T2GRPO(turns=("D", "extra")).assign(a["batch"])
        assert torch.equal(alone.values, a["values"])
        width = [part["local"].shape[1] for part in (a, b)]
        assert torch.equal(a["local"], a["values"][:2, : width[0]])
        assert torch.equal(b["local"], b["values"][2:, : width[1]])
        assert (a["values"][1][a["batch"].mask_BT[1]] == -16).all()


def test_the_record_keeps_the_order_of_the_rows(ranks):
    folder, (one, _) = ranks
    records = list(read_jsonl(folder / "run" / "rollouts.jsonl"))
    assert [r.trajectory.member for r in records] == [0, 1, 2, 3] * 3
    for row, record in enumerate(records[:4]):
        batch = one["kept"][0]["batch"]
        levels = [turn.rewards["D"] for turn in record.trajectory.turns]
        assert batch.turn_rewards["D"][row, : len(levels)].tolist() == levels
