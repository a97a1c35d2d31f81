"""Reads what a run left behind, as far as it got: every file is optional and a crash may have cut the last
line.

Nothing is passed over in silence. What is missing or unreadable becomes a sentence in `Run.notes`, and the
page shows these sentences at its top.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from threefold.report.evaluations import Evaluation, Gain, Swap, evaluations_of, read_swaps
from threefold.report.intervals import Interval, is_number
from threefold.report.sampling import EpisodeSample, sample_episodes

__all__ = ["Evaluation", "Gain", "Interval", "Metrics", "Run", "Swap", "read_run"]


@dataclass(frozen=True)
class Metrics:
    """The columns of `metrics.jsonl`. A step that was logged twice (a resume) has its later values."""

    columns: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Finite value by step, ascending, by metric; "<split>: <metric>" for a split other than "train"."""
    words: Mapping[int, str] = field(default_factory=dict)
    """The sentence that says what happened in a step, by step, ascending."""
    warnings: tuple[tuple[int, str], ...] = ()
    """(step, what the run warned of), in the order in which it did."""
    started: float | None = None
    """Unix seconds of the earliest line."""
    ended: float | None = None
    """Unix seconds of the latest line."""
    last_step: int | None = None
    """Last step of the split "train"."""


@dataclass(frozen=True)
class Run:
    """A run directory in memory: all of it, except that the episodes are a bounded sample."""

    directory: Path
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    metrics: Metrics
    evaluations: tuple[Evaluation, ...]
    gains: tuple[Gain, ...]
    swaps: tuple[Swap, ...]
    episodes: EpisodeSample
    notes: tuple[str, ...]
    """What is missing or could not be read, one sentence each."""


FILES = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "rollouts.jsonl",
    "before.json",
    "after.json",
    "evaluation.json",
)
"""What tells a run directory from another folder: one of these is there from a run's first second on."""


def read_run(run_dir: Path, episode_limit: int = 400) -> Run:
    """Read a run directory.

    Args:
        run_dir: The directory that training wrote. Any of its files may be absent.
        episode_limit: Largest number of episodes to keep in memory (whole groups, see `sampling`); 0 leaves
            their record unread.

    Raises:
        FileNotFoundError: The directory does not exist, or holds none of the files of a run.
    """
    if run_dir.is_file():
        raise FileNotFoundError(
            f"{run_dir} is a file; give the folder of a run, which run.dir of its recipe names"
        )
    if not run_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {run_dir}{_runs_near(run_dir)}")
    if not any((run_dir / name).is_file() for name in FILES):
        raise FileNotFoundError(f"{run_dir} holds no run: none of {', '.join(FILES)} is in it")
    notes: list[str] = []
    config, config_text = _read_config(run_dir / "config.yaml", notes)
    environment = _read_json(run_dir / "environment.json", "versions and machine are unknown", notes)
    metrics = _read_metrics(run_dir / "metrics.jsonl", notes)
    evaluations, gains = _read_evaluations(run_dir, notes)
    episodes = sample_episodes(run_dir, episode_limit) if episode_limit else EpisodeSample()
    notes.extend(episodes.notes)
    return Run(
        directory=run_dir,
        config=config,
        config_text=config_text,
        environment=environment,
        metrics=metrics,
        evaluations=evaluations,
        gains=gains,
        swaps=read_swaps(run_dir, notes),
        episodes=episodes,
        notes=tuple(notes),
    )


def _runs_near(run_dir: Path) -> str:
    """The end of a sentence: the runs beside a folder that is not there, the likeliest first."""
    beside = sorted(run_dir.parent.iterdir()) if run_dir.parent.is_dir() else []
    runs = [path for path in beside if any((path / name).is_file() for name in FILES)]
    near = difflib.get_close_matches(run_dir.name, [path.name for path in runs], n=1)
    if near:
        return f"; did you mean {run_dir.parent / near[0]}?"
    return f"; runs there: {', '.join(str(path) for path in runs[:8])}" if runs else ""


def _read_evaluations(run_dir: Path, notes: list[str]) -> tuple[tuple[Evaluation, ...], tuple[Gain, ...]]:
    """Those before and after training; of a run that has not come to its end, those before."""
    if (run_dir / "evaluation.json").is_file() or not (run_dir / "before.json").is_file():
        data = _read_json(
            run_dir / "evaluation.json", "there are no results before and after training", notes
        )
        return evaluations_of(data, notes)
    notes.append("evaluation.json is missing: there are no results after training.")
    data = _read_json(run_dir / "before.json", "there are no results before training", notes)
    entries = data.get("evaluations")
    whole = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    return evaluations_of({"evaluations": [{**e, "when": "before"} for e in whole]}, notes, "before.json")


def _read_config(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], str]:
    if not path.is_file():
        notes.append(f"{path.name} is missing: what was run is unknown.")
        return {}, ""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        notes.append(f"{path.name} is not valid YAML: {' '.join(str(error).split())}")
        return {}, text
    if not isinstance(config, dict):
        notes.append(f"{path.name} holds no mapping of settings.")
        return {}, text
    return config, text


def _read_json(path: Path, consequence: str, notes: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        notes.append(f"{path.name} is missing: {consequence}.")
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        notes.append(f"{path.name} is not valid JSON ({error}): {consequence}.")
        return {}
    if not isinstance(data, dict):
        notes.append(f"{path.name} holds no JSON object: {consequence}.")
        return {}
    return data


def _read_metrics(path: Path, notes: list[str]) -> Metrics:
    if not path.is_file():
        notes.append(f"{path.name} is missing: there are no curves.")
        return Metrics()
    columns: dict[str, dict[int, float]] = {}
    words: dict[int, str] = {}
    times: list[float] = []
    train_steps: set[int] = set()
    unusable: list[str] = []
    warnings: dict[str, int] = {}
    for row in _rows(path, notes):
        step, split = row.pop("step"), row.pop("split", "train")
        time = row.pop("time", None)
        if is_number(time):
            times = [min([time, *times]), max([time, *times])]
        if split == "train":
            train_steps.add(step)
        sentence = row.pop("words", None)
        if isinstance(sentence, str) and sentence:
            words[step] = sentence
        said = row.pop("warnings", None)
        for warning in said if isinstance(said, list) else ():
            if isinstance(warning, str):
                warnings.setdefault(warning, step)
        for name, value in row.items():
            if is_number(value):
                column = name if split == "train" else f"{split}: {name}"
                columns.setdefault(column, {})[step] = float(value)
            elif isinstance(value, float):
                unusable.append(f"{name} at step {step}")
    if unusable:
        notes.append(
            f"{len(unusable)} values of {path.name} are not finite and stand in no curve, "
            f"the first: {unusable[0]}."
        )
    if not train_steps:
        notes.append(f"{path.name} holds no training step.")
    return Metrics(
        columns={name: dict(sorted(columns[name].items())) for name in sorted(columns)},
        words=dict(sorted(words.items())),
        warnings=tuple((step, text) for text, step in warnings.items()),
        started=times[0] if times else None,
        ended=times[1] if times else None,
        last_step=max(train_steps, default=None),
    )


def _rows(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file that have an integer "step"; the other lines are counted into a note."""
    bad: list[int] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row
            else:
                bad.append(number)
    if bad:
        notes.append(
            f"{path.name}: lines left out because they hold no complete JSON object with a step: {len(bad)}, "
            f"the first at line {bad[0]} (a crash cuts the line being written)."
        )
