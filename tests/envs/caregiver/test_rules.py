"""The table of rules: evidence for each, editing, and the sheet for reviewers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from threefold.envs.caregiver import rules as module
from threefold.envs.caregiver.acts import Act
from threefold.envs.caregiver.labels import default_lookup
from threefold.envs.caregiver.rules import KINDS, default_rules, load_rules, review_sheet

SHIPPED = Path(module.__file__).with_name("rules.yaml").read_text(encoding="utf-8")


def test_every_rule_says_what_it_rests_on() -> None:
    rules = default_rules()
    assert all(effect.evidence and effect.kind in KINDS for effect in rules.effects.values())
    assert all(constant.meaning for constant in rules.constants.values())
    assert rules.effects[Act.ELDERSPEAK].kind == "measured"


def test_scaling_changes_one_coefficient_alone() -> None:
    rules = default_rules()
    scaled = rules.scaled("elderspeak.resistance", 1.5)
    changed = {name for name, value in rules.coefficients().items() if scaled.coefficients()[name] != value}
    assert changed == {"elderspeak.resistance"}
    assert scaled.effects[Act.ELDERSPEAK].resistance == pytest.approx(
        1.5 * rules.effects[Act.ELDERSPEAK].resistance
    )
    assert rules.scaled("pull", 0.5).constant("pull") == pytest.approx(0.5 * rules.constant("pull"))


def test_an_unknown_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no coefficient 'elderspeak\.resistence': did you mean"):
        default_rules().scaled("elderspeak.resistence", 2)


def test_an_edited_copy_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(
        SHIPPED.replace("version: rules-1", "version: ours").replace(
            "name: pull, value: 0.3", "name: pull, value: 0.2"
        ),
        encoding="utf-8",
    )
    ours = load_rules(path)
    assert ours.version == "ours"
    assert ours.constant("pull") == 0.2
    assert ours.effects == default_rules().effects


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("act: elderspeak", "act: elderspek", r"unknown act 'elderspek': did you mean 'elderspeak'\?"),
        ("act: command", "act: elderspeak", "the act 'elderspeak' stands there twice"),
        ("kind: direction", "kind: guess", "the kind is 'guess', use measured, direction, design"),
        ("name: pull, value: 0.3", "name: pull, value: much", "a number is needed, got 'much'"),
        ("name: pull,", "name: push,", "the constants pull are missing"),
        ("constants:", "numbers:", "the parts version, effects and constants"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(SHIPPED.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_rules(path)


def test_the_review_sheet_has_every_label_keyword_act_constant_and_subtype(tmp_path: Path) -> None:
    rules, lookup = default_rules(), default_lookup()
    count = review_sheet(tmp_path / "rules.csv")
    keywords = len(lookup.distress_keywords) + len(lookup.refusal_keywords)
    assert count == 34 + keywords + len(rules.effects) + len(rules.constants) + 9
    with open(tmp_path / "rules.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    assert any(row["rule"] == "elderspeak" and "Williams 2009" in row["evidence or meaning"] for row in rows)
    by_name = {row["rule"]: row["value"] for row in rows}
    assert by_name["leave me alone"] == "D +1"
    # What moves the resting levels of a subtype is there to be disagreed with too.
    for said in ("emotional stability -3", "visual hallucinations 0.75", "shows more often: staring blankly"):
        assert said in by_name["DLB"]
    review_sheet(tmp_path / "rules.md")
    lines = (tmp_path / "rules.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == count + 2
    assert {line.count("|") for line in lines} == {8}
    with pytest.raises(ValueError, match=r"a \.csv or a \.md file"):
        review_sheet(tmp_path / "rules.pdf")
