"""Care dialogues through `threefold train` and `threefold eval` with patients and judges behind endpoints:
real servers that answer well, late, badly or not at all."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

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
