"""The whole way with a language model in the creator's place: its answers are recorded, a run is killed while
it is being asked, and the resumed run replays them to the last bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from errand_play import follower, play

from threefold.envs.errands import tasks
from threefold.skills.chat_creator import ChatCreator
from threefold.skills.evolution import Evolution
from threefold.skills.settings import Settings

SETTINGS = Settings(period=2, min_episodes=40, min_reservoir=8, groups=4)
ADD = {
    "op": "add",
    "name": "ask-before-open-something",
    "when_to_use": "You do not know where it is.",
    "action": "Ask, then open what was named.",
    "trigger": "beginning",
}


@dataclass
class Recorded:
    """Answers by the exact messages: what a record keeps. The n-th new request gets the n-th answer."""

    answers: Sequence[Any]
    record: dict[str, str] = field(default_factory=dict)
    calls: int = 0

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        key = json.dumps([dict(m) for m in messages])
        if key not in self.record:
            if not self.answers:
                raise LookupError("this request was not recorded")
            self.record[key] = json.dumps(self.answers[min(self.calls, len(self.answers) - 1)])
            self.calls += 1
        return self.record[key]


def step(evolution: Evolution, number: int) -> list[str]:
    chosen = tasks("train")[number : number + 8]
    banks_B = evolution.assign(number, 32)
    played = [
        play(chosen[b // 4], bank, follower, seed=number, member=b % 4) for b, bank in enumerate(banks_B)
    ]
    evolution.observe(number, played, banks_B)
    return [bank.version for bank in banks_B]


def test_a_run_killed_while_the_model_is_asked_replays_its_answers() -> None:
    insight = {"insight": "Failures open at once."}
    plan = {"operations": [{"op": "add", "target": ADD["name"], "intent": "ask"}]}
    rule = {"op": "add", "name": "asks", "check": "action_exists", "params": {"pattern": "ask"}}
    diagnosis = {"diagnosis": "Few ask.", "assertions": [rule]}
    nothing = {"operations": []}
    answers = [insight] * 4 + [diagnosis, plan, {"operations": [ADD]}] + [insight] * 4 + [diagnosis, nothing]
    model = Recorded(answers)
    with ThreadPoolExecutor(1) as pool:
        whole = Evolution(ChatCreator(model, workers=1), settings=SETTINGS, seed=5, executor=pool)
        drawn, states = [], []
        for number in range(5):
            drawn.append(step(whole, number))
            states.append(json.dumps(whole.to_dict()))
    assert [event.kind for event in whole.events[:2]] == ["testing", "accept"]
    assert whole.bank.names == ("ask-before-open-something",)
    assert [assertion.name for assertion in whole.assertions] == ["asks"]
    assert whole.counts["recommender refused"] >= 3  # an empty plan, told and asked again, then given up

    replay = Recorded([], model.record)  # no model behind it: the record alone
    for killed in (0, 1, 2, 3):
        resumed = Evolution(ChatCreator(replay, workers=1), settings=SETTINGS, seed=99)
        resumed.load(json.loads(states[killed]))
        for number in range(killed + 1, 5):
            assert step(resumed, number) == drawn[number]
        assert json.dumps(resumed.to_dict()) == states[-1]
