"""The lookup from labels to tiers: the paper's tables and the traps of matching keywords."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.envs.caregiver import labels as labels_module
from threefold.envs.caregiver.labels import default_lookup, load_lookup, tiers

LOOKUP = default_lookup()


def test_the_alphabet_is_34_labels_in_three_channels_each_with_a_source() -> None:
    assert Counter(row.channel for row in LOOKUP.labels.values()) == {"motion": 20, "facial": 7, "sound": 7}
    assert all(row.source for row in LOOKUP.labels.values())


def test_the_weights_are_those_of_tables_4_and_5() -> None:
    assert Counter(row.distress for row in LOOKUP.labels.values()) == {3: 3, 1: 18, -1: 3, 0: 10}
    resisting = [row.resistance for row in LOOKUP.labels.values() if row.distress == 0]
    assert Counter(resisting) == {3: 3, 2: 1, 1: 4, 0: 2}


@pytest.mark.parametrize(
    ("labels", "utterance", "expected"),
    [
        ([], "", (0, 0)),
        (["crying"], "", (3, 0)),
        (["frowning", "sighing"], "", (2, 0)),
        (["frowning", "smiling"], "", (0, 0)),
        (["frowning", "sighing", "fidgeting"], "", (3, 0)),
        (["crying", "frowning"], "", (3, 0)),
        (["smiling", "laughing"], "", (0, 0)),
        (["shaking head"], "", (0, 2)),
        (["pushing caregiver away", "nodding"], "", (0, 3)),
        (["stepping back"], "", (0, 1)),
        (["frowning", "frowning"], "", (1, 0)),
        ([], "Leave me alone!", (1, 0)),
        ([], "I don’t want that.", (1, 2)),
        ([], "No, I won't.", (0, 2)),
        (["sighing"], "Please stop. I hate this.", (2, 0)),
    ],
)
def test_examples(labels: list[str], utterance: str, expected: tuple[int, int]) -> None:
    assert tiers(labels, utterance) == expected


@pytest.mark.parametrize(
    "said",
    [
        "I know.",
        "Now it is noon, another day.",
        "I don't mind.",
        "I don't know.",
        "Is this the bus stop?",
        "They never stop by any more.",
        "We could stop off at the bakery.",
        "Don't stop, that is lovely.",
        "No problem.",
        "There is no milk.",
        "Not today, nothing special.",
        "Don't go away.",
        "I don't want to bother you.",
        "Nonstop knocking on the door.",
    ],
)
def test_what_is_no_refusal_and_no_distress(said: str) -> None:
    assert tiers([], said) == (0, 0)


@pytest.mark.parametrize(
    "said", ["No.", "no no no", "Don't touch me.", "I refuse", "Oh no, not again", "NO!"]
)
def test_what_is_refusal(said: str) -> None:
    assert tiers([], said)[1] == 2


def test_an_unknown_label_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"unknown behaviour label 'noding': did you mean 'nodding'\?"):
        tiers(["noding"])


@given(st.lists(st.sampled_from(sorted(LOOKUP.labels))), st.text())
def test_tiers_stay_in_range_and_ignore_order(labels: list[str], utterance: str) -> None:
    distress, resistance = tiers(labels, utterance)
    assert 0 <= distress <= 3
    assert 0 <= resistance <= 3
    assert tiers(labels[::-1], utterance) == (distress, resistance)


def test_an_edited_copy_can_be_loaded(tmp_path: Path) -> None:
    shipped = Path(labels_module.__file__).with_name("tiers.yaml").read_text(encoding="utf-8")
    edited = shipped.replace("version: t2grpo-1", "version: ours-2").replace(
        "label: vacant expression, channel: facial, distress: 1",
        "label: vacant expression, channel: facial, distress: 0",
    )
    path = tmp_path / "ours.yaml"
    path.write_text(edited, encoding="utf-8")
    ours = load_lookup(path)
    assert (ours.version, LOOKUP.version) == ("ours-2", "t2grpo-1")
    assert tiers(["vacant expression"], lookup=ours) == (0, 0)
    assert tiers(["vacant expression"]) == (1, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("channel: sound, distress: 3", "channel: smell, distress: 3", "label 1: unknown channel 'smell'"),
        ("resistance: 3", "resistance: 4", "the resistance tier is 4, use 0 to 3"),
        ("label: sighing", "label: crying", "'crying' stands there twice"),
        ('[by, "off", in', "[by, off, in", "the keyword 'stop' has False, which is no text"),
        ('phrase: "no"', "phrase: no", "the keyword False has False, which is no text"),
        ("refusal_keywords:", "refusals:", "the part 'refusal_keywords' is missing"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    shipped = Path(labels_module.__file__).with_name("tiers.yaml").read_text(encoding="utf-8")
    path = tmp_path / "bad.yaml"
    path.write_text(shipped.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_lookup(path)
