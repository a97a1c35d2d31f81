"""One of two processes of `test_two_processes`: trains, then writes what it saw to a folder.

Usage: torchrun --nproc_per_node=2 two_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trl import GRPOConfig

from conftest import digit, sums, tiny_model, tiny_tokenizer
from threefold import ISPO, ThreefoldTrainer


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


def main() -> None:
    folder = Path(sys.argv[1])
    # A generation batch is two rows on each of two processes: its one group of four spans both.
    args = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=4,
        max_completion_length=8,
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
        seed=1,
        disable_tqdm=True,
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
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    seen = {"weights": [p.detach().clone() for p in model.parameters()], "kept": trainer.kept}
    torch.save(seen, folder / f"rank{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    main()
