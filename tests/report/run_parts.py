"""Run directories as training leaves them, made of real records."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from threefold.recipe import parse_recipe
from threefold.training.run_directory import RunDirectory
from threefold.trajectory import Credited, Opening, Segment, Trajectory, Turn, Violation, to_json

WORDS = ["First", "we", "add", "the", "tens", "then", "the", "ones", "That", "gives"]


def make_episode(
    step: int = 1,
    group: int = 0,
    member: int = 0,
    *,
    success: bool | None = True,
    completion: Sequence[str] | None = None,
    advantages: Sequence[float] | None = None,
    question: str | None = None,
    seed: int = 0,
) -> Credited:
    """An episode of arithmetic: four prompt tokens, a completion, and an answer of one token at its end."""
    rng = random.Random(f"{seed} {step} {group} {member}")
    a, b = 10 + (7 * step + 13 * group + seed) % 90, 10 + (11 * step + 5 * group) % 90
    given = str(a + b if success else a + b - 10)
    prompt = ["<|user|>", f"What is {a} + {b}", "?\n", "<|assistant|>\n"]
    if completion is None:
        words = [" " + rng.choice(WORDS) for _ in range(rng.randint(20, 60))]
        completion = [*words, "\nAnswer:", f" {given}", "<|end|>"]
    length = len(completion)
    if advantages is None:
        advantages = [round(rng.gauss(0.6 if success else -0.6, 0.3), 4)] * length
    entropy = tuple(round(abs(rng.gauss(0.6, 0.7)), 4) for _ in range(length))
    critical = tuple(float(h > 1.3) for h in entropy)
    none = (None,) * len(prompt)
    trajectory = Trajectory(
        task_id=f"add-{step}-{group}",
        group_id=group,
        member=member,
        seed=seed,
        environment="arithmetic",
        opening=Opening("".join(prompt)),
        segments=(
            Segment(
                token_ids=tuple(range(len(prompt) + length)),
                turn_ids=(-1,) * len(prompt) + (0,) * length,
                logprobs=none + tuple(round(-abs(rng.gauss(0, 0.8)), 4) for _ in range(length)),
            ),
        ),
        turns=(
            Turn(
                text="".join(completion),
                answer_span=(len(prompt) + length - 2, len(prompt) + length - 1) if length >= 2 else None,
            ),
        ),
        rewards={"accuracy": None if success is None else float(success), "format": 1.0},
        success=success,
        task={"question": question or f"What is {a} + {b}?", "answer": str(a + b)},
    )
    return Credited(
        trajectory=trajectory,
        step=step,
        advantages=((0.0,) * len(prompt) + tuple(advantages),),
        outcome_advantage=0.0,
        token_texts=((*prompt, *completion),),
        signals={
            "ifd": round(rng.gauss(0.2, 0.2), 4),
            "token_reward": None,
            "reward": round(rng.random(), 4),
        },
        token_signals={
            "entropy": (none + entropy,),
            "base_logp": (none + tuple(round(-abs(rng.gauss(0, 1)), 4) for _ in range(length)),),
            "critical": (none + critical,),
        },
    )


def make_dialogue(step: int = 1, group: int = 0, member: int = 0, *, said: str = "It is cold.") -> Credited:
    """Two turns with an answer of the environment between them; the second breaks a rule."""
    pieces = [
        (-1, ["<|user|>", "Where is my coat?"]),
        (0, ["Let", " us", " look."]),
        (-1, ["<|user|>", said]),
        (1, ["Stop", " that."]),
    ]
    turn_ids = tuple(turn for turn, texts in pieces for _ in texts)
    length = len(turn_ids)
    trajectory = Trajectory(
        task_id=f"coat-{group}",
        group_id=group,
        member=member,
        seed=0,
        environment="caregiver",
        opening=Opening("Where is my coat?", {"D": 2.0, "R": 1.0}),
        segments=(Segment(tuple(range(length)), turn_ids, (None,) * length),),
        turns=(
            Turn(
                "Let us look.",
                "Let us look.",
                said,
                {"distress": 1.0},
                {"D": 1.0, "R": 1.0},
                skills=("validate",),
            ),
            Turn("Stop that.", "Stop that.", "", {"distress": -2.0}, {"D": 3.0, "R": 2.0}),
        ),
        rewards={"goal": 2.0},
        success=False,
        violation=Violation("command", 1),
        skill_version="v3",
        ended="violation",
    )
    return Credited(
        trajectory=trajectory,
        step=step,
        advantages=(tuple(0.5 if turn == 0 else -1.0 if turn == 1 else 0.0 for turn in turn_ids),),
        outcome_advantage=None,
        token_texts=(tuple(text for _, texts in pieces for text in texts),),
        token_signals={
            "entropy": (tuple(None if turn < 0 else 0.1 * place for place, turn in enumerate(turn_ids)),)
        },
    )


def make_group(step: int, group: int, successes: Sequence[bool | None], seed: int = 0) -> list[Credited]:
    return [make_episode(step, group, i, success=s, seed=seed) for i, s in enumerate(successes)]


def make_metrics(step: int, steps: int, rng: random.Random) -> dict[str, object]:
    """One line of metrics.jsonl as the trainer writes it."""
    done = step / steps
    dead_right, dead_wrong = 0.1 + 0.3 * done * rng.random(), max(0.0, 0.4 - 0.3 * done - 0.1 * rng.random())
    entropies = {
        f"certainty/entropy_{place}_{outcome}": base * (1 - fall * done) + 0.05 * rng.random()
        for place, base in (("all", 0.5), ("top", 1.4), ("critical", 1.6))
        for outcome, fall in (("right", 0.3), ("wrong", 0.5))
    }
    return {
        "step": step,
        "split": "train",
        "time": 1_760_000_000 + 31.5 * step,
        "reward": 0.2 + 0.4 * done + 0.1 * rng.random(),
        "loss": 0.02 * rng.gauss(0, 1),
        "grad_norm": 0.4 + 0.2 * rng.random(),
        "learning_rate": 1e-6 * (1 - done),
        "entropy": 0.5 - 0.2 * done,
        "completions/mean_length": 120 + 40 * done + 10 * rng.random(),
        "completions/clipped_ratio": 0.05 * rng.random(),
        "rewards/accuracy/mean": 0.2 + 0.4 * done + 0.1 * rng.random(),
        "rewards/format/mean": 0.9 + 0.1 * done * rng.random(),
        "step_time": 30 + 3 * rng.random(),
        "signal/groups": 8,
        "signal/outcome": 0.2 + 0.4 * done + 0.1 * rng.random(),
        "signal/dead_outcome": dead_right + dead_wrong,
        "signal/dead_all_right": dead_right,
        "signal/dead_all_wrong": dead_wrong,
        "signal/dead_composite@0": 0.0,
        "signal/dead_composite@0.0001": 0.01 * rng.random(),
        "signal/dead_composite@0.01": 0.1 * rng.random(),
        "signal/gradient_share_dead": 0.3 + 0.1 * rng.random(),
        "signal/effective_tokens": 4000 + rng.randint(0, 500),
        "signal/advantage_mean": 0.01 * rng.gauss(0, 1),
        "signal/advantage_std": 0.9 + 0.05 * rng.random(),
        **entropies,
        "certainty/confidence_right": 0.9 + 0.05 * rng.random(),
        "certainty/confidence_wrong": 0.6 + 0.2 * done * rng.random(),
        "ispo/ifd_right": 0.3 + 0.05 * rng.random(),
        "ispo/ifd_wrong": 0.05 * rng.gauss(0, 1),
        "ispo/hinge_active": 0.3 * done,
        "ispo/entropy_set": 0.2,
        "ispo/drift_set": 0.1 + 0.2 * done,
        "ispo/critical_set": 0.02 + 0.03 * done,
        "ispo/empty_critical": 0.2 * rng.random(),
        "ispo/no_answer": 0.1 * (1 - done),
        "time/generate": 20 + rng.random(),
        "time/signals": 3 + rng.random(),
        "time/credit": 0.02,
        "time/update": 8 + rng.random(),
        "words": f"{round(8 * (dead_right + dead_wrong))} of 8 groups gave no signal; ISPO revived all.",
    }


EVALUATION = {
    "evaluations": [
        {
            "when": when,
            "step": step,
            "mode": mode,
            "temperature": temperature,
            "problems": 200,
            "samples": 4 if mode == "sampled" else 1,
            "scores": {
                "strict": {"mean": mean, "low": mean - 0.04, "high": mean + 0.04},
                "last_number": {"mean": mean + 0.05, "low": mean + 0.01, "high": mean + 0.09},
                "format": {"mean": 0.9, "low": 0.87, "high": 0.93},
            },
            "by_difficulty": {
                "add1": {"strict": 0.8, "last_number": 0.85},
                "add2": {"strict": mean, "last_number": mean},
            },
        }
        for when, step, shift in (("before", 0, 0.0), ("after", 60, 0.12))
        for mode, temperature, mean in (("sampled", 1.0, 0.412 + shift), ("greedy", 0.0, 0.45 + shift))
    ],
    "gains": [
        {"score": "last_number", "mode": "sampled", "mean": 0.12, "low": 0.083, "high": 0.157},
        {"score": "strict", "mode": "greedy", "mean": 0.02, "low": -0.01, "high": 0.05},
    ],
}

CONFIG = """\
model:
  name: example/small-model-135M
method:
  name: ispo
  lambda1: 0.1
training:
  max_steps: 60
  seed: 7
dataset:
  name: arithmetic
"""


def write_run(path: Path, *, steps: int = 60, groups: int = 4, members: int = 4, seed: int = 0) -> Path:
    """A finished run directory with all files."""
    path.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    (path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    environment = {"versions": {"python": "3.11.2", "trl": "1.16.0"}, "machine": {"cores": 2}, "seed": 7}
    (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (path / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    with open(path / "metrics.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(make_metrics(step, 60, rng)) + "\n" for step in range(1, steps + 1))
    with open(path / "rollouts.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            for group in range(groups):
                right = rng.choice([0.0, 0.3, 0.6, 1.0])
                successes = [rng.random() < right for _ in range(members)]
                file.writelines(to_json(e) + "\n" for e in make_group(step, group, successes, seed))
    return path


def write_study(folder: Path, *, problems: int = 60) -> list[Path]:
    """Four arms with three seeds each: two methods, ISPO and its noise control, as `train` leaves them."""
    arms: dict[str, tuple[dict[str, object], float]] = {
        "grpo": ({"method": "grpo"}, 0.45),
        "ngrpo": ({"method": "ngrpo"}, 0.45),
        "ispo": ({"method": "ispo"}, 0.65),
        "ispo-noise": ({"method": "ispo", "noise_control": "shuffle"}, 0.5),
    }
    runs = []
    for seed in range(3):
        for name, (credit, right) in arms.items():
            rng = random.Random(f"{name} {seed}")
            recipe = parse_recipe({"credit": credit, "run": {"seed": seed, "dir": f"runs/{name}-{seed}"}})
            run = RunDirectory(folder / f"{name}-{seed}")
            run.write_config(recipe.to_yaml())
            for step in range(1, 41):
                run.append_metrics(step, make_metrics(step, 40, rng))
            outcomes = [[rng.random() < right + 0.3 * (i % 3 - 1) for _ in range(4)] for i in range(problems)]
            record = {
                "mode": "sampled",
                "temperature": 1.0,
                "problem_ids": [f"sum-{i}" for i in range(problems)],
                "samples": 4,
                "outcomes": {"strict": outcomes},
            }
            (run.path / "after.json").write_text(json.dumps({"evaluations": [record]}), encoding="utf-8")
            runs.append(run.path)
    return runs
