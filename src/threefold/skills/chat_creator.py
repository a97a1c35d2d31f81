"""Skills written by a language model: analyst, diagnoser, recommender, author, gate.

ReSkill (arXiv 2606.01619, section 3.2). With G groups a cycle costs G + 2 calls and one to three of the
author:

    analyst      one call a group: what made the difference between its successes and failures
    diagnoser    pass rates of the rules and all insights -> a diagnosis, and better rules
    recommender  diagnosis, bank, last tests -> a plan of one to three operations
    author       the plan -> skills; refused ones come back with every reason, three times

A language model may answer anything. Every answer is parsed and checked; a stage that does not give a usable
one in `tries` calls is left out (an insight, the diagnosis) or ends the cycle (the plan, the skills).
Whatever was refused, repaired or failed is counted and said in the `Creation`. An endpoint's own failures
(RuntimeError, OSError) are not asked again here, since backends have tried again themselves, and after
`tries` of them in a row nothing more is asked in the cycle: training must not wait for a dead endpoint thirty
times over. A replay that finds no answer (LookupError) is no such failure and raises.

The model is handed over as a function from messages to text, so nothing here knows endpoints, retries or
records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from threefold.chat import find_json
from threefold.skills import assertions as rules
from threefold.skills import prompts
from threefold.skills.assertions import Assertion
from threefold.skills.bank import Add, Bank, Delete, Modify, Operation, edited, kebab
from threefold.skills.creator import Creation, Evidence, Gate
from threefold.skills.reservoir import Experience
from threefold.skills.skill import Skill, name_problem, one_line
from threefold.skills.triggers import KINDS, Trigger, trigger_problem

Chat = Callable[[Sequence[Mapping[str, str]]], str]
"""Messages ({"role", "content"}) -> the model's text."""
T = TypeVar("T")


@dataclass(frozen=True)
class ChatCreator:
    """A `Creator`.

    Args:
        chat: The language model; called from several threads where `workers` > 1.
        gate: What a bundle must satisfy.
        tries: Calls of one stage before it is given up, the author's included.
        workers: Analysts at work side by side. Answers are used in the groups' order whatever it is.
    """

    chat: Chat
    gate: Gate = field(default_factory=Gate)
    tries: int = 3
    workers: int = 4

    def __call__(self, evidence: Evidence) -> Creation:
        return _Cycle(self, evidence).run()


@dataclass
class _Outage:
    """Calls without an answer in a row, over all threads of a cycle."""

    failures: int = 0


class _Cycle:
    """One cycle of creation, with what went wrong in it."""

    def __init__(self, creator: ChatCreator, evidence: Evidence, outage: _Outage | None = None) -> None:
        self.creator = creator
        self.outage = outage or _Outage()
        self.gate = creator.gate
        self.evidence = evidence
        self.counts: Counter[str] = Counter()
        self.messages: list[str] = []

    def run(self) -> Creation:
        insights = self._insights()
        diagnosis, assertions = self._diagnose(insights)
        plan = self._ask(
            "recommender",
            prompts.RECOMMENDER,
            prompts.recommender_prompt(
                diagnosis,
                insights,
                self.evidence,
                self.gate,
            ),
            self._read_plan,
        )
        operations = self._write(plan, insights) if plan else ()
        return Creation(operations, assertions, diagnosis, dict(self.counts), tuple(self.messages))

    def _insights(self) -> list[str]:
        """One line a group, in the groups' order; a group whose analyst fails is left out."""

        def analyse(group: Sequence[Experience]) -> tuple[str | None, _Cycle]:
            own = _Cycle(self.creator, self.evidence, self.outage)  # threads do not share counts
            return own._ask("analyst", prompts.ANALYST, prompts.analyst_prompt(group), _read_insight), own

        groups = self.evidence.groups
        with ThreadPoolExecutor(max(1, min(self.creator.workers, len(groups)))) as pool:
            answers = list(pool.map(analyse, groups))
        for _, own in answers:
            self.counts.update(own.counts)
            self.messages += own.messages
        return [insight for insight, _ in answers if insight]

    def _diagnose(self, insights: Sequence[str]) -> tuple[str, tuple[Assertion, ...]]:
        """The diagnosis and the rules from now on; both as they were where no answer is usable."""
        evidence = self.evidence
        answer = self._ask(
            "diagnoser",
            prompts.diagnoser_system(rules.CAPACITY),
            prompts.diagnoser_prompt(insights, evidence.assertions, evidence.rates, evidence.bank),
            lambda data: (_text(data, "diagnosis"), _list(data, "assertions")),
        )
        if answer is None:
            return "", evidence.assertions
        diagnosis, changes = answer
        kept = {assertion.name: assertion for assertion in evidence.assertions}
        for change in changes:
            try:
                self._change(kept, change)
            except ValueError as error:
                self._note("assertion refused", f"diagnoser: {error}")
        if len(kept) > rules.CAPACITY:
            self._note("assertion refused", f"{len(kept)} assertions; the first {rules.CAPACITY} are kept")
        return diagnosis, tuple(kept.values())[: rules.CAPACITY]

    def _change(self, kept: dict[str, Assertion], change: Mapping[str, Any]) -> None:
        name = kebab(_text(change, "name"))
        if not name:
            raise ValueError("an assertion needs a name of letters and digits")
        if change.get("op") == "delete":
            if kept.pop(name, None) is None:
                raise ValueError(f"there is no assertion {name!r} to delete")
            return
        params = change.get("params", {})
        if not isinstance(params, dict):
            raise ValueError(f"assertion {name!r}: params must be an object")
        description = str(change.get("description", ""))[:200]
        kept[name] = Assertion(name, _text(change, "check"), params, description, self.evidence.step)

    def _read_plan(self, data: Mapping[str, Any]) -> list[Mapping[str, str]]:
        """The plan's operations; targets that do not exist are told to the recommender."""
        bank = self.evidence.bank
        plan: list[Mapping[str, str]] = []
        for entry in _list(data, "operations"):
            op, target = entry.get("op"), _text(entry, "target")
            if op not in ("add", "modify", "delete"):
                raise ValueError(f"op is {op!r}; it must be add, modify or delete")
            if op != "add" and target not in bank:
                raise ValueError(f"there is no skill {target!r} to {op}; {_known(bank)}")
            plan.append({key: str(value)[:500] for key, value in entry.items()})
        if not plan:
            raise ValueError("the plan is empty; give one to three operations")
        return plan[: self.gate.operations]

    def _write(self, plan: Sequence[Mapping[str, str]], insights: Sequence[str]) -> tuple[Operation, ...]:
        """The author's bundle, () where none passed the gate."""
        evidence = self.evidence
        feedback: list[str] = []

        def read(data: Mapping[str, Any]) -> tuple[Operation, ...]:
            operations = [self._operation(entry, evidence.bank) for entry in _list(data, "operations")]
            problems = self.gate.problems(evidence, operations)
            if problems:
                raise ValueError("; ".join(problems))
            return tuple(operations)

        for attempt in range(1, self.creator.tries + 1):
            prompt = prompts.author_prompt(plan, evidence, insights, self.gate, feedback)
            refused: list[str] = []
            bundle = self._ask("author", prompts.AUTHOR, prompt, read, only=attempt, refused=refused)
            if bundle is not None:
                return bundle
            if not refused:  # nobody answered
                return ()
            feedback = refused
        return ()

    def _operation(self, entry: Mapping[str, Any], bank: Bank) -> Operation:
        """One operation of the author's. Raises ValueError with what is wrong with it."""
        op, said = entry.get("op"), _text(entry, "name").strip()
        reason = str(entry.get("reason", ""))[:500]
        if any(mark in said for mark in ("/", "\\", "..")):
            raise ValueError(f"the name {said!r} is a path; a skill's name is words with hyphens")
        name = said if said in bank or name_problem(said) is None else kebab(said)
        if name != said:
            if not name:
                raise ValueError(f"the name {said!r} has no letters; use words with hyphens")
            self._note("repaired", f"the name {said!r} became {name!r}")
        if op == "delete":
            return Delete(name, reason)
        if op == "add":
            trigger = self._trigger(entry, Trigger())
            skill = Skill(
                name,
                one_line(_text(entry, "when_to_use")),
                _body(entry, ""),
                trigger,
                created_step=self.evidence.step,
            )
            return Add(skill, reason)
        if op != "modify":
            raise ValueError(f"op is {op!r}; it must be add, modify or delete")
        if name not in bank:
            raise ValueError(f"there is no skill {name!r} to modify; {_known(bank)}")
        old = bank[name]
        return Modify(
            edited(
                old,
                description=one_line(str(entry.get("when_to_use") or old.description)),
                body=_body(entry, old.body),
                trigger=self._trigger(entry, old.trigger),
            ),
            reason,
        )

    def _trigger(self, entry: Mapping[str, Any], default: Trigger) -> Trigger:
        """The trigger asked for. A pattern alone means action_pattern; none at all keeps `default`."""
        kind, pattern = entry.get("trigger"), str(entry.get("pattern") or "")
        if kind is None:
            kind = "action_pattern" if pattern else default.kind
            pattern = pattern or default.pattern
        if kind not in KINDS:
            raise ValueError(trigger_problem(str(kind), pattern))
        if pattern and kind != "action_pattern":
            self._note("repaired", f"the pattern {pattern!r} of a {kind} skill was dropped")
            pattern = ""
        return Trigger(kind, pattern)

    def _ask(
        self,
        stage: str,
        system: str,
        prompt: str,
        read: Callable[[Mapping[str, Any]], T],
        *,
        only: int | None = None,
        refused: list[str] | None = None,
    ) -> T | None:
        """Ask until `read` takes the answer, telling the model what was wrong; None after the last try, or
        after the one that is `only` to be made."""
        messages: list[Mapping[str, str]] = [
            {"role": "system", "content": system},
            {"role": "user", "content": prompt},
        ]
        for attempt in [only] if only else range(1, self.creator.tries + 1):
            if self.outage.failures >= self.creator.tries:
                self._note(f"{stage} unanswered", f"{stage}: not asked, nobody answers")
                return None
            try:
                answer = self.creator.chat(messages)
            except (RuntimeError, OSError) as error:
                self.outage.failures += 1
                self._note(f"{stage} unanswered", f"{stage}: {type(error).__name__}: {error}")
                return None
            self.outage.failures = 0
            try:
                return read(find_json(answer))
            except ValueError as error:
                complaint = str(error)
            self._note(f"{stage} refused", f"{stage}, try {attempt}: {complaint}")
            if refused is not None:
                refused.append(complaint)
            messages = [
                *messages[:2],
                {"role": "assistant", "content": answer[-2000:] or "..."},
                {
                    "role": "user",
                    "content": f"That cannot be used: {complaint}. Answer with the JSON object.",
                },
            ]
        return None

    def _note(self, kind: str, message: str) -> None:
        self.counts[kind] += 1
        self.messages.append(message[:1000])


def _known(bank: Bank) -> str:
    return f"there are {', '.join(bank.names)}" if bank.names else "the bank is empty"


def _read_insight(data: Mapping[str, Any]) -> str:
    insight = _text(data, "insight")
    extras = [str(data[key]) for key in ("failure_mode", "success_pattern") if data.get(key)]
    patterns = data.get("trigger_actions")
    if isinstance(patterns, list) and patterns:
        extras.append("after " + ", ".join(str(p) for p in patterns[:3]))
    return " | ".join([insight, *extras])[:600]


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field {key!r} is missing or not a text")
    return value


def _list(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"the field {key!r} must be a list of objects")
    return value


def _body(entry: Mapping[str, Any], old: str) -> str:
    """Action and examples as Markdown; what is not given keeps its lines of the old body."""
    lines = old.splitlines()
    action = "\n".join(line for line in lines if not line.startswith("- "))
    examples: Any = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    if entry.get("action"):
        action = _text(entry, "action")
    if "examples" in entry:
        examples = entry["examples"]
        examples = [examples] if isinstance(examples, str) else examples
        if not isinstance(examples, list) or not all(isinstance(example, str) for example in examples):
            raise ValueError("examples must be a list of texts")
    return "\n".join([action.strip(), *(f"- {one_line(e)}" for e in examples if e.strip())]).strip()
