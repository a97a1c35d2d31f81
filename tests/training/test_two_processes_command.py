"""`threefold train` under a launcher: two processes measure what one does, one of them speaks, none hangs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli import main
from threefold.trajectory import read_jsonl
from tiny_parts import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

SETTINGS = {
    "environment.name": "toy",
    "environment.turns": 2,
    "environment.turn_tokens": 4,
    "environment.completion_tokens": 40,
    "credit.method": "grpo",
    "training.steps": 4,
    "training.prompts_per_step": 3,  # the second group spans both processes
    "training.group_size": 4,
    "training.micro_batch": 2,
    "training.learning_rate": 1e-2,
    "training.save_every": 2,
    "evaluation.problems": 2,
    "evaluation.samples": 3,
    "evaluation.every": 3,
    "run.threads": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_commands")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Callable[..., list[str]]:
    """Arguments of `threefold train` for a run in a folder of that name; keywords are dotted keys."""

    def write(name: str, **changes: Any) -> list[str]:
        paths = {"model.name": str(folder / "model"), "run.dir": str(folder / name)}
        data: dict[str, Any] = {}
        for key, value in {**SETTINGS, **paths, **changes}.items():
            section, _, field = key.partition(".")
            data.setdefault(section, {})[field] = value
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return ["train", str(path)]

    return write


def launched(arguments: list[str], *further: str) -> subprocess.CompletedProcess[str]:
    """The command on two processes; one that hangs fails the test."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    here = str(Path(__file__).parent)
    return subprocess.run(
        [*command, "-m", "threefold", *arguments, *further],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.getenv("PYTHONPATH")]))},
    )


@pytest.fixture(scope="module")
def two(folder: Path, recipe: Callable[..., list[str]]) -> subprocess.CompletedProcess[str]:
    answer = launched(recipe("two"))
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text(encoding="utf-8"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if "time" not in name and name != "words"}
        for line in lines
    ]


def starts(run: Path) -> list[tuple[Any, ...]]:
    episodes = [record.trajectory for record in read_jsonl(run / "rollouts.jsonl")]
    return [(e.group_id, e.member, e.task_id, e.seed) for e in episodes]


def test_two_processes_play_and_measure_what_one_does(two, folder, recipe):
    assert main([*recipe("one"), "--quiet"]) == 0
    assert [read(folder / name, "environment.json")["processes"] for name in ("one", "two")] == [1, 2]
    assert starts(folder / "two") == starts(folder / "one")
    before = [read(folder / name, "before.json")["evaluations"] for name in ("two", "one")]
    for evaluation in (*before[0], *before[1]):
        del evaluation["seconds"]
    assert before[0] == before[1]
    assert [line["step"] for line in metrics(folder / "two") if line["split"] == "held_out"] == [0, 3, 4]
    assert [(e["when"], e["mode"]) for e in read(folder / "two", "evaluation.json")["evaluations"]] == [
        ("before", "sampled"),
        ("before", "greedy"),
        ("after", "sampled"),
        ("after", "greedy"),
    ]


def test_one_process_speaks(two):
    for said in ("learns EchoThenNext", "evaluating before training, sampled", "step 4/4", "2 held-out tasks",
                 "report: "):  # fmt: skip
        assert two.stdout.count(said) == 1, said


def test_a_resumed_run_is_the_unbroken_one(two, folder, recipe):
    shutil.copytree(folder / "two", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / "checkpoint-4")
    answer = launched(recipe("resumed"), "--resume", "--quiet")
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert metrics(folder / "resumed") == metrics(folder / "two")
    records = [list(read_jsonl(folder / name / "rollouts.jsonl")) for name in ("resumed", "two")]
    assert records[0] == records[1]


def test_a_recipe_is_refused_once_and_costs_no_earlier_run(folder, recipe):
    (folder / "refused").mkdir()
    (folder / "refused" / "config.yaml").touch()  # by which a folder is known to be a run's
    answer = launched(recipe("refused", **{"training.group_size": 3}), "--overwrite")
    assert answer.returncode != 0
    assert answer.stderr.count("threefold train: ") == 1
    assert "= 9 episodes do not divide by 2 process(es)" in answer.stderr
    assert (folder / "refused" / "config.yaml").exists()


def test_a_warm_start_is_learnt_once_and_is_that_of_one_process(folder, recipe, tmp_path, monkeypatch):
    short = {"training.steps": 1, "evaluation.before": False, "evaluation.after": False}
    warm = {"warm_start.dialogues": 16, "warm_start.batch_size": 8, "warm_start.learning_rate": 1e-2}
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "two"))
    answer = launched(recipe("warm", **short, **warm))
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert answer.stdout.count("warm start: 16 demonstrations, loss ") == 1
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "one"))
    assert main(recipe("warm-alone", **short, **warm)) == 0
    one, two = (list((tmp_path / name).glob("warm-start-*/model.safetensors")) for name in ("one", "two"))
    assert len(one) == len(two) == 1
    assert one[0].parent.name == two[0].parent.name
    assert one[0].read_bytes() == two[0].read_bytes()


def test_demonstrations_that_another_process_does_not_give_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path))
    name = {"environment.name": "two_processes_command:Moody", "warm_start.dialogues": 4}
    answer = launched(recipe("moody", **name))
    assert answer.returncode != 0
    assert "gives other demonstrations in another process" in answer.stderr


def test_an_interrupt_of_one_process_ends_both_with_a_checkpoint(folder, recipe):
    name = {"environment.name": "two_processes_command:Interrupted", "evaluation.before": False}
    answer = launched(recipe("interrupted", **name))
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "stopped at step 1; continue with --resume" in answer.stdout
    assert (folder / "interrupted" / "checkpoints" / "checkpoint-1" / "trainer_state.json").exists()
    assert not (folder / "interrupted" / "model").exists()


def test_a_process_that_fails_says_why_and_ends_the_other(folder, recipe):
    name = {"environment.name": "two_processes_command:Worded", "evaluation.before": False}
    answer = launched(recipe("failed", **name))
    assert answer.returncode != 0
    assert "'str'" in answer.stderr


def test_a_channel_that_one_process_has_not_seen_is_unscorable_there(folder, recipe):
    name = {"environment.name": "two_processes_command:Rare", "training.steps": 1}
    answer = launched(recipe("rare", **name, **{"evaluation.before": False, "evaluation.after": False}))
    assert answer.returncode == 0, answer.stderr[-3000:]
    (line,) = (line for line in metrics(folder / "rare") if "signal/unscorable" in line)
    assert line["signal/unscorable"] == 0.5
