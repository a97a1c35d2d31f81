"""One of two processes of `test_two_processes`: trains, then writes what it saw to a folder.

Usage: torchrun --nproc_per_node=2 two_processes.py FOLDER [one-update | dead-end | SAMPLER]
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threefold import GRPO, ISPO, Speedups, ThreefoldTrainer
from tiny_parts import digit, leave_group, sums, tiny_config, tiny_model, tiny_tokenizer


class Kept(ThreefoldTrainer):
    """Keeps every batch that credit was given for, the whole answer and the local part of it."""

    def __init__(self, *args, **options):
        self.kept = []
        super().__init__(*args, **options)

    def _assign(self, batch, output):
        answer = super()._assign(batch, output)
        self.kept.append({"batch": batch, "values": answer.values})
        return answer

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.kept[-1]["local"] = output["advantages"]
        return output


def some_groups(completions, answer, **columns):
    """Groups with an odd answer alone have rewards that differ."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    pairs = zip(texts, answer, strict=True)
    return [float(ord((text or "a")[0])) if int(a) % 2 else 0.0 for text, a in pairs]


def first_generation_alone():
    """Rewards that differ the first time that they are asked for, and are all equal afterwards."""
    calls = []

    def reward(completions, **columns):
        calls.append(len(completions))
        return [float(i % 3) * (len(calls) == 1) for i in range(len(completions))]

    return reward


def one_update(folder: Path, *, dead_end: bool) -> None:
    """The weights after one step of plain gradient descent, with and without speed-ups.

    With `dead_end` the update takes two generation batches, and in the second no row has an advantage.
    """
    for name, speedups in (("plain", None), ("fast", Speedups())):
        args = tiny_config(
            folder / "trl",
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            steps_per_generation=2 if dead_end else 4,
            max_steps=1,
        )
        trainer = ThreefoldTrainer(
            model=tiny_model(),
            reward_funcs=first_generation_alone() if dead_end else some_groups,
            args=args,
            train_dataset=sums(),
            processing_class=tiny_tokenizer(),
            credit=GRPO(),
            speedups=speedups,
        )
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        after = trainer.accelerator.unwrap_model(trainer.model).parameters()
        change = [b - a.detach() for a, b in zip(after, before, strict=True)]
        torch.save(change, folder / f"{name}{trainer.accelerator.process_index}.pt")
        trainer.accelerator.wait_for_everyone()


def main() -> None:
    folder = Path(sys.argv[1])
    if sys.argv[2] in ("one-update", "dead-end"):
        one_update(folder, dead_end="dead-end" in sys.argv)
        return
    # A generation batch is two rows on each of two processes: its one group of four spans both.
    args = tiny_config(
        folder / "trl",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        max_steps=4,
    )
    trainer = Kept(
        model=tiny_model(),
        reward_funcs=digit,
        args=args,
        train_dataset=sums(),
        processing_class=tiny_tokenizer(),
        credit=ISPO("digit", combine="union", noise_control="shuffle"),
        answer_format=r"([0-9])",
        run_dir=folder / "run",
        sampler=sys.argv[2],
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    seen = {"weights": [p.detach().clone() for p in model.parameters()], "kept": trainer.kept}
    torch.save(seen, folder / f"rank{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    main()
    leave_group()
