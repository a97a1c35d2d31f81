"""The skill bank inside the training loop: versions inside a group, one baseline, tests outlive a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed import StopAt, weights
from transformers import AutoModelForCausalLM, TrainerCallback

from chat_server import Reply, chat_server
from skill_parts import QUIET, figures, files, hand_made, recipe_writer
from threefold import GRPO
from threefold.cli import main
from threefold.envs.base import EpisodeScore, Observation
from threefold.envs.errands import Errands
from threefold.recipe import parse_recipe
from threefold.rollout.driver import Limits
from threefold.skills.bank import Add
from threefold.skills.creator import Creation, Evidence
from threefold.skills.evolution import Evolution
from threefold.skills.settings import Settings
from threefold.skills.skill import Skill
from threefold.skills.store import read_bank, read_record, versions
from threefold.training.run_directory import RunDirectory
from threefold.training.skills import settings_of
from threefold.trajectory import Credited, read_jsonl
from tiny_parts import tiny_model


class Digits:
    """Two turns; it succeeds where a digit was said: random text does now and then."""

    channels = ("digit",)

    def reset(self, task, seed, member):
        self.turn, self.said = 0, False
        return Observation(messages=({"role": "user", "content": f"say {seed % 10}"},))

    def step(self, action_text):
        self.turn += 1
        self.said |= any(c.isdigit() for c in action_text)
        done = self.turn == 2
        success = self.said if done else None
        return Observation(
            messages=() if done else ({"role": "user", "content": "+"},),
            action=action_text.strip()[:20],
            terminated=done,
            success=success,
        )

    def score(self, episodes):
        return [EpisodeScore({"digit": float(bool(e.success))}, success=e.success) for e in episodes]

    def close(self):
        pass


class Easy(Errands):
    """Errands in which every episode succeeds."""

    def score(self, episodes):
        return [EpisodeScore({"success": 1.0, "valid": 1.0}, success=True) for _ in episodes]


class Uneven(Errands):
    """Errands in which the members of a group differ in success, whatever a model of random weights says."""

    def score(self, episodes):
        won = [episode.member % 2 == 0 for episode in episodes]
        return [EpisodeScore({"success": float(w), "valid": 1.0}, success=w) for w in won]


def one_more(evidence: Evidence) -> Creation:
    """A creator that adds a skill whenever it is asked."""
    name = f"skill-of-step-{evidence.step}"
    return Creation((Add(Skill(name, "You say something.", "Say a digit.", created_step=evidence.step)),))


SETTINGS = Settings(period=3, min_episodes=8, min_reservoir=4, capacity=3)


def trainer_in(build: Any, run: RunDirectory, executor: Any = None, **options: Any) -> Any:
    args = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "temperature": 1.5}
    return build(
        args={**args, "output_dir": str(run.path / "checkpoints"), **options.pop("args", {})},
        model=tiny_model(max_position_embeddings=1024),
        environment=Digits,
        reward_funcs=None,
        limits=Limits(turns=2, turn_tokens=6, completion_tokens=60),
        credit=GRPO(),
        run_dir=run,
        sampler="threefold",
        **{
            "skills": Evolution(
                one_more, settings=SETTINGS, seed=3, root=run.path / "bank", executor=executor
            ),
            **options,
        },
    )


def episodes(run: Path) -> list[Credited]:
    return [record for record in read_jsonl(run / "rollouts.jsonl") if isinstance(record, Credited)]


@pytest.mark.parametrize(("saved", "under_way"), [(3, "running"), (4, "pending")])
def test_a_run_that_ends_inside_a_test_or_a_creation_resumes_bit_for_bit(build, tmp_path, saved, under_way):
    args = {"save_steps": saved}
    through = trainer_in(build, RunDirectory(tmp_path / "through"), args=args)
    through.train()
    with ThreadPoolExecutor(1) as pool:  # creating beside the update gives the same run
        stop = [StopAt(saved + 1)]  # one step past the checkpoint, whose records must be dropped
        trainer_in(build, RunDirectory(tmp_path / "halves"), pool, callbacks=stop, args=args).train()
        run = RunDirectory(tmp_path / "halves", resume=True)
        checkpoint = run.latest_checkpoint()
        state = json.loads((checkpoint / "threefold_skills.json").read_text())
        assert [name for name in ("running", "pending") if state[name]] == [under_way]
        run.drop_after(saved)
        resumed = trainer_in(build, run, pool, args=args)
        resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(through), weights(resumed))
    one, other = (tmp_path / name for name in ("through", "halves"))
    assert figures(one) == figures(other)
    assert through.skills.to_dict() == resumed.skills.to_dict()
    assert (one / "rollouts.jsonl").read_text() == (other / "rollouts.jsonl").read_text()
    assert files(one / "bank") == files(other / "bank")
    assert {event.kind for event in through.skills.events} == {"testing", "accept", "reject"}


def test_a_creation_runs_beside_the_update(build, tmp_path):
    """The first creation waits for the update that it was begun before: in its way, it would wait in vain."""
    updated = threading.Event()

    class Tells(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            updated.set()

    def patient(evidence: Evidence) -> Creation:
        if not updated.wait(timeout=120):
            raise AssertionError("the update waits for the creation")
        return one_more(evidence)

    with ThreadPoolExecutor(1) as pool:
        loop = Evolution(patient, settings=SETTINGS, seed=3, executor=pool)
        run = RunDirectory(tmp_path / "run")
        trainer_in(build, run, skills=loop, callbacks=[Tells()], args={"max_steps": 2}).train()
    assert loop.events[0].kind == "testing"
    assert loop.events[0].step == 2  # it was begun before the update of step 1


def test_a_checkpoint_without_skills_is_refused(build, tmp_path):
    run = RunDirectory(tmp_path / "run")
    trainer_in(build, run, args={"max_steps": 4}).train()
    checkpoint = run.latest_checkpoint()
    (checkpoint / "threefold_skills.json").unlink()
    again = trainer_in(build, RunDirectory(tmp_path / "run", resume=True))
    with pytest.raises(ValueError, match=r"holds no skill bank: the run was started without skills"):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_an_empty_bank_trains_like_plain_grpo_to_the_last_bit(build, tmp_path):
    def idle(evidence: Evidence) -> Creation:
        return Creation()

    args = {"max_steps": 3}
    plain = trainer_in(build, RunDirectory(tmp_path / "plain"), args=args, skills=None)
    plain.train()
    loop = Evolution(idle, settings=SETTINGS)
    with_bank = trainer_in(build, RunDirectory(tmp_path / "bank"), args=args, skills=loop)
    with_bank.train()
    assert [event.kind for event in loop.events] == ["nothing to test"] * 2
    assert torch.equal(weights(plain), weights(with_bank))
    tokens = [[e.trajectory.segments for e in episodes(tmp_path / name)] for name in ("plain", "bank")]
    assert tokens[0] == tokens[1]


def test_versions_share_a_group_and_its_baseline_and_each_prompt_holds_its_own_skills(build, tmp_path):
    trainer = trainer_in(build, RunDirectory(tmp_path / "run"))
    trainer.train()
    bank = tmp_path / "run" / "bank"
    played: dict[tuple[int, int], list[Credited]] = {}
    for episode in episodes(tmp_path / "run"):
        shown = read_bank(bank, episode.trajectory.skill_version).names
        assert all(turn.skills == shown for turn in episode.trajectory.turns)  # all of them are general
        assert all(f'<skill name="{name}">' in episode.trajectory.opening.text for name in shown)
        assert episode.trajectory.opening.text.count("<skill name=") == len(shown)
        assert episode.trajectory.environment == "Digits"
        played.setdefault((episode.step, episode.trajectory.group_id), []).append(episode)
    mixed = [group for group in played.values() if len({e.trajectory.skill_version for e in group}) == 2]
    assert mixed
    for group in mixed:  # one mean and one deviation for all four, whatever their version
        rewards = torch.tensor([float(e.trajectory.success) for e in group])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        given = [next((a for a in e.advantages[0] if a), 0.0) for e in group]
        assert given == pytest.approx(expected.tolist(), abs=1e-4)
    for line in figures(tmp_path / "run"):  # what the record of a version counts is what was played
        group = [e.trajectory for key, es in played.items() if key[0] == line["step"] for e in es]
        for version in versions(bank)[1:]:
            entry = [t for t in read_record(bank, version).test if t["step"] == line["step"]]
            mine = [e for e in group if e.skill_version == version]
            if entry:
                assert entry[0]["new"] == [sum(e.success for e in mine), len(mine)]
                assert line["skills/share_new"] == len(mine) / len(group)
    assert "v1 tested against v0, step 1 of at least 3: P(new) = " in figures(tmp_path / "run")[1]["words"]


def test_evaluating_in_the_middle_of_a_test_plays_one_version_and_draws_nothing(build, tmp_path):
    trainer = trainer_in(build, RunDirectory(tmp_path / "run"), args={"max_steps": 2})
    trainer.train()
    assert trainer.skills.test is not None
    before = json.dumps(trainer.skills.to_dict())
    heard = []
    own = trainer._bank_play.stamped
    trainer._bank_play.stamped = lambda episodes: heard.extend(own(episodes)) or heard
    trainer.evaluate(trainer.train_dataset.select(range(2)))
    assert {episode.skill_version for episode in heard} == {trainer.skills.bank.version}
    assert json.dumps(trainer.skills.to_dict()) == before


# Recipes


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    return recipe_writer(tmp_path, monkeypatch)


def test_a_recipe_evolves_a_bank_and_eval_plays_under_any_version_of_it(recipe, tmp_path, capsys):
    assert main(["train", str(recipe()), "--quiet"]) == 0
    run, output = tmp_path / "run", tmp_path / "figures.json"
    said = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert said[0]["bank"] == "v0"
    assert said[1]["bank"] == json.loads((run / "after.json").read_text())["evaluations"][0]["bank"]
    assert versions(run / "bank")[:2] == ["v0", "v1"]
    assert main(["skills", "validate", str(run)]) == 0
    command = ["eval", str(run), "--problems", "2", "--samples", "1", "--k", "1", "--output", str(output)]
    hand_made(tmp_path / "own")
    for extra, bank in (
        ([], said[1]["bank"]),
        (["--bank", "none"], None),
        (["--bank", "v1"], "v1"),
        (["--bank", str(tmp_path / "own"), "--split", "seen"], "v1"),
    ):
        capsys.readouterr()
        assert main([*command, *extra, "--quiet"]) == 0
        measured = json.loads(output.read_text())["evaluations"]
        assert [e.get("bank") for e in measured] == [bank, bank]
        assert measured[0]["scores"]["success"].keys() == {"mean", "low", "high"}
    assert "split seen under bank v1 (ask-first)" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--bank", "v77"]) == 2
    assert "has no bank version v77; it has v0, v1" in capsys.readouterr().err
    assert main([*command, "--split", "unsen"]) == 2
    assert "no split 'unsen'; did you mean 'unseen'?" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "model"), "--bank", "v1"]) == 2
    assert "--bank is for environments" in capsys.readouterr().err


def test_a_static_bank_stands_in_every_prompt_and_stays(recipe, tmp_path):
    path = recipe(**{"skills.creator": "none", "skills.bank": str(hand_made(tmp_path / "own"))})
    assert main(["train", str(path), "--quiet"]) == 0
    run = tmp_path / "run"
    assert versions(run / "bank") == ["v0"]
    assert read_bank(run / "bank", "v0").names == ("ask-first",)
    played = [e.trajectory for e in episodes(run)]
    assert all(e.skill_version == "v0" and '<skill name="ask-first">' in e.opening.text for e in played)


def test_a_bank_made_for_agents_can_be_taken_in(recipe, tmp_path):
    exported = hand_made(tmp_path / "own") / "v1" / "skills"
    path = recipe(**{"skills.bank": str(exported), "training.steps": 1, "evaluation.after": False})
    assert main(["train", str(path), "--quiet"]) == 0
    assert read_bank(tmp_path / "run" / "bank", "v0").names == ("ask-first",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment.name": None}, "skills stand in the prompts of an environment's episodes"),
        ({"skills.creator": "chat"}, "creator: chat needs a section chat with base_url and model"),
        ({"skills.creator": "ofline"}, "'offline'"),
        ({"skills.min_reservoir": 300}, "skills: min_reservoir 300 exceeds the reservoir's capacity 200"),
        ({"skills.version": "v1"}, "version 'v1' is that of a bank; set bank too"),
        ({"skills.bank": "nowhere"}, "nowhere"),
        ({"skills.capacity": 40}, "tokens for skills to come it passes the model's context of 4096"),
        ({"skills.perod": 3}, "'skills.perod'; did you mean 'period'"),
        (
            {"skills.creator": "none", "skills.frozen_steps": "all"},
            "frozen_steps 'all' holds the weights while skills evolve, and nobody makes any",
        ),
        ({"skills.frozen_steps": -1}, "skills.frozen_steps"),
        ({"skills.retrieve": 0}, "skills.retrieve"),
        ({"environment.test_split": "sene"}, "no split 'sene'; did you mean 'seen'?"),
        (
            {"skills.creator": "chat", "skills.chat": {"base_url": "localhost", "model": "m"}},
            "skills.chat: base_url is 'localhost': it must start with http",
        ),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_what_is_refused_before_the_first_step(recipe, capsys, changes, message):
    assert main(["train", str(recipe(**changes)), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_the_recipes_defaults_are_the_papers():
    steps = {"training": {"steps": 50, "updates_per_step": 2}}
    assert settings_of(parse_recipe(steps)) == Settings(last_step=98)  # created at the end: never tested
    late = {**steps, "skills": {"first_step": 10, "last_step": 20}}
    assert settings_of(parse_recipe(late)) == Settings(first_step=19, last_step=40)


def test_a_language_model_writes_the_skills_and_a_resumed_run_asks_it_nothing_twice(recipe, tmp_path):
    skill = {
        "op": "add",
        "name": "ask-first",
        "when_to_use": "You do not know where it is.",
        "action": "Ask, then open what was named.",
        "trigger": "beginning",
    }
    stages = {  # by a key that only its system message asks for
        '"insight"': {"insight": "Nobody asks."},
        '"diagnosis"': {"diagnosis": "Few ask.", "assertions": []},
        '"target"': {"operations": [{"op": "add", "target": "ask-first", "intent": "ask first"}]},
        '"when_to_use"': {"operations": [skill]},
    }

    def answer(body: dict[str, Any]) -> str:
        system = body["messages"][0]["content"]
        return next((json.dumps(value) for key, value in stages.items() if key in system), "yes")

    with chat_server(answer) as server:
        chat = {"base_url": server.url, "model": "writer", "retries": 0}
        keep = {"training.save_every": 1, "training.keep_checkpoints": 3}
        path = recipe(**{"skills.creator": "chat", "skills.chat": chat, **keep})
        assert main(["train", str(path), "--quiet"]) == 0
        assert server.seen[0]["messages"][0]["content"].startswith("Answer with the word yes")
        assert {body["temperature"] for body in server.seen[1:]} == {0.2}
    run = tmp_path / "run"
    assert (run / "skill_answers.jsonl").exists()
    assert read_bank(run / "bank", "v1").names == ("ask-first",)
    before = files(run / "bank")
    for name in ("checkpoint-2", "checkpoint-3"):
        shutil.rmtree(run / "checkpoints" / name)
    # The server is gone: what the second half asks is in the record.
    assert main(["train", str(path), "--quiet", "--resume"]) == 0
    assert files(run / "bank") == before


def weights_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_a_frozen_policy_keeps_its_weights_while_versions_are_tested(recipe, tmp_path):
    held = {"evaluation.before": False, "evaluation.after": False, "training.learning_rate": 0.01}
    path = recipe(**{"skills.frozen_steps": "all", "training.weight_decay": 0.1, **held})
    assert main(["train", str(path), "--quiet"]) == 0
    assert torch.equal(weights_of(tmp_path / "run" / "model"), weights_of(tmp_path / "model"))
    assert versions(tmp_path / "run" / "bank") == ["v0", "v1"]


def test_skill_first_moves_the_weights_when_the_bank_is_done(recipe, tmp_path):
    """As many updates as `training.steps` less those that were held; the optimizer knows of no others."""
    held = {"evaluation.before": False, "evaluation.after": False, "training.learning_rate": 0.01}
    order = {"skills.frozen_steps": 2, "skills.last_step": 2, "training.save_every": 1}
    uneven = {"environment.name": f"{__name__}:Uneven", "environment.options": {"turns": 3}}
    path = recipe(**{"training.keep_checkpoints": 9, "training.steps": 4, **order, **held, **uneven})
    assert main(["train", str(path), "--quiet"]) == 0
    before = weights_of(tmp_path / "model")
    checkpoints = tmp_path / "run" / "checkpoints"
    moved = [not torch.equal(weights_of(checkpoints / f"checkpoint-{n}"), before) for n in (1, 2, 3, 4)]
    assert moved == [False, False, True, True]
    state = torch.load(checkpoints / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert {int(entry["step"]) for entry in state.values()} == {2}


def test_the_policy_writes_its_own_skills_and_a_resumed_run_hears_the_same(recipe, tmp_path):
    keep = {"training.save_every": 1, "training.keep_checkpoints": 3, "training.learning_rate": 0.01}
    own = {"skills.creator": "policy", "skills.policy": {"temperature": 1.0, "max_tokens": 8}}
    quick = {"skills.groups": 2, "evaluation.before": False, "evaluation.after": False}
    path = recipe(**{**own, **quick, **keep})
    assert main(["train", str(path), "--quiet"]) == 0
    run = tmp_path / "run"
    whole, before = (run / "model" / "model.safetensors").read_bytes(), figures(run)
    state = json.loads((run / "checkpoints" / "checkpoint-3" / "threefold_skills.json").read_text())
    # A model of random weights answers no JSON: it was asked, refused in words, and training went on.
    assert state["counts"]["analyst refused"] >= 2
    assert any("analyst" in event["text"] for event in state["events"])
    shutil.rmtree(run / "checkpoints" / "checkpoint-3")
    shutil.rmtree(run / "checkpoints" / "checkpoint-2")
    assert main(["train", str(path), "--quiet", "--resume"]) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == whole
    assert figures(run) == before


def test_a_retrieval_memory_shows_one_success_of_a_like_task(recipe, tmp_path):
    memory = {"skills.creator": "memory", "skills.auto_accept": True, "skills.retrieve": 1}
    size = {"skills.capacity": 16, "environment.options": {"turns": 3}, "training.group_size": 8}
    path = recipe(**{**memory, **size, "environment.name": f"{__name__}:Easy", "evaluation.after": False})
    assert main(["train", str(path), "--quiet", "evaluation.before=false"]) == 0
    played = [e.trajectory for e in episodes(tmp_path / "run") if e.trajectory.skill_version != "v0"]
    assert played
    shown = {e.opening.text.count("<skill name=") for e in played}
    assert shown == {1}
    assert all(name.startswith("memory-") for e in played for turn in e.turns for name in turn.skills)


def adding(body: dict[str, Any]) -> str:
    """A language model that adds a skill in every creation; the same question has the same answer."""
    name = f"skill-{zlib.crc32(json.dumps(body['messages']).encode())}"
    skill = {"op": "add", "name": name, "when_to_use": "You begin.", "action": "Ask."}
    return json.dumps(
        {
            "insight": f"Nobody asks ({name}).",
            "diagnosis": "Few ask.",
            "assertions": [],
            "operations": [{**skill, "target": name}],
        }
    )


@pytest.mark.slow
def test_a_process_killed_again_and_again_resumes_to_the_same_run(recipe, tmp_path):
    """kill -9 in the middle of a test, while the language model is being asked, and where a version is
    written; nothing whose answer is on the disk is asked again."""
    asked: list[str] = []
    being_asked = threading.Event()
    slow = threading.Event()

    def writer(body: dict[str, Any]) -> Reply | str:
        asked.append(json.dumps(body["messages"]))
        if slow.is_set() and body["messages"][0]["content"].startswith("You decide"):
            being_asked.set()
            return Reply(adding(body), delay_s=30.0)
        return adding(body)

    changes = {"training.steps": 9, "training.save_every": 2, "skills.period": 3, "skills.capacity": 3}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    one, other = tmp_path / "whole", tmp_path / "killed"
    with chat_server(writer) as server:
        chat = {"base_url": server.url, "model": "writer"}
        path = recipe(
            **{"skills.creator": "chat", "skills.chat": chat, "skills.groups": 2, **QUIET, **changes}
        )
        command = [sys.executable, "-m", "threefold", "train", str(path), "--quiet"]
        subprocess.run([*command, f"run.dir={one}"], env=environment, check=True)

        def in_a_test() -> bool:
            record = other / "bank" / "v1" / "version.json"
            return record.exists() and len(json.loads(record.read_text())["test"]) == 2

        def writing() -> bool:
            return len(list((other / "bank").glob("v2"))) > 0 or len(list((other / "bank").glob(".v2-*"))) > 0

        asked.clear()
        for resume, moment in (([], in_a_test), (["--resume"], being_asked.is_set), (["--resume"], writing)):
            if moment == being_asked.is_set:
                slow.set()
            process = subprocess.Popen([*command, f"run.dir={other}", *resume], env=environment)
            deadline = time.monotonic() + 240
            while not moment():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
            slow.clear()
        subprocess.run([*command, f"run.dir={other}", "--resume"], env=environment, check=True)
    assert figures(one) == figures(other)
    assert files(one / "bank") == files(other / "bank")
    assert (one / "rollouts.jsonl").read_text() == (other / "rollouts.jsonl").read_text()
    assert (one / "model" / "model.safetensors").read_bytes() == (
        other / "model" / "model.safetensors"
    ).read_bytes()
    assert {"accept", "reject"} & {read_record(other / "bank", v).decision for v in versions(other / "bank")}
    again = {question for question in asked if asked.count(question) > 1 and "word yes" not in question}
    assert len(again) <= 1  # the one that was on its way when the process was killed


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_to_the_same_run(recipe, tmp_path):
    changes = {"training.steps": 8, "training.save_every": 3, "skills.period": 3, "evaluation.before": False}
    path = recipe(**changes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "threefold", "train", str(path), "--quiet"]
    subprocess.run([*command, f"run.dir={tmp_path / 'whole'}"], env=environment, check=True)
    process = subprocess.Popen([*command, f"run.dir={tmp_path / 'killed'}"], env=environment)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, f"run.dir={tmp_path / 'killed'}", "--resume"], env=environment, check=True)
    one, other = (tmp_path / name for name in ("whole", "killed"))
    assert figures(one) == figures(other)
    assert files(one / "bank") == files(other / "bank")
    assert (one / "rollouts.jsonl").read_text() == (other / "rollouts.jsonl").read_text()
