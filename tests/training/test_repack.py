"""Micro-batches regrouped inside an update: the same gradient as TRL's, for less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from one_update import ONE_STEP, gradient, relative_difference, rows_forwarded, some_dead
from peft import LoraConfig
from transformers import ProcessorMixin, TrainerCallback
from trl import GRPOTrainer

from threefold import GRPO, ISPO, Speedups
from threefold.training import repack

REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
EXACT_LOSSES = ("dapo", "cispo", "grpo", "sapo", "dr_grpo")


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("loss", EXACT_LOSSES)
def test_the_gradient_is_trls(build, loss, ratio):
    args = {**ONE_STEP, "loss_type": loss, "importance_sampling_level": ratio}
    expected = gradient(build(GRPOTrainer, args=args, reward_funcs=some_dead))
    trainer = build(args=args, reward_funcs=some_dead, speedups=Speedups())
    forwarded = rows_forwarded(trainer)
    assert relative_difference(expected, gradient(trainer)) < 1e-5
    assert sum(forwarded) < 16  # dead rows were not forwarded


@pytest.mark.parametrize(
    "options",
    [
        {"credit": GRPO()},
        # Measured in plain reward: a division by the spread of a dead group's signals, 1e-4 here, would
        # enlarge their rounding a thousand times (trap 1 of ISPO).
        {"credit": ISPO("digit", combine="entropy", scale="none"), "answer_format": r"([0-9])"},
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")},
    ],
    ids=["GRPO", "ISPO", "LoRA"],
)
@pytest.mark.parametrize(
    "args", [{}, {"num_iterations": 2, "max_steps": 2}, {"mask_truncated_completions": True}], ids=str
)
def test_with_credit_and_adapters_too(build, options, args):
    args = {**ONE_STEP, **args}
    expected = gradient(build(args=args, **options))
    assert relative_difference(expected, gradient(build(args=args, **options, speedups=Speedups()))) < 1e-5


def test_an_update_of_several_in_a_generation(build):
    args = {**ONE_STEP, "gradient_accumulation_steps": 2, "max_steps": 2}
    expected = gradient(build(GRPOTrainer, args=args, reward_funcs=some_dead))
    trainer = build(args=args, reward_funcs=some_dead, speedups=Speedups())
    assert relative_difference(expected, gradient(trainer)) < 1e-5


def test_a_batch_without_any_advantage_costs_one_row(build):
    trainer = build(args=ONE_STEP, reward_funcs=lambda completions, **_: [1.0] * 16, speedups=Speedups())
    forwarded = rows_forwarded(trainer)
    assert all(not change.any() for change in gradient(trainer))
    assert forwarded == [1]


@pytest.mark.parametrize(
    "optimizer",
    [
        {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.1},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
    ],
    ids=lambda optimizer: optimizer["optim"],
)
def test_a_step_without_any_advantage_moves_the_weights_as_trls_does(build, optimizer):
    """Its gradient is zero, and not none: momentum and weight decay go on."""

    def first_step_alone() -> Any:
        calls: list[int] = []

        def reward(completions: list[Any], **columns: Any) -> list[float]:
            calls.append(len(completions))
            return [float(i % 3) * (len(calls) == 1) for i in range(len(completions))]

        return reward

    args = {**ONE_STEP, **optimizer, "max_steps": 3, "lr_scheduler_type": "constant"}
    expected = gradient(build(GRPOTrainer, args=args, reward_funcs=first_step_alone()))
    moved = gradient(build(args=args, reward_funcs=first_step_alone(), speedups=Speedups()))
    assert relative_difference(expected, moved) < 1e-4


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"beta": 0.1, "loss_type": "grpo"}, "beta > 0: with loss_type='grpo'"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile"),
        ({"entropy_coef": 0.1}, "the entropy bonus"),
        ({"loss_type": "bnpo"}, "loss_type='bnpo'"),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, "loss_type='luspo'"),
        ({"loss_type": "vespo"}, "loss_type='vespo'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_where_it_would_not_be_exact_it_stays_off_and_says_why(build, model_folder, caplog, args, reason):
    args = {**ONE_STEP, **args}
    # By folder, because TRL loads the reference model of beta > 0 once more.
    expected = gradient(build(GRPOTrainer, args=args, model=str(model_folder)))
    with caplog.at_level("INFO", logger="threefold"):
        trainer = build(args=args, model=str(model_folder), speedups=Speedups())
    assert f"speed-up repack is off: {reason}" in caplog.text
    assert "speed-up drop_dead is off: " in caplog.text
    assert relative_difference(expected, gradient(trainer)) < 1e-5  # shared prompts stay on, and exact


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (REENTRANT, "re-entrant gradient checkpointing"),
        ({"neftune_noise_alpha": 5.0}, "NEFTune's noise differs from row to row"),
    ],
    ids=["reentrant", "neftune"],
)
def test_prompts_are_not_shared_where_that_is_not_exact(build, caplog, args, reason):
    with caplog.at_level("INFO", logger="threefold"):
        trainer = build(args={**ONE_STEP, **args}, speedups=Speedups())
    assert f"speed-up share_prompts is off: {reason}" in caplog.text
    assert trainer._speedups == Speedups(share_prompts=False)


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 8,
}


@pytest.mark.parametrize(
    ("args", "model"), [(REENTRANT, {}), ({}, {"rope_parameters": LONG_ROPE})], ids=["reentrant", "longrope"]
)
def test_no_micro_batch_outgrows_trls_where_rows_are_scored_with_their_own_prompts(
    build, make_model, args, model
):
    """Else memory that holds TRL's micro-batches would not hold ours."""
    rewards = [float(i % 2) for i in range(16)]
    trainer = build(
        args={**ONE_STEP, **args},
        model=make_model(**model),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i}=" * 15} for i in range(8)]),
        reward_funcs=lambda completions, **_: rewards,
        speedups=Speedups(),
    )
    trainer.train()
    parts = [part for part in trainer._buffered_inputs if part]
    assert sum(len(part["advantages"]) for part in parts) == 16
    prompt, longest = 60, max(part["completion_ids"].size(1) for part in parts)
    tokens = [len(part["advantages"]) * (prompt + part["completion_ids"].size(1)) for part in parts]
    assert max(tokens) <= 4 * (prompt + longest)


def test_images_stay_with_their_rows(build, caplog):
    """TRL lays the patches of all images of a micro-batch in one tensor, whose rows are no episodes."""

    class Processor(ProcessorMixin):
        def __init__(self) -> None:
            pass

    trainer = build(args=ONE_STEP)
    trainer.processing_class = Processor()
    with caplog.at_level("INFO", logger="threefold"):
        trainer._speed_up(Speedups())
    assert "speed-up repack is off: the patches of images are no rows" in caplog.text
    assert not trainer._speedups.repack
    assert not trainer._speedups.drop_dead


def test_episodes_are_recorded_whole_and_unseen_entropies_are_left_out(build, tmp_path):
    run = tmp_path / "run"
    trainer = build(args=ONE_STEP, reward_funcs=some_dead, credit=GRPO(), run_dir=run, speedups=Speedups())
    trainer.train()
    from threefold.trajectory import read_jsonl

    episodes = list(read_jsonl(run / "rollouts.jsonl"))
    assert len(episodes) == 16
    for episode in episodes:
        start = episode.trajectory.segments[0].prompt_length
        seen = [value is not None for value in episode.token_signals["entropy"][0][start:]]
        assert seen == [any(episode.advantages[0])] * len(seen)


def test_a_step_of_one_dead_row_does_not_confuse_the_next(build, tmp_path):
    """One row of a recorded step is observed where all its groups are dead; the next one measures signals."""
    rewards = {"dead": False}

    def reward(completions: Any, **columns: Any) -> list[float]:
        return [1.0] * 16 if rewards["dead"] else [float(i % 2) for i in range(16)]

    class Alternating(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rewards["dead"] = state.global_step % 2 == 1

    args = {**ONE_STEP, "max_steps": 6}
    options = {"credit": GRPO(), "run_dir": tmp_path / "run", "speedups": Speedups(), "signals_every": 2}
    trainer = build(args=args, reward_funcs=reward, callbacks=[Alternating()], **options)
    trainer.train()
    assert len((tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()) == 6 * 16


# The regrouping itself
# ------------------------------------------------------------------------------------------------------------


def micro_batches(lengths: list[int], advantages: list[float], groups: list[int], each: int) -> list[dict]:
    """Rows with these completion lengths, advantages and prompts, cut as TRL cuts them."""
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    rows = {
        "prompt_ids": torch.tensor(groups)[:, None].repeat(1, 3) + 5,
        "prompt_mask": torch.ones(len(groups), 3, dtype=torch.long),
        "completion_ids": mask * 7,
        "completion_mask": mask,
        "advantages": torch.tensor(advantages),
        "row": torch.arange(len(groups)),
        "num_items_in_batch": torch.tensor(float(sum(lengths))),
        "pixel_values": None,
    }
    return [
        {n: v[i : i + each] if v is not None and v.dim() else v for n, v in rows.items()}
        for i in range(0, len(groups), each)
    ]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_with_an_advantage_is_kept_once_and_whole(data):
    each, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    rows = each * count
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=rows, max_size=rows))
    groups = data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    advantages = data.draw(st.lists(st.sampled_from([0.0, 1.0, -2.0]), min_size=rows, max_size=rows))
    given_batches = micro_batches(lengths, advantages, groups, each)
    packed = repack.repack(given_batches, loss_type="dapo")
    assert len(packed) == count
    full = [part for part in packed if part]
    assert packed[len(packed) - len(full) :] == full  # what is empty comes first
    kept = sorted(row for part in full for row in part["row"].tolist())
    alive = [row for row in range(rows) if advantages[row]]
    assert kept == (alive or [lengths.index(min(lengths))])  # one row where none has an advantage
    for part in full:
        assert part["completion_mask"].sum(dim=1).tolist() == [lengths[r] for r in part["row"].tolist()]
        assert part["completion_ids"].size(1) == max(lengths[r] for r in part["row"].tolist())
        assert part["advantages"].tolist() == [advantages[r] for r in part["row"].tolist()]
        assert part["num_items_in_batch"] == sum(lengths)
        assert len(part["row"]) <= max(4 * each, -(-len(kept) // count) * 4)


def test_a_mean_over_rows_keeps_its_weights():
    """Eight rows as 2 x 4 weigh 1/8 each. Three survivors in one micro-batch of 3 of 2 need 3/4 of theirs."""
    advantages = [1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 2.0]
    packed = repack.repack(micro_batches([2] * 8, advantages, [0] * 4 + [1] * 4, 4), loss_type="grpo")
    assert packed[0] == {}
    assert dict(zip(packed[1]["row"].tolist(), packed[1]["advantages"].tolist(), strict=True)) == {
        0: 0.75,
        4: -0.75,
        7: 1.5,
    }


def test_episodes_of_a_prompt_stay_together_and_short_ones_come_first():
    lengths = [9, 1, 9, 1, 9, 1, 9, 1]
    packed = repack.repack(micro_batches(lengths, [1.0] * 8, [0, 1] * 4, 4), loss_type="dapo")
    assert [sorted(part["row"].tolist()) for part in packed if part] == [[1, 3, 5, 7], [0, 2, 4, 6]]


def test_processes_fill_up_to_the_same_row_counts_with_rows_that_add_nothing():
    advantages = [1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    rows = micro_batches([3, 5, 2, 1, 4, 1, 1, 1], advantages, [0] * 4 + [1] * 4, 4)
    packed = repack.repack(rows, loss_type="grpo", agree=lambda counts: [1, 3], row_number="row")
    assert [part["row"].tolist() for part in packed] == [[-1], [2, 0, -1]]
    # Three rows of TRL's four: a weight of 3/4 each; idle ones have no advantage and one token.
    assert packed[1]["advantages"].tolist() == [-0.75, 0.75, 0.0]
    assert packed[1]["completion_mask"].sum(dim=1).tolist() == [2, 3, 1]
    assert packed[0]["advantages"].tolist() == [0.0]
    assert packed[0]["completion_ids"].size(1) == packed[0]["completion_mask"].sum()
    nobody = repack.repack(rows, loss_type="grpo", agree=lambda counts: [0, 2], row_number="row")
    assert nobody[0] == {}
