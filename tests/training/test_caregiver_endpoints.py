"""Care dialogues through `threefold train` and `threefold eval` with patients and judges behind endpoints:
real servers that answer well, late, badly or not at all."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
import torch

from care_parts import lines
from chat_server import Reply, chat_server
from threefold.cli import main
from threefold.trajectory import read_jsonl
from tiny_parts import tiny_model


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


def test_a_readable_judge_scores_care_through_threefold_eval(recipe, tmp_path, capsys) -> None:
    """GMCPQ, PACES and PCCBP by hand: every item 4 of 5, but for one of each rubric."""
    odd = {"politeness": 5, "empathy": 2, "rapport": 1}

    def judge(body: dict[str, Any]) -> str:
        if "word yes" in body["messages"][-1]["content"]:
            return "yes"
        kinds = body["response_format"]["json_schema"]["schema"]["properties"]
        return json.dumps({name: {"value": _value(name, kinds[name], odd), "turns": [1]} for name in kinds})

    with chat_server(judge) as server:
        options = {
            "short_prompt": True,
            "judge": "endpoint",
            "judge_endpoint": {"base_url": server.url, "model": "m", "retries": 0},
        }
        path = recipe(**{"environment.options": options, "training.steps": 1, "evaluation.after": False})
        assert main(["train", str(path), "--quiet"]) == 0
        trained = len(server.seen)
        figures = tmp_path / "figures.json"
        command = ["eval", str(tmp_path / "run"), "--problems", "3", "--samples", "1", "--k", "1"]
        assert main([*command, "--output", str(figures)]) == 0
        rubrics = [b["messages"][0]["content"] for b in server.seen[trained:] if "empathy" in str(b)]
    scores = json.loads(figures.read_text())["evaluations"][0]["scores"]
    by_hand = {
        "GMCPQ": (1 + 4 * 0.75) / 5,
        "PACES": (0.25 + 3 * 0.75) / 4,
        "PCCBP": (0 + 7 * 0.75) / 8,
        "dialogue quality": 0.75,
    }
    by_hand["care quality"] = sum(by_hand[name] for name in ("GMCPQ", "PACES", "PCCBP")) / 3
    assert {name: scores[name]["mean"] for name in by_hand} == pytest.approx(by_hand)
    # goal: all criteria, the two bad ones included, 8 - 4; fit: 8 - 6; term: 2 of 2 twice
    assert [scores[name]["mean"] for name in ("goal", "fit", "term")] == [4.0, 2.0, 4.0]
    said = capsys.readouterr().out
    assert "PACES" in said
    assert "care quality" in said
    assert len(rubrics) == 6, "three dialogues, greedy and sampled, one PACES call each"


def _value(name: str, schema: dict[str, Any], odd: dict[str, int]) -> Any:
    kind = schema["properties"]["value"]
    return True if kind["type"] == "boolean" else odd.get(name, max(kind["enum"]) - (len(kind["enum"]) > 3))


def test_safety_by_an_endpoint_vetoes_in_training(recipe, tmp_path) -> None:
    """The judge calls every second dialogue unsafe in its first turn: it ends there, and the veto is its
    advantage whatever else it was given."""
    unsafe: dict[str, bool] = {}

    def judge(body: dict[str, Any]) -> str:
        if "word yes" in body["messages"][-1]["content"]:
            return "yes"
        first_turn = body["messages"][-1]["content"].partition("[turn 2]")[0].partition("END OF")[0]
        found = unsafe.setdefault(first_turn.strip(), len(unsafe) % 2 == 0)
        names = ("unsafe_endorsement", "unsafe_initiated_action", "unsafe_permission")
        answer: dict[str, Any] = {name: {"value": False, "turns": []} for name in names}
        answer["coercion_with_escalation"] = {"value": found, "turns": [1] if found else []}
        return json.dumps(answer)

    with chat_server(judge) as server:
        settings = {"base_url": server.url, "model": "m", "retries": 0}
        options = {"short_prompt": True, "safety": "endpoint", "judge_endpoint": settings}
        path = recipe(**{"environment.options": options, "evaluation.after": False})
        assert main(["train", str(path), "--quiet"]) == 0
    run = tmp_path / "run"
    records = [*read_jsonl(run / "rollouts.jsonl")]
    assert len(records) == 16
    violating = [record for record in records if record.trajectory.violation is not None]
    assert 0 < len(violating) < 16
    for record in violating:
        violation = record.trajectory.violation
        assert (violation.rule, violation.turn) == ("coercion_with_escalation", 0)
        assert (record.trajectory.ended, len(record.trajectory.turns)) == ("violation", 1)
        assert record.trajectory.success is False
        spoken = [a for a, turn in zip(record.advantages[0], written(record), strict=True) if turn >= 0]
        assert set(spoken) == {-16.0}
    for record in (r for r in records if r.trajectory.violation is None):
        assert min(record.advantages[0]) > -16
        assert record.trajectory.turns[-1].state["unjudged"] == 0
    by_step = [line["episodes/violations"] * 8 for line in lines(run)]
    assert by_step == [sum(r.step == step for r in violating) for step in (1, 2)]


def test_what_nobody_judged_safe_is_not_reinforced_and_in_no_rate(recipe, tmp_path) -> None:
    """The judge breaks at every second dialogue: no token of it is trained, by whatever its turns earned, and
    the held-out violation rate is that of the others."""
    broken: dict[str, bool] = {}

    def judge(body: dict[str, Any]) -> str:
        asked = body["messages"][min(1, len(body["messages"]) - 1)]["content"]
        if "TRANSCRIPT" not in asked:
            return "yes"
        first_turn = asked.partition("[turn 2]")[0].partition("END OF")[0].strip()
        if broken.setdefault(first_turn, len(broken) % 2 == 0):
            return "{broken"
        names = ("unsafe_endorsement", "unsafe_initiated_action", "unsafe_permission")
        answer: dict[str, Any] = {name: {"value": False, "turns": []} for name in names}
        answer["coercion_with_escalation"] = {"value": True, "turns": [1]}
        return json.dumps(answer)

    with chat_server(judge) as server:
        settings = {"base_url": server.url, "model": "m", "retries": 0}
        options = {"short_prompt": True, "safety": "endpoint", "judge_endpoint": settings}
        path = recipe(**{"environment.options": options, "evaluation.problems": 8})
        assert main(["train", str(path), "--quiet"]) == 0
    records = [*read_jsonl(tmp_path / "run" / "rollouts.jsonl")]
    unjudged = [r for r in records if r.trajectory.turns[-1].state["unjudged"]]
    assert 0 < len(unjudged) < len(records) == 16
    for record in unjudged:
        assert set(record.advantages[0]) == {0.0}
        assert record.trajectory.violation is record.trajectory.success is None
    (evaluation, *_) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["evaluations"]
    assert 0 < evaluation["scores"]["unjudged safety"]["mean"] < 1
    assert evaluation["scores"]["violation"]["mean"] == 1.0  # all that was judged


def written(record: Any) -> tuple[int, ...]:
    """Turn ids of the completion's tokens."""
    return record.trajectory.segments[0].turn_ids


def test_gdpo_learns_from_care_dialogues(recipe, tmp_path) -> None:
    """Each channel, the summed turn rewards and minus the violation count apart: its credit differs from that
    of the plain sum on the same episodes, and the weights move."""
    from safetensors.torch import load_file

    advantages = {}
    before = tiny_model(max_position_embeddings=2048).state_dict()
    for method in ("gdpo", "summed_grpo"):
        run = tmp_path / method
        changes = {
            "credit.method": method,
            "run.dir": str(run),
            "training.steps": 1,
            "evaluation.after": False,
        }
        assert main(["train", str(recipe(**changes)), "--quiet"]) == 0
        records = [*read_jsonl(run / "rollouts.jsonl")]
        advantages[method] = [[*record.advantages[0]] for record in records]
        # One number an episode: neither gives turns their own.
        assert all(len({a for a in row if a != 0}) <= 1 for row in advantages[method])
        after = load_file(run / "model" / "model.safetensors")
        assert any(not torch.equal(after[name], before[name]) for name in after)
    assert advantages["gdpo"] != advantages["summed_grpo"]
