"""Rewards that are missing or not numbers: no gradient from them, none lost beside them, and counted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from threefold import GRPO, ISPO
from threefold.trajectory import read_jsonl

MISSING = {"None": None, "NaN": math.nan}


def lines(run: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def partly(missing: Any) -> Any:
    """The first member of each group of four cannot be scored; the others get 0, 1, 0."""

    def right(completions: list[str], **columns: Any) -> list[Any]:
        return [missing if i % 4 == 0 else float(i % 2 == 0) for i in range(len(completions))]

    return right


@pytest.mark.parametrize("credit", [GRPO(), ISPO("right", combine="union")], ids=["GRPO", "ISPO"])
@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING.keys())
def test_an_episode_without_a_reward_is_left_out(build, tmp_path, missing, credit):
    run = tmp_path / "run"
    options = {"reward_funcs": partly(missing), "credit": credit, "answer_format": r"([0-9])"}
    trainer = build(run_dir=run, **options)
    trainer.train()
    for record in read_jsonl(run / "rollouts.jsonl"):
        if record.trajectory.member == 0:
            assert record.trajectory.rewards == {"right": None}
            assert record.trajectory.success is None
            assert set(record.advantages[0]) == {0.0}
            assert record.outcome_advantage == 0.0
        else:
            assert any(record.advantages[0])
    for line in lines(run):
        assert line["signal/unscorable"] == 0.25
        assert line["signal/outcome"] == pytest.approx(1 / 3)
        assert "25% of the episodes could not be scored" in line["words"]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_the_outcomes_of_the_others_are_centred_among_themselves(build, tmp_path):
    """Rewards 0, 1, 0 have mean 1/3 and unbiased deviation 1/sqrt(3)."""
    build(reward_funcs=partly(None), credit=GRPO(), run_dir=tmp_path / "run", args={"max_steps": 1}).train()
    spread = 1 / math.sqrt(3) + 1e-4
    expected = {0: 0.0, 1: -1 / 3 / spread, 2: 2 / 3 / spread, 3: -1 / 3 / spread}
    for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl"):
        assert record.outcome_advantage == pytest.approx(expected[record.trajectory.member], abs=1e-5)


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING.keys())
def test_where_nothing_is_scored_nothing_is_trained(build, tmp_path, make_model, missing):
    def right(completions: list[str], **columns: Any) -> list[Any]:
        return [missing] * len(completions)

    trainer = build(reward_funcs=right, credit=GRPO(), run_dir=tmp_path / "run")
    trainer.train()
    for trained, initial in zip(trainer.model.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(trained, initial)
    assert all(line["signal/unscorable"] == 1.0 for line in lines(tmp_path / "run"))
    assert "the reward functions scored nothing" in lines(tmp_path / "run")[0]["words"]


def test_an_outcome_outside_its_range_is_refused_with_the_value(build):
    def right(completions: list[str], **columns: Any) -> list[float]:
        return [-1.0] * len(completions)

    trainer = build(reward_funcs=right, credit=ISPO("right"), answer_format=r"([0-9])")
    with pytest.raises(ValueError, match=r"'right' gave episode 0 of the batch -1: .*must lie in \[0, 1\]"):
        trainer.train()
