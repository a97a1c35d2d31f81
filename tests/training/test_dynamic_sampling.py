"""Dead groups give way to other prompts: which, how often, charged to whom, and again after a resume."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threefold import GRPO
from threefold.training.dynamic_sampling import Candidates, DynamicSampling, PromptStream, dead, replace_dead
from threefold.training.run_directory import RunDirectory

DEAD, ALIVE = [0.0, 0.0], [0.0, 1.0]
SHORT = {"max_completion_length": 2, "max_steps": 3, "lr_scheduler_type": "constant"}
"""Two random characters are seldom a digit: most groups are dead."""


def episodes(names: list[str], outcomes: list[list[float]]) -> Candidates:
    """Groups of two by name, with ids that tell where each episode came from."""
    inputs = [{"prompt": name} for name in names for _ in range(2)]
    ids = [[len(name), member] for name in names for member in range(2)]
    rewards_BF = torch.tensor([value for group in outcomes for value in group]).unsqueeze(1)
    return Candidates(inputs, (ids, None), rewards_BF)


def run(first: list[list[float]], later: dict[str, list[float]], max_rounds: int = 3) -> Any:
    """A batch of groups "a", "b", ... and a stream of the prompts of `later`."""
    names = [chr(ord("a") + i) for i in range(len(first))]
    stream = iter(later)
    asked: list[list[str]] = []

    def generate(inputs: list[dict[str, Any]]) -> Candidates:
        asked.append([row["prompt"] for row in inputs][::2])
        return episodes(asked[-1], [later[name] for name in asked[-1]])

    batch, figures = replace_dead(
        episodes(names, first),
        generate,
        lambda count: [{"prompt": next(stream)} for _ in range(count)],
        outcome=0,
        group_size=2,
        max_rounds=max_rounds,
    )
    prompts = [row["prompt"] for row in batch.inputs]
    assert prompts[::2] == prompts[1::2]
    return prompts[::2], batch, {k.partition("/")[2]: v for k, v in figures.items()}, asked


def test_a_live_batch_is_left_alone() -> None:
    prompts, batch, figures, asked = run([ALIVE, ALIVE], {})
    assert prompts == ["a", "b"]
    assert asked == []
    assert figures == {"rounds": 0, "generated": 4, "replaced": 0, "dead_first": 0, "dead_left": 0}
    assert batch.rewards_BF.flatten().tolist() == [0, 1, 0, 1]


def test_dead_groups_are_replaced_in_place_until_none_is_left() -> None:
    later = {"xx": DEAD, "yyy": ALIVE, "zzzz": [1.0, 0.0]}
    prompts, batch, figures, asked = run([DEAD, ALIVE, [1.0, 1.0]], later)
    assert asked == [["xx", "yyy"], ["zzzz"]]
    assert prompts == ["zzzz", "b", "yyy"]
    # By hand: 6 episodes, then 2 groups, then 1: 6 + 4 + 2.
    assert figures == {"rounds": 2, "generated": 12, "replaced": 3, "dead_first": 2 / 3, "dead_left": 0}
    assert batch.generated == ([[4, 0], [4, 1], [1, 0], [1, 1], [3, 0], [3, 1]], None)
    assert batch.rewards_BF.flatten().tolist() == [1, 0, 0, 1, 0, 1]


def test_what_is_dead_after_the_last_round_stays() -> None:
    prompts, _, figures, _ = run([DEAD, ALIVE], {"xx": DEAD, "yyy": DEAD}, max_rounds=2)
    assert prompts == ["yyy", "b"]
    assert figures == {"rounds": 2, "generated": 8, "replaced": 2, "dead_first": 0.5, "dead_left": 0.5}


def test_dead_is_decided_by_equality() -> None:
    nan = float("nan")
    outcome_B = torch.tensor([0.1, 0.1, 0.1, 0.1 + 1e-6, nan, nan, nan, 1.0])
    assert dead(outcome_B, 2) == [0, 2, 3]  # one scored episode alone compares with nothing


@given(st.integers(1, 20), st.integers(0, 5), st.lists(st.integers(0, 7), max_size=6))
def test_the_stream_gives_every_row_once_an_epoch_and_goes_on_where_it_stood(size, seed, takes) -> None:
    whole = PromptStream(size, seed).take(3 * size)
    for epoch in range(3):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))
    stream, taken = PromptStream(size, seed), []
    for count in takes:
        stream = PromptStream(size, seed, stream.drawn)  # as a checkpoint would bring it back
        taken += stream.take(count)
    assert taken == PromptStream(size, seed).take(sum(takes))


def test_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="max_rounds of at least 1, got 0"):
        DynamicSampling(max_rounds=0)


def never(completions: Any, **columns: Any) -> list[float]:
    """Every group is dead."""
    return [0.0] * len(completions)


def test_every_generated_episode_is_charged(build, tmp_path) -> None:
    trainer = build(
        reward_funcs=never,
        credit=GRPO(),
        run_dir=tmp_path / "run",
        dynamic_sampling=DynamicSampling(max_rounds=2),
        args={"max_steps": 2},
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["dynamic_sampling/generated"] == 48  # 16 episodes, three times
        assert line["dynamic_sampling/replaced"] == 8
        assert line["dynamic_sampling/dead_left"] == line["signal/dead_outcome"] == 1.0
    rollouts = (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()
    assert len(rollouts) == 2 * 16  # what was trained on
    # TRL's own counter has seen all tokens: three batches a step, of prompts of 4 tokens and completions.
    assert lines[-1]["num_tokens"] >= 2 * 48 * 5


def test_the_loss_sees_the_live_groups(build, tmp_path) -> None:
    def run(name: str, dynamic: DynamicSampling | None) -> list[dict[str, Any]]:
        trainer = build(
            credit=GRPO(), run_dir=tmp_path / name, dynamic_sampling=dynamic, args={"max_steps": 3}
        )
        trainer.train()
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    plain, dynamic = run("plain", None), run("dynamic", DynamicSampling(max_rounds=5))
    # The first batch is the same one, so what it would have wasted is known.
    assert dynamic[0]["dynamic_sampling/dead_first"] == plain[0]["signal/dead_outcome"]
    assert sum(line["signal/dead_outcome"] for line in plain) > 0
    for line in dynamic:
        assert line["signal/dead_outcome"] == line["dynamic_sampling/dead_left"]
        assert line["signal/dead_outcome"] <= line["dynamic_sampling/dead_first"]


def test_a_resumed_run_is_the_uninterrupted_one(build, tmp_path) -> None:
    def trainer_in(name: str, steps: int, **options: Any) -> Any:
        run = RunDirectory(tmp_path / name, **options)
        args = {
            **SHORT,
            "max_steps": steps,
            "save_strategy": "steps",
            "save_steps": 2,
            "output_dir": str(run.path / "checkpoints"),
        }
        return build(args=args, credit=GRPO(), run_dir=run, dynamic_sampling=DynamicSampling(max_rounds=2))

    through = trainer_in("through", 4)
    through.train()
    trainer_in("halves", 2).train()
    resumed = trainer_in("halves", 4, resume=True)
    resumed.train(
        resume_from_checkpoint=str(RunDirectory(tmp_path / "halves", resume=True).latest_checkpoint())
    )
    assert through._stream.drawn == resumed._stream.drawn > 0
    for mine, theirs in zip(through.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    one, other = ((tmp_path / name / "rollouts.jsonl").read_text() for name in ("through", "halves"))
    assert one == other


def test_a_trainer_that_it_does_not_serve_is_refused(build) -> None:
    def rollout(prompts: Any, trainer: Any) -> Any:
        raise AssertionError("never played")

    with pytest.raises(ValueError, match=r"does not serve episodes against an environment.*leave it out"):
        build(rollout_func=rollout, dynamic_sampling=DynamicSampling())
