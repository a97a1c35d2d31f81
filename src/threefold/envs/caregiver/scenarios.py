"""1,200 scenarios with the quotas of arXiv 2606.08875, App. D: care task by conflict, over nine subtypes.

The paper draws its scenarios from a corpus that is not public. These are generated: the counts are the
paper's Table 7, the words are ours (`scenario_text.yaml`), the opening labels are drawn so that the mean
opening is D = 1.5 and R = 1.4, where its Figure 5 starts. All of it is invented; no record of a real person
is in it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from threefold.envs.caregiver.dialogue import Dialogue, Scenario
from threefold.envs.caregiver.emission import draw_labels
from threefold.envs.caregiver.hearing import before_markers
from threefold.envs.caregiver.labels import default_lookup
from threefold.envs.caregiver.speech import in_manner, line, pick, sentence_case
from threefold.envs.caregiver.subtypes import SUBTYPES, subtype

TASKS = ("medication", "ambulation", "hygiene", "meal", "sleep")
CONFLICTS = ("identity", "time", "medication", "location", "missing-person")
QUOTAS: Mapping[str, tuple[int, ...]] = {
    "medication": (38, 52, 110, 24, 16),
    "ambulation": (46, 48, 22, 84, 40),
    "hygiene": (30, 40, 28, 72, 70),
    "meal": (32, 56, 64, 38, 50),
    "sleep": (36, 92, 30, 42, 40),
}
"""Number of scenarios by care task (rows) and conflict (in the order of `CONFLICTS`); the sum is 1,200."""
HELD_OUT = 200

OPENING_DISTRESS = (0.12, 0.38, 0.38, 0.12)
"""Share of openings with D = 0 .. 3; mean 1.5."""
OPENING_RESISTANCE = (0.20, 0.30, 0.40, 0.10)
"""Share of openings with R = 0 .. 3; mean 1.4."""


def generate(seed: int = 0) -> tuple[Scenario, ...]:
    """The 1,200 scenarios of a seed, cell by cell of `QUOTAS`; the same on every machine.

    Subtypes take turns within and across the cells, so that each has 133 or 134 scenarios.
    """
    turns = itertools.cycle(SUBTYPES)
    return tuple(
        _scenario(seed, task, conflict, number, next(turns))
        for task, counts in QUOTAS.items()
        for conflict, count in zip(CONFLICTS, counts, strict=True)
        for number in range(count)
    )


def split(scenarios: Sequence[Scenario], seed: int = 0) -> tuple[tuple[Scenario, ...], tuple[Scenario, ...]]:
    """(1,000 for training, 200 held out) of the 1,200, stratified by care task and conflict.

    Every cell gives its share by largest remainder; within a cell the hash of id and seed decides.

    Raises:
        ValueError: There are not more scenarios than are held out.
    """
    if len(scenarios) <= HELD_OUT:
        raise ValueError(f"{HELD_OUT} scenarios are held out, but there are only {len(scenarios)}")
    cells: dict[tuple[str, str], list[Scenario]] = {}
    for scenario in scenarios:
        cells.setdefault((scenario.task, scenario.conflict), []).append(scenario)
    exact = {cell: len(members) * HELD_OUT / len(scenarios) for cell, members in cells.items()}
    counts = {cell: int(share) for cell, share in exact.items()}
    for cell in sorted(exact, key=lambda c: counts[c] - exact[c])[: HELD_OUT - sum(counts.values())]:
        counts[cell] += 1
    chosen = {
        scenario.id
        for cell, members in cells.items()
        for scenario in sorted(members, key=lambda s: _hash(f"{seed} {s.id}"))[: counts[cell]]
    }
    return (
        tuple(s for s in scenarios if s.id not in chosen),
        tuple(s for s in scenarios if s.id in chosen),
    )


def by_subtype(
    scenarios: Iterable[Scenario], held_out: Iterable[str]
) -> tuple[tuple[Scenario, ...], tuple[Scenario, ...]]:
    """(scenarios of the other subtypes, scenarios of these), to evaluate on subtypes never trained on.

    Raises:
        ValueError: An unknown subtype; the message gives the nearest.
    """
    names, scenarios = {subtype(name).name for name in held_out}, tuple(scenarios)
    return (
        tuple(s for s in scenarios if s.subtype not in names),
        tuple(s for s in scenarios if s.subtype in names),
    )


def caregiver_view(scenario: Scenario, dialogue: Dialogue | None = None) -> str:
    """What the caregiver may know: name, age, diagnosis, setting, and what has been said and seen.

    Never the kind of conflict, the truth, the hazards or the memories.
    """
    known = [
        f"Patient: {scenario.name}, {scenario.age} years old, {subtype(scenario.subtype).title}.",
        f"Setting: {scenario.setting}",
    ]
    if dialogue is None:
        return "\n".join(known)
    known.append(f"{scenario.name}: {seen(dialogue.opening.labels, dialogue.opening.utterance)}")
    for exchange in dialogue.exchanges:
        known += [
            f"Caregiver: {exchange.caregiver}",
            f"{scenario.name}: {seen(exchange.patient.labels, exchange.patient.utterance)}",
        ]
    return "\n".join(known)


def seen(labels: Iterable[str], utterance: str) -> str:
    """What the patient shows and says, as the caregiver perceives it: "[frowning; sighing] Where am I?"."""
    shown = "; ".join(labels)
    bare = not shown and not utterance.startswith("[")
    return utterance if bare else f"[{shown}] {utterance}"


def save_scenarios(path: str | Path, scenarios: Iterable[Scenario]) -> None:
    """Write scenarios as JSONL, one a line."""
    with open(path, "w", encoding="utf-8") as file:
        for scenario in scenarios:
            file.write(json.dumps(dataclasses.asdict(scenario), ensure_ascii=False) + "\n")


def load_scenarios(path: str | Path) -> tuple[Scenario, ...]:
    """Read scenarios from JSONL.

    Raises:
        ValueError: A line is no JSON, lacks a field (the memories alone may be left out) or has one too many,
            names an unknown subtype, task, conflict or label, or repeats an id; the message gives file, line
            and the nearest name.
    """
    scenarios: dict[str, Scenario] = {}
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            try:
                data = json.loads(raw.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not JSON: {error}") from error
            scenario = from_fields(data, where)
            if "hazards" not in data:  # left out, it would make the safety rules blind in silence
                raise ValueError(
                    f"{where}: the field 'hazards' is missing; give [] where nothing here is unsafe in itself"
                )
            if scenario.id in scenarios:
                raise ValueError(f"{where}: the id {scenario.id!r} stands there twice")
            scenarios[scenario.id] = scenario
    if not scenarios:
        raise ValueError(f"{path}: there is no scenario in it")
    return tuple(scenarios.values())


def from_fields(data: Any, where: str = "scenario") -> Scenario:
    """A checked scenario from its fields, as in a line of JSONL or in `Task.fields`; see `load_scenarios`."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: a scenario is an object with fields, got {data!r}")
    fields = {f.name: f for f in dataclasses.fields(Scenario)}
    for name in data:
        if name not in fields:
            raise ValueError(f"{where}: unknown field {name!r}{_hint(name, fields)}")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: the field {name!r} is missing")
    values = dict(data)
    for name in ("opening_labels", "hazards"):
        entries = values.get(name, ())
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{where}: {name!r} is a list of texts, got {entries!r}")
        values[name] = tuple(entries)
    if not isinstance(values["age"], int) or not 18 <= values["age"] <= 120:
        raise ValueError(f"{where}: the age is {values['age']!r}, use a whole number from 18 to 120")
    for name, value in values.items():
        if name not in ("age", "opening_labels", "hazards") and not isinstance(value, str):
            raise ValueError(f"{where}: {name!r} is a text, got {value!r}")
    for name, known in (("subtype", SUBTYPES), ("task", TASKS), ("conflict", CONFLICTS)):
        if values[name] not in known:
            raise ValueError(f"{where}: unknown {name} {values[name]!r}{_hint(values[name], known)}")
    for label in values["opening_labels"]:
        try:
            default_lookup().row(label)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    for name, value in values.items():
        for text in [value] if isinstance(value, str) else value if isinstance(value, tuple) else ():
            _check_text(f"{where}: {name!r}", text)
    for name in ("id", "name", "setting", "opening", "truth"):
        if not values[name].strip():
            why = ", the patient speaks first" if name == "opening" else ""
            raise ValueError(f"{where}: the {name} is empty{why}")
    return Scenario(**values)


def _check_text(what: str, text: str) -> None:
    """Refuse what no file can hold and what would open a turn of somebody else in a prompt."""
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{what} holds half of a character; write characters whole")
    if before_markers(text) != text:
        raise ValueError(f"{what} holds a marker of another role, such as '<|im_start|>' or 'User:'")


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f": did you mean {near[0]!r}?" if near else f": use one of {', '.join(names)}"


@functools.cache
def _text() -> Mapping[str, Any]:
    file = resources.files("threefold.envs.caregiver") / "scenario_text.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _scenario(seed: int, task: str, conflict: str, number: int, subtype_name: str) -> Scenario:
    identity = f"{task}-{conflict}-{number:03d}-s{seed}"
    stream = random.Random(f"threefold scenario {identity} {subtype_name}")
    words, kind = _text(), subtype(subtype_name)
    woman = stream.random() < 0.6
    first = pick(stream, words["women" if woman else "men"])
    fill = {
        "name": f"{first} {pick(stream, words['surnames'])}",
        "person": pick(stream, words["persons"]["woman" if woman else "man"]),
        "place": pick(stream, words["places"]),
        "errand": pick(stream, words["errands"]),
        "hour": pick(stream, words["hours"]),
        "when": pick(stream, words["when"][task]),
    }
    distress, resistance = _tier(stream, OPENING_DISTRESS), _tier(stream, OPENING_RESISTANCE)
    claim = sentence_case(pick(stream, words["claims"][conflict]).format(**fill))
    scenario = Scenario(
        id=identity,
        name=fill["name"],
        age=58 + int(stream.random() * 16) if kind.name == "FTD-bv" else 68 + int(stream.random() * 25),
        subtype=kind.name,
        setting=pick(stream, words["settings"][task]).format(**fill),
        task=task,
        opening=claim,
        opening_labels=(),
        conflict=conflict,
        truth=pick(stream, words["truths"][conflict]).format(**fill),
        hazards=tuple(
            dict.fromkeys([*words["hazards_of_task"][task], *words["hazards_of_conflict"][conflict]])
        ),
        remote_memory=pick(stream, words["remote_memories"]).format(**fill),
        routine=pick(stream, words["routines"]).format(**fill),
    )
    opening = in_manner(stream, claim, kind.style, 0.5)
    if resistance >= 2:
        opening = f"{opening} {line(stream, scenario, 'resistance', task, resistance)}"
    labels = draw_labels(default_lookup(), stream, kind, distress, resistance, opening)
    return dataclasses.replace(scenario, opening=opening, opening_labels=labels)


def _tier(stream: random.Random, shares: Sequence[float]) -> int:
    chance = stream.random()
    bounds = itertools.accumulate(shares)
    return next((tier for tier, bound in enumerate(bounds) if chance < bound), len(shares) - 1)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
