"""What the judge by rules gives to scripted caregivers, and to policies that only try to please it.

    python benchmarks/rule_judge.py      # held-out scenarios, 6 turns, the patient by rules

A reward that a constant line earns is a reward that a policy will find. Writes results/caregiver/rule_judge.*
and the table in docs/judges.md. Intervals are percentile bootstrap intervals over scenarios.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from threefold.envs.caregiver.dialogue import Dialogue, Exchange
from threefold.envs.caregiver.expert import Script, brief_expert, expert, ordinary, unsafe
from threefold.envs.caregiver.rule_judge import RuleJudge
from threefold.envs.caregiver.rules_patient import RulesPatient
from threefold.envs.caregiver.scenarios import generate, split
from threefold.evaluation.intervals import bootstrap

ROOT = Path(__file__).resolve().parents[1]
TURNS = 6
BOUNDS = {"goal": (0.0, 8.0), "fit": (0.0, 8.0), "term": (0.0, 4.0)}


def always(line: str) -> Script:
    """A caregiver that says one line for ever; {name} is the patient's first name."""
    return lambda dialogue, stream: line.format(name=dialogue.scenario.name.split()[0])


CAREGIVERS: Mapping[str, Script] = {
    "expert (script)": expert,
    "brief expert (script)": brief_expert,
    "ordinary (script)": ordinary,
    "unsafe (script)": unsafe,
    "one kind line for ever": always(
        "You sound worried, {name}. Would you like to try one small step, or later?"
    ),
    "validates for ever": always("Of course you miss her. I am here with you."),
    "asks for ever": always("What was it like?"),
    "a listening token for ever": always("Mm-hm, I see."),
    "a salad of kind words": always("sorry worried {name} what sip later maybe check together"),
    "no words at all": always("..."),
}


def main() -> None:
    _, scenarios = split(generate(0))
    judge, result = RuleJudge(), {}
    for name, script in CAREGIVERS.items():
        dialogues = [play(script, scenario) for scenario in scenarios]
        began = time.perf_counter()
        judged = judge.judge(dialogues)
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {"ms_a_dialogue": 1000 * seconds / len(dialogues)}
        for channel, bounds in BOUNDS.items():
            interval = bootstrap([getattr(j, channel) for j in judged], resamples=2000, bounds=bounds)
            row[channel] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        result[name] = row
    text = as_markdown(result, len(scenarios))
    folder = ROOT / "results" / "caregiver"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rule_judge.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "rule_judge.md").write_text(text, encoding="utf-8")
    page = ROOT / "docs" / "judges.md"
    before, start, rest = page.read_text(encoding="utf-8").partition("<!-- judge figures -->")
    end = "<!-- end judge figures -->"
    page.write_text(f"{before}{start}\n\n{table(result)}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    print(text)


def play(script: Script, scenario: Any) -> Dialogue:
    patient, stream = RulesPatient(), random.Random(scenario.id)
    opening = patient.open(scenario, 0)
    dialogue = Dialogue(scenario, opening)
    for _ in range(TURNS):
        said = script(dialogue, stream)
        exchange = Exchange(said, patient.reply(said, 0))
        dialogue = Dialogue(scenario, opening, (*dialogue.exchanges, exchange))
    return dialogue


def as_markdown(result: dict[str, Any], scenarios: int) -> str:
    slowest = max(row["ms_a_dialogue"] for row in result.values())
    lines = [
        "# What the judge by rules gives to whom",
        "",
        f"Command: `python benchmarks/rule_judge.py`. {scenarios} held-out scenarios, {TURNS} turns, the "
        "patient by rules, seed 0. Means with 95 % bootstrap intervals over scenarios; goal and fit are 0 to "
        "8, term 0 to 4.",
        "",
        table(result),
        "",
        f"Slowest: {slowest:.0f} ms a dialogue on one shared core.",
        "",
    ]
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    lines = ["| caregiver | goal | fit | term |", "|---|---|---|---|"]
    for name, row in result.items():
        cells = [f"{row[c]['mean']:.2f} ({row[c]['low']:.2f} to {row[c]['high']:.2f})" for c in BOUNDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
