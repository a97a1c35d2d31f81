"""Six steps are three, a stop, and three more: weights, metrics and rollouts, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from resumed import StopAt, figures, weights

from threefold import GRPO, ISPO, Limits
from threefold.envs.toy import EchoThenNext
from threefold.training.play import episode_rewards
from threefold.training.run_directory import RunDirectory
from threefold.training.trl_seam import fingerprint

CREDITS = {
    "TRL's own": None,
    "GRPO": GRPO(),
    "ISPO": ISPO("digit", combine="union"),
    "noise control": ISPO("digit", combine="union", noise_control="shuffle"),
}


def trainer_in(build: Any, run: RunDirectory, credit: Any, **options: Any) -> Any:
    args = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "output_dir": str(run.path / "checkpoints"),
        **options.pop("args", {}),
    }
    return build(args=args, credit=credit, answer_format=r"([0-9])", run_dir=run, **options)


@pytest.mark.parametrize(
    "args", [{}, {"steps_per_generation": 4}], ids=["one update a batch", "two updates a batch"]
)
@pytest.mark.parametrize("credit", CREDITS.values(), ids=CREDITS.keys())
def test_a_resumed_run_is_the_uninterrupted_one(build, tmp_path, credit, args):
    if args and credit is None:
        pytest.skip("one case of TRL's own advantages is enough")
    args = {**args, "save_steps": 4 if args else 3}
    through = trainer_in(build, RunDirectory(tmp_path / "through"), credit, args=args)
    through.train()

    stop = StopAt(args["save_steps"] + 1)  # one step past the checkpoint, whose records must be dropped
    trainer_in(build, RunDirectory(tmp_path / "halves"), credit, args=args, callbacks=[stop]).train()
    run = RunDirectory(tmp_path / "halves", resume=True)
    checkpoint = run.latest_checkpoint()
    assert checkpoint.name == f"checkpoint-{args['save_steps']}"
    run.drop_after(args["save_steps"])
    resumed = trainer_in(build, run, credit, args=args)
    resumed.train(resume_from_checkpoint=str(checkpoint))

    assert torch.equal(weights(through), weights(resumed))
    assert figures(tmp_path / "through") == figures(tmp_path / "halves")
    assert len(figures(tmp_path / "through")) == 6
    one, other = ((tmp_path / name / "rollouts.jsonl").read_text() for name in ("through", "halves"))
    assert one == other


def test_a_base_that_is_not_the_initial_model_is_refused(build, tmp_path, make_model):
    run = RunDirectory(tmp_path / "run")
    trainer_in(build, run, ISPO("digit"), args={"max_steps": 3}).train()
    checkpoint = run.latest_checkpoint()
    again = RunDirectory(tmp_path / "run", resume=True)
    # The mistake that it guards against: building the trainer from the weights of the checkpoint.
    moved = type(make_model()).from_pretrained(checkpoint)
    other = trainer_in(build, again, ISPO("digit"), model=moved)
    with pytest.raises(ValueError, match=r"frozen base of this trainer is not the one.*initial weights"):
        other.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("part", ["an environment alone", "an environment with credit"])
def test_episodes_go_on_with_the_seeds_that_come_next(build, tmp_path, part):
    """Also where nothing but the environment is ours: neither a record nor an estimator keeps the count."""
    begun: list[int] = []

    class Seen(EchoThenNext):
        def reset(self, task, seed, member):
            begun.append(seed)
            return super().reset(task, seed, member)

    def trainer(**options: Any) -> Any:
        return build(
            args={
                "max_steps": 4,
                "save_strategy": "steps",
                "save_steps": 2,
                "max_completion_length": 24,
                "output_dir": str(tmp_path / "checkpoints"),
            },
            environment=Seen,
            reward_funcs=episode_rewards("echo"),
            limits=Limits(turns=2, turn_tokens=4, completion_tokens=24),
            credit=GRPO() if "credit" in part else None,
            **options,
        )

    trainer().train()
    whole, half = list(begun), len(begun) // 2
    begun.clear()
    trainer(callbacks=[StopAt(2)]).train()
    trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert begun == whole
    assert len(set(whole[half:]) & set(whole[:half])) == 0


def test_the_fingerprint_of_weights_is_theirs_and_not_the_machines():
    """Sums of floats depend on how many threads share them, from about ten million numbers on."""
    torch.manual_seed(0)
    table, threads = torch.nn.Embedding(20_000, 500), torch.get_num_threads()
    try:
        found = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.add(fingerprint(table))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    assert fingerprint(table.to(torch.bfloat16)) is not None
    before = fingerprint(table)
    with torch.no_grad():
        table.weight[7, 3] += 0.01
    assert fingerprint(table) != before
