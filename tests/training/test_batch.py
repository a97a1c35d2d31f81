"""Users say prompts per step and group size; TRL's numbers follow and always multiply out."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.recipe import RecipeError, Training
from threefold.training.batch import plan_batch

counts = st.integers(1, 12)


@given(counts, st.integers(2, 12), counts, counts, st.integers(1, 3))
def test_the_numbers_multiply_out_or_the_refusal_names_one_that_does(
    prompts: int, group: int, micro: int, processes: int, updates: int
) -> None:
    def training(prompts: int) -> Training:
        return Training(
            prompts_per_step=prompts, group_size=group, micro_batch=micro, updates_per_step=updates
        )

    try:
        plan = plan_batch(training(prompts), processes)
    except RecipeError as refusal:
        assert prompts * group % (processes * updates)
        works = int(re.search(r"that works is (\d+)", str(refusal)).group(1))
        plan_batch(training(works), processes)
        return
    assert plan.micro_batch <= micro
    assert plan.micro_batch * plan.micro_batches * updates * processes == prompts * group == plan.episodes
    assert plan.steps_per_generation == plan.micro_batches * updates


def test_the_largest_fitting_micro_batch_is_taken() -> None:
    plan = plan_batch(Training(prompts_per_step=3, group_size=8, micro_batch=16))
    assert (plan.micro_batch, plan.micro_batches) == (12, 2)


def test_trl_accepts_the_plan(tmp_path) -> None:
    from trl import GRPOConfig

    plan = plan_batch(Training(prompts_per_step=6, group_size=4, micro_batch=4, updates_per_step=2))
    config = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.micro_batches,
        steps_per_generation=plan.steps_per_generation,
        num_generations=plan.group_size,
    )
    assert config.generation_batch_size == plan.episodes == 24


def test_the_message_says_what_does_not_divide() -> None:
    with pytest.raises(RecipeError, match="10 episodes do not divide by 4 process"):
        plan_batch(Training(prompts_per_step=5, group_size=2), processes=4)
