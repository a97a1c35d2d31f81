"""One of two processes of `test_trl_vllm`: trains on dialogues that one vLLM server continues for both.

Usage: torchrun --nproc_per_node=2 two_processes_vllm.py FOLDER ADDRESS, with a model in FOLDER/model.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import trl_vllm
from ragged import Ragged

from threefold import T2GRPO, Limits, ThreefoldTrainer
from tiny_parts import leave_group, tiny_config, tiny_tokenizer


def main() -> None:
    from datasets import Dataset

    folder, address = Path(sys.argv[1]), sys.argv[2]
    # Two rows on each process: the one group of four spans both, up to 2 turns on one and 4 on the other.
    args = tiny_config(
        folder / "trl",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        max_completion_length=64,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=address,
        model_init_kwargs={"dtype": "float32"},
    )
    with trl_vllm.on_a_cpu():
        ThreefoldTrainer(
            model=str(folder / "model"),
            args=args,
            train_dataset=Dataset.from_list([{"prompt": "x", "id": str(i)} for i in range(8)]),
            processing_class=tiny_tokenizer(),
            environment=Ragged,
            limits=Limits(turns=4, turn_tokens=4, completion_tokens=64),
            credit=T2GRPO(turns=("D",)),
            run_dir=folder / "run",
        ).train()


if __name__ == "__main__":
    main()
    leave_group()
