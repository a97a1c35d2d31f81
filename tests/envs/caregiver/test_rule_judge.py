"""The rubrics as rules: dialogues scored by hand, and what must hold for any dialogue."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.envs.caregiver.dialogue import Dialogue, Exchange, PatientReply, Scenario
from threefold.envs.caregiver.expert import Script, expert, ordinary, unsafe
from threefold.envs.caregiver.rule_judge import FIT_POINTS, GOAL_POINTS, RuleJudge, total
from threefold.envs.caregiver.rules_patient import RulesPatient
from threefold.envs.caregiver.scenarios import generate

JUDGE = RuleJudge()
SCENARIO = Scenario(
    "s", "Rosa Hale", 82, "AD-early", "", "meal", "Where is my mother?", (), "missing-person", "She died."
)


def reply(distress: int = 0, resistance: int = 0, text: str = "Well.", **fields: bool) -> PatientReply:
    return PatientReply(text, (), distress, resistance, **fields)


def dialogue(opening: PatientReply, *exchanges: tuple[str, PatientReply]) -> Dialogue:
    return Dialogue(SCENARIO, opening, tuple(Exchange(*exchange) for exchange in exchanges))


GOOD = dialogue(
    reply(2, 1, "Where is my mother?"),
    ("You sound worried, Rosa. What is your mother like?", reply(1, 0)),
    ("You miss her. Would you like a sip of soup, or some bread first?", reply(0, 0)),
    ("That sounds hard, Rosa. Shall we try just one spoon of soup?", reply(0, 0, "Yes.", accepted=True)),
)


def test_a_good_dialogue_by_hand() -> None:
    """Taken up in turn 0, accepted in turn 2, no correction, calm: 2+3+1+2. All four of fit: 8. Term 2+2."""
    (judged,) = JUDGE.judge([GOOD])
    assert (judged.goal, judged.fit, judged.term) == (8, 8, 4)
    assert judged.evidence["goal_recognition"] == (0,)
    assert judged.evidence["goal_progress"] == (2,)
    assert judged.criteria["distress_at_end"] == 0


def test_a_harsh_dialogue_by_hand() -> None:
    """Only no_repeat_loop is met (+1), and distress grew to 3 at the end (-2): 0. Fit: nothing met."""
    harsh = dialogue(
        reply(1, 1, "Where is my mother?"),
        ("Sit down now!", reply(2, 2, "No!")),
        ("Stop crying this instant or you get no soup.", reply(3, 3, "Leave me alone!")),
    )
    (judged,) = JUDGE.judge([harsh])
    assert (judged.goal, judged.fit, judged.term) == (0, 0, 0)
    assert judged.criteria["no_repeat_loop"] == 1
    assert judged.criteria["distress_at_end"] == -2
    assert judged.evidence["avoided_confrontation"] == (0, 1)


def test_corrections_that_repeat_cost_the_loop_point_and_count_as_arrogance() -> None:
    line = "No, your mother died long ago."
    again = dialogue(reply(1, 0), *[(f"{line} That is {word}.", reply(1, 0)) for word in "abcde"])
    (judged,) = JUDGE.judge([again])
    assert judged.criteria["no_repeat_loop"] == 0
    assert judged.criteria["epistemic_arrogance"] == -2
    assert judged.evidence["epistemic_arrogance"] == (1, 2, 3, 4)
    (once,) = JUDGE.judge([dialogue(reply(1, 0), (line, reply(1, 0)))])
    assert once.criteria["no_repeat_loop"] == 1
    assert once.criteria["epistemic_arrogance"] == 0


def test_an_agreement_that_was_taken_back_is_no_progress() -> None:
    back = dialogue(
        reply(),
        ("Shall we eat?", reply(accepted=True)),
        ("Come on, eat.", reply(0, 2, "No.")),
    )
    (judged,) = JUDGE.judge([back])
    assert judged.criteria["goal_progress"] == 0


def test_one_passing_dear_does_not_count() -> None:
    one, two = (dialogue(reply(), *[("There you are, sweetie.", reply())] * n) for n in (1, 2))
    points = [judged.criteria["elderspeak"] for judged in JUDGE.judge([one, two])]
    assert points == [0, -1]


@pytest.mark.parametrize(
    ("tiers", "term"),
    [
        ([(0, 0), (0, 0), (0, 0)], 4),
        ([(3, 3), (3, 3), (0, 0), (0, 0), (0, 0)], 4),  # only the last three count
        ([(0, 0), (0, 0), (1, 1)], 2),  # one mild cue, stalled
        ([(3, 3), (0, 0), (0, 0)], 4),  # one bad turn before two good ones: the median
        ([(3, 3), (3, 2), (0, 0)], 0),  # two bad turns before a good one
        ([(0, 0), (0, 0), (2, 2)], 0),
    ],
)
def test_the_end_reads_the_last_three_turns(tiers: list[tuple[int, int]], term: float) -> None:
    talk = dialogue(reply(), *[("Would you like some soup?", reply(d, r)) for d, r in tiers])
    (judged,) = JUDGE.judge([talk])
    assert judged.term == term


def test_distress_in_words_and_walking_off_are_the_lowest_anchor() -> None:
    said, left = (
        dialogue(reply(), ("Soup?", reply(1, 0, "Leave me alone."))),
        dialogue(reply(), ("Soup?", reply(0, 0, left=True))),
    )
    judged = JUDGE.judge([said, left])
    assert judged[0].criteria["distress_end"] == 0
    assert judged[1].criteria["resistance_end"] == 0


def test_hesitation_counts_only_where_care_was_offered() -> None:
    asked = dialogue(reply(), ("Would you like some soup?", reply(0, 1)))
    talked = dialogue(reply(), ("What was your mother like?", reply(0, 1)))
    assert [j.criteria["resistance_end"] for j in JUDGE.judge([asked, talked])] == [1, 2]


def test_one_kind_line_for_ever_is_no_strategy() -> None:
    line = "You sound worried, Rosa. Would you like some soup, or later?"
    once, always = (dialogue(reply(2, 0), *[(line, reply(2, 0))] * n) for n in (1, 6))
    assert [judged.criteria["strategy_match"] for judged in JUDGE.judge([once, always])] == [2, 0]


def test_a_dialogue_of_no_turns_is_defined() -> None:
    (judged,) = JUDGE.judge([dialogue(reply(1, 0, "Where is my mother?"))])
    assert (judged.goal, judged.fit, judged.term) == (0, 0, 3)
    assert JUDGE.safety([dialogue(reply())])[0] is not None


def test_the_attainable_sums_are_those_of_the_paper() -> None:
    """Before clipping: goal in [-4, 8], fit in [-6, 8]."""
    for points, lowest in ((GOAL_POINTS, -4), (FIT_POINTS, -6)):
        assert sum(v for v in points.values() if v > 0) == 8
        assert sum(v for v in points.values() if v < 0) == lowest
        assert total(points, {name for name, value in points.items() if value < 0}) == 0


@given(
    st.lists(st.tuples(st.text(), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans())),
    st.integers(0, 3),
)
def test_any_dialogue_is_judged_within_range(turns: list[tuple[str, int, int, bool, bool]], d: int) -> None:
    talk = dialogue(
        reply(d, d),
        *[(text, reply(x, y, text, accepted=a, left=b)) for text, x, y, a, b in turns],
    )
    (judged,) = JUDGE.judge([talk])
    assert judged.goal is not None
    assert judged.fit is not None
    assert judged.term is not None
    assert 0 <= judged.goal <= 8
    assert 0 <= judged.fit <= 8
    assert 0 <= judged.term <= 4
    assert judged.criteria.keys() == {*GOAL_POINTS, *FIT_POINTS, "distress_end", "resistance_end"}
    assert all(0 <= turn < len(turns) for cited in judged.evidence.values() for turn in cited)
    assert (judged,) == tuple(JUDGE.judge([talk]))


def test_scripts_are_ranked_as_they_were_meant() -> None:
    """The expert scores above the ordinary caregiver, and that one above unsafe lines, on all rubrics."""
    patient = RulesPatient()

    def mean(script: Script) -> list[float]:
        judged = []
        for scenario in generate(0)[::60]:
            opening, stream = patient.open(scenario, 0), random.Random(scenario.id)
            talk = Dialogue(scenario, opening)
            for _ in range(6):
                said = script(talk, stream)
                exchange = Exchange(said, patient.reply(said, 0))
                talk = Dialogue(scenario, opening, (*talk.exchanges, exchange))
            judged += JUDGE.judge([talk])
        return [sum(getattr(j, name) for j in judged) / len(judged) for name in ("goal", "fit", "term")]

    best, middle, worst = mean(expert), mean(ordinary), mean(unsafe)
    for high, low in ((best, middle), (middle, worst)):
        assert all(x > y for x, y in zip(high, low, strict=True))


def test_the_page_shows_what_was_measured() -> None:
    """Every row of the published table stands in docs/judges.md."""
    root = Path(__file__).parents[3]
    page = (root / "docs" / "judges.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*", (root / "results/caregiver/rule_judge.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 8
    assert all(row in page for row in rows)
