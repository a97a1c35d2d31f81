"""Precision and recall of the rule safety detector on an adversarial set of labelled caregiver lines.

    python benchmarks/safety_detector.py               # all authors; writes results/caregiver/safety.*
    python benchmarks/safety_detector.py --mistakes a  # an author's lines that the rules get wrong

Three authors wrote lines. Version 3 of the rules was written against those of authors a and b (b had been
blind for version 2). Author c wrote without having seen any rules, which were frozen before those lines were
opened: the figures to quote are author c's. Beside them stands how often the rules speak on the scripted
caregivers in play with the patient by rules. Intervals are Wilson's, 95 % (E. B. Wilson 1927), which stay
inside [0, 1] where few lines are counted.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
from collections import Counter
from pathlib import Path
from typing import Any

from threefold.envs.caregiver import safety, safety_lexicon
from threefold.envs.caregiver.dialogue import Dialogue, Exchange, PatientReply, SafetyFinding, Scenario
from threefold.envs.caregiver.expert import brief_expert, expert, ordinary, unsafe
from threefold.envs.caregiver.rules_patient import RulesPatient
from threefold.envs.caregiver.scenarios import generate, split

ROOT = Path(__file__).resolve().parents[1]
AUTHORS = {"c": "to be quoted", "b": "development", "a": "development"}
"""What each author's figures are, in the order in which they are shown."""
PREDICATES = (
    "unsafe_endorsement",
    "unsafe_initiated_action",
    "unsafe_permission",
    "coercion_with_escalation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Precision and recall of the rule safety detector.")
    parser.add_argument(
        "--mistakes", metavar="AUTHOR", help="print the mistakes on an author's lines, and write nothing"
    )
    options = parser.parse_args()
    if options.mistakes:
        print_mistakes(load(options.mistakes))
        return
    authors = {author: measure(rows) if (rows := load(author)) else None for author in AUTHORS}
    result = {
        "rules": safety_lexicon.VERSION,
        "python": platform.python_version(),
        "command": "python benchmarks/safety_detector.py",
        "authors": authors,
        "scripts": on_scripts(),
    }
    text = as_markdown(result)
    folder = ROOT / "results" / "caregiver"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "safety.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "safety.md").write_text(text, encoding="utf-8")
    page = ROOT / "docs" / "judges.md"
    page.write_text(with_figures(page.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(text)


def load(author: str) -> list[dict[str, Any]]:
    """The lines of one author; none where the file is not there."""
    path = ROOT / "benchmarks" / "data" / f"safety_author_{author}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def judge(row: dict[str, Any]) -> SafetyFinding:
    """The detector on a dialogue of one exchange.

    Resistance is 0 throughout: the set gives distress alone, so what the rules read out of resistance is not
    measured here.
    """
    scenario = Scenario(
        id=row["id"],
        name="",
        age=80,
        subtype="AD-early",
        setting="",
        task=row["task"],
        opening=row["patient_before"],
        opening_labels=(),
        conflict="",
        truth="",
        hazards=tuple(row["hazards"]),
    )
    before = PatientReply(row["patient_before"], (), row["distress_before"], 0)
    after = PatientReply(row["patient_after"], (), row["distress_after"], 0)
    return safety.find(Dialogue(scenario, before, (Exchange(row["line"], after),)))


def measure(rows: list[dict[str, Any]]) -> dict[str, Any]:
    judged = [(row, judge(row)) for row in rows]
    flagged = [(row, finding.first is not None) for row, finding in judged]
    true = sum(flag and row["unsafe"] for row, flag in flagged)
    false = sum(flag and not row["unsafe"] for row, flag in flagged)
    unsafe = sum(row["unsafe"] for row in rows)
    found, right = Counter[str](), Counter[str]()
    for row, finding in judged:
        if row["unsafe"]:
            found[row["predicate"]] += finding.first is not None
            right[row["predicate"]] += getattr(finding, row["predicate"]) is not None
    traps = {}
    for trap, safe in sorted({(row["trap"], not row["unsafe"]) for row in rows}):
        flags = [flag for row, flag in flagged if row["trap"] == trap and row["unsafe"] != safe]
        hits = len(flags) - sum(flags) if safe else sum(flags)
        traps[f"{trap}, {'safe' if safe else 'unsafe'}"] = share(hits, len(flags))
    totals = Counter(row["predicate"] for row in rows if row["unsafe"])
    return {
        "lines": len(rows),
        "unsafe": unsafe,
        "precision": share(true, true + false),
        "recall": share(true, unsafe),
        "specificity": share(len(rows) - unsafe - false, len(rows) - unsafe),
        "accuracy": share(sum(flag == row["unsafe"] for row, flag in flagged), len(rows)),
        "recall_by_predicate": {name: share(found[name], totals[name]) for name in PREDICATES},
        "named_right_by_predicate": {name: share(right[name], totals[name]) for name in PREDICATES},
        "right_by_trap": traps,
    }


def on_scripts(turns: int = 8) -> dict[str, Any]:
    """Share of dialogues in which the rules find something: scripts by another hand, held-out scenarios.

    The scripts were there while the rules were tuned, so this is no test set either.
    """
    scenarios = generate(0)
    _, held_out = split(scenarios)
    patient, result = RulesPatient(), {}
    for script in (expert, brief_expert, ordinary, unsafe):
        length = 1 if script is unsafe else turns
        found = 0
        for scenario in held_out:
            stream, opening = random.Random(scenario.id), patient.open(scenario, 0)
            dialogue = Dialogue(scenario, opening)
            while len(dialogue.exchanges) < length:
                said = script(dialogue, stream)
                exchange = Exchange(said, patient.reply(said, 0))
                dialogue = Dialogue(scenario, opening, (*dialogue.exchanges, exchange))
            found += safety.find(dialogue).first is not None
        result[f"{script.__name__}, {length} turns"] = share(found, len(held_out))
    return result


def share(hits: int, total: int) -> dict[str, float | int | None]:
    if not total:
        return {"hits": 0, "of": 0, "value": None, "low": None, "high": None}
    low, high = wilson(hits, total)
    return {"hits": hits, "of": total, "value": hits / total, "low": low, "high": high}


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    p, scale = hits / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# How well the rule safety detector does",
        "",
        f"Command: `{result['command']}`. Rules: version {result['rules']}. Intervals: Wilson, 95 %.",
        "",
        "Version 3 was written against the lines of authors a and b, so their figures are those of a "
        "development set. Author c wrote without having seen any rules, which were frozen before those lines "
        "were opened: **quote author c's**. Version 2 had, on author b's lines, which were blind for it, a "
        "precision of 0.837 (0.710 to 0.915) and a recall of 0.456 (0.357 to 0.558); on author c's, 0.845 "
        "(0.731 to 0.916) and 0.445 (0.356 to 0.539).",
        "",
    ]
    for author, figures in result["authors"].items():
        lines += [f"## Author {author}, {AUTHORS[author]}", ""]
        if figures is None:
            lines += ["These lines are not there yet, so there is no figure.", ""]
            continue
        lines += [f"{figures['lines']} lines, {figures['unsafe']} of them unsafe.", ""]
        lines += ["| figure | value | 95 % interval | lines |", "|---|---|---|---|"]
        for name in ("precision", "recall", "specificity", "accuracy"):
            lines.append(row_of(name, figures[name]))
        for title, key in (
            ("recall", "recall_by_predicate"),
            ("found under its own name", "named_right_by_predicate"),
            ("right", "right_by_trap"),
        ):
            lines += [row_of(f"{title}: {name}", value) for name, value in figures[key].items()]
        lines.append("")
    lines += ["## Scripted caregivers", "", "Share of dialogues that the rules call a violation.", ""]
    lines += ["| script | share | 95 % interval | dialogues |", "|---|---|---|---|"]
    lines += [row_of(name, value) for name, value in result["scripts"].items()]
    return "\n".join([*lines, ""])


def with_figures(page: str, result: dict[str, Any]) -> str:
    """docs/judges.md with the table of these figures between its markers."""
    start, end = "<!-- safety figures -->", "<!-- end safety figures -->"
    before, _, rest = page.partition(start)
    return before + start + "\n\n" + summary(result) + "\n\n" + end + rest.partition(end)[2]


def summary(result: dict[str, Any]) -> str:
    heads = " | ".join(f"author {author}, {use}" for author, use in AUTHORS.items())
    lines = [f"| figure | {heads} |", "|---" * (len(AUTHORS) + 1) + "|"]
    for title, path in (
        ("precision", ("precision",)),
        ("recall", ("recall",)),
        ("safe lines left alone", ("specificity",)),
        *((f"recall, {name}", ("recall_by_predicate", name)) for name in PREDICATES),
    ):
        cells = []
        for author in AUTHORS:
            value = result["authors"][author]
            for key in path:
                value = value and value[key]
            cells.append(in_words(value) if value and value["of"] else "not measured yet")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    scripts = "; ".join(f"{name}: {in_words(value)}" for name, value in result["scripts"].items())
    return "\n".join([*lines, "", f"Dialogues called a violation, by scripted caregiver: {scripts}."])


def in_words(value: dict[str, Any]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def row_of(name: str, value: dict[str, Any]) -> str:
    if not value["of"]:
        return f"| {name} | - | - | 0 |"
    return (
        f"| {name} | {value['value']:.3f} | {value['low']:.3f} to {value['high']:.3f} "
        f"| {value['hits']} of {value['of']} |"
    )


def print_mistakes(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        finding = judge(row)
        if (finding.first is not None) != row["unsafe"]:
            print(f"{row['id']} unsafe={row['unsafe']} {row['predicate']} [{row['trap']}] {row['hazards']}")
            print(
                f"   patient: {row['patient_before']}\n   line: {row['line']}\n   found: {finding.evidence}"
            )


if __name__ == "__main__":
    main()
