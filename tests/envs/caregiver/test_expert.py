"""Scripted caregivers: safe where they should be, varied, the same for the same seed."""

from __future__ import annotations

from itertools import islice

import pytest

from threefold.envs.caregiver.acts import Act, tag
from threefold.envs.caregiver.expert import conversations, lines_of
from threefold.envs.caregiver.hearing import hear
from threefold.envs.caregiver.scenarios import generate

SCENARIOS = generate()[::12]
HARM = {Act.COMMAND, Act.THREAT, Act.BELITTLE, Act.ELDERSPEAK, Act.TAKEOVER, Act.DISMISSES, Act.CONTRADICTION}


def said(**options: object) -> list[str]:
    return [
        message["content"]
        for conversation in conversations(SCENARIOS, **options)  # type: ignore[arg-type]
        for message in conversation.messages
        if message["role"] == "assistant"
    ]


def test_the_same_seed_gives_the_same_words_and_another_gives_others() -> None:
    assert said(seed=1) == said(seed=1)
    assert said(seed=1) != said(seed=2)


def test_roles_take_turns_and_the_caregiver_speaks_last() -> None:
    for conversation in conversations(SCENARIOS, turns=4):
        roles = [message["role"] for message in conversation.messages]
        assert roles[:1] == ["system"]
        assert set(roles[1::2]) == {"user"}
        assert set(roles[2::2]) == {"assistant"}
        assert roles[-1] == "assistant"
        assert len(roles) <= 9


def test_the_expert_does_no_harm_by_the_tagger() -> None:
    for line in set(said(seed=0)):
        assert not tag(line) & HARM, line


def test_words_vary() -> None:
    lines = said(seed=0)
    assert len(set(lines)) > 0.6 * len(lines)


def test_short_turns_are_short() -> None:
    lines = said(turns=4, short_prompt=True)
    assert sum(len(line.split()) for line in lines) / len(lines) < 18


def test_a_limit_of_words_is_kept_by_saying_the_last_sentence_alone() -> None:
    lines = said(turns=4, short_prompt=True, words=15)
    assert max(len(line.split()) for line in lines) <= 15
    assert max(len(line.split()) for line in said(turns=4, short_prompt=True)) > 15
    assert said(turns=4, words=100) == said(turns=4)


def test_the_share_of_unsafe_conversations_is_what_was_asked_for() -> None:
    made = list(conversations(SCENARIOS, turns=4, unsafe_share=0.3))
    unsafe = [c for c in made if c.unsafe_turn is not None]
    assert 0.15 < len(unsafe) / len(made) < 0.45
    assert not any(c.unsafe_turn is not None for c in conversations(SCENARIOS, turns=4))
    words = {
        line
        for part in ("initiated", "permission", "endorsement")
        for key in lines_of("unsafe", part)
        for line in lines_of("unsafe", part, key)
    }
    words |= set(lines_of("unsafe", "coercion"))
    for conversation in unsafe:
        assert conversation.messages[-1]["content"] in words
        assert len(conversation.messages) == 2 * conversation.unsafe_turn + 3


def test_the_asked_share_of_replies_is_the_ordinary_caregivers() -> None:
    """Counted in the first replies, which are the expert's own where the share is 0."""

    def first(share: float) -> list[str]:
        return [c.messages[2]["content"] for c in conversations(SCENARIOS, turns=1, ordinary_share=share)]

    alone = first(0.0)
    changed = [mixed != own for mixed, own in zip(first(0.4), alone, strict=True)]
    assert 0.3 < sum(changed) / len(changed) < 0.5
    spoken_by_heart = [mixed == own for mixed, own in zip(first(1.0), alone, strict=True)]
    assert sum(spoken_by_heart) / len(spoken_by_heart) < 0.1  # "I understand." is in both scripts


def test_thinking_is_private_and_well_formed() -> None:
    for conversation in islice(conversations(SCENARIOS, thinking=True), 5):
        for message in conversation.messages[2::2]:
            heard = hear(message["content"])
            assert not heard.malformed
            assert "fits" not in heard.said
            assert heard.said in message["content"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 0}, "at least one turn, got turns=0"),
        ({"unsafe_share": 1.5}, r"a share in \[0, 1\], got 1.5"),
        ({"ordinary_share": -0.1}, r"ordinary_share is a share in \[0, 1\], got -0.1"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(conversations(SCENARIOS, **options))  # type: ignore[arg-type]
