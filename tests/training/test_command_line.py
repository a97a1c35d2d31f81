"""`threefold train` as a person uses it: with a local model and a local file, good input and bad."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli import main
from threefold.evaluation.command import _find
from threefold.training.callbacks import StopOnInterrupt

QUESTIONS = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
SETTINGS = {
    "prompt.answer_format": r"([0-9])",
    "prompt.style": "generic",
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "training.group_size": 4,
    "training.max_completion_tokens": 8,
    "training.learning_rate": 1e-2,
    "evaluation.problems": 2,
    "evaluation.greedy": False,
    "run.threads": 1,
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def recipe(tmp_path: Path, make_model: Any, tokenizer: Any) -> Callable[..., Path]:
    """Write model, data and recipe; `rows` replaces the training data, keywords are dotted keys."""

    def write(rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
        folder = tmp_path / "model"
        if not folder.exists():
            make_model(max_position_embeddings=512).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        write_jsonl(tmp_path / "train.jsonl", QUESTIONS if rows is None else rows)
        write_jsonl(tmp_path / "test.jsonl", QUESTIONS[:4])
        data: dict[str, Any] = {}
        paths = {
            "model.name": str(folder),
            "data.train": str(tmp_path / "train.jsonl"),
            "data.test": str(tmp_path / "test.jsonl"),
            "run.dir": str(tmp_path / "run"),
        }
        for key, value in {**SETTINGS, **paths, **changes}.items():
            section, _, name = key.partition(".")
            data.setdefault(section, {})[name] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run `threefold train`, expect a refusal, and return what it said."""
    capsys.readouterr()  # what making the model for the test printed
    assert main(["train", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    assert said.err.startswith("threefold train: ")
    return said.err


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


# A run from one end to the other
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "grpo", "ispo"])
def test_a_recipe_is_trained_evaluated_and_reported(recipe, tmp_path, capsys, method):
    assert main(["train", str(recipe(**{"credit.method": method}))]) == 0
    run, said = tmp_path / "run", capsys.readouterr().out
    assert steps(run) == [1, 2]
    assert len((run / "rollouts.jsonl").read_text().splitlines()) == 2 * 8
    assert (run / "report.html").stat().st_size > 0
    assert (run / "model" / "model.safetensors").exists()
    gains = json.loads((run / "evaluation.json").read_text())["gains"]
    assert {gain["score"] for gain in gains} == {"strict", "last_number", "format"}
    assert "step 2/2" in said
    assert "2 held-out problems" in said
    # The recipe that was written is complete and can be run again, by itself.
    assert main(["train", str(run / "config.yaml"), "--dry-run"]) == 0


def test_a_dry_run_prints_the_plan_and_writes_nothing(recipe, tmp_path, capsys):
    assert main(["train", str(recipe()), "--dry-run", "training.steps=7"]) == 0
    said = capsys.readouterr().out
    assert "steps: 7" in said
    assert re.search(r"episodes per step\s.*8", said)
    assert "0+0=" in said
    assert "16 training problems, 2 held out" in said
    assert not (tmp_path / "run").exists()


def test_json_leaves_standard_output_to_one_object_a_line(recipe, tmp_path, capsys):
    path = recipe(**{"evaluation.before": False, "evaluation.problems": 1})
    capsys.readouterr()
    assert main(["train", str(path), "--json"]) == 0
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert [event["event"] for event in events] == ["start", "step", "step", "result", "end"]
    assert [event.get("step") for event in events] == [None, 1, 2, None, 2]
    assert events[0]["batch"]["episodes per step"] == 8
    assert "signal/dead_outcome" in events[1]["metrics"]
    assert events[3]["evaluations"][0]["problems"] == 1
    assert events[4]["report"] == str(tmp_path / "run" / "report.html")
    assert not events[4]["stopped"]
    assert "report: " in said.err


def test_quiet_leaves_the_results(recipe, tmp_path, capsys):
    path = recipe()
    capsys.readouterr()
    assert main(["train", str(path), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "held-out problems" in said
    assert f"report: {tmp_path / 'run' / 'report.html'}" in said
    for word in ("learns", "step 1/2", "evaluating", "batch"):
        assert word not in said


def test_a_loud_run_shows_its_batch_before_the_first_step_and_what_it_waits_for(recipe, capsys):
    path = recipe()
    capsys.readouterr()
    assert main(["train", str(path)]) == 0
    said = capsys.readouterr().out
    words = ["2 steps of 2 problems x 4 episodes", "episodes per step", "evaluating before training",
             "step 1/2", "tokens/s", "step 2/2", "evaluating after training", "report: "]  # fmt: skip
    assert [said.find(word) for word in words] == sorted(said.find(word) for word in words)
    assert -1 not in [said.find(word) for word in words]


def test_a_run_is_not_overwritten_unless_told(recipe, tmp_path, capsys):
    path = recipe(**{"evaluation.before": False, "evaluation.after": False})
    assert main(["train", str(path), "--quiet"]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    said = refused(capsys, path)
    assert "already holds a run" in said
    assert "--resume" in said
    assert "--overwrite" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert main(["train", str(path), "--quiet", "--overwrite", "training.steps=1"]) == 0
    assert steps(tmp_path / "run") == [1]


def test_a_finished_run_can_be_made_longer(recipe, tmp_path):
    path = recipe(**{"evaluation.before": False, "evaluation.after": False})
    assert main(["train", str(path), "--quiet"]) == 0
    assert main(["train", str(path), "--quiet", "--resume", "training.steps=3"]) == 0
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_a_finished_run_that_is_resumed_is_measured_again_and_not_trained_on(recipe, tmp_path, capsys):
    path, run = recipe(), tmp_path / "run"
    kept = ("metrics.jsonl", "rollouts.jsonl", "model/model.safetensors")
    assert main(["train", str(path), "--quiet"]) == 0
    before = [(run / name).read_bytes() for name in kept]
    scores = [e["scores"] for e in json.loads((run / "evaluation.json").read_text())["evaluations"]]
    (run / "evaluation.json").unlink()
    capsys.readouterr()
    assert main(["train", str(path), "--resume"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "all 2 steps are trained already; raise training.steps to go on" in said
    assert [(run / name).read_bytes() for name in kept] == before
    again = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert [e["scores"] for e in again] == scores


def test_ctrl_c_saves_a_checkpoint_that_can_be_resumed(recipe, tmp_path):
    path = recipe(**{"evaluation.before": False, "evaluation.after": False, "training.steps": 5000})
    run, log = tmp_path / "run", tmp_path / "log.txt"
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "threefold", "train", str(path)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            while process.poll() is None and not (run / "metrics.jsonl").exists():
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            status = process.wait()
        finally:
            process.kill()
    said = log.read_text()
    assert status == 0, said
    assert "Traceback" not in said
    stopped = int(re.search(r"stopped at step (\d+); continue with --resume", said)[1])
    assert (run / "checkpoints" / f"checkpoint-{stopped}" / "trainer_state.json").exists()
    assert steps(run) == list(range(1, stopped + 1))
    assert main(["train", str(path), "--quiet", "--resume", f"training.steps={stopped + 2}"]) == 0
    assert steps(run) == list(range(1, stopped + 3))


# What is refused before the first step
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.lerning_rate": 1e-5}, r"'training\.lerning_rate'; did you mean 'learning_rate'\?"),
        ({"training.group_size": 1}, r"training\.group_size = 1: .*greater than or equal to 2"),
        ({"training.updates_per_step": 3}, r"8 episodes do not divide by.*prompts_per_step that works is 3"),
        ({"training.prompts_per_step": 64}, r"16 problems, fewer than training\.prompts_per_step = 64"),
        ({"training.loss": "gppo"}, r"training\.loss = 'gppo'.*'dapo'"),
        ({"credit.method": "ipso"}, r"credit\.method = 'ipso'"),
        ({"prompt.style": "generik"}, r"prompt\.style = 'generik'.*did you mean 'generic'"),
        ({"data.question_column": "text"}, r"train\.jsonl.*'text'.*question"),
        ({"training.trl": {"learning_rate": 1.0}}, r"training\.trl\.learning_rate is derived"),
        ({"training.trl": {"no_such_field": 1}}, r"TRL refuses the training section.*no_such_field"),
        ({"training.max_completion_tokens": 600}, r"row 0.*passes the model's context of 512"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("dry", [False, True], ids=["train", "dry run"])
def test_a_bad_setting(recipe, tmp_path, capsys, changes, message, dry):
    said = refused(capsys, recipe(**changes), *(["--dry-run"] if dry else []))
    assert re.search(message, said, re.DOTALL), said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_that_trl_does_not_know(recipe, tmp_path, capsys):
    assert "gppo" in refused(capsys, recipe(**{"training.loss": "gppo"}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "1+1="}, "answer"),
        ({"question": "1+1=", "answer": ""}, "answer"),
        ({"question": "1+1=", "answer": None}, "answer"),
        ({"question": "", "answer": "2"}, "question"),
        ({"question": "   ", "answer": "2"}, "question"),
        ({"question": "1+1=" * 200, "answer": "2"}, "context of 512"),
    ],
)
def test_a_bad_row_is_named(recipe, capsys, row, message):
    said = refused(capsys, recipe(rows=[*QUESTIONS[:5], row, *QUESTIONS[5:]]))
    assert message in said
    assert re.search(r"train.*\b[56]\b", said), said


def test_files_that_do_not_exist(recipe, tmp_path, capsys):
    assert "no recipe at" in refused(capsys, tmp_path / "nowhere.yaml")
    assert "nowhere" in refused(capsys, recipe(**{"data.train": str(tmp_path / "nowhere.jsonl")}))
    assert "nowhere" in refused(capsys, recipe(**{"model.name": str(tmp_path / "nowhere")}))
    assert "no checkpoint to resume from" in refused(capsys, recipe(), "--resume")


def test_overwrite_deletes_no_folder_that_is_not_a_run(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert "not a run directory" in refused(capsys, recipe(), "--overwrite")
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_a_refused_recipe_costs_no_earlier_run(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("kept")
    for changes in ({"training.group_size": 1}, {"model.name": str(tmp_path / "nowhere")}):
        refused(capsys, recipe(**changes), "--overwrite")
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == "kept"


# Models that lack something
# -------------------------------------------------------------------------------------------------------


def test_a_model_without_a_chat_template_gets_plain_text(recipe, tmp_path, capsys, tokenizer):
    path = recipe(**{"evaluation.before": False, "evaluation.after": False, "training.steps": 1})
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    assert main(["train", str(path), "--quiet"]) == 0
    assert steps(tmp_path / "run") == [1]


def test_a_tokenizer_without_a_pad_token_is_padded_with_its_end(recipe, tmp_path):
    from transformers import AutoTokenizer

    path = recipe(**{"credit.method": "ispo", "evaluation.before": False, "evaluation.after": False})
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = tmp_path / "model" / name
        if file.exists():
            settings = {k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}
            file.write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").pad_token is None
    assert main(["train", str(path), "--quiet"]) == 0
    # The end token closes an episode once, though it also pads.
    for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines():
        ids = json.loads(line)["trajectory"]["segments"][0]["token_ids"]
        assert ids.count(1) <= 1


def test_a_run_that_goes_on_is_no_longer_what_its_model_was(recipe, tmp_path, monkeypatch):
    """Stopped again, it is evaluated at its checkpoint and not at the model of the earlier end."""
    assert main(["train", str(recipe()), "--quiet"]) == 0
    assert _find(str(tmp_path / "run"), None, [])[1] == str(tmp_path / "run" / "model")
    ended = StopOnInterrupt.on_step_end

    def interrupted(self: StopOnInterrupt, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        return ended(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnInterrupt, "on_step_end", interrupted)
    assert main(["train", str(recipe(**{"training.steps": 5})), "--quiet", "--resume"]) == 0
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    assert _find(str(tmp_path / "run"), None, [])[1] == str(newest)
