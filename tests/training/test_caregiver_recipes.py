"""Care dialogues through `threefold train` and `threefold eval`: the arms, the audit, the scope, faults."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from chat_server import Reply, chat_server
from threefold import GDPO, GRPO, MTGRPO, T2GRPO, GiGPO, SummedGRPO
from threefold.caregiver import SCOPE
from threefold.cli import main
from threefold.credit import CreditBatch
from threefold.recipe import RecipeError, parse_recipe
from threefold.training.play import given_credit
from threefold.training.run import prepare
from threefold.trajectory import read_jsonl
from tiny_parts import tiny_model, tiny_tokenizer

SETTINGS = {
    "environment.name": "caregiver",
    "environment.turns": 2,
    "environment.turn_tokens": 8,
    "environment.completion_tokens": 700,
    "environment.options": {"short_prompt": True},
    "credit.method": "t2grpo",
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "training.group_size": 4,
    "training.learning_rate": 1e-3,
    "evaluation.problems": 4,
    "evaluation.before": False,
    "run.threads": 1,
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a recipe for two-turn dialogues of a tiny model of characters; keywords are dotted keys."""
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)

    def write(**changes: Any) -> Path:
        paths = {"model.name": str(folder), "run.dir": str(tmp_path / "run")}
        data: dict[str, Any] = {}
        for key, value in {**SETTINGS, **paths, **changes}.items():
            section, _, name = key.partition(".")
            data.setdefault(section, {})[name] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def loaded(path: Path) -> Any:
    return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_dialogues_are_trained_measured_reported_and_audited(recipe, tmp_path, capsys) -> None:
    path = recipe(**{"environment.options": {"short_prompt": True, "hold_out_subtypes": ["FTD-bv", "PDD"]}})
    assert main(["train", str(path)]) == 0
    run = tmp_path / "run"
    first, last = lines(run)
    assert first["episodes/failed"] == first["episodes/last/fault"] == 0.0
    assert {"episodes/first/D", "episodes/last/R", "rewards/goal/mean", "turns/violations"} <= last.keys()
    episodes = [record.trajectory for record in read_jsonl(run / "rollouts.jsonl")]
    assert len(episodes) == 16
    assert len({e.opening.state["D"] for e in episodes[:4]}) == 1  # one group, one opening
    words = tiny_tokenizer()
    for episode in episodes:
        read = words.decode(episode.segments[0].token_ids)
        hidden = [episode.task["truth"], episode.task["remote_memory"], *episode.task["hazards"]]
        assert episode.task["opening"] in read
        assert not [text for text in hidden if text in read], "the caregiver must not see this"
        assert episode.task["subtype"] not in ("FTD-bv", "PDD")

    sampled = json.loads((run / "evaluation.json").read_text())["evaluations"][0]
    expected = {"success", "violation", "goal", "fit", "term", "D, last turn", "simulator fault"}
    assert expected | {"distress, summed over turns"} <= sampled["scores"].keys()
    assert "success" not in sampled["in_own_units"]
    assert [at["mean"] for at in sampled["courses"]["D"]] == sampled["states"]["D"]
    assert len(sampled["courses"]["R"]) == 3
    assert sum(sampled["group_sizes"].get(n, 0) for n in ("held-out subtypes", "trained subtypes")) == 4
    assert sampled["by_group"]["trained subtypes"].keys() == sampled["scores"].keys()

    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.index(SCOPE) < page.index("<h2>Result")
    assert json.loads((run / "environment.json").read_text())["scope"] == SCOPE

    capsys.readouterr()
    figures = tmp_path / "figures.json"
    command = ["eval", str(run), "--problems", "4", "--samples", "1", "--k", "1", "--output", str(figures)]
    assert main([*command, "--swap", "environment.options.perturb=0.5", "--swap", "environment.turns=1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(SCOPE[:60])
    assert "D at the opening and after each turn, greedy:" in said
    perturbed, shorter = json.loads(figures.read_text())["swaps"]
    assert perturbed["overrides"] == ["environment.options.perturb=0.5"]
    change = next(c for c in shorter["changes"] if (c["score"], c["mode"]) == ("term", "greedy"))
    own, other = (e["scores"]["term"]["mean"] for e in (sampled_at_home(figures), shorter["evaluations"][0]))
    assert change["mean"] == pytest.approx(other - own)
    assert change["low"] <= change["mean"] <= change["high"]
    # The other subtypes are other tasks: nothing could be paired.
    changed_tasks = ["--swap", "environment.options.subtypes=[AD-early]"]
    assert "changed which tasks are played" in refused(capsys, *command, *changed_tasks)
    assert "only keys of the environment" in refused(capsys, *command, "--swap", "run.seed=3")


def sampled_at_home(figures: Path) -> dict[str, Any]:
    return json.loads(figures.read_text())["evaluations"][0]


CHANNELS = ("distress", "resistance")


@pytest.mark.parametrize(
    ("settings", "estimator"),
    [
        ({"method": "t2grpo"}, T2GRPO(turns=CHANNELS)),
        ({"method": "t2grpo", "alpha": 0.25, "turns": ["distress"]}, T2GRPO(turns=("distress",), alpha=0.25)),
        (
            {"method": "t2grpo", "turn_credit": "headroom", "levels": ["D", "R"]},
            T2GRPO(turns=CHANNELS, turn_credit="headroom", levels=("D", "R")),
        ),
        (
            {
                "method": "t2grpo",
                "normalise": "leave_one_out",
                "turn_credit": "return_to_go",
                "ended": "zero",
                "veto": None,
            },
            T2GRPO(
                turns=CHANNELS, normalise="leave_one_out", turn_credit="return_to_go", ended="zero", veto=None
            ),
        ),
        ({"method": "gdpo"}, GDPO(turns=CHANNELS)),
        ({"method": "gigpo"}, GiGPO(turns=CHANNELS)),
        ({"method": "mt_grpo", "turn_weight": 0.5}, MTGRPO(turns=CHANNELS, turn_weight=0.5)),
        ({"method": "summed_grpo", "violation_penalty": 3.0}, SummedGRPO(CHANNELS, violation_penalty=3.0)),
        ({"method": "grpo"}, GRPO()),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_the_arms_differ_in_the_credit_section_alone(recipe, settings, estimator) -> None:
    changes = {f"credit.{name}": value for name, value in settings.items()}
    prepared = prepare(loaded(recipe(**changes)))
    assert prepared.credit == estimator
    assert dict(prepared.work.rewards) == {"goal": 1.0, "fit": 1.0, "term": 1.0, "success": 0.0}
    assert prepared.work.outcome == "success"
    assert given_credit(prepared.work.rewards, prepared.credit) == ["goal", "fit", "term"]
    assert parse_recipe(yaml.safe_load(prepared.recipe.to_yaml())) == prepared.recipe


@pytest.mark.parametrize("method", ["gigpo", "mt_grpo", "summed_grpo"])
def test_the_other_arms_take_a_step(recipe, tmp_path, method) -> None:
    one = {"training.steps": 1, "evaluation.after": False}
    assert main(["train", str(recipe(**one, **{"credit.method": method})), "--quiet"]) == 0
    (line,) = lines(tmp_path / "run")
    assert line["turns/per_episode"] > 0


def test_credit_by_turn_needs_turns(recipe) -> None:
    with pytest.raises(RecipeError, match="t2grpo compares turns, and problems have none"):
        prepare(parse_recipe({"credit": {"method": "t2grpo"}}))
    toy = recipe(**{"environment.name": "toy", "environment.options": {}})
    with pytest.raises(RecipeError, match=r"EchoThenNext does not say which turn channels.*credit\.turns"):
        prepare(loaded(toy))
    with pytest.raises(ValueError, match="veto=4 does not exceed 5"):
        prepare(loaded(recipe(**{"credit.veto": 4})))
    one_level = {"credit.turn_credit": "headroom", "credit.levels": ["D"]}
    with pytest.raises(ValueError, match="not one for each of its turns"):
        prepare(loaded(recipe(**one_level)))


class Sees:
    """Remembers which rewards an estimator is shown."""

    needs = frozenset()

    def __init__(self) -> None:
        self.names: list[str] = []

    def check(self, reward_names, group_size) -> None:
        self.names = [*reward_names]

    def assign(self, batch: CreditBatch):
        assert [*batch.rewards] == self.names
        return GRPO().assign(batch)


def test_a_reward_of_weight_zero_is_watched_and_given_no_credit(build) -> None:
    def long(completions, **columns):
        return [float(len(text)) for text in completions]

    def found(completions, **columns):
        return [float(any(map(str.isdigit, text))) for text in completions]

    credit = Sees()
    args = {"reward_weights": [1.0, 0.0], "max_steps": 1}
    trainer = build(credit=credit, reward_funcs=[long, found], outcome="found", args=args)
    trainer.train()
    assert credit.names == ["long"]
    log = next(log for log in trainer.state.log_history if "rewards/found/mean" in log)
    assert log["signal/outcome"] == pytest.approx(log["rewards/found/mean"])


# Faults


def test_a_patient_that_times_out_and_a_judge_that_breaks_lose_no_step(recipe, tmp_path) -> None:
    """The patient's endpoint is silent now and then, the judge's JSON is always broken: every step is taken,
    each case is counted, and what could be scored is learnt from."""
    calls = count()
    good = {"labels": [], "accepts": False, "leaves": False}

    def patient(body: dict[str, Any]) -> Reply | str:
        if "word yes" in body["messages"][-1]["content"]:
            return "yes"
        number = next(calls)
        if number % 8 == 7:
            return Reply("too late", delay_s=30)
        refusing = "Leave me alone. I won't." if number % 2 else "Well."
        return json.dumps({**good, "utterance": refusing})

    def judge(body: dict[str, Any]) -> str:
        return "yes" if "word yes" in body["messages"][-1]["content"] else '{"goal_recognition": '

    with chat_server(patient) as plays, chat_server(judge) as judges:
        common = {"model": "m", "retries": 0, "timeout_s": 1.0}
        options = {
            "short_prompt": True,
            "patient": "endpoint",
            "judge": "endpoint",
            "patient_endpoint": {"base_url": plays.url, **common},
            "judge_endpoint": {"base_url": judges.url, **{**common, "timeout_s": 30.0}},
        }
        path = recipe(**{"environment.options": options, "evaluation.problems": 2})
        before = tiny_model(max_position_embeddings=2048).state_dict()
        assert main(["train", str(path), "--quiet"]) == 0
        asked = {body["messages"][0]["content"] for body in judges.seen}
    run = tmp_path / "run"
    for line in lines(run):
        assert line["episodes/failed"] == 0.0
        assert line["episodes/unscored"] == 1.0  # goal, fit and term
        assert 0 < line["episodes/last/fault"] <= 2
        assert line["signal/unscorable"] == 0.0  # success is known: the patient and the safety rules said it
    assert [line["step"] for line in lines(run)] == [1, 2]
    episodes = [record.trajectory for record in read_jsonl(run / "rollouts.jsonl")]
    assert len(episodes) == 16
    assert {e.ended for e in episodes} <= {"truncated", "terminated", "violation", "length"}
    for episode in episodes:
        assert set(episode.rewards.values()) <= {None, 0.0, 1.0}
        stood_still = [
            turn
            for turn, before_ in zip(episode.turns[1:], episode.turns, strict=False)
            if turn.state["fault"] > before_.state["fault"]
        ]
        assert all(turn.rewards == {"distress": 0.0, "resistance": 0.0} for turn in stood_still)
    evaluation = json.loads((run / "evaluation.json").read_text())["evaluations"][0]
    assert "GMCPQ" not in evaluation["scores"]  # asked for, never readable, so not measured
    assert any("politeness" in text for text in asked)
    from safetensors.torch import load_file

    after = load_file(run / "model" / "model.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in after)  # turns were scored


def test_a_scenario_file_that_cannot_be_read_is_refused_with_its_line(recipe, tmp_path, capsys) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"id": "a", "name": "Rosa"}\n', encoding="utf-8")
    options = {"short_prompt": True, "scenarios": str(file)}
    said = refused(capsys, "train", recipe(**{"environment.options": options}), "--dry-run")
    assert re.search(r"environment\.options: .*own\.jsonl, line 1: the field 'age' is missing", said)
    options = {"short_prompt": True, "scenarios": str(tmp_path / "none.jsonl")}
    assert "none.jsonl" in refused(capsys, "train", recipe(**{"environment.options": options}), "--dry-run")
    assert "environment.turns = 0" in refused(capsys, "train", recipe(), "--dry-run", "environment.turns=0")
    dead = "environment.options.patient_endpoint={base_url: 'http://127.0.0.1:9/v1', model: m, retries: 0}"
    said = refused(capsys, "train", recipe(), "--dry-run", "environment.options.patient=endpoint", dead)
    assert "is the server running" in said
