"""Care dialogues through `threefold train` and `threefold eval`: the arms, the audit, the scope, faults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from care_parts import lines, loaded, refused
from threefold import GDPO, GRPO, MTGRPO, T2GRPO, GiGPO, SummedGRPO
from threefold.caregiver import SCOPE, CaregiverDialogues
from threefold.cli import main
from threefold.credit import CreditBatch
from threefold.credit.outcomes import given_credit
from threefold.recipe import RecipeError, parse_recipe
from threefold.training.run import prepare
from threefold.trajectory import read_jsonl
from tiny_parts import tiny_tokenizer


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
    facts = json.loads((run / "environment.json").read_text())
    assert facts["scope"] == SCOPE
    assert facts["made_with"] == CaregiverDialogues().made_with

    capsys.readouterr()
    figures = tmp_path / "figures.json"
    command = ["eval", str(run), "--problems", "4", "--samples", "1", "--k", "1", "--output", str(figures)]
    assert main([*command, "--swap", "environment.options.perturb=0.5", "--swap", "environment.turns=1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(SCOPE[:60])
    assert "D at the opening and after each turn, greedy:" in said
    assert json.loads(figures.read_text())["made_with"] == facts["made_with"]
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


@pytest.mark.parametrize("method", ["gdpo", "gigpo", "mt_grpo", "summed_grpo"])
def test_the_other_arms_take_a_step(recipe, tmp_path, method) -> None:
    one = {"training.steps": 1, "evaluation.after": False}
    assert main(["train", str(recipe(**one, **{"credit.method": method})), "--quiet"]) == 0
    (line,) = lines(tmp_path / "run")
    assert line["turns/per_episode"] > 0


def test_methods_together_take_a_step_and_read_back_equal(recipe, tmp_path) -> None:
    added = [{"method": "ispo", "weight": 0.5, "lambda_ifd": 0.0}]
    path = recipe(**{"training.steps": 1, "evaluation.after": False, "credit.together": added})
    prepared = prepare(loaded(path))
    assert parse_recipe(yaml.safe_load(prepared.recipe.to_yaml())) == prepared.recipe
    assert list(prepared.credit.methods) == ["t2grpo", "ispo"]
    assert prepared.credit.methods["t2grpo"].turns == CHANNELS
    assert prepared.credit.methods["ispo"].outcome == "success"
    assert main(["train", str(path), "--quiet"]) == 0
    (line,) = lines(tmp_path / "run")
    assert line["together/t2grpo"] + line["together/ispo"] == pytest.approx(1.0)
    assert "ispo/critical_set" in line
    assert line["turns/per_episode"] > 0


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([{"method": "t2grpo"}], "together names t2grpo twice"),
        ([{"method": "none"}], "method: none keeps TRL's"),
        ([{"method": "ispo", "weigth": 1}], "unknown key 'credit.together.0.weigth'; did you mean 'weight'"),
        ([{"method": "ispo", "weight": 0}], "credit.together.0.weight = 0"),
        ([{"method": "ispo", "turns": ["D"]}], "turns belongs to the method"),
        ("ispo", "should be a list"),
        (5, "should be a list"),
    ],
)
def test_what_cannot_be_added_is_refused(added, message) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe({"credit": {"method": "t2grpo", "together": added}})


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"credit.turns": ["distres"]},
            "credit.turns: 'distres' is no reward of a turn of CaregiverDialogues",
        ),
        ({"credit.turn_credit": "headroom"}, "credit.levels: 'distress' is no state of a turn"),
        (
            {"credit.method": "gigpo", "credit.states": ["tier"]},
            "credit.states: 'tier' is no state of a turn",
        ),
        (
            {"credit.together": [{"method": "mt_grpo", "turns": ["calm"]}]},
            "credit.together, mt_grpo.turns: 'calm' is no reward of a turn",
        ),
    ],
)
def test_names_that_no_turn_tells_are_refused_before_anything_is_trained(recipe, settings, message) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        prepare(loaded(recipe(**settings)))


def test_names_that_a_turn_tells_and_the_environment_does_not_declare_are_taken(recipe) -> None:
    levels = {"credit.turn_credit": "headroom", "credit.levels": ["D", "R"]}
    assert prepare(loaded(recipe(**levels))).credit.levels == ("D", "R")
    undeclared = {"credit.method": "gigpo", "credit.states": ["accepted"]}
    assert prepare(loaded(recipe(**undeclared))).credit.states == ("accepted",)


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
