"""Credit by turn in training: what reaches the estimator, the tokens, the loss, the record and the policy."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest
import torch
from echo_play import DIGITS, SayDigits, echo, gradients, played
from ragged import Ragged
from resumed import StopAt, figures, weights
from same_training import assert_same_training, trained
from trl import GRPOTrainer

from threefold import GDPO, GRPO, MTGRPO, T2GRPO, GiGPO, Limits, SummedGRPO, episode_rewards
from threefold.credit.turn_trajectory import advantages
from threefold.envs.base import EpisodeScore
from threefold.envs.toy import EchoThenNext
from threefold.training.run_directory import RunDirectory
from threefold.training.turns import turn_ids
from threefold.trajectory import Opening, Segment, Trajectory, read_jsonl

RAGGED = {
    "environment": Ragged,
    "reward_funcs": None,
    "limits": Limits(turns=4, turn_tokens=4, completion_tokens=64),
    "credit": T2GRPO(turns=("D",)),
}
LONG = {"max_completion_length": 64}


def ragged(build: Any, args: dict[str, Any] | None = None, **options: Any) -> Any:
    return played(build, {**LONG, **(args or {})}, **{**RAGGED, **options})


def test_the_batch_holds_what_the_episodes_hold(build, tmp_path):
    trainer = ragged(build, run_dir=tmp_path / "run")
    records = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    assert len(trainer.batches) == 3
    for step, batch in enumerate(trainer.batches):
        assert list(batch.rewards) == ["goal", "length"]
        assert batch.turn_mask_BK.sum(dim=1).tolist() == [1, 2, 3, 4] * 4
        assert batch.violation_B.tolist() == [False, True, False, False] * 4
        assert batch.violation_turn_B.tolist() == [-1, 1, -1, -1] * 4
        for row in range(16):
            trajectory, credited = records[16 * step + row].trajectory, records[16 * step + row]
            assert batch.rewards["length"][row] == len(trajectory.turns)
            level = 3.0
            for k, turn in enumerate(trajectory.turns):
                assert batch.turn_rewards["D"][row, k] == turn.rewards["D"]
                assert batch.turn_state["D"][row, k] == level
                level = turn.state["D"]
            assert batch.turn_rewards["D"][row, len(trajectory.turns) :].isnan().all()
            # Every token of a turn has the same advantage, and none outside of turns has any.
            segment, given = trajectory.segments[0], credited.advantages[0]
            for k in range(-1, len(trajectory.turns)):
                values = {a for a, turn in zip(given, segment.turn_ids, strict=True) if turn == k}
                assert len(values) == 1
                assert values == {0.0} if k == -1 else True
            assert credited.signals["violation"] == float(row % 4 == 1)
            if row % 4 == 1:
                assert set(given) == {0.0, -16.0}
                assert trajectory.ended == "violation"


def test_the_loss_is_given_the_function_s_answer(build):
    trainer = ragged(build)
    for batch, output in zip(trainer.batches, trainer.outputs, strict=True):
        values = advantages(
            batch.rewards, batch.turn_rewards, batch.turn_mask_BK, batch.violation_B, batch.group_B
        )
        given = output["advantages"]
        assert given.shape == output["completion_ids"].shape
        for row, token in (batch.turn_BT >= 0).nonzero().tolist():
            assert given[row, token] == values[row, batch.turn_BT[row, token]]
        assert (given[batch.turn_BT < 0] == 0).all()
    assert any(batch.turn_rewards["D"].nan_to_num().any() for batch in trainer.batches)


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo"])
def test_no_token_of_the_environment_is_trained(build, loss):
    """With an advantage a token, whatever the environment's tokens contribute moves nothing."""
    trainer = ragged(build, {"max_steps": 1, "loss_type": loss})
    inputs = dict(trainer.losses[0])
    mine_BT = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    theirs_BT = inputs["completion_mask"].bool() & ~mine_BT
    assert theirs_BT.any()
    assert inputs["advantages"].shape == mine_BT.shape
    reference = gradients(trainer, inputs)
    assert any(g.abs().max() > 0 for g in reference)
    trainer.disturb = 0.7  # as if the environment had said something that the policy finds likelier
    for a, b in zip(reference, gradients(trainer, inputs), strict=True):
        assert torch.equal(a, b)
    trainer.disturb = 0.0
    other = {**inputs, "advantages": torch.where(theirs_BT, 1e3, inputs["advantages"])}
    for a, b in zip(reference, gradients(trainer, other), strict=True):
        assert torch.equal(a, b)
    other = {**inputs, "advantages": torch.where(mine_BT, 2.0, 0.0)}
    assert not all(torch.equal(a, b) for a, b in zip(reference, gradients(trainer, other), strict=True))


@pytest.mark.parametrize("noise", ["turns", "all"])
def test_a_resumed_noise_control_deals_as_the_unbroken_run(build, tmp_path, noise):
    def run(name: str, stop: int | None = None) -> Any:
        directory = RunDirectory(tmp_path / name, resume=(tmp_path / name).exists())
        checkpoint = directory.latest_checkpoint() if (tmp_path / name).exists() else None
        if checkpoint is not None:
            directory.drop_after(2)
        args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **LONG}
        trainer = build(
            args={**args, "output_dir": str(tmp_path / name / "checkpoints")},
            run_dir=directory,
            callbacks=[StopAt(stop)] if stop else [],
            **{**RAGGED, "credit": T2GRPO(turns=("D",), noise_control=noise, noise_seed=5)},
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer

    through = run("through")
    run("halves", stop=3)  # one step past the checkpoint, whose records must be dropped
    assert torch.equal(weights(through), weights(run("halves")))
    assert figures(tmp_path / "through") == figures(tmp_path / "halves")
    moved = [line["turns/noise_moved"] for line in figures(tmp_path / "through")]
    assert len(moved) == 4
    assert max(moved) > 0


def test_figures_reach_metrics_jsonl(build, tmp_path):
    ragged(build, run_dir=tmp_path / "run", signals_every=1)
    for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        assert line["turns/violations"] == 0.25
        assert line["turns/per_episode"] == 2.5
        assert 0 < line["turns/violating_weight"] <= 1
        assert line["turns/tied_episode/length"] == 0.0
        assert math.isfinite(line["turns/clean_mean"])


def test_the_policy_learns_both_turns(build, tmp_path):
    run = tmp_path / "run"
    args = {"max_steps": 25, "learning_rate": 2e-2, "lr_scheduler_type": "constant", "num_generations": 8}
    credit = T2GRPO(turns=("echo",))
    played(
        build,
        {**args, "per_device_train_batch_size": 16},
        environment=SayDigits,
        reward_funcs=None,
        credit=credit,
        run_dir=run,
    )
    rewards = [json.loads(line)["reward"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[:3]) / 3 < 0.35
    assert sum(rewards[-3:]) / 3 > 0.75
    last = [record.trajectory for record in read_jsonl(run / "rollouts.jsonl")][-32:]
    for turn in (0, 1):
        assert sum(e.turns[turn].rewards["echo"] for e in last) / len(last) > 0.6


def learn_echo(build: Any, run: Any, credit: Any) -> list[float]:
    args = {
        "max_steps": 400,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "num_generations": 16,
        "per_device_train_batch_size": 160,
        "gradient_accumulation_steps": 1,
    }
    limits = Limits(turns=2, turn_tokens=1, completion_tokens=24)
    played(build, args, run_dir=run, limits=limits, reward_funcs=None, credit=credit)
    return [json.loads(line)["reward"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_echo_then_next_is_learnt(build, tmp_path):
    """The digit must be read off the prompt and, in turn 2, its neighbour be found."""
    rewards = learn_echo(build, tmp_path / "run", T2GRPO(turns=("echo",)))
    assert sum(rewards[:5]) / 5 < 0.05
    assert sum(rewards[-5:]) / 5 > 0.15  # always saying one digit, or one a turn, earns 0.1


def test_it_trains_with_two_sided_clipping_and_two_updates(build, make_model):
    args = {"delta": 4.0, "num_iterations": 2}
    trainer = ragged(build, {**args, "max_steps": 4})
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(trainer.model.parameters(), make_model().parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "credit",
    [
        T2GRPO(turns=("D",), normalise="leave_one_out", turn_credit="return_to_go", ended="zero"),
        T2GRPO(turns=("D",), turn_credit="headroom", veto_from_turn=True),
        T2GRPO(turns=("D",), turn_credit="stratified", exclude_violators_from_rank=True),
        T2GRPO(turns=("D",), normalise="zscore", horizons="summed", veto=None),
        GDPO(turns=("D",), batch_whitening=True),
        GiGPO(turns=("D",), states=("D",)),
        MTGRPO(turns=("D",), final_turn=True),
        SummedGRPO(turns=("D",)),
        GRPO(),
    ],
    ids=lambda credit: type(credit).__name__,
)
def test_each_of_them_trains(build, credit, make_model):
    trainer = ragged(build, {"max_steps": 2}, credit=credit)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    changed = zip(trainer.model.parameters(), make_model().parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in changed)


def half(completions: list[str], **columns: Any) -> list[float]:
    return [float("e" in text) for text in completions]


def short(completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
    return [None if a == "3" else float(len(set(text))) for text, a in zip(completions, answer, strict=True)]


def test_whitened_gdpo_trains_as_trls(build):
    rewards = {"reward_funcs": [half, short]}
    args = {"reward_weights": [1.0, 0.5], "max_steps": 6}
    theirs = trained(
        build, GRPOTrainer, args={**args, "multi_objective_aggregation": "normalize_then_sum"}, **rewards
    )
    ours = trained(build, args=args, credit=GDPO(batch_whitening=True), **rewards)
    assert_same_training(theirs, ours)


# Rewards of episodes


def test_rewards_come_of_the_environment_where_none_are_given(build):
    trainer = played(build, {"max_steps": 1}, reward_funcs=None)
    assert trainer.reward_func_names == ["echo"]
    given = played(build, {"max_steps": 1}, reward_funcs=echo)
    assert torch.equal(trainer.batches[0].rewards["echo"], given.batches[0].rewards["echo"])
    partial = played(build, {"max_steps": 1}, reward_funcs=None, environment=functools.partial(EchoThenNext))
    assert partial.reward_func_names == ["echo"]
    with pytest.raises(ValueError, match=r"episode_rewards\("):
        played(build, reward_funcs=None, environment=lambda: EchoThenNext())


def test_episode_rewards_read_channels_and_say_none_where_there_is_no_score():
    goal, fit = episode_rewards("goal", "fit")
    assert [goal.__name__, fit.__name__] == ["goal", "fit"]
    episodes = [episode(rewards={"goal": 2.0, "fit": None}), episode(rewards={})]
    assert goal(completions=["a", "b"], trajectory=episodes, other=[1, 2]) == [2.0, None]
    assert fit(completions=["a", "b"], trajectory=episodes) == [None, None]


def episode(**fields: Any) -> Trajectory:
    defaults = {
        "task_id": "t",
        "group_id": 0,
        "member": 0,
        "seed": 0,
        "environment": "",
        "opening": Opening(""),
        "segments": (Segment((5, 6, 7, 8), (-1, 0, 0, 1), (None,) * 4),),
        "turns": (),
    }
    return Trajectory(**{**defaults, **fields})


def test_two_turns_that_touch_are_still_two():
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    got = turn_ids([episode(), episode()], mask)
    assert got.tolist() == [[0, 0, 1, -1], [-1] * 4]


# Failures


def test_failed_episodes_and_judges_lose_no_step(build, tmp_path):
    class Fails(Ragged):
        def step(self, action_text):
            if (self.member, self.turn) == (2, 1):
                raise ConnectionError("no patient")
            return super().step(action_text)

        def score(self, episodes):
            scores = super().score(episodes)
            return [
                EpisodeScore({"goal": None, "length": s.rewards["length"]}) if e.member == 3 else s
                for e, s in zip(episodes, scores, strict=True)
            ]

    trainer = ragged(build, environment=Fails, run_dir=tmp_path / "run")
    for batch in trainer.batches:
        assert batch.rewards["goal"].isnan().tolist() == [False, False, True, True] * 4
        assert batch.rewards["length"].isnan().tolist() == [False, False, True, False] * 4
        assert batch.turn_mask_BK.sum(dim=1).tolist() == [1, 2, 2, 4] * 4
        assert batch.turn_rewards["D"].isnan()[2].tolist() == [False, True, True, True]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl"):
        if record.trajectory.member == 2:  # the turn that failed teaches nothing
            turns = record.trajectory.segments[0].turn_ids
            assert {a for a, k in zip(record.advantages[0], turns, strict=True) if k == 1} == {0.0}


def test_where_nothing_starts_nothing_is_trained(build, make_model):
    class NeverStarts(Ragged):
        def reset(self, task, seed, member):
            raise ConnectionError("no patient")

    trainer = ragged(build, {"max_steps": 1}, environment=NeverStarts)
    for trained_, initial in zip(trainer.model.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(trained_, initial)


# Before the first step


def test_what_cannot_work_is_refused_before_the_first_step(build):
    with pytest.raises(ValueError, match="environment="):
        build(credit=T2GRPO())
    with pytest.raises(ValueError, match="the loss 'vespo' weighs a whole row"):
        ragged(build, {"loss_type": "vespo"})
    with pytest.raises(ValueError, match="gives every token the row's mean advantage"):
        ragged(build, {"importance_sampling_level": "sequence"})
    with pytest.raises(ValueError, match=r"veto=2\.5 does not exceed 3"):
        ragged(build, credit=T2GRPO(turns=("D",), veto=2.5))
    with pytest.raises(ValueError, match="did you mean 'goal'"):
        ragged(build, credit=T2GRPO(turns=("D",), trajectory=("goals",)))


def test_a_misnamed_turn_channel_is_refused_before_the_first_update(build):
    trainer = build(args=LONG, train_dataset=DIGITS, **{**RAGGED, "credit": T2GRPO()})
    with pytest.raises(ValueError, match="the turn channel is 'R', valid: 'D'"):
        trainer.train()
    assert trainer.state.global_step == 0
