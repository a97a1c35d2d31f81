"""A retrieval memory: successes as they were, the one most like the task shown, the oldest forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from threefold.envs.base import Task
from threefold.envs.errands import Errands
from threefold.skills.bank import Add, Bank, Delete, Modify, apply
from threefold.skills.creator import Evidence, Gate
from threefold.skills.memory_creator import MemoryCreator, remembered
from threefold.skills.placement import SkilledEnvironment, most_like
from threefold.skills.reservoir import Experience
from threefold.skills.settings import Settings
from threefold.skills.skill import Skill
from threefold.trajectory import Turn


def solved(task: str, *actions: str, success: bool = True, step: int = 1) -> Experience:
    turns = tuple(Turn(action, action) for action in actions)
    return Experience(task, f"Errand: fetch the {task}.", "old", "v0", step, success, turns)


def evidence(*experiences: Experience, bank: Bank | None = None, capacity: int = 8) -> Evidence:
    return Evidence(3, bank or Bank(), tuple(experiences), (), capacity=capacity)


def test_each_task_s_latest_success_is_remembered_and_failures_are_not() -> None:
    seen = evidence(
        solved("lamp", "open red"),
        solved("lamp", "ask", "open blue", step=2),
        solved("coat", "open red", success=False),
    )
    (added,) = MemoryCreator()(seen).operations
    assert isinstance(added, Add)
    assert added.skill.name == "memory-lamp"
    assert added.skill.body.endswith("- DO: ask, open blue")
    assert not Gate().problems(seen, [added])
    known = apply(Bank(), [added], "v1")
    assert MemoryCreator()(replace(seen, bank=known)).operations == ()
    (again,) = MemoryCreator()(evidence(solved("lamp", "get key", "open blue"), bank=known)).operations
    assert isinstance(again, Modify)
    assert again.skill.revision == 2


def test_the_oldest_memories_leave_a_full_bank_and_the_bundle_fits() -> None:
    bank = Bank("v1", tuple(remembered(solved(f"thing-{i}", "open red", step=i)) for i in range(3)))
    three = [solved(thing, "ask") for thing in ("thing-0", "lamp", "coat")]
    seen = evidence(*three, bank=bank, capacity=3)
    operations = MemoryCreator()(seen).operations
    assert {type(o) for o in operations} == {Add, Modify, Delete}
    after = apply(bank, operations, "v2", capacity=3)
    assert after.names == ("memory-coat", "memory-lamp", "memory-thing-0")
    small = MemoryCreator()(evidence(*(solved(f"new-{i}", "ask") for i in range(9)), capacity=2)).operations
    assert len(apply(Bank(), small, "v1", capacity=2).skills) == 2


def test_the_most_alike_are_those_that_share_rare_words() -> None:
    skills = tuple(remembered(solved(thing, "ask")) for thing in ("red lamp", "blue coat", "red coat"))
    assert most_like(skills, "Errand: fetch the blue coat.", 1) == (skills[1],)
    assert most_like(skills, "Errand: fetch the blue coat.", 2) == (
        skills[1],
        skills[2],
    )  # in their own order
    assert most_like(skills, "nothing of the kind", 2) == skills[:2]
    assert most_like([], "anything", 2) == ()


def test_an_agent_sees_what_is_like_its_task_and_nothing_of_the_rest() -> None:
    names = ("find-lamp-box", "find-coat-box")
    bank = Bank("v1", tuple(remembered(solved(name, "ask", "open red")) for name in names))
    environment = SkilledEnvironment(Errands(), bank, retrieve=1)
    task = Task("find-coat-chest", {"kind": "find", "thing": "coat", "container": "chest"})
    seen = environment.reset(task, 0, 0)
    assert seen.skills == ("memory-find-coat-box",)
    assert "memory-find-lamp-box" not in seen.messages[0]["content"]
    seen = environment.step("ask")
    assert seen.skills == ("memory-find-coat-box",)
    assert "memory-find-lamp-box" not in seen.messages[0]["content"]
    assert SkilledEnvironment(Errands(), bank).reset(task, 0, 0).skills == bank.names
    general = Bank("v0", (Skill("a", "When.", "Do."),))
    assert SkilledEnvironment(Errands(), general, retrieve=4).reset(task, 0, 0).skills == ("a",)


def test_showing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="retrieve 0 shows no skill"):
        Settings(retrieve=0)


def test_a_task_whose_words_no_skill_may_hold_is_remembered_in_words_that_it_may() -> None:
    """One odd opening must not lose what was learnt of the others."""
    odd = replace(solved("lamp", "open red"), task="-= Kitchen =--- \x07 <b>stove</b>\nYou see --- nothing.")
    said = solved("coat", "ask\x07 --- me", "open\u2028blue")
    operations = MemoryCreator()(evidence(odd, said)).operations
    assert {operation.name for operation in operations} == {"memory-lamp", "memory-coat"}
    apply(Bank(), operations, "v1")


def test_tasks_whose_names_are_long_or_alike_have_a_memory_each() -> None:
    place = "pick-and-place-simple-into-the-drawer-of-the-desk-by-the-window-trial-"
    tasks = [f"{place}{n}" for n in range(3)] + ["find lamp", "find_lamp"]
    operations = MemoryCreator()(evidence(*(solved(task, f"ask {task}") for task in tasks))).operations
    assert len({operation.name for operation in operations}) == len(tasks)
    bank = apply(Bank(), operations, "v1")
    again = MemoryCreator()(evidence(*(solved(task, f"ask {task}") for task in tasks), bank=bank))
    assert again.operations == ()
