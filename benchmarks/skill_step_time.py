"""What the skill loop adds to a training step: plain GRPO beside GRPO with the loop, on the same episodes.

Both arms train the same model from the same weights on the same errands. The arm with the loop fills the
reservoir and runs the whole offline creator at every step (a run does so every few steps), whose proposal it
then drops: prompts stay the same, so the episodes are the same to the last token, which is checked. What a
longer prompt costs, and what a test's better policy saves, is no part of this.

    python benchmarks/skill_step_time.py
    python benchmarks/skill_step_time.py --model embedded --steps 4 --prompts 4 --rounds 2

Arms take turns; each round gives one ratio of median step times. Writes results/skills/step-time.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds a step with the skill loop and without.")
    parser.add_argument("--model", default="tiny-words", choices=["tiny-words", "embedded"])
    parser.add_argument("--steps", type=int, default=8, help="the first of which is left out")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    ratios, plain, loop = [], [], []
    for number in range(options.rounds):
        order = (False, True) if number % 2 == 0 else (True, False)
        seconds, said = {}, {}
        for skills in order:
            seconds[skills], said[skills] = train(options, skills)
        if said[True] != said[False]:
            raise RuntimeError("the arms played different episodes, so their times cannot be compared")
        plain.append(seconds[False])
        loop.append(seconds[True])
        ratios.append(seconds[True] / seconds[False])
    write(options, plain, loop, ratios)


def train(options: argparse.Namespace, skills: bool) -> tuple[float, list[Any]]:
    """One arm: the median step time after the first step, and every token that was said."""
    import torch
    from datasets import Dataset
    from trl import GRPOConfig

    from threefold import GRPO, Limits, ThreefoldTrainer, episode_rewards
    from threefold.envs.errands import Errands
    from threefold.models import load_model, load_tokenizer
    from threefold.skills.creator import Creation, Evidence
    from threefold.skills.evolution import Evolution
    from threefold.skills.offline_creator import OfflineCreator
    from threefold.skills.settings import Settings
    from threefold.trajectory import read_jsonl

    offline = OfflineCreator()

    def dropped(evidence: Evidence) -> Creation:
        offline(evidence)
        return Creation()

    tasks = {task.id: task for task in Errands.tasks("train", 48, 0)}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as pool:
        loop = Evolution(dropped, settings=Settings(min_reservoir=4), executor=pool) if skills else None
        trainer = ThreefoldTrainer(
            model=load_model(options.model, torch.float32),
            processing_class=load_tokenizer(options.model),
            reward_funcs=episode_rewards("success", "valid"),
            train_dataset=Dataset.from_list([{"prompt": "", "id": name} for name in tasks]),
            args=GRPOConfig(
                output_dir=f"{scratch}/checkpoints",
                per_device_train_batch_size=options.prompts * 8,
                num_generations=8,
                max_completion_length=320,
                max_steps=options.steps,
                learning_rate=1e-5,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
            ),
            environment=Errands,
            tasks=tasks,
            limits=Limits(turns=5, turn_tokens=6, completion_tokens=320),
            credit=GRPO(),
            run_dir=f"{scratch}/run",
            sampler="threefold",
            skills=loop,
        )
        trainer.train()
        times = [log["step_time"] for log in trainer.state.log_history if "step_time" in log]
        records = read_jsonl(f"{scratch}/run/rollouts.jsonl")
        said = [record.trajectory.segments for record in records]  # type: ignore[union-attr]
    return statistics.median(times[1:]), said


def write(options: argparse.Namespace, plain: list[float], loop: list[float], ratios: list[float]) -> None:
    def shown(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"

    given = " ".join(f"--{name} {value}" for name, value in vars(options).items())
    text = f"""# Step time with the skill loop

`python benchmarks/skill_step_time.py {given}`

{options.prompts} errands of 8 episodes a step, the same episodes to the last token in both arms, the offline
creator run at every step. Median [least, most] over rounds.

| | |
|---|---|
| seconds a step, GRPO | {shown(plain, 3)} |
| seconds a step, GRPO with the loop | {shown(loop, 3)} |
| ratio | {shown(ratios, 3)} |
"""
    folder = ROOT / "results" / "skills"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step-time.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
