"""Training against an environment of two turns: learning, masks, repeatability, and failures on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from echo_play import Kept, SayDigits, gradients, played

from threefold import Limits
from threefold.envs.base import EpisodeScore, Task
from threefold.envs.toy import EchoThenNext
from threefold.training.play import starts_of
from threefold.trajectory import read_jsonl


def test_the_policy_learns_both_turns(build, tmp_path):
    run = tmp_path / "run"
    args = {"max_steps": 25, "learning_rate": 2e-2, "lr_scheduler_type": "constant", "num_generations": 8}
    played(build, {**args, "per_device_train_batch_size": 16}, environment=SayDigits, run_dir=run)
    rewards = [json.loads(line)["reward"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[:3]) / 3 < 0.35
    assert sum(rewards[-3:]) / 3 > 0.75
    last = [record.trajectory for record in read_jsonl(run / "rollouts.jsonl")][-32:]
    for turn in (0, 1):
        assert sum(e.turns[turn].rewards["echo"] for e in last) / len(last) > 0.6


@pytest.mark.slow
def test_echo_then_next_is_learnt(build, tmp_path, make_model):
    """The digit must be read off the prompt and, in turn 2, its neighbour be found."""
    run = tmp_path / "run"
    args = {
        "max_steps": 400,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "num_generations": 16,
        "per_device_train_batch_size": 160,
        "gradient_accumulation_steps": 1,
    }
    played(build, args, run_dir=run, limits=Limits(turns=2, turn_tokens=1, completion_tokens=24))
    rewards = [json.loads(line)["reward"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[:5]) / 5 < 0.05
    assert sum(rewards[-5:]) / 5 > 0.15  # always saying one digit, or one a turn, earns 0.1


def test_the_loss_mask_is_what_the_agent_wrote(build, tmp_path):
    trainer = played(build, run_dir=tmp_path / "run")
    records = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    assert len(records) == 3 * 16
    for step, (output, batch) in enumerate(zip(trainer.outputs, trainer.batches, strict=True)):
        mask_BT = (output["completion_mask"] * output["tool_mask"]).bool()
        assert torch.equal(mask_BT, batch.mask_BT)
        for row, record in enumerate(records[16 * step : 16 * (step + 1)]):
            segment = record.trajectory.segments[0]
            turn_ids = segment.turn_ids[segment.prompt_length :]
            assert batch.turn_BT[row, : len(turn_ids)].tolist() == list(turn_ids)
            assert not mask_BT[row, len(turn_ids) :].any()
            assert {0, 1} <= set(turn_ids)
            # The ids that are trained are the ones that were sampled.
            ids = output["completion_ids"][row, : len(turn_ids)].tolist()
            assert ids == list(segment.token_ids[segment.prompt_length :])
            written = [turn >= 0 for turn in segment.turn_ids]
            assert all(a == 0 for a, mine in zip(record.advantages[0], written, strict=True) if not mine)


@pytest.mark.parametrize("loss", ["dapo", "grpo", "cispo"])
def test_no_token_of_the_environment_is_trained(build, loss):
    """Whatever the environment's tokens contribute, as targets or by an advantage, no gradient moves."""
    trainer = played(build, {"max_steps": 1, "loss_type": loss}, reward_funcs=random_reward)
    inputs = dict(trainer.losses[0])
    mine_BT = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    theirs_BT = inputs["completion_mask"].bool() & ~mine_BT
    assert theirs_BT.any()
    inputs["advantages"] = inputs["advantages"][:, None].expand(mine_BT.shape).clone()
    reference = gradients(trainer, inputs)
    assert any(g.abs().max() > 0 for g in reference)

    trainer.disturb = 0.7  # as if the environment had said something else that the policy finds likelier
    for a, b in zip(reference, gradients(trainer, inputs), strict=True):
        assert torch.equal(a, b)
    trainer.disturb = 0.0

    other = {**inputs, "advantages": torch.where(theirs_BT, 1e3, inputs["advantages"])}
    for a, b in zip(reference, gradients(trainer, other), strict=True):
        assert torch.equal(a, b)

    # And the same disturbance of the agent's own tokens does move it, so the comparison can fail.
    other = {**inputs, "advantages": torch.where(mine_BT, 2.0, 0.0)}
    assert not all(torch.equal(a, b) for a, b in zip(reference, gradients(trainer, other), strict=True))


def random_reward(completions: Any, **columns: Any) -> list[float]:
    return [float(i % 3) for i in range(len(completions))]


def test_groups_share_task_and_start_and_are_numbered_through_the_run(build, tmp_path):
    played(build, run_dir=tmp_path / "run")
    groups: dict[int, list[Any]] = {}
    for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl"):
        groups.setdefault(record.trajectory.group_id, []).append(record.trajectory)
    assert sorted(groups) == list(range(12))
    for members in groups.values():
        assert [m.member for m in members] == [0, 1, 2, 3]
        assert len({(m.opening.text, m.seed, m.task["digit"]) for m in members}) == 1
    assert len({members[0].seed for members in groups.values()}) == 12


def test_the_seed_decides_everything(build, tmp_path):
    rollouts, weights = {}, {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        args = {"seed": seed, "output_dir": str(tmp_path / f"trl-{name}")}
        trainer = played(build, args, run_dir=tmp_path / name, reward_funcs=random_reward)
        rollouts[name] = (tmp_path / name / "rollouts.jsonl").read_text()
        weights[name] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert rollouts["a"] == rollouts["b"]
    assert torch.equal(weights["a"], weights["b"])
    assert rollouts["a"] != rollouts["c"]
    assert not torch.equal(weights["a"], weights["c"])


class FailsOnEven(EchoThenNext):
    """Every episode with an even digit fails in `where`."""

    where = "step"
    open_now = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).open_now += 1

    def reset(self, task, seed, member):
        observation = super().reset(task, seed, member)
        if self.where == "reset":
            raise ConnectionError("no simulator")
        return observation

    def step(self, action_text):
        if self.where == "step" and self._digit % 2 == 0:
            raise ConnectionError("no simulator")
        return super().step(action_text)

    def close(self):
        super().close()
        type(self).open_now -= 1


def test_failed_episodes_are_recorded_counted_and_not_trained(build, tmp_path):
    trainer = played(build, environment=FailsOnEven, run_dir=tmp_path / "run")
    records = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    failed = [r for r in records if r.trajectory.task["digit"] % 2 == 0]
    assert failed
    assert len(failed) < len(records)
    for record in failed:
        assert record.trajectory.ended == "error: ConnectionError: no simulator"
        assert set(record.advantages[0]) == {0.0}
        assert record.outcome_advantage == 0.0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["signal/unscorable"] for line in lines) == pytest.approx(3 * len(failed) / len(records))
    assert FailsOnEven.open_now == 0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_where_no_episode_starts_nothing_is_trained_and_the_words_say_so(build, tmp_path, make_model):
    environment = type("NeverStarts", (FailsOnEven,), {"where": "reset", "open_now": 0})
    trainer = played(build, {"max_steps": 1}, environment=environment, run_dir=tmp_path / "run")
    for trained, initial in zip(trainer.model.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(trained, initial)
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["signal/unscorable"] == 1.0
    assert "100% of the episodes could not be scored" in line["words"]
    assert "the policy gradient is zero" in line["words"]
    assert environment.open_now == 0


def test_a_judge_that_gives_no_score_is_unscorable(build, tmp_path):
    class Unjudged(EchoThenNext):
        def score(self, episodes):
            return [EpisodeScore(rewards={"echo": None}) for _ in episodes]

    played(build, {"max_steps": 1}, environment=Unjudged, run_dir=tmp_path / "run")
    records = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    assert all(r.trajectory.ended == "terminated" for r in records)
    assert all(r.trajectory.rewards == {"echo": None} for r in records)


def test_our_sampler_keeps_the_dialogues_cache_and_its_logprobs_are_the_policys(build, tmp_path):
    """The record's log-probabilities, sampled from the kept cache, are those of the update's forward."""
    seen = []

    class Watched(Kept):
        def _play_episodes(self, prompts, trainer):
            hook = self.model.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
            )
            try:
                return super()._play_episodes(prompts, trainer)
            finally:
                hook.remove()

    trainer = played(
        lambda cls, **options: build(Watched, **options),
        {"max_steps": 1},
        sampler="threefold",
        run_dir=tmp_path / "run",
    )
    assert len(trainer.outputs) == 1
    assert seen[0] == (4, 6)  # four openings for sixteen episodes
    assert sum(columns > 1 for _, columns in seen) == 2
    for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl"):
        segment = record.trajectory.segments[0]
        cut = segment.prompt_length
        told = record.token_signals["logp"][0][cut:]
        for turn, sampled, scored in zip(segment.turn_ids[cut:], segment.logprobs[cut:], told, strict=True):
            assert (sampled is None) == (turn < 0)
            if turn >= 0:
                assert scored == pytest.approx(sampled, abs=1e-5)


def test_tasks_are_found_by_the_rows_id_and_a_missing_one_is_named():
    tasks = {"a": Task("a", {"digit": 3, "deep": {"x": [1]}}), "b": Task("b", {"digit": 5})}
    where = {"first_row": 2, "first_group": 7, "group_size": 2, "seed": 40, "tasks": tasks}
    rows = [{"prompt": "", "id": "b"}, {"prompt": "", "id": "b"}, {"prompt": "", "id": "a"}]
    starts = starts_of(rows, **where)
    assert [s.task for s in starts] == [tasks["b"], tasks["b"], tasks["a"]]
    assert [(s.group_id, s.member, s.seed) for s in starts] == [(8, 0, 48), (8, 1, 48), (9, 0, 49)]
    with pytest.raises(ValueError, match="id 'c', which is none of the 2 tasks"):
        starts_of([{"prompt": "", "id": "c"}], **where)
