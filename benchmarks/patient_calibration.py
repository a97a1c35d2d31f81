"""Does the patient of rules behave as the literature and the paper's figures say, and what does it hang on?

    python benchmarks/patient_calibration.py

Writes results/caregiver/calibration.md and .json. About a minute and a half on one core; no model, no torch.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threefold.envs.caregiver import expert
from threefold.envs.caregiver.dialogue import Dialogue, Exchange, PatientReply, Scenario
from threefold.envs.caregiver.labels import default_lookup, tiers
from threefold.envs.caregiver.rules import Rules, default_rules
from threefold.envs.caregiver.rules_patient import RulesPatient, rest
from threefold.envs.caregiver.scenarios import generate, split
from threefold.envs.caregiver.subtypes import SUBTYPES
from threefold.evaluation.intervals import Interval, bootstrap

ROOT = Path(__file__).resolve().parents[1]
TURNS, MEMBERS, PROBE_MEMBERS = 10, 3, 10
ORDINARY_BIDS = ("It's time for {care} now.", "I have {care} ready for you.", "Please come, it's {care} now.")
ELDERSPEAK_BIDS = (
    "It's time for {care} now, sweetie.",
    "Good girl, I have {care} ready for you.",
    "Please come, honey, it's {care} now.",
)
SCRIPTS: dict[str, expert.Script] = {"ordinary": expert.ordinary, "expert": expert.expert}
PAPER = {
    "ordinary": "SFT, turn 10: D 1.34, R 1.33",
    "expert": "T²-GRPO, turn 10: D 0.33, R 0.45",
}


@dataclass(frozen=True)
class Played:
    """One dialogue: tiers of the opening and every turn, and how it ended."""

    replies: tuple[PatientReply, ...]
    agreed_at: int | None
    """Turn after which the dialogue would have ended well (agreed, calm for two turns)."""


def main() -> None:
    begun = time.process_time()
    scenarios = generate()
    _, held_out = split(scenarios)
    opening = openings(scenarios)
    probes = {
        "ordinary": probe(RulesPatient(), held_out, ORDINARY_BIDS),
        "elderspeak": probe(RulesPatient(), held_out, ELDERSPEAK_BIDS),
    }
    played = {name: play_all(RulesPatient(), held_out, script) for name, script in SCRIPTS.items()}
    figures: dict[str, Any] = {
        "opening": {axis: vars(interval) for axis, interval in opening.items()},
        "probes": {name: vars(interval) for name, interval in probes.items()},
        "curves": {name: curves(groups) for name, groups in played.items()},
        "ends": {name: ends(groups) for name, groups in played.items()},
        "subtypes": {name: by_subtype(groups, held_out) for name, groups in played.items()},
        "perturbed": [headline(RulesPatient(perturb=0.5, seed=seed), held_out[::4]) for seed in range(10)],
        "reference": headline(RulesPatient(), held_out[::4]),
        "milliseconds_a_turn": speed(held_out),
        "versions": {"labels": default_lookup().version, "rules": default_rules().version},
    }
    figures["sensitivity"] = sensitivity(default_rules(), held_out[::8])
    figures["seconds"] = time.process_time() - begun
    folder = ROOT / "results/caregiver"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calibration.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "calibration.md").write_text(page(figures), encoding="utf-8")
    print(page(figures))
    print(f"{figures['seconds']:.0f} seconds of one core")


def openings(scenarios: Sequence[Scenario]) -> dict[str, Interval]:
    found = [tiers(s.opening_labels, s.opening) for s in scenarios]
    return {axis: bootstrap([pair[i] for pair in found], resamples=2000) for i, axis in enumerate("DR")}


def probe(patient: RulesPatient, scenarios: Sequence[Scenario], bids: Sequence[str]) -> Interval:
    """P(R >= 1) after one care bid to a patient at rest; one mean a scenario."""
    means = []
    for scenario in scenarios:
        care = expert.lines_of("care", scenario.task)[0]
        hits = []
        for member in range(PROBE_MEMBERS):
            rest(patient, scenario, seed=0)
            reply = patient.reply(bids[member % len(bids)].format(care=care), member)
            hits.append(reply.resistance >= 1)
        means.append(statistics.mean(hits))
    return bootstrap(means, resamples=2000)


def play_all(
    patient: RulesPatient, scenarios: Sequence[Scenario], script: expert.Script, members: int = MEMBERS
) -> list[list[Played]]:
    """Every dialogue is played to its tenth turn unless the patient leaves; one list a scenario."""
    return [[play(patient, s, script, member) for member in range(members)] for s in scenarios]


def play(patient: RulesPatient, scenario: Scenario, script: expert.Script, member: int) -> Played:
    stream = random.Random(f"calibration {scenario.id} {member}")
    dialogue = Dialogue(scenario, patient.open(scenario, 0))
    replies, agreed_at = [dialogue.opening], None
    for turn in range(TURNS):
        text = script(dialogue, stream)
        reply = patient.reply(text, member)
        dialogue = replace(dialogue, exchanges=(*dialogue.exchanges, Exchange(text, reply)))
        replies.append(reply)
        calm = all(r.distress == r.resistance == 0 for r in replies[-2:])
        if agreed_at is None and calm and reply.accepted and turn > 0:
            agreed_at = turn + 1
        if reply.left:
            replies += [reply] * (TURNS - turn - 1)
            break
    return Played(tuple(replies), agreed_at)


def curves(groups: Sequence[Sequence[Played]]) -> dict[str, list[dict[str, float]]]:
    """Mean tier after each turn (0 is the opening), played on, with an interval over scenarios."""

    def curve(value: Callable[[PatientReply], int]) -> list[dict[str, float]]:
        means = [[statistics.mean(value(p.replies[t]) for p in g) for g in groups] for t in range(TURNS + 1)]
        return [vars(bootstrap(values, resamples=2000)) for values in means]

    return {"D": curve(lambda r: r.distress), "R": curve(lambda r: r.resistance)}


def ends(groups: Sequence[Sequence[Played]]) -> dict[str, float]:
    """How dialogues would end under the environment's rules; ended ones carry their last tier forward."""
    played = [p for group in groups for p in group]
    last = [p.replies[p.agreed_at if p.agreed_at is not None else TURNS] for p in played]
    return {
        "ended well": statistics.mean(p.agreed_at is not None for p in played),
        "patient left": statistics.mean(p.replies[-1].left for p in played),
        "mean turns": statistics.mean(
            p.agreed_at or next((i for i, r in enumerate(p.replies) if r.left), TURNS) for p in played
        ),
        "last D": statistics.mean(r.distress for r in last),
        "last R": statistics.mean(r.resistance for r in last),
    }


def by_subtype(groups: Sequence[Sequence[Played]], scenarios: Sequence[Scenario]) -> dict[str, list[float]]:
    """Subtype -> mean D and R over the last three turns."""
    found = {}
    for name in SUBTYPES:
        last = [
            r
            for group, s in zip(groups, scenarios, strict=True)
            if s.subtype == name
            for p in group
            for r in p.replies[-3:]
        ]
        found[name] = [statistics.mean(r.distress for r in last), statistics.mean(r.resistance for r in last)]
    return found


def headline(patient: RulesPatient, scenarios: Sequence[Scenario]) -> dict[str, float]:
    """The calibrated figures, from the states behind the tiers: P and E of the ordered logit, less noisy."""
    slope = patient.rules.constant("slope")

    def at_least(level: float, k: int) -> float:
        return 1 / (1 + math.exp(-slope * (level - (k - 0.5))))

    def after(bids: Sequence[str]) -> float:
        chances = []
        for scenario in scenarios:
            rest(patient, scenario, seed=0)
            care = expert.lines_of("care", scenario.task)[0]
            chances.append(at_least(patient.reply(bids[0].format(care=care), 0).latent["r"], 1))
        return statistics.mean(chances)

    figures = {"P ordinary": after(ORDINARY_BIDS), "P elderspeak": after(ELDERSPEAK_BIDS)}
    for name, script in SCRIPTS.items():
        last = [r for (p,) in play_all(patient, scenarios, script, members=1) for r in p.replies[-3:]]
        for axis, key in (("D", "d"), ("R", "r")):
            figures[f"{axis} {name}"] = statistics.mean(
                sum(at_least(r.latent[key], k) for k in (1, 2, 3)) for r in last
            )
    return figures


def sensitivity(rules: Rules, scenarios: Sequence[Scenario]) -> dict[str, dict[str, list[float]]]:
    """Coefficient -> figure -> [change at -50 %, change at +50 %], with common random numbers."""
    base = headline(RulesPatient(rules), scenarios)
    found = {}
    for name in rules.coefficients():
        low, high = (headline(RulesPatient(rules.scaled(name, f)), scenarios) for f in (0.5, 1.5))
        found[name] = {key: [low[key] - base[key], high[key] - base[key]] for key in base}
    return found


def speed(scenarios: Sequence[Scenario]) -> float:
    """Milliseconds of one reply to words never heard before (nothing cached), median."""
    patient, spent = RulesPatient(), []
    for number, scenario in enumerate(scenarios[:100]):
        patient.open(scenario, 0)
        for turn in range(5):
            text = f"You sound worried about thing {number} {turn}. Shall we try a small step, or rest first?"
            begun = time.perf_counter()
            patient.reply(text, 0)
            spent.append(time.perf_counter() - begun)
    return 1000 * statistics.median(spent)


def page(figures: dict[str, Any]) -> str:
    def shown(interval: dict[str, float]) -> str:
        return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"

    def at(name: str, axis: str, turn: int) -> str:
        return shown(figures["curves"][name][axis][turn])

    p, e = figures["probes"]["ordinary"]["mean"], figures["probes"]["elderspeak"]["mean"]
    odds = (e / (1 - e)) / (p / (1 - p))
    lines = [
        "# Calibration of the patient of rules",
        "",
        "`python benchmarks/patient_calibration.py`. Research and training simulation, not for clinical use: "
        "the targets are published figures, the patient has not been compared with people.",
        "",
        f"Labels {figures['versions']['labels']}, rules {figures['versions']['rules']}. 95 % bootstrap "
        "intervals over scenarios. 1,200 openings; all else on the 200 held-out scenarios.",
        "",
        "## Targets",
        "",
        "| figure | measured | target | source |",
        "|---|---|---|---|",
        f"| mean D of the opening | {shown(figures['opening']['D'])} | 1.5 | arXiv 2606.08875, Fig. 5 |",
        f"| mean R of the opening | {shown(figures['opening']['R'])} | 1.4 | arXiv 2606.08875, Fig. 5 |",
        f"| P(R >= 1), care bid in ordinary words | {shown(figures['probes']['ordinary'])} | "
        ".26 (.12 to .44) | Williams 2009 |",
        f"| P(R >= 1), care bid in elderspeak | {shown(figures['probes']['elderspeak'])} | "
        ".55 (.44 to .66) | Williams 2009 |",
        f"| odds ratio of the two | {odds:.2f} | 3.48 | from the two |",
        f"| D, ordinary script, turn 10 | {at('ordinary', 'D', TURNS)} | about 1.3 | {PAPER['ordinary']} |",
        f"| R, ordinary script, turn 10 | {at('ordinary', 'R', TURNS)} | about 1.3 | {PAPER['ordinary']} |",
        f"| D, expert script, turn 10 | {at('expert', 'D', TURNS)} | about 0.3 | {PAPER['expert']} |",
        f"| R, expert script, turn 10 | {at('expert', 'R', TURNS)} | about 0.45 | {PAPER['expert']} |",
        "",
        "The probes speak to a patient at rest (calm, trusting, no conflict). The scripts are played on to "
        "turn 10 even where the dialogue would have ended well, so that the figures are not of those left "
        "over; who leaves keeps the last tiers.",
        "",
        "## Mean tiers by turn (0 is the opening)",
        "",
        "| script | " + " | ".join(str(t) for t in range(TURNS + 1)) + " |",
        "|---" * (TURNS + 2) + "|",
    ]
    for name, curve in figures["curves"].items():
        for axis in "DR":
            cells = " | ".join(f"{point['mean']:.2f}" for point in curve[axis])
            lines.append(f"| {axis}, {name} | {cells} |")
    lines += [
        "",
        "## Ends under the environment's rules",
        "",
        "| script | ended well | patient left | mean turns | last D | last R |",
        "|---|---|---|---|---|---|",
    ]
    for name, end in figures["ends"].items():
        lines.append(
            f"| {name} | {end['ended well']:.0%} | {end['patient left']:.0%} | {end['mean turns']:.1f} | "
            f"{end['last D']:.2f} | {end['last R']:.2f} |"
        )
    lines += [
        "",
        "## By subtype, mean of the last three turns",
        "",
        "| subtype | D, R ordinary | D, R expert |",
        "|---|---|---|",
    ]
    for name in SUBTYPES:
        (d0, r0), (d1, r1) = (figures["subtypes"][script][name] for script in ("ordinary", "expert"))
        lines.append(f"| {name} | {d0:.2f}, {r0:.2f} | {d1:.2f}, {r1:.2f} |")
    reference, perturbed = figures["reference"], figures["perturbed"]
    lines += [
        "",
        "## Perturbed patients",
        "",
        "Every coefficient multiplied by its own number between 0.5 and 1.5, ten patients (`perturb=0.5`, "
        "seeds 0 to 9). Figures here and below are expectations given the state behind the tiers; D and R "
        "are means of the last three turns.",
        "",
        "| figure | unperturbed | lowest | highest |",
        "|---|---|---|---|",
    ]
    for key in reference:
        values = [run[key] for run in perturbed]
        lines.append(f"| {key} | {reference[key]:.2f} | {min(values):.2f} | {max(values):.2f} |")
    lines += [
        "",
        "## Sensitivity: each coefficient at -50 % and +50 %",
        "",
        "Changes against the unperturbed patient, the same random numbers on both sides, 25 scenarios. All "
        f"of the {len(figures['sensitivity'])} coefficients are in calibration.json; these move a figure by "
        "0.05 or more.",
        "",
        "| coefficient | " + " | ".join(reference) + " |",
        "|---" * (len(reference) + 1) + "|",
    ]
    moved = {
        name: changes
        for name, changes in figures["sensitivity"].items()
        if max(abs(c) for pair in changes.values() for c in pair) >= 0.05
    }
    for name in sorted(moved, key=lambda n: -max(abs(c) for pair in moved[n].values() for c in pair)):
        cells = " | ".join(f"{low:+.2f}, {high:+.2f}" for low, high in moved[name].values())
        lines.append(f"| {name} | {cells} |")
    lines += [
        "",
        f"One reply takes {figures['milliseconds_a_turn']:.2f} ms (median, words never heard before).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
