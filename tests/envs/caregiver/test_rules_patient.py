"""The patient of rules: determinism, derived tiers, and that what helps or hurts people does so here."""

from __future__ import annotations

import dataclasses
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.envs.caregiver import expert
from threefold.envs.caregiver.acts import Act
from threefold.envs.caregiver.dialogue import Dialogue, Exchange, Patient, PatientReply, Scenario
from threefold.envs.caregiver.emission import draw_labels
from threefold.envs.caregiver.labels import default_lookup, tiers
from threefold.envs.caregiver.rules import default_rules
from threefold.envs.caregiver.rules_patient import RulesPatient, rest
from threefold.envs.caregiver.scenarios import generate
from threefold.envs.caregiver.subtypes import SUBTYPES

SCENARIOS = generate()
SAMPLE = SCENARIOS[::40]
LINES = ("It's time for your tablets.", "You sound worried.", "No, that is not true.", "Take your time.")


def play(
    patient: RulesPatient, scenario: Scenario, lines: tuple[str, ...], seed: int = 0, member: int = 0
) -> list[PatientReply]:
    return [patient.open(scenario, seed), *(patient.reply(line, member) for line in lines)]


def script(
    patient: RulesPatient, scenario: Scenario, say: expert.Script, turns: int, member: int = 0
) -> Dialogue:
    stream = random.Random(f"{scenario.id} {member}")
    dialogue = Dialogue(scenario, patient.open(scenario, 0))
    for _ in range(turns):
        text = say(dialogue, stream)
        reply = patient.reply(text, member)
        dialogue = dataclasses.replace(dialogue, exchanges=(*dialogue.exchanges, Exchange(text, reply)))
    return dialogue


def test_it_is_a_patient() -> None:
    patient: Patient = RulesPatient()
    assert patient.open(SCENARIOS[0], 0).utterance == SCENARIOS[0].opening


def test_the_same_seed_gives_the_same_dialogue_to_the_bit() -> None:
    for scenario in SAMPLE[:10]:
        assert play(RulesPatient(), scenario, LINES) == play(RulesPatient(), scenario, LINES)


def test_a_reply_does_not_depend_on_what_the_object_played_before() -> None:
    used = RulesPatient()
    play(used, SCENARIOS[7], LINES, seed=3, member=2)
    assert play(used, SCENARIOS[8], LINES) == play(RulesPatient(), SCENARIOS[8], LINES)


def test_a_dialogue_is_the_same_in_every_process_and_version() -> None:
    """Pinned: what chance gives must not drift, or published figures cannot be made again."""
    replies = play(RulesPatient(), SCENARIOS[0], LINES)
    assert [(r.distress, r.resistance) for r in replies] == [(0, 1), (1, 1), (1, 0), (0, 1), (1, 1)]


def test_all_members_of_a_group_start_alike_and_then_differ() -> None:
    patient = RulesPatient()
    for scenario in SAMPLE[:5]:
        openings = [play(patient, scenario, LINES, member=member)[0] for member in range(8)]
        assert len(set(map(repr, openings))) == 1
        later = {repr(play(patient, scenario, LINES, member=member)[1:]) for member in range(8)}
        assert len(later) > 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=4), st.integers(0, 1199), st.integers(0, 20))
def test_any_words_are_answered_with_derived_tiers(lines: list[str], index: int, member: int) -> None:
    for reply in play(RulesPatient(), SCENARIOS[index], tuple(lines), member=member):
        assert (reply.distress, reply.resistance) == tiers(reply.labels, reply.utterance)
        channels = [default_lookup().row(label).channel for label in reply.labels]
        assert len(set(channels)) == len(channels)
        assert reply.utterance
        assert 0 <= reply.latent["d"] <= 3
        assert 0 <= reply.latent["r"] <= 3


def test_every_pair_of_tiers_can_be_shown_by_every_subtype() -> None:
    stream = random.Random(0)
    for subtype in SUBTYPES.values():
        for distress in range(4):
            for resistance in range(4):
                labels = draw_labels(default_lookup(), stream, subtype, distress, resistance, "")
                assert tiers(labels) == (distress, resistance)


def test_who_says_no_cannot_show_less_than_verbal_refusal() -> None:
    labels = draw_labels(default_lookup(), random.Random(0), SUBTYPES["VaD"], 0, 0, "No.")
    assert tiers(labels, "No.") == (0, 2)


def mean_latent(name: str, line: str, before: tuple[str, ...] = (), subtype: str | None = None) -> float:
    """Mean of a latent quantity after `line`, over scenarios and members."""
    patient, values = RulesPatient(), []
    for scenario in SAMPLE:
        if subtype:
            scenario = dataclasses.replace(scenario, subtype=subtype)
        for member in range(3):
            values.append(play(patient, scenario, (*before, line), member=member)[-1].latent[name])
    return statistics.mean(values)


NEUTRAL = "What are you looking for?"


@pytest.mark.parametrize(
    "line",
    [
        "You sound worried. It makes sense that you feel that way.",
        "Take your time, there is no rush. I'm here with you.",
        "That must be hard. What was it like back then?",
    ],
)
def test_what_soothes(line: str) -> None:
    assert mean_latent("d", line) < mean_latent("d", NEUTRAL)
    assert mean_latent("trust", line) > mean_latent("trust", NEUTRAL)


@pytest.mark.parametrize(
    "line",
    ["That's not true, you are wrong.", "Shut up or I'll tie you to the chair.", "Don't be silly.", "..."],
)
def test_what_hurts(line: str) -> None:
    assert mean_latent("d", line) > mean_latent("d", NEUTRAL)
    assert mean_latent("trust", line) < mean_latent("trust", NEUTRAL)


def test_elderspeak_and_commands_make_a_care_bid_worse() -> None:
    bid = "I understand. Here are your tablets."
    assert mean_latent("r", "I understand, sweetie. Here are our tablets.") > mean_latent("r", bid)
    assert mean_latent("r", "I understand. You have to take your tablets now.") > mean_latent("r", bid)


def test_resistance_does_not_rise_where_nobody_presses_for_care() -> None:
    """Noise apart: the push and the drift are both cut off, so only the means can tell."""
    quiet = default_rules().scaled("noise", 0.0)
    patient = RulesPatient(quiet)
    for scenario in SAMPLE:
        before = patient.open(scenario, 0).latent["r"]
        assert patient.reply("You are wrong about that.", 0).latent["r"] <= before
        assert patient.reply("Why?", 0).latent["r"] <= before


def test_piling_up_kind_words_saturates() -> None:
    one = mean_latent("d", "You sound worried.")
    many = mean_latent("d", "You sound worried, and I understand. I'm here. Sorry. Tell me about it.")
    rules = default_rules()
    limit = rules.constant("soothing_limit") / rules.constant("slope")
    assert many < one
    assert mean_latent("d", NEUTRAL) - many < limit + 0.2


def test_saying_one_kind_sentence_for_ever_stops_helping() -> None:
    line = "You sound worried. It makes sense that you feel that way."
    fresh = "I can see why this matters to you. That must feel hard."
    assert mean_latent("d", line, before=(line,) * 4) > mean_latent("d", fresh, before=(line,) * 4)


def test_cues_help_where_the_subtype_says_so_and_nowhere_else() -> None:
    cue = "Look at the calendar here, it says Tuesday."
    helped = {
        name: mean_latent("d", "I see.", subtype=name) - mean_latent("d", f"I see. {cue}", subtype=name)
        for name in ("VaD", "AD-mid-late")
    }
    assert helped["VaD"] > 0.02
    assert helped["AD-mid-late"] == pytest.approx(0, abs=1e-9)


def test_double_questions_frustrate_people_with_aphasia_more() -> None:
    double, single = "Who is it? Where did she go?", "Who is it?"
    cost = {
        name: mean_latent("d", double, subtype=name) - mean_latent("d", single, subtype=name)
        for name in ("nfvPPA", "FTD-bv")
    }
    assert cost["nfvPPA"] > cost["FTD-bv"]


def test_only_fluctuating_subtypes_cloud_over() -> None:
    clouded = {
        name: mean_latent("clouded", NEUTRAL, before=LINES, subtype=name) for name in ("DLB", "AD-early")
    }
    assert clouded["DLB"] > 0.1
    assert clouded["AD-early"] == 0


def test_the_expert_brings_the_care_step_about_and_harshness_drives_people_away() -> None:
    patient = RulesPatient()
    coercion = expert.lines_of("unsafe", "coercion")
    good = [script(patient, s, expert.expert, 10) for s in SAMPLE]
    assert statistics.mean(any(e.patient.accepted for e in d.exchanges) for d in good) > 0.5
    bad = [script(patient, s, lambda _, stream: expert.pick(stream, coercion), 6) for s in SAMPLE]
    assert not any(e.patient.accepted for d in bad for e in d.exchanges)
    assert any(e.patient.left for d in bad for e in d.exchanges)


def everything_kind(_: Dialogue, stream: random.Random) -> str:
    parts = ("feel", "validate", "hold", "explore", "lead")
    lines = [expert.pick(stream, expert.lines_of(part)) for part in parts]
    return " ".join(lines).format(name="dear friend", person="it", place="home")


@pytest.mark.parametrize(
    "shortcut",
    [
        pytest.param(lambda dialogue, stream: "You sound worried. I'm here with you.", id="one sentence"),
        pytest.param(everything_kind, id="everything kind at once, in new words each time"),
        pytest.param(lambda dialogue, stream: "", id="silence"),
    ],
)
def test_shortcuts_do_worse_than_the_expert(shortcut: expert.Script) -> None:
    """What a policy could find instead of talking to the person."""
    patient = RulesPatient()

    def outcome(say: expert.Script) -> tuple[float, float]:
        dialogues = [script(patient, s, say, 8) for s in SAMPLE]
        last = [e.patient for d in dialogues for e in d.exchanges[-3:]]
        return (
            statistics.mean(reply.latent["d"] for reply in last),
            statistics.mean(d.exchanges[-1].patient.accepted for d in dialogues),
        )

    distress, agreed = outcome(expert.expert)
    distress_of_shortcut, agreed_by_shortcut = outcome(shortcut)
    assert distress < distress_of_shortcut - 0.1
    assert agreed > agreed_by_shortcut + 0.2


def test_who_has_agreed_does_not_refuse() -> None:
    patient = RulesPatient()
    for scenario in SAMPLE:
        for exchange in script(patient, scenario, expert.expert, 9).exchanges:
            if exchange.patient.accepted:
                assert not default_lookup().says_refusal(exchange.patient.utterance)
                assert exchange.patient.resistance <= 1


def test_an_agreement_is_taken_back_under_threat() -> None:
    patient = RulesPatient()
    for scenario in SAMPLE:
        dialogue = script(patient, scenario, expert.expert, 9)
        if dialogue.exchanges[-1].patient.accepted:
            assert not patient.reply("Do it now or I'll lock you in.", 0).accepted
            return
    pytest.fail("no patient agreed in the sample")


def test_a_perturbed_patient_differs_and_keeps_every_sign() -> None:
    rules = default_rules()
    perturbed = RulesPatient(perturb=0.5, seed=1).rules
    assert perturbed.coefficients().keys() == rules.coefficients().keys()
    for name, value in rules.coefficients().items():
        assert 0.5 <= perturbed.coefficients()[name] / value <= 1.5
    assert perturbed.coefficients() != RulesPatient(perturb=0.5, seed=2).rules.coefficients()
    assert RulesPatient(perturb=0.0).rules is rules
    with pytest.raises(ValueError, match=r"a share in \[0, 1\), got 1"):
        RulesPatient(perturb=1.0)


def test_a_calm_patient_can_be_made_for_probes() -> None:
    reply = rest(RulesPatient(), SCENARIOS[0], 0)
    assert reply.latent["r"] < 0.2
    assert reply.latent["attachment"] == 0


def test_every_act_has_a_rule() -> None:
    assert set(default_rules().effects) == set(Act)
