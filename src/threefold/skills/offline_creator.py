"""Skills without a language model: contrasts of successes and failures, written from templates.

The embedded default. It is deterministic: the same evidence gives the same bundle. It adds a skill for the
strongest habits (`contrast`) that no skill of the bank and no bundle that was rejected lately has said, and
it deletes a skill that hurts, or the one of least use where a full bank needs room. It does not rewrite
skills. Each habit also becomes an assertion, so its pass rate is followed over the run.

Of a strategy it can say only what shows in the order of actions; conditions on what was observed need a
language model (`chat_creator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from threefold.skills import assertions
from threefold.skills.assertions import Assertion
from threefold.skills.bank import Add, Bank, Delete, Operation, kebab
from threefold.skills.contrast import Contrast, Habit, contrasts, mixed, patterns, shows
from threefold.skills.creator import Creation, Evidence, Gate
from threefold.skills.reservoir import Experience
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger


@dataclass(frozen=True)
class OfflineCreator:
    """A `Creator`."""

    gate: Gate = field(default_factory=Gate)
    additions: int = 1
    """Most skills added at a time: fewer make the test say more about each."""
    support: int = 3
    """Least number of episodes with and without a habit."""
    lift: float = 0.2
    """Least difference of success rates with and without a habit."""
    harm: float = 0.1
    """A skill is deleted where episodes that saw it succeed less often by more than this."""
    deletions: bool = True
    """False: it only adds, and a full bank stays as it is."""

    def __call__(self, evidence: Evidence) -> Creation:
        found = contrasts(evidence.experiences, support=self.support, lift=self.lift)
        rejected = {
            operation["name"]
            for test in evidence.history
            if not test.accepted
            for operation in test.operations
            if operation["op"] == "add"
        }
        operations: list[Operation] = []
        messages: list[str] = []
        for name, lift in _uses(evidence.bank, evidence.experiences):
            if (
                self.deletions
                and lift < -self.harm
                and len(operations) < self.gate.operations - self.additions
            ):
                operations.append(Delete(name, f"episodes that saw it succeed {-lift:.0%} less often"))
        refused = 0
        for contrast in found:
            if sum(isinstance(o, Add) for o in operations) == self.additions:
                break
            skill = write(contrast, evidence.experiences, evidence.step)
            if skill.name in evidence.bank or skill.name in rejected:
                continue
            bundle = self._with_room(evidence, [*operations, Add(skill, _reason(contrast))])
            problems = self.gate.problems(evidence, bundle)
            if problems:
                refused += 1
                messages.append(f"{skill.name}: " + "; ".join(problems))
            else:
                operations = bundle
        return Creation(
            operations=tuple(operations),
            assertions=_followed(found, evidence.step),
            diagnosis="; ".join(_reason(contrast) for contrast in found[:3]),
            counts={"refused": refused} if refused else {},
            messages=tuple(messages),
        )

    def _with_room(self, evidence: Evidence, operations: list[Operation]) -> list[Operation]:
        """The bundle, with a deletion of the skill of least use where it would overfill the bank."""
        size = len(evidence.bank.skills)
        size += sum({Add: 1, Delete: -1}.get(type(operation), 0) for operation in operations)
        gone = {operation.name for operation in operations}
        uses = [(lift, name) for name, lift in _uses(evidence.bank, evidence.experiences) if name not in gone]
        if size <= evidence.capacity or not uses or not self.deletions:
            return operations
        lift, name = min(uses)
        return [*operations, Delete(name, f"the bank is full and this one helps least ({lift:+.0%})")]


def _uses(bank: Bank, experiences: Sequence[Experience]) -> list[tuple[str, float]]:
    """Success rate of episodes that saw a skill less that of the others on the same tasks, by name; 0 where
    fewer than five saw it or did not."""
    result = []
    for name in bank.names:
        tasks = {entry.task_id for entry in experiences if entry.showed(name)}
        same = [entry for entry in experiences if entry.task_id in tasks]
        saw = [entry.success for entry in same if entry.showed(name)]
        rest = [entry.success for entry in same if not entry.showed(name)]
        enough = min(len(saw), len(rest)) >= 5
        result.append((name, sum(saw) / len(saw) - sum(rest) / len(rest) if enough else 0.0))
    return result


def write(contrast: Contrast, experiences: Sequence[Experience], step: int) -> Skill:
    """The skill that a habit becomes."""
    habit = contrast.habit
    if habit.kind == "no_repeat":
        return Skill(
            "change-after-no-progress",
            "You are about to say the action that you have just said.",
            "Choose another action: the same one again changes nothing.",
            created_step=step,
        )
    first, second = _words(habit.first), _words(habit.second)
    do, dont = _examples(habit, experiences)
    examples = "".join(f"\n- {mark}: {', '.join(e)}" for mark, e in (("DO", do), ("DON'T", dont)) if e)
    if habit.kind == "before":
        return order(first, second, examples, step)
    return Skill(
        kebab(f"{second} after {first}"),
        f"Your last action was: {first}.",
        f"Next, {second}.{examples}",
        trigger=Trigger("action_pattern", habit.first),
        created_step=step,
    )


def order(first: str, second: str, examples: str = "", step: int | None = None) -> Skill:
    """The skill that says to do one thing before another, in the words of actions."""
    return Skill(
        kebab(f"{first} before {second}"),
        f"You want to {second} and have not yet done: {first}.",
        f"First {first}. Only then {second}.{examples}",
        created_step=step,
    )


def _examples(habit: Habit, experiences: Sequence[Experience]) -> tuple[list[str], list[str]]:
    """Actions of the shortest success with the habit and of the shortest failure without it, up to six."""
    episodes = mixed(experiences)
    pattern_of = patterns(action for episode in episodes for action in episode.actions)
    best: dict[bool, list[str]] = {True: [], False: []}
    for wanted in best:
        fitting = [
            entry.actions
            for entry in episodes
            if entry.success is wanted and shows(habit, entry.actions, pattern_of) is wanted
        ]
        best[wanted] = min(fitting, key=lambda actions: (len(actions), actions), default=[])[:6]
    return best[True], best[False]


def _words(pattern: str) -> str:
    """A pattern as words: `open .*` is "open something"."""
    return pattern.replace(" .*", " something").replace("\\", "")


def _reason(contrast: Contrast) -> str:
    habit = contrast.habit
    what = {
        "before": f"'{habit.first}' before '{habit.second}'",
        "after": f"'{habit.second}' right after '{habit.first}'",
        "no_repeat": "no action twice in a row",
    }[habit.kind]
    yes = contrast.with_success + contrast.with_failure
    no = contrast.without_success + contrast.without_failure
    return f"{what}: success {contrast.with_success}/{yes} with it, {contrast.without_success}/{no} without"


def _followed(found: Sequence[Contrast], step: int) -> tuple[Assertion, ...]:
    """The strongest habits as rules."""
    rules = []
    for contrast in found[: assertions.CAPACITY]:
        habit = contrast.habit
        if habit.kind == "before":
            check, params = "action_before", {"first": habit.first, "second": habit.second}
        elif habit.kind == "no_repeat":
            check, params = "no_consecutive_repeat", {}
        else:
            continue  # none of the nine checks says "directly after"
        name = kebab(f"{habit.kind} {_words(habit.first)} {_words(habit.second)}")
        rules.append(Assertion(name, check, params, _reason(contrast), step))
    return tuple(rules)
