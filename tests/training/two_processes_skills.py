"""A run with a skill bank, on one process or as one of two of them, for `test_two_processes_skills`.

Usage: [torchrun --nproc_per_node=2] two_processes_skills.py FOLDER [STEPS | broken]

Goes on from the last checkpoint in FOLDER/run where there is one.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threefold import GRPO, Limits, ThreefoldTrainer
from threefold.credit.named_skills import NamedSkills
from threefold.envs.base import EpisodeScore, Observation
from threefold.skills.bank import Add
from threefold.skills.creator import Creation
from threefold.skills.evolution import Evolution
from threefold.skills.settings import Settings
from threefold.skills.skill import Skill
from threefold.training.run_directory import RunDirectory
from tiny_parts import leave_group, tiny_config, tiny_model, tiny_tokenizer


class ByMember:
    """Two turns; even members succeed, whatever is said: success does not depend on the processes."""

    channels = ("even",)

    def reset(self, task, seed, member):
        self.turn, self.member = 0, member
        return Observation(messages=({"role": "user", "content": f"say {seed % 10}"},))

    def step(self, action_text):
        self.turn += 1
        done = self.turn == 2
        return Observation(
            messages=() if done else ({"role": "user", "content": "+"},),
            terminated=done,
            success=self.member % 2 == 0 if done else None,
        )

    def score(self, episodes):
        return [EpisodeScore({"even": float(bool(e.success))}, success=e.success) for e in episodes]

    def close(self):
        self.turn = 0


def one_more(evidence):
    name = f"skill-of-step-{evidence.step}"
    return Creation((Add(Skill(name, "You say something.", "Say a digit.", created_step=evidence.step)),))


def broken(evidence):
    raise KeyError("a bug in a creator")


def main() -> None:
    from datasets import Dataset

    folder, what = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "8"
    rows = 8 // int(os.environ.get("WORLD_SIZE", "1"))
    leads = os.environ.get("RANK", "0") == "0"
    resume = (folder / "run" / "checkpoints").is_dir()
    run = RunDirectory(folder / "run", resume=resume, append=not leads)
    args = tiny_config(
        folder / "run" / "checkpoints",
        lr_scheduler_type="constant",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        max_completion_length=400,
        max_steps=8 if what == "broken" else int(what),
        save_strategy="steps",
        save_steps=4,
    )
    evolution = Evolution(
        (broken if what == "broken" else one_more) if leads else (lambda evidence: Creation()),
        settings=Settings(period=3, min_episodes=8, min_reservoir=4, capacity=3),
        seed=3,
        root=folder / "run" / "bank" if leads else None,
    )
    trainer = ThreefoldTrainer(
        model=tiny_model(max_position_embeddings=1024),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "x", "id": str(i)} for i in range(16)]),
        processing_class=tiny_tokenizer(),
        environment=ByMember,
        limits=Limits(turns=2, turn_tokens=6, completion_tokens=400),
        credit=NamedSkills(GRPO()),
        run_dir=run,
        skills=evolution,
    )
    checkpoint = run.latest_checkpoint() if resume else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    bank = trainer.skills.bank
    (folder / f"bank{os.environ.get('RANK', '0')}.txt").write_text(f"{bank.version}: {', '.join(bank.names)}")


if __name__ == "__main__":
    main()
    if "RANK" in os.environ:
        leave_group()
