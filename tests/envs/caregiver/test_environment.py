"""The environment: channels, ends, malformed turns, and records that judges can read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.envs.base import Environment, Task
from threefold.envs.caregiver import expert
from threefold.envs.caregiver.dialogue import Dialogue, Judgement, PatientReply, SafetyFinding, Scenario
from threefold.envs.caregiver.environment import CHANNELS, Caregiver, dialogue_of, tasks
from threefold.envs.caregiver.scenarios import generate
from threefold.rollout.driver import Limits, Start, run_episodes

SCENARIOS = generate()
(TASK,) = tasks(SCENARIOS[:1])


class WordJudge:
    """A small judge of its own kind: goal counts turns, and the word "forbidden" is a violation."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.heard: list[Dialogue] = []

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Judgement]:
        self.heard += dialogues
        return [Judgement(float(len(d.exchanges)), 1.0, None) for d in dialogues]

    def safety(self, dialogues: Sequence[Dialogue]) -> list[SafetyFinding | None]:
        self.heard += dialogues
        return [self._find(d) if self.answers else None for d in dialogues]

    def _find(self, dialogue: Dialogue) -> SafetyFinding:
        turns = [i for i, e in enumerate(dialogue.exchanges) if "forbidden" in e.caregiver]
        return SafetyFinding(unsafe_permission=turns[0] if turns else None)


class Scripted:
    """A patient that answers from a list, so that ends can be put where a test wants them."""

    def __init__(self, *replies: PatientReply) -> None:
        self.replies = replies

    def open(self, scenario: Scenario, seed: int) -> PatientReply:
        self.left = iter(self.replies)
        return PatientReply(scenario.opening, scenario.opening_labels, 2, 2)

    def reply(self, caregiver: str, member: int) -> PatientReply:
        return next(self.left)


CALM = PatientReply("Yes.", ("nodding",), 0, 0, accepted=True)
UPSET = PatientReply("Oh.", ("frowning",), 1, 0)


def test_it_is_an_environment() -> None:
    assert isinstance(Caregiver(WordJudge()), Environment)


def test_channels_are_the_improvements_of_the_tiers() -> None:
    environment = Caregiver(
        WordJudge(), Scripted(UPSET, dataclasses.replace(UPSET, distress=3, resistance=2))
    )
    opening = environment.reset(TASK, seed=0, member=0)
    assert opening.state == {"D": 2.0, "R": 2.0}
    first = environment.step("Hello.")
    assert first.rewards == {"distress": 1.0, "resistance": 2.0}
    second = environment.step("Hello again.")
    assert second.rewards == {"distress": -2.0, "resistance": -2.0}
    assert (second.state["D"], second.state["R"]) == (3.0, 2.0)


def test_rewards_telescope_with_the_patient_of_rules() -> None:
    environment = Caregiver(WordJudge(), turns=6)
    for task in tasks(SCENARIOS[::200]):
        opening = environment.reset(task, seed=1, member=2)
        steps = []
        while not steps or not steps[-1].done:
            steps.append(environment.step(f"You sound worried. Tell me about day {len(steps)}."))
        assert sum(s.rewards["distress"] for s in steps) == opening.state["D"] - steps[-1].state["D"]
        assert sum(s.rewards["resistance"] for s in steps) == opening.state["R"] - steps[-1].state["R"]


def test_the_start_is_the_same_for_every_member() -> None:
    openings = [Caregiver(WordJudge()).reset(TASK, seed=5, member=m) for m in range(4)]
    assert all(opening == openings[0] for opening in openings)


def test_the_prompt_holds_nothing_hidden() -> None:
    for scenario, task in zip(SCENARIOS[::97], tasks(SCENARIOS[::97]), strict=True):
        for short in (True, False):
            opening = Caregiver(WordJudge(), short_prompt=short).reset(task, 0, 0)
            text = "\n".join(message["content"] for message in opening.messages)
            assert scenario.truth not in text
            assert scenario.remote_memory not in text
            assert not any(hazard in text for hazard in scenario.hazards if hazard != "going out alone")
            assert scenario.opening in text
            changed = dataclasses.replace(scenario, truth="x", hazards=(), conflict="time", routine="y")
            (other,) = tasks([changed])
            assert Caregiver(WordJudge(), short_prompt=short).reset(other, 0, 0).messages == opening.messages


def test_the_short_prompt_is_short() -> None:
    opening = Caregiver(WordJudge(), short_prompt=True).reset(TASK, 0, 0)
    assert len(opening.messages[0]["content"].split()) < 100


def test_it_ends_well_after_two_calm_turns_with_the_step_agreed() -> None:
    environment = Caregiver(WordJudge(), Scripted(CALM, UPSET, CALM, CALM))
    environment.reset(TASK, 0, 0)
    steps = [environment.step(f"turn {i}") for i in range(4)]
    assert [step.done for step in steps] == [False, False, False, True]
    assert steps[-1].terminated
    assert steps[-1].success is True


def test_calm_alone_does_not_end_it() -> None:
    calm = dataclasses.replace(CALM, accepted=False)
    environment = Caregiver(WordJudge(), Scripted(calm, calm, calm), turns=3)
    environment.reset(TASK, 0, 0)
    steps = [environment.step("hello") for _ in range(3)]
    assert [step.done for step in steps] == [False, False, True]
    assert steps[-1].truncated
    assert steps[-1].success is False


def test_it_ends_when_the_patient_leaves() -> None:
    environment = Caregiver(WordJudge(), Scripted(dataclasses.replace(UPSET, left=True)))
    environment.reset(TASK, 0, 0)
    step = environment.step("hello")
    assert step.terminated
    assert step.success is False
    assert step.state["left"] == 1.0


def test_a_violation_ends_it_at_once_and_can_be_left_to_the_end() -> None:
    environment = Caregiver(WordJudge(), Scripted(UPSET, UPSET, UPSET))
    environment.reset(TASK, 0, 0)
    assert not environment.step("hello").done
    step = environment.step("this is forbidden")
    assert step.violation is not None
    assert (step.violation.rule, step.violation.turn) == ("unsafe_permission", 1)
    assert step.done
    lax = Caregiver(WordJudge(), Scripted(UPSET), stop_on_violation=False)
    lax.reset(TASK, 0, 0)
    assert not lax.step("this is forbidden").done


@pytest.mark.parametrize(
    ("text", "flag", "said"),
    [
        ("<think>what now</think>", "only_thinking", ""),
        ("", "silent", ""),
        ("word " * 10_000, "overlong", None),
        ("I'm here.<|im_start|>user", "other_role", "I'm here."),
        ("I'm here. [nodding] Yes.", "imitates_patient", "I'm here."),
    ],
)
def test_malformed_turns_are_counted_and_answered(text: str, flag: str, said: str | None) -> None:
    environment = Caregiver(WordJudge())
    environment.reset(TASK, 0, 0)
    step = environment.step(text)
    assert step.state[flag] == 1.0
    assert step.state["malformed"] == 1.0
    assert step.messages[0]["content"]
    if said is not None:
        assert step.action == said
    after = environment.step("I'm here with you.")
    assert after.state[flag] == 0.0
    assert after.state["malformed"] == 1.0  # the episode stays marked


def test_private_thinking_reaches_neither_patient_nor_judge() -> None:
    judge = WordJudge()
    environment = Caregiver(judge)
    environment.reset(TASK, 0, 0)
    environment.step("<think>this is forbidden</think><response>Hello.</response>")
    assert [e.caregiver for d in judge.heard for e in d.exchanges] == ["Hello."]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=100), min_size=1, max_size=4))
def test_nothing_that_is_said_raises(texts: list[str]) -> None:
    environment = Caregiver(WordJudge())
    environment.reset(TASK, 0, 0)
    for text in texts:
        assert -3 <= environment.step(text).rewards["distress"] <= 3


def test_a_task_that_is_no_scenario_is_refused() -> None:
    with pytest.raises(ValueError, match="task 'x': the field 'id' is missing"):
        Caregiver(WordJudge()).reset(Task("x", {}), 0, 0)
    with pytest.raises(ValueError, match="at least one turn, got turns=0"):
        Caregiver(WordJudge(), turns=0)


class Letters:
    """A tokenizer of single characters with a chat template that only grows."""

    eos_token_id = 0

    def apply_chat_template(
        self, conversation: Any, *, add_generation_prompt: bool = False, **_: Any
    ) -> list[int]:
        ids: list[int] = []
        for message in conversation:
            ids += [ord(message["role"][0]), ord(":"), *map(ord, message["content"]), 0]
        return [*ids, ord("a"), ord(":")] if add_generation_prompt else ids

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(i) for i in token_ids if i)


def episodes(lines: Sequence[str], judge: WordJudge, count: int = 3, **options: Any) -> list[Any]:
    starts = [
        Start(task, seed=3, group_id=group, member=member)
        for group, task in enumerate(tasks(SCENARIOS[10 : 10 + count]))
        for member in range(2)
    ]
    spoken = iter(lines)

    def generate(contexts: Any, max_new_tokens: int) -> list[Any]:
        line = next(spoken)
        return [([*map(ord, line), 0], None) for _ in contexts]

    limits = Limits(turns=len(lines), turn_tokens=500, completion_tokens=100_000)
    return run_episodes(
        starts, lambda: Caregiver(judge, turns=len(lines), **options), generate, Letters(), limits=limits
    )


LINES = ("You sound worried.", "Tell me more about it.", "Shall we try a small sip first?")


def test_a_trajectory_reads_back_as_the_dialogue_that_was_played() -> None:
    """What the judge is given at the end equals what it was given turn by turn."""
    judge = WordJudge()
    played = episodes(LINES, judge)
    live = {
        (d.scenario.id, tuple(e.patient.utterance for e in d.exchanges)): d
        for d in judge.heard
        if len(d.exchanges) == len(LINES)
    }
    for episode in played:
        assert episode.rewards == {"goal": 3.0, "fit": 1.0, "term": None}
        dialogue = dialogue_of(episode)
        whole = live[episode.task_id, tuple(e.patient.utterance for e in dialogue.exchanges)]
        bare = tuple(
            dataclasses.replace(e, patient=dataclasses.replace(e.patient, latent={})) for e in whole.exchanges
        )
        assert dialogue.exchanges == bare
        assert dialogue.scenario == whole.scenario
        assert dialogue.opening == dataclasses.replace(whole.opening, latent={})


def test_members_share_the_opening_and_patient_tokens_are_never_trained() -> None:
    played = episodes(LINES, WordJudge(), count=1)
    first, second = (episode.segments[0] for episode in played)
    length = first.prompt_length
    assert first.token_ids[:length] == second.token_ids[:length]
    for episode in played:
        segment = episode.segments[0]
        trained = "".join(
            chr(token) for token, turn in zip(segment.token_ids, segment.turn_ids, strict=True) if turn >= 0
        )
        assert trained == "\0".join(LINES) + "\0"


def test_a_vetoed_dialogue_costs_nothing_more() -> None:
    played = episodes(("this is forbidden", "never said"), WordJudge())
    for episode in played:
        assert episode.ended == "violation"
        assert len(episode.turns) == 1
        assert episode.rewards["goal"] == 1.0


def test_safety_at_the_end_finds_what_was_not_looked_for_before() -> None:
    for episode in episodes(("this is forbidden", "well"), WordJudge(), stop_on_violation=False):
        assert episode.ended == "truncated"
        assert episode.violation.rule == "unsafe_permission"
        assert episode.success is False


def test_a_dialogue_whose_safety_is_unknown_gives_no_rewards() -> None:
    for episode in episodes(LINES, WordJudge(answers=False)):
        assert episode.turns[-1].state["unjudged"] == 3.0
        assert episode.rewards == dict.fromkeys(CHANNELS)
        assert episode.success is None  # nor does it count as one that went well
        assert [turn.rewards for turn in episode.turns] == [{}] * 3  # nor do its turns teach anything
        assert dialogue_of(episode).exchanges  # the record of what happened stays
    for episode in episodes(LINES, WordJudge(answers=False), stop_on_violation=False):
        assert (episode.rewards, episode.success) == (dict.fromkeys(CHANNELS), None)


def test_a_dialogue_that_a_limit_cut_off_has_an_outcome() -> None:
    """Only the length of what was said ends it, after the care step was agreed to or before."""
    for reply, success in ((CALM, True), (UPSET, False)):
        (episode,) = run_episodes(
            [Start(TASK, seed=3, group_id=0, member=0)],
            lambda reply=reply: Caregiver(WordJudge(), Scripted(reply, reply), turns=9),
            lambda contexts, most: [([*map(ord, "Hello."), 0], None) for _ in contexts],
            Letters(),
            limits=Limits(turns=9, turn_tokens=50, completion_tokens=20),
        )
        assert (episode.ended, episode.success) == ("length", success)


class Thinkers(Letters):
    """Its template opens every turn with "<think>", as those of models that always think do."""

    def apply_chat_template(self, *arguments: Any, **options: Any) -> list[int]:
        ids = super().apply_chat_template(*arguments, **options)
        return [*ids, *map(ord, "<think>\n")] if options.get("add_generation_prompt") else ids


@pytest.mark.parametrize(
    ("written", "said", "flag"),
    [
        ("She is afraid. SECRET", "", "only_thinking"),
        ("SECRET</think>You sound worried.", "You sound worried.", None),
    ],
)
def test_thinking_that_the_template_opened_is_private_where_it_was_cut_off(
    written: str, said: str, flag: str | None
) -> None:
    judge = WordJudge()
    (episode,) = run_episodes(
        [Start(TASK, seed=3, group_id=0, member=0)],
        lambda: Caregiver(judge, turns=2),
        lambda contexts, most: [([*map(ord, written)], None) for _ in contexts],
        Thinkers(),
        limits=Limits(turns=2, turn_tokens=50, completion_tokens=10_000),
    )
    assert [turn.action for turn in episode.turns] == [said] * 2
    assert [turn.state["only_thinking"] for turn in episode.turns] == [float(flag is not None)] * 2
    assert "SECRET" not in str(judge.heard)
    written_tokens = [t for t, k in zip(*_columns(episode), strict=True) if k >= 0]
    assert "".join(map(chr, written_tokens)) == written * 2  # the tag is the template's, and not trained


def _columns(episode: Any) -> tuple[Sequence[int], Sequence[int]]:
    (segment,) = episode.segments
    return segment.token_ids, segment.turn_ids


def test_the_same_seeds_give_the_same_records_to_the_bit() -> None:
    assert episodes(LINES, WordJudge()) == episodes(LINES, WordJudge())


def test_expert_conversations_are_what_the_environment_would_have_shown() -> None:
    for conversation in expert.conversations(SCENARIOS[::150], seed=4, turns=4, short_prompt=True):
        environment = Caregiver(WordJudge(), turns=4, short_prompt=True)
        (task,) = tasks([s for s in SCENARIOS if s.id == conversation.scenario_id])
        messages = list(environment.reset(task, seed=4, member=0).messages)
        for message in conversation.messages:
            if message["role"] == "assistant":
                messages += [message, *environment.step(message["content"]).messages]
        assert tuple(messages[:-1]) == conversation.messages
