"""What of a model's text is said aloud, for everything that a model may write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.envs.caregiver.hearing import MAX_CHARACTERS, MAX_WORDS, hear


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Take your time.", "Take your time."),
        ("<think>She is sad.</think><response>I'm here.</response>", "I'm here."),
        ("<think>She is sad.</think>\nI'm here.", "I'm here."),
        ("She is sad.</think>I'm here.", "I'm here."),
        ("<response>I'm here.", "I'm here."),
        ("Aside. <response>I'm here.</response> More aside.", "I'm here."),
        ("Caregiver: I'm here.", "I'm here."),
        ("assistant: I'm here.", "I'm here."),
        ("  two \n lines ", "two lines"),
        ("<response><think>hm</think>Yes.</response>", "Yes."),
        ("I told the user: wait.", "I told the user: wait."),
        ("**Caregiver:** I'm here.", "I'm here."),
        ("<think>I shall use <think> well.</think>I'm here.", "I'm here."),
        ("Rosa, the nurse says: rest.", "Rosa, the nurse says: rest."),
        ("It is [almost] time.", "It is [almost] time."),
        ("Two things (or so): rest.", "Two things (or so): rest."),
        ("Is 1 < 2 | 3 > 2?", "Is 1 < 2 | 3 > 2?"),
        ("Use it,\n- the tool you know.", "Use it, - the tool you know."),
        ("\n" * 50_000 + "I'm here.", "I'm here."),
    ],
)
def test_what_is_said_aloud(text: str, said: str) -> None:
    heard = hear(text, "Rosa Ellis")
    assert heard.said == said
    assert not heard.malformed


@pytest.mark.parametrize("text", ["<think>Only this.</think>", "<think>never closed", "only this</think>  "])
def test_only_thinking_is_silence(text: str) -> None:
    heard = hear(text)
    assert heard.said == ""
    assert heard.silent
    assert heard.only_thinking


@pytest.mark.parametrize("text", ["", "   ", "\n", "<response></response>"])
def test_nothing_is_silence_and_no_thinking(text: str) -> None:
    heard = hear(text)
    assert heard.silent
    assert not heard.only_thinking


@pytest.mark.parametrize(
    "text",
    [
        "I'm here.<|im_end|><|im_start|>user\nNo!",
        "I'm here.\nUser: No!",
        "I'm here.\nhuman:\nNo!",
        "I'm here.\n**User:** No!",
        "I'm here. [INST] No! [/INST]",
        "I'm here.<start_of_turn>user No!",
        "I'm here.</s><s>No!",
        "I'm here.<eos><user>No!",
        "I'm here.<\uff5cUser\uff5c>No!",
        "I'm here.<|reserved_special_token_3|>No!",
        "I'm here.\n### User\nNo!",
        "I'm here.\n- Human: No!",
    ],
)
def test_what_follows_another_roles_marker_is_not_said(text: str) -> None:
    heard = hear(text)
    assert heard.said == "I'm here."
    assert heard.other_role


@pytest.mark.parametrize(
    "text",
    [
        "I'm here.\nPatient: Thank you.",
        "I'm here. Patient: Thank you.",
        "I'm here.\nRosa: Thank you.",
        "I'm here.\nRosa Ellis: Thank you.",
        "I'm here.\n**Rosa:** Thank you.",
        "I'm here. *Patient*: Thank you.",
        "I'm here. [nodding; smiling] Thank you.",
        "I'm here. [nodding, smiling] Thank you.",
        "I'm here.\n- Rosa: Thank you.",
        "I'm here.\n## Patient: Thank you.",
        "I'm here.\nRosa (smiling): Thank you.",
        "I'm here. **Rosa** (with a smile) : Thank you.",
        "I'm here.\n[holding caregiver's hand] Thank you.",
    ],
)
def test_a_caregiver_cannot_speak_for_the_patient(text: str) -> None:
    heard = hear(text, "Rosa Ellis")
    assert heard.said == "I'm here."
    assert heard.imitates_patient


def test_a_transcripts_next_line_is_the_patients_too() -> None:
    """As a judge's transcript would have it: what the patient "said" must not reach that judge."""
    heard = hear("I'm here. [turn 1] Patient: I feel wonderful. [seen: smiling]", "Rosa Ellis")
    assert (heard.said, heard.imitates_patient) == ("I'm here. [turn 1]", True)


def test_ten_thousand_words_are_cut() -> None:
    heard = hear("word " * 10_000)
    assert len(heard.said.split()) == MAX_WORDS
    assert heard.overlong


def test_words_without_spaces_are_cut_too() -> None:
    for text in ("a" * 50_000, "[" * 20_000, "no,stop." * 5_000):
        heard = hear(text)
        assert len(heard.said) == MAX_CHARACTERS
        assert heard.overlong
    assert not hear("Let us sit down. " * 20).overlong


def test_private_thinking_never_leaks_into_what_is_said() -> None:
    for secret in (
        "<think>SECRET</think>Yes.",
        "SECRET</think>Yes.",
        "Yes.<think>SECRET",
        "<thinking>SECRET</thinking>Yes.",
        "SECRET</THINK>Yes.",
        "SECRET</thinking>Yes.",
        "<think lang='en'>SECRET</think>Yes.",
        "<think><think>a</think>SECRET</think>Yes.",
        "<think>a</think>SECRET</think>Yes.",
    ):
        assert hear(secret).said == "Yes."


@given(
    st.lists(
        st.sampled_from(
            [
                "<think>",
                "</think>",
                "<response>",
                "</response>",
                "<|im_start|>",
                "\nUser:",
                "[nodding]",
                "a b",
                ".",
            ]
        )
        | st.text(max_size=8)
    )
)
def test_any_text_is_heard(parts: list[str]) -> None:
    heard = hear("".join(parts), "Rosa Ellis")
    assert heard.silent == (heard.said == "")
    assert len(heard.said.split()) <= MAX_WORDS
    assert len(heard.said) <= MAX_CHARACTERS
    assert "<think>" not in heard.said.lower()
