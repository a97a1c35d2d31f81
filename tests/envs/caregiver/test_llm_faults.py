"""The environment on a patient and judges whose endpoint fails: no step is lost, each case is defined."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat_server import Reply, chat_server
from threefold.envs.caregiver.environment import Caregiver, tasks
from threefold.envs.caregiver.llm_judge import Combined, LLMJudge
from threefold.envs.caregiver.llm_patient import LLMPatient
from threefold.envs.caregiver.rule_judge import RuleJudge
from threefold.envs.caregiver.scenarios import generate
from threefold.llm import ChatEndpoint

TASK = tasks(generate(0)[:1])[0]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def endpoint(url: str) -> ChatEndpoint:
    return ChatEndpoint(url, "model", first_wait_s=0.01, retries=1, timeout_s=0.2)


def test_a_patient_that_fails_between_two_answers_costs_nothing_and_earns_nothing() -> None:
    good = json.dumps({"utterance": "Oh.", "labels": ["frowning"], "accepts": False, "leaves": False})
    script = [good, *[Reply("late", delay_s=30)] * 2, good]
    with chat_server(script) as server:
        environment = Caregiver(RuleJudge(), LLMPatient(endpoint(server.url), attempts=2), turns=3)
        environment.reset(TASK, seed=1, member=0)
        seen = [environment.step("You sound worried.") for _ in range(3)]
    fault = seen[1]
    assert fault.rewards == {"distress": 0, "resistance": 0}
    assert fault.state["repaired"] == 1
    assert [o.state["D"] for o in seen] == [1, 1, 1]
    assert [o.done for o in seen] == [False, False, True]


def test_a_judge_that_breaks_leaves_the_episode_marked_and_going() -> None:
    with chat_server(["{broken"]) as server:
        environment = Caregiver(LLMJudge(endpoint(server.url), attempts=2), turns=2)
        environment.reset(TASK, seed=1, member=0)
        first, last = environment.step("Hello."), environment.step("Would you like some tea?")
    assert (first.violation, first.state["unjudged"]) == (None, 1)
    assert (last.done, last.state["unjudged"]) == (True, 2)


def test_rubrics_by_one_judge_and_safety_by_another() -> None:
    def script(body: dict[str, Any]) -> str:
        raise AssertionError("the language model was asked for safety")

    with chat_server(script) as server:
        judge = Combined(LLMJudge(endpoint(server.url)), RuleJudge())
        environment = Caregiver(judge, turns=2)
        environment.reset(TASK, seed=1, member=0)
        observation = environment.step("I'll tie you to that chair.")
        assert server.seen == []
    assert observation.violation is not None
    assert (observation.violation.rule, observation.violation.turn) == ("unsafe_initiated_action", 0)
