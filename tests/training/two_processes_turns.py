"""One of two processes of `test_two_processes_turns`: trains on episodes, then writes what it saw.

Usage: torchrun --nproc_per_node=2 two_processes_turns.py FOLDER SAMPLER
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ragged import Ragged
from two_processes import Kept

from threefold import T2GRPO, Limits
from tiny_parts import leave_group, tiny_config, tiny_model, tiny_tokenizer


class Named(Ragged):
    """The last member's turns are rewarded in a channel that no episode of the first process has."""

    def step(self, action_text):
        observation = super().step(action_text)
        if self.member == 3:
            observation.rewards["extra"] = float(self.turn)
        return observation


def main() -> None:
    from datasets import Dataset

    folder = Path(sys.argv[1])
    # Two rows on each process: the one group of four spans both, up to 2 turns on one and 4 on the other.
    args = tiny_config(
        folder / "trl",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        max_completion_length=64,
    )
    trainer = Kept(
        model=tiny_model(),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "x", "id": str(i)} for i in range(8)]),
        processing_class=tiny_tokenizer(),
        environment=Named,
        limits=Limits(turns=4, turn_tokens=4, completion_tokens=64),
        credit=T2GRPO(turns=("D", "extra")),
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
