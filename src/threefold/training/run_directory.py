"""The run directory: plain files that outlive the process and are all that the report reads.

config.yaml        the complete recipe, re-runnable
environment.json   versions, machine, seed
metrics.jsonl      one object a step (split "train"), and one a held-out evaluation (split "held_out") where
                   evaluation.every asks for them
rollouts.jsonl     one episode a line (trajectory.Credited); older parts are rollouts.1.jsonl, .2, ...
before.json        the evaluation before training, problem by problem
after.json         the same after training
evaluation.json    success before and after, with intervals
checkpoints/       TRL's checkpoints
base/              the warm-started weights under a LoRA adapter
report.html        `threefold view` writes it
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from threefold.evaluation.episodes import EpisodeEvaluation
from threefold.evaluation.evaluate import Evaluation
from threefold.recipe import RecipeError
from threefold.trajectory import Credited, to_json

ROLLOUT_BYTES = 64 * 2**20
"""A rollouts file is rotated when it has grown past this."""
ROLLOUT_FILES = 8
"""Files that are kept, the one being written included; the oldest is dropped, so a run's rollouts stay under
about 600 MB."""
BASE_FOLDER = "base"
"""Folder of the warm-started weights that a run's LoRA adapter belongs to."""


class RunDirectory:
    """Writes one run. Every line is flushed, so a crash loses at most the line being written."""

    def __init__(self, path: str | Path, *, resume: bool = False, append: bool = False) -> None:
        """Open a run directory.

        Args:
            path: The folder; made with its parents.
            resume: The run goes on from a checkpoint; the folder must hold one.
            append: Do not refuse a folder that holds a run (used by processes other than the first).

        Raises:
            FileExistsError: The folder holds a run and neither flag is set.
            FileNotFoundError: `resume` is set and there is no checkpoint.
            RecipeError: The folder cannot be made.
        """
        self.path = Path(path)
        if resume and self.latest_checkpoint() is None:
            raise FileNotFoundError(
                f"{self.path / 'checkpoints'} holds no checkpoint to resume from; start the run without "
                "--resume"
            )
        if not resume and not append and (self.path / "metrics.jsonl").exists():
            raise FileExistsError(
                f"{self.path} already holds a run; give another run.dir, continue it with --resume, "
                "or replace it with --overwrite"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if self.path.is_file() else error.strerror
            raise RecipeError(f"run.dir = {self.path} cannot be made a folder: {reason}") from error

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step that was written whole, None where there is none."""
        found = [
            p for p in (self.path / "checkpoints").glob("checkpoint-*") if (p / "trainer_state.json").exists()
        ]
        return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

    def drop_after(self, step: int) -> None:
        """Forget metrics and rollouts of later steps: they will be made again."""
        _keep_lines(self.path / "metrics.jsonl", lambda line: int(json.loads(line)["step"]) <= step)
        for rollouts in self.path.glob("rollouts*.jsonl"):
            _keep_lines(rollouts, lambda line: int(json.loads(line)["step"]) <= step)

    def drop_model(self) -> None:
        """Forget the finished model: training goes on, and until it ends again a checkpoint is the newest."""
        shutil.rmtree(self.path / "model", ignore_errors=True)

    def write_config(self, text: str) -> None:
        (self.path / "config.yaml").write_text(text, encoding="utf-8")

    def write_environment(self, seed: int, **facts: Any) -> None:
        """Record what the run ran on, so that a figure can be traced to its machine and versions."""
        self._write_json("environment.json", {**describe_environment(), "seed": seed, **facts})

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        self._write_json("evaluation.json", evaluation)

    def write_before(self, evaluations: Sequence[Evaluation | EpisodeEvaluation]) -> None:
        """Keep the evaluation made before training, so that a resumed run can still say what was gained."""
        self._write_json("before.json", {"evaluations": [e.to_record() for e in evaluations]})

    def write_after(self, evaluations: Sequence[Evaluation | EpisodeEvaluation]) -> None:
        """Keep the evaluation after training problem by problem, so that runs can be compared in pairs."""
        self._write_json("after.json", {"evaluations": [e.to_record() for e in evaluations]})

    def read_before(self) -> list[Evaluation | EpisodeEvaluation]:
        """What `write_before` kept, or an empty list."""
        path = self.path / "before.json"
        if not path.exists():
            return []
        records = json.loads(path.read_text(encoding="utf-8"))["evaluations"]
        return [
            (EpisodeEvaluation if "task_ids" in record else Evaluation).from_record(record)
            for record in records
        ]

    def append_metrics(self, step: int, values: Mapping[str, Any], split: str = "train") -> None:
        line = {"step": step, "split": split, "time": time.time(), **values}
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far; a last one that a crash cut short is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.endswith("\n")]

    def append_rollouts(self, episodes: Iterable[Credited]) -> None:
        path = self.path / "rollouts.jsonl"
        if path.exists() and path.stat().st_size > ROLLOUT_BYTES:
            self._rotate(path)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(to_json(episode) + "\n" for episode in episodes)

    def _rotate(self, path: Path) -> None:
        for age in range(ROLLOUT_FILES - 1, 0, -1):
            older = path.with_suffix(f".{age}.jsonl")
            if older.exists():
                older.replace(path.with_suffix(f".{age + 1}.jsonl"))
        path.replace(path.with_suffix(".1.jsonl"))
        path.with_suffix(f".{ROLLOUT_FILES}.jsonl").unlink(missing_ok=True)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        temporary = self.path / (name + ".part")
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.path / name)


def describe_environment() -> dict[str, Any]:
    """Versions of what computes, and the machine, without anything personal."""
    import torch

    names = ("threefold", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "math-verify")
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def _keep_lines(path: Path, keep: Any) -> None:
    """Rewrite a JSONL file with the lines that pass; a last line that a crash cut short goes too."""
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".part")
    with open(path, encoding="utf-8") as source, open(temporary, "w", encoding="utf-8") as target:
        for line in source:
            if line.endswith("\n") and keep(line):
                target.write(line)
    temporary.replace(path)


@contextmanager
def replaced(path: str | Path) -> Iterator[Callable[[], None]]:
    """Move a run aside, for another to begin in its place.

    The yielded function deletes it, once the other one can begin; where that is not called, it is put back.

    Raises:
        ValueError: The folder exists, is not empty and holds no run, so it is left alone.
    """
    path = Path(path)
    if not path.exists() or not any(path.iterdir()):
        yield lambda: None
        return
    if not any((path / name).exists() for name in ("config.yaml", "environment.json", "metrics.jsonl")):
        raise ValueError(f"{path} is not a run directory, so --overwrite does not delete it")
    aside = path.with_name(f".{path.name}.replaced")
    if aside.exists():  # a kill left it
        shutil.rmtree(aside)
    path.rename(aside)
    try:
        yield lambda: shutil.rmtree(aside)
    finally:
        if aside.exists():
            if path.exists():
                shutil.rmtree(path)
            aside.rename(path)
