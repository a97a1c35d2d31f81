"""What the language model that creates skills is told. Our own words for the stages of ReSkill (arXiv
2606.01619, section 3.2); answers are JSON and are checked by `chat_creator`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from threefold.skills.assertions import PARAMETERS, Assertion, PassRate
from threefold.skills.bank import Bank
from threefold.skills.creator import Evidence, Gate, trigger_rate
from threefold.skills.reservoir import Experience

LONG_EPISODE = 30
"""Turns above which the middle of an episode is left out."""
ENDS_SHOWN = 5

ANALYST = """\
You study how an agent plays. Compare its successes with its failures on one task and say what made
the difference. Without a success, say what doing it right would look like; without a failure, be unsure.
Answer with one JSON object:
{"insight": one sentence, "failure_mode": a short label, "success_pattern": what successes did,
 "trigger_actions": [patterns of the actions after which advice would have helped], "confidence":
 "high"|"medium"|"low"}
Patterns are regular expressions without look-around, searched in the text of an ACTION, never in
reasoning."""

DIAGNOSER = """\
You diagnose an agent from measurements. Be numeric: name rules and their rates. Rank problems by how
common they are and say which no skill covers. Then revise the rules: a good rule passes on successes and
fails on failures; delete those that do not tell them apart. Answer with one JSON object:
{"diagnosis": two to four sentences,
 "assertions": [{"op": "add"|"modify", "name": short-name, "check": ..., "params": {...}, "description": ...},
                {"op": "delete", "name": ...}]}
Checks and their parameters (those with ? may be left out):
"""

RECOMMENDER = """\
You decide how an agent's bank of skills changes. ADD where a common problem is covered by no skill.
MODIFY where a skill is shown but does not help enough or misleads: its content or its trigger. DELETE where
it conflicts with what successes do, repeats another, or hardly fires. Begin with the most common problem.
Learn from bundles that were rejected and do not propose them again; a bundle is tested as a whole, so keep it
small. Answer with one JSON object:
{"operations": [{"op": "add"|"modify"|"delete", "target": name of the skill, "intent": what it should say,
                 "evidence": why, "trigger_suggestion": general, beginning, or a pattern}]}"""

AUTHOR = """\
You write skills for an agent. Follow the plan exactly: the same operations in the same order. Say what to
DO. Assume that the agent remembers nothing but its observations and actions. State a principle, not a
checklist, and ground examples in actions that the agent can take. Write plain words: no markup, no template
tokens. A trigger is "general" (always shown), "beginning" (shown at the start) or "action_pattern" (shown
after an action in which the pattern is found: so match the step before the mistake). Patterns are searched,
ignoring case, without look-around; use .* for names of things. Answer with one JSON object:
{"operations": [
 {"op": "add", "name": lower-case-words-with-hyphens, "when_to_use": one sentence, "action": one or two
 sentences,
  "examples": ["DO: ...", "DON'T: ..."], "trigger": ..., "pattern": ..., "reason": ...},
 {"op": "modify", "name": ..., and any of when_to_use, action, examples, trigger, pattern, "reason": ...},
 {"op": "delete", "name": ..., "reason": ...}]}"""


def analyst_prompt(group: Sequence[Experience]) -> str:
    """One task's episodes, with the skills that entered each prompt under the bank of that time."""
    parts = [f"TASK: {group[0].task}"]
    for letter, entry in zip("ABCDEFGH", group, strict=False):
        outcome = "SUCCESS" if entry.success else "FAILURE"
        parts.append(f"\nEPISODE {letter} [{entry.arm} skills, {outcome}, {len(entry.turns)} steps]")
        parts += _steps(entry)
    return "\n".join(parts)


def _steps(entry: Experience) -> Iterable[str]:
    count = len(entry.turns)
    for number, turn in enumerate(entry.turns, 1):
        if count > LONG_EPISODE and ENDS_SHOWN < number <= count - ENDS_SHOWN:
            if number == ENDS_SHOWN + 1:
                yield f"... {count - 2 * ENDS_SHOWN} steps left out ..."
            continue
        shown = f" [skills: {', '.join(turn.skills)}]" if turn.skills else ""
        yield f"{number}. ACTION: {turn.action or '(none understood)'}{shown}"
        yield f"   SEEN: {turn.observation[:200]}"
        if number > count - 2 and turn.text.strip() != turn.action:
            yield f"   SAID: {turn.text.strip()}"


def diagnoser_prompt(
    insights: Sequence[str], assertions: Sequence[Assertion], rates: Mapping[str, PassRate], bank: Bank
) -> str:
    lines = ["RULES MEASURED:"]
    for a in assertions:
        r = rates[a.name]
        lines.append(
            f"- {a.name} ({a.check} {json.dumps(dict(a.params))}): passed by {r.passed_success} of "
            f"{r.successes} successes and {r.passed_failure} of {r.failures} failures. {a.description}"
        )
    lines += ["(none yet)"] * (not assertions)
    lines += ["", "INSIGHTS:", *(f"{i}. {insight}" for i, insight in enumerate(insights, 1))]
    return "\n".join([*lines, "", *_bank_lines(bank, ())])


def diagnoser_system(capacity: int) -> str:
    checks = [
        f"- {check}: {', '.join([*sorted(needed), *(f'{name}?' for name in sorted(optional))])}"
        for check, (needed, optional) in PARAMETERS.items()
    ]
    return DIAGNOSER + "\n".join(checks) + f"\nKeep at most {capacity} rules."


def recommender_prompt(
    diagnosis: str,
    insights: Sequence[str],
    evidence: Evidence,
    gate: Gate,
) -> str:
    bank, experiences = evidence.bank, evidence.experiences
    lines = [f"DIAGNOSIS: {diagnosis}", "", "INSIGHTS:", *(f"- {insight}" for insight in insights), ""]
    lines += _bank_lines(bank, experiences)
    lines += ["", "LAST TESTS:"]
    for past in evidence.history:
        what = "; ".join(f"{o['op']} {o['name']}" for o in past.operations)
        verdict = "ACCEPTED" if past.accepted else "REJECTED"
        lines.append(
            f"- {verdict}: {what} (success {past.mean_new:.2f} with it, {past.mean_old:.2f} without)"
        )
    lines += ["(none)"] * (not evidence.history)
    lines += ["", f"ACTIONS SEEN: {', '.join(_vocabulary(experiences))}"]
    lines.append(
        f"LIMITS: 1 to {gate.operations} operations; the bank holds {len(bank.skills)} of "
        f"{evidence.capacity} skills."
    )
    return "\n".join(lines)


def author_prompt(
    plan: Sequence[Mapping[str, str]],
    evidence: Evidence,
    insights: Sequence[str],
    gate: Gate,
    feedback: Sequence[str],
) -> str:
    lines = ["PLAN:", *(json.dumps(dict(step), ensure_ascii=False) for step in plan), ""]
    lines += ["INSIGHTS:", *(f"- {insight}" for insight in insights[:6]), ""]
    lines += _bank_lines(evidence.bank, evidence.experiences, whole=True)
    lines += [
        "",
        f"ACTIONS SEEN: {', '.join(_vocabulary(evidence.experiences))}",
        f"LIMITS: a skill has at most {gate.length} characters in all; a pattern must fire in at least "
        f"{gate.trigger_rate:.0%} of episodes.",
    ]
    if feedback:
        lines += ["", "YOUR LAST PROPOSAL WAS REFUSED:", *(f"- {problem}" for problem in feedback)]
    return "\n".join(lines)


def _bank_lines(bank: Bank, experiences: Sequence[Experience], *, whole: bool = False) -> list[str]:
    lines = ["SKILLS IN THE BANK:"]
    for skill in bank.skills:
        trigger = f"{skill.trigger.kind} {skill.trigger.pattern}".strip()
        rate = f", fires in {trigger_rate(skill.trigger, experiences):.0%} of episodes" if experiences else ""
        lines.append(f"- {skill.name} ({trigger}{rate}, revision {skill.revision}): {skill.description}")
        if whole:
            lines.append(f"  {skill.body}")
    return lines + ["(none)"] * (not bank.skills)


def _vocabulary(experiences: Sequence[Experience], most: int = 40) -> list[str]:
    """The commonest actions, which a language model may write patterns for."""
    counts: dict[str, int] = {}
    for entry in experiences:
        for action in entry.actions:
            counts[action] = counts.get(action, 0) + 1
    return sorted(sorted(counts), key=lambda action: -counts[action])[:most]
