"""Banks: a bundle is applied whole or not at all, and undone exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.skills.bank import (
    Add,
    Bank,
    BundleError,
    Delete,
    Modify,
    Operation,
    apply,
    bank_from_dict,
    bank_to_dict,
    bundle_problems,
    difference,
    edited,
    inverse,
    kebab,
    operation_from_dict,
    operation_to_dict,
)
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger

POOL = [f"skill-{letter}" for letter in "abcdefghij"]


def skill(name: str, body: str = "Do.") -> Skill:
    return Skill(name, f"When {name} is needed.", body)


@st.composite
def bundles(draw: st.DrawFn) -> tuple[Bank, list[Operation]]:
    """A bank and a bundle that fits it."""
    held = draw(st.lists(st.sampled_from(POOL), unique=True, max_size=8))
    bank = Bank("v1", tuple(skill(name) for name in held), parent="v0")
    operations: list[Operation] = []
    for name in draw(st.lists(st.sampled_from(POOL), unique=True, min_size=1, max_size=3)):
        if name not in bank:
            operations.append(Add(skill(name), "it helps"))
        elif draw(st.booleans()):
            operations.append(Delete(name, "it hurts"))
        else:
            change = draw(st.sampled_from(["body", "trigger"]))
            new = {"body": "Do better."} if change == "body" else {"trigger": Trigger("beginning")}
            operations.append(Modify(edited(bank[name], **new), "sharper"))
    return bank, operations


@settings(deadline=None)
@given(bundles())
def test_apply_then_undo_is_the_identity(case: tuple[Bank, list[Operation]]) -> None:
    bank, operations = case
    if bundle_problems(bank, operations):
        with pytest.raises(BundleError):
            apply(bank, operations, "v2")
        return
    new = apply(bank, operations, "v2")
    assert new.parent == "v1"
    assert {o.name for o in difference(bank, new)} == {o.name for o in operations}
    restored = apply(new, inverse(bank, operations), "v3", capacity=99)
    assert restored.skills == bank.skills


@settings(deadline=None)
@given(bundles(), st.randoms())
def test_the_order_of_a_bundle_does_not_matter(case: tuple[Bank, list[Operation]], random: object) -> None:
    bank, operations = case
    shuffled = list(operations)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    if bundle_problems(bank, operations):
        assert sorted(bundle_problems(bank, shuffled)) == sorted(bundle_problems(bank, operations))
    else:
        assert apply(bank, shuffled, "v2") == apply(bank, operations, "v2")


@settings(deadline=None)
@given(bundles())
def test_plain_json_loses_nothing(case: tuple[Bank, list[Operation]]) -> None:
    bank, operations = case
    assert bank_from_dict(bank_to_dict(bank)) == bank
    assert [operation_from_dict(operation_to_dict(o)) for o in operations] == operations


def test_what_does_not_fit_is_refused_with_every_reason() -> None:
    bank = Bank("v1", (skill("skill-a"), skill("skill-b")))
    operations = [
        Add(skill("skill-a")),
        Delete("skill-z"),
        Modify(edited(skill("skill-b"))),
        Delete("skill-b"),
        Modify(skill("skill-y")),
    ]
    with pytest.raises(BundleError) as refused:
        apply(bank, operations, "v2")
    assert refused.value.problems == (
        "2 operations on the skill 'skill-b'; one is allowed",
        "add 'skill-a': the bank already has it; modify it",
        "delete 'skill-z': the bank v1 has no such skill; it has skill-a, skill-b",
        "modify 'skill-b': nothing changes",
        "modify 'skill-y': the bank v1 has no such skill; it has skill-a, skill-b",
    )
    assert bank.names == ("skill-a", "skill-b")


def test_a_full_bank_takes_an_addition_only_with_a_deletion() -> None:
    bank = Bank("v1", tuple(skill(name) for name in POOL[:8]))
    with pytest.raises(BundleError, match="would hold 9 skills of 8; delete one"):
        apply(bank, [Add(skill("new"))], "v2")
    swapped = apply(bank, [Add(skill("new")), Delete("skill-a")], "v2")  # the addition stands first
    assert len(swapped.skills) == 8
    assert "new" in swapped
    assert "skill-a" not in swapped


def test_a_bank_that_was_imported_too_large_can_still_shrink() -> None:
    bank = Bank("v1", tuple(skill(name) for name in POOL))
    assert len(apply(bank, [Delete("skill-a")], "v2", capacity=8).skills) == 9


def test_edges() -> None:
    with pytest.raises(BundleError, match="holds no operation"):
        apply(Bank(), [], "v1")
    with pytest.raises(ValueError, match="'v' and a number"):
        Bank("../v1")
    with pytest.raises(ValueError, match="twice"):
        Bank("v1", (skill("a"), skill("a")))
    with pytest.raises(KeyError, match="has no skill 'b'; it has \\('a',\\)"):
        Bank("v1", (skill("a"),))["b"]
    assert edited(skill("a"), trigger=Trigger("beginning")).revision == 2
    assert kebab("Open After  Navigation!") == "open-after-navigation"
    assert kebab("../../etc") == "etc"
    assert kebab("日本") == ""
    assert len(kebab("x" * 63 + " y")) == 63
