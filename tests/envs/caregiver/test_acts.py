"""The act tagger: what it must find, and the words that must not mislead it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.envs.caregiver.acts import Act, content_words, tag

HEARD = ("Where is my wife? She should be home by now. I need to find her.",)

FOUND = [
    ("You sound worried about her.", Act.NAMES_FEELING),
    ("You miss her, don't you?", Act.NAMES_FEELING),
    ("How frightening that is.", Act.NAMES_FEELING),
    ("That makes sense to me.", Act.VALIDATES),
    ("It's all right to feel that way.", Act.VALIDATES),
    ("I'm right here with you.", Act.REASSURES),
    ("Good morning, Mr Hale.", Act.USES_NAME),
    ("Shall we sit, Arthur?", Act.USES_NAME),
    ("I'm sorry, that was too fast.", Act.APOLOGISES),
    ("What was she like?", Act.OPEN_QUESTION),
    ("Tell me about your garden.", Act.REMINISCENCE),
    ("Tea or juice with it?", Act.CHOICE_OFFER),
    ("Just one sip first.", Act.SMALL_STEP),
    ("It's time for your tablets.", Act.CARE_BID),
    ("Would you walk to the bathroom with me?", Act.CARE_BID),
    ("Could you help me fold these towels?", Act.ACTIVITY_OFFER),
    ("Don't you remember? I told you.", Act.MEMORY_TEST),
    ("Look at the calendar, it says Tuesday.", Act.CUE),
    ("No, your wife died years ago.", Act.CONTRADICTION),
    ("That's not true.", Act.CONTRADICTION),
    ("You don't live there any more.", Act.CONTRADICTION),
    ("She might be held up.", Act.FIBBING),
    ("Yes, your mother is coming soon.", Act.AFFIRMS_CLAIM),
    ("I'm not sure. Let me check with the nurse.", Act.HEDGES),
    ("Mm-hm.", Act.NON_COMMITTAL),
    ("Take your time, there is no rush.", Act.PAUSE),
    ("We can try again after lunch.", Act.DEFERRAL),
    ("Sit down.", Act.COMMAND),
    ("You have to take it right now.", Act.COMMAND),
    ("If you don't eat, I'll call your son.", Act.THREAT),
    ("I'll tie you to the chair.", Act.THREAT),
    ("Don't be silly.", Act.BELITTLE),
    ("Calm down, there's nothing to cry about.", Act.DISMISSES),
    ("Time for our bath, sweetie.", Act.ELDERSPEAK),
    ("Are we ready for bed?", Act.ELDERSPEAK),
    ("Hold still.", Act.TAKEOVER),
    ("It's warm, isn't it?", Act.TAG_QUESTION),
    ("Who is she? Where did you meet?", Act.QUESTION_OVERLOAD),
    ("word " * 41, Act.LONG),
    ("I see. I know. I hear. I care. I stay.", Act.LONG),
    ("...", Act.SAYS_NOTHING),
]


@pytest.mark.parametrize(("text", "act"), FOUND, ids=[f"{act}-{i}" for i, (_, act) in enumerate(FOUND)])
def test_finds(text: str, act: Act) -> None:
    assert act in tag(text, name="Arthur Hale")


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("I know the bus stop.", Act.COMMAND),
        ("No rush at all.", Act.CONTRADICTION),
        ("It's not your fault.", Act.CONTRADICTION),
        ("I don't mind waiting.", Act.CONTRADICTION),
        ("I won't force you.", Act.THREAT),
        ("Nobody will lock you in.", Act.THREAT),
        ("If you don't mind, I'll sit here.", Act.THREAT),
        ("Take your time.", Act.COMMAND),
        ("Tell me about her.", Act.COMMAND),
        ("Do you feel sad?", Act.COMMAND),
        ("Please take a sip.", Act.COMMAND),
        ("You miss her.", Act.USES_NAME),
        ("We can try again after lunch.", Act.CARE_BID),
        ("Would you like some honeydew?", Act.ELDERSPEAK),
        ("We can walk later if that suits you.", Act.THREAT),
        ("She passed the ball in a nice way.", Act.DEFERRAL),
    ],
)
def test_is_not_misled(text: str, act: Act) -> None:
    assert act not in tag(text, name="Arthur Hale")


def test_every_act_has_a_line_that_shows_it_alone_or_in_context() -> None:
    in_context = {
        Act.REPEATED_CONTRADICTION,
        Act.ACKNOWLEDGED_REDIRECT,
        Act.ABRUPT_TOPIC_CHANGE,
        Act.IGNORES,
        Act.REPEATS_ITSELF,
    }
    assert {act for _, act in FOUND} | in_context == set(Act)


def test_a_redirection_counts_as_such_only_after_taking_up_what_was_said() -> None:
    abrupt = tag("It's time for your shower.", history=HEARD)
    assert {Act.IGNORES, Act.ABRUPT_TOPIC_CHANGE} <= abrupt
    led = tag("You must miss her. Shall we have some tea while you tell me about her?", history=HEARD)
    assert Act.ACKNOWLEDGED_REDIRECT in led
    assert not led & {Act.IGNORES, Act.ABRUPT_TOPIC_CHANGE}


def test_without_history_nothing_is_ignored() -> None:
    assert Act.IGNORES not in tag("It's time for your shower.")
    assert Act.IGNORES not in tag("It's time for your shower.", history=("Yes.",))


def test_a_correction_is_repeated_only_if_the_caregiver_corrected_before() -> None:
    line = "No, your wife is not here."
    assert Act.REPEATED_CONTRADICTION not in tag(line, history=HEARD)
    assert Act.REPEATED_CONTRADICTION not in tag(line, history=("No, that's wrong.",))
    assert Act.REPEATED_CONTRADICTION in tag(line, history=(*HEARD, "That's not true.", "It is."))


def test_saying_the_same_again_is_seen_and_saying_it_anew_is_not() -> None:
    history = (*HEARD, "You sound worried about your wife.", "Yes.")
    assert Act.REPEATS_ITSELF in tag("You sound so worried about your wife.", history=history)
    assert Act.REPEATS_ITSELF not in tag("Tell me about her.", history=history)
    assert Act.REPEATS_ITSELF not in tag(HEARD[0], history=history)


def test_content_words_leave_out_what_carries_no_topic() -> None:
    assert content_words("Where is my wife's garden? I want it") == {"wife", "garden"}


@given(st.text(max_size=400), st.lists(st.text(max_size=80), max_size=5), st.text(max_size=20))
def test_any_text_is_tagged(text: str, history: list[str], name: str) -> None:
    acts = tag(text, history=history, name=name)
    assert acts <= set(Act)
    assert acts == tag(text.upper().lower(), history=history, name=name) or not text.isascii()
