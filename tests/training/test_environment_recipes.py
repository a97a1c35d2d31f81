"""Recipes that name an environment: trained, evaluated, reported, resumed, refused; and a warm start."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli import main
from threefold.envs.base import EpisodeScore, Observation, Task
from threefold.envs.toy import EchoThenNext
from threefold.rollout.driver import Limits, Start, run_episodes
from threefold.training.warm_start import demonstration_tokens
from threefold.trajectory import read_jsonl

SETTINGS = {
    "environment.name": "toy",
    "environment.turns": 2,
    "environment.turn_tokens": 4,
    "environment.completion_tokens": 40,
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "training.group_size": 4,
    "training.learning_rate": 1e-3,
    "evaluation.problems": 2,
    "evaluation.samples": 2,
    "run.threads": 1,
}


SCORES = ("success", "violation", "echo", "echo, summed over turns")


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a recipe for the toy; keywords are dotted keys."""
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))

    def write(**changes: Any) -> Path:
        paths = {"model.name": str(model_folder), "run.dir": str(tmp_path / "run")}
        data: dict[str, Any] = {}
        for key, value in {**SETTINGS, **paths, **changes}.items():
            section, _, name = key.partition(".")
            data.setdefault(section, {})[name] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def read(run: Path, name: str = "evaluation.json") -> Any:
    return json.loads((run / name).read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


class Opinionated(EchoThenNext):
    """Takes an option, has two channels, breaks a rule on "!" and holds state that no column could carry."""

    channels = ("echo", "calm")

    def __init__(self, bonus: float = 0.0) -> None:
        super().__init__()
        self.bonus = bonus

    def step(self, action_text):
        observation = super().step(action_text)
        return Observation(**{**vars(observation), "state": {"bonus": self.bonus}})

    def score(self, episodes):
        return [EpisodeScore({"echo": 0.0, "calm": 10.0 + self.bonus}, success=False) for _ in episodes]

    @staticmethod
    def tasks(split, size, seed):
        return [Task(f"{split}-{i}", {"digit": i % 10, "hidden": {"a": [1, "b"]}}) for i in range(size)]


def opinionated(bonus: float) -> Opinionated:
    """Makes an environment; its tasks are those of the module."""
    return Opinionated(bonus)


def tasks(split, size, seed):
    return Opinionated.tasks(split, size, seed)


def test_a_recipe_is_trained_evaluated_and_reported(recipe, tmp_path, capsys):
    assert main(["train", str(recipe())]) == 0
    run, said = tmp_path / "run", capsys.readouterr().out
    evaluation = read(run)
    assert [(e["when"], e["mode"], e["problems"]) for e in evaluation["evaluations"]] == [
        ("before", "sampled", 2),
        ("before", "greedy", 2),
        ("after", "sampled", 2),
        ("after", "greedy", 2),
    ]
    assert evaluation["evaluations"][0]["scores"].keys() == {*SCORES}
    assert {gain["score"] for gain in evaluation["gains"]} == {*SCORES}
    episodes = [record.trajectory for record in read_jsonl(run / "rollouts.jsonl")]
    assert len(episodes) == 2 * 8
    assert {e.environment for e in episodes} == {"EchoThenNext"}
    assert all(e.task["digit"] not in (3, 7) and len(e.turns) == 2 for e in episodes)
    assert "learns EchoThenNext with grpo: 2 steps of 2 tasks x 4 episodes" in said
    assert "2 held-out tasks; intervals are bootstrapped over tasks" in said
    report = (run / "report.html").read_text()
    assert "violation" in report
    assert "unknown form" not in report
    assert main(["train", str(run / "config.yaml"), "--dry-run"]) == 0


def test_a_dry_run_shows_the_opening_and_writes_nothing(recipe, tmp_path, capsys):
    assert main(["train", str(recipe()), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 training tasks, 2 held out. First prompt:" in said
    assert re.search(r"u:\d\na:", said)
    assert re.search(r"new tokens per step, at most\s.*320", said)  # 8 episodes of 40 tokens
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_remembers_what_was_measured_before_it(recipe, tmp_path):
    path = recipe()
    assert main(["train", str(path), "--quiet"]) == 0
    first = read(tmp_path / "run")
    assert main(["train", str(path), "--quiet", "--resume", "training.steps=3", "environment.tasks=4"]) == 0
    again = read(tmp_path / "run")
    assert again["evaluations"][:2] == first["evaluations"][:2]
    assert again["evaluations"][2]["step"] == 3
    assert len(again["gains"]) == 2 * len(SCORES)


@pytest.mark.parametrize("name", ["Opinionated", "opinionated"], ids=["class", "function"])
def test_by_its_path_with_options_and_weights(recipe, tmp_path, name):
    path = recipe(
        **{
            "environment.name": f"{__name__}:{name}",
            "environment.options": {"bonus": 2.0},
            "environment.rewards": {"calm": 0.5, "success": 1.0},
        }
    )
    assert main(["train", str(path), "--quiet"]) == 0
    run = tmp_path / "run"
    (line, *_) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert line["reward"] == pytest.approx(0.5 * 12)
    assert line["signal/outcome"] == 0.0  # success is the outcome where it is among the rewards
    episode = next(read_jsonl(run / "rollouts.jsonl")).trajectory
    assert episode.task["hidden"] == {"a": [1, "b"]}  # as it was given, not by way of a table's columns
    assert episode.turns[0].state == {"bonus": 2.0}
    after = read(run)["evaluations"][-1]
    assert after["scores"]["calm"]["mean"] == 12.0
    assert set(after["in_own_units"]) == {"calm", "echo", "echo, summed over turns"}
    assert after["states"]["bonus"] == [2.0, 2.0]


def test_ispo_reads_the_environments_outcome(recipe, tmp_path):
    path = recipe(**{"credit.method": "ispo", "evaluation.before": False, "evaluation.after": False})
    assert main(["train", str(path), "--quiet"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_eval_of_a_run_and_of_the_same_model_elsewhere(recipe, tmp_path, capsys):
    assert main(["train", str(recipe(**{"evaluation.before": False})), "--quiet"]) == 0
    run, output = tmp_path / "run", tmp_path / "figures.json"
    command = ["eval", str(run), "--problems", "2", "--samples", "2", "--k", "1", "2", "--quiet"]
    assert main([*command, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert [e["mode"] for e in figures["evaluations"]] == ["greedy", "sampled"]
    assert figures["evaluations"][1]["pass_at"]["success"].keys() == {"1", "2"}
    greedy = next(e for e in read(run)["evaluations"] if e["mode"] == "greedy")
    assert figures["evaluations"][0]["scores"] == greedy["scores"]
    assert "2 tasks of EchoThenNext" in capsys.readouterr().out
    elsewhere = [f"environment.name={__name__}:Opinionated", "environment.rewards={}"]
    assert main([*command, "--output", str(output), *elsewhere]) == 0
    assert json.loads(output.read_text())["evaluations"][0]["scores"]["calm"]["mean"] == 10.0
    assert "--data names problems" in refused(capsys, *command, "--data", "arithmetic")


def test_eval_of_a_model_that_never_trained(recipe, model_folder, tmp_path):
    output = tmp_path / "figures.json"
    command = ["eval", str(model_folder), "environment.name=toy", "environment.turns=2", "--problems", "2"]
    assert main([*command, "--samples", "1", "--k", "1", "--max-tokens", "30", "--output", str(output)]) == 0
    greedy = json.loads(output.read_text())["evaluations"][0]
    assert greedy["problems"] == 2
    assert 0 <= greedy["scores"]["echo"]["mean"] <= 1


class NoTasks(EchoThenNext):
    tasks = None


class Twice(EchoThenNext):
    @staticmethod
    def tasks(split, size, seed):
        return [Task("same", {"digit": 1})] * size


class OddHook(EchoThenNext):
    @staticmethod
    def tasks(scenarios):
        return []


class Leaks(EchoThenNext):
    @staticmethod
    def tasks(split, size, seed):
        return [Task(f"task-{i}", {"digit": 1}) for i in range(size)]


class Unopenable(EchoThenNext):
    def reset(self, task, seed, member):
        raise ConnectionError("no simulator")


class Mute(EchoThenNext):
    demonstrations = None


HERE = __name__


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment.name": "tyo"}, r"'tyo' is none of toy.*did you mean 'toy'"),
        ({"environment.name": "no.such:Thing"}, r"no\.such cannot be imported"),
        ({"environment.name": f"{HERE}:Twise"}, r"no class or function 'Twise'; did you mean 'Twice'"),
        ({"environment.name": "threefold.envs.base:Task"}, r"Task is no environment, it lacks reset, step"),
        (
            {"environment.options": {"colour": 1}},
            r"environment\.options: .*'colour'.*takes these options: none",
        ),
        ({"environment.rewards": {"eco": 1.0}}, r"no channel 'eco'; it has echo, success"),
        ({"environment.turnes": 2}, r"'environment\.turnes'; did you mean 'turn"),
        ({"environment.name": f"{HERE}:NoTasks"}, r"NoTasks offers no tasks: give the class a static method"),
        ({"environment.name": f"{HERE}:Twice"}, r"two tasks of 'train' have the id 'same'"),
        (
            {"environment.name": f"{HERE}:OddHook"},
            r"OddHook: tasks must take \(split, size, seed\): too many",
        ),
        ({"environment.name": f"{HERE}:Leaks"}, r"task 'task-0' is in both splits"),
        (
            {"environment.name": f"{HERE}:Unopenable"},
            r"cannot open task train-0: ConnectionError: no simulator",
        ),
        ({"environment.completion_tokens": 300}, r"task train-0: the opening has 6 tokens.*context of 256"),
        ({"environment.tasks": 1}, r"gives 1 training tasks, fewer than training\.prompts_per_step = 2"),
        ({"environment.name": f"{HERE}:Mute", "warm_start.dialogues": 2}, r"Mute offers no demonstrations"),
        (
            {"environment.name": None, "warm_start.dialogues": 2, "training.max_completion_tokens": 8},
            r"needs an environment with demonstrations",
        ),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_what_is_refused_before_the_first_step(recipe, tmp_path, capsys, changes, message):
    said = refused(capsys, "train", recipe(**changes), "--dry-run")
    assert re.search(message, said, re.DOTALL), said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_channel_that_no_episode_has_is_refused_at_the_first_batch(recipe, capsys):
    class_path = f"{HERE}:Undeclared"
    path = recipe(
        **{"environment.name": class_path, "environment.rewards": {"ecko": 1.0}, "evaluation.before": False}
    )
    said = refused(capsys, "train", path)
    assert "no episode has the channel 'ecko', they have echo; did you mean 'echo'" in said


class Undeclared(EchoThenNext):
    channels = ()


# The warm start
# ----------------------------------------------------------------------------------------------------


def test_demonstrations_have_the_tokens_of_a_rollout(tokenizer):
    """What is imitated is, token by token and mask by mask, the episode of an agent that says the same."""
    (messages,) = EchoThenNext.demonstrations("train", 1, seed=0)
    spoken = iter([m["content"] for m in messages if m["role"] == "assistant"])
    task = Task("t", {"digit": int(messages[0]["content"])})

    def says(contexts, most):
        return [(tokenizer(next(spoken))["input_ids"] + [1], None)]

    (episode,) = run_episodes(
        [Start(task, seed=0, group_id=0, member=0)], EchoThenNext, says, tokenizer, limits=Limits()
    )
    ids, mask = demonstration_tokens(messages, tokenizer)
    assert tuple(ids) == episode.segments[0].token_ids
    assert mask == [int(turn >= 0) for turn in episode.segments[0].turn_ids]
    assert episode.success
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_demonstration_without_an_opening_or_an_agent_is_refused(tokenizer):
    for messages in ([{"role": "assistant", "content": "7"}], [{"role": "user", "content": "7"}]):
        with pytest.raises(ValueError, match="an opening and something said by the assistant"):
            demonstration_tokens(messages, tokenizer)


WARM = {
    "warm_start.dialogues": 64,
    "warm_start.epochs": 12,
    "warm_start.learning_rate": 1e-2,
    "warm_start.batch_size": 16,
}


def test_a_warm_start_teaches_is_kept_and_is_where_learning_starts(recipe, tmp_path, capsys):
    skip = {"evaluation.before": False, "evaluation.after": False, "training.steps": 1}
    path = recipe(**WARM, **skip, **{"credit.method": "ispo"})
    assert main(["train", str(path)]) == 0
    first = capsys.readouterr().out
    losses = re.search(r"warm start: 64 demonstrations, loss ([\d.]+) to ([\d.]+)", first)
    assert losses
    assert float(losses[2]) < 0.3 * float(losses[1])
    learnt_now = (tmp_path / "run" / "rollouts.jsonl").read_text()
    assert main(["train", str(path), "--overwrite"]) == 0
    assert "64 demonstrations, learnt before" in capsys.readouterr().out
    assert (tmp_path / "run" / "rollouts.jsonl").read_text() == learnt_now
    # Cold episodes of the tiny model end at the length limit; warm ones say a digit and stop.
    episodes = [record.trajectory for record in read_jsonl(tmp_path / "run" / "rollouts.jsonl")]
    assert sum(len(e.turns[0].text) == 1 for e in episodes) >= 7
    # Another setting is another start.
    assert main(["train", str(path), "--overwrite", "warm_start.epochs=1"]) == 0
    assert "learnt before" not in capsys.readouterr().out
    assert main(["train", str(path), "--resume", "training.steps=2", "environment.tasks=2"]) == 2
    assert "warm_start.epochs was 1 and is" in capsys.readouterr().err


def test_the_reference_of_a_kl_term_is_the_warm_started_model(recipe, tmp_path):
    skip = {"evaluation.before": False, "evaluation.after": False, "training.steps": 1}
    assert main(["train", str(recipe(**WARM, **skip, **{"training.kl": 0.1})), "--quiet"]) == 0
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["kl"] == pytest.approx(0.0, abs=1e-6)  # nothing differs yet


def test_an_adapter_over_a_warm_start_is_evaluated_over_it(recipe, tmp_path):
    path = recipe(**WARM, **{"model.lora": {"r": 4}, "training.learning_rate": 1e-6})
    assert main(["train", str(path), "--quiet"]) == 0
    run, output = tmp_path / "run", tmp_path / "figures.json"
    assert (run / "base" / "model.safetensors").exists()
    assert (
        main(["eval", str(run), "--problems", "2", "--samples", "1", "--k", "1", "--output", str(output)])
        == 0
    )
    trained = next(e for e in read(run)["evaluations"] if (e["when"], e["mode"]) == ("after", "greedy"))
    measured = json.loads(output.read_text())["evaluations"][0]
    assert (measured["scores"], measured["mean_length"]) == (trained["scores"], trained["mean_length"])
    assert measured["mean_length"] < 5  # cold, it writes four tokens a turn
