"""The coefficients of the patient of rules, with the evidence for each: `rules.yaml`.

They are data, so that they can be reviewed, edited, perturbed and varied one by one. Nothing here acts.
"""

from __future__ import annotations

import csv
import difflib
import functools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from threefold.envs.caregiver.acts import Act
from threefold.envs.caregiver.labels import Keyword, Lookup, default_lookup
from threefold.envs.caregiver.subtypes import ICF_B126, SUBTYPES

QUANTITIES = ("distress", "resistance", "trust", "attachment")
KINDS = ("measured", "direction", "design")


@dataclass(frozen=True)
class Effect:
    """What one act does, before gains."""

    distress: float
    """Change of the ordered logit of D."""
    resistance: float
    """Change of the ordered logit of R."""
    trust: float
    """Change on a scale from 0 to 1."""
    attachment: float
    """Change on a scale from 0 to 1."""
    kind: str = "design"
    """"measured", "direction" (only the sign is supported) or "design"."""
    evidence: str = ""


@dataclass(frozen=True)
class Constant:
    value: float
    meaning: str
    kind: str = "design"


@dataclass(frozen=True)
class Rules:
    """A whole table of coefficients. Each has a name: "elderspeak.resistance", "slope"."""

    version: str
    effects: Mapping[Act, Effect]
    constants: Mapping[str, Constant] = field(default_factory=dict)

    def constant(self, name: str) -> float:
        return self.constants[name].value

    def coefficients(self) -> Mapping[str, float]:
        """Every coefficient that is not zero, by name."""
        found = {
            f"{act.value}.{quantity}": getattr(effect, quantity)
            for act, effect in self.effects.items()
            for quantity in QUANTITIES
        } | {name: constant.value for name, constant in self.constants.items()}
        return {name: value for name, value in found.items() if value != 0}

    def scaled(self, name: str, factor: float) -> Rules:
        """The same table with one coefficient multiplied.

        Raises:
            ValueError: There is no coefficient of this name.
        """
        known = self.coefficients()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"the rules have no coefficient {name!r}{hint}")
        if name in self.constants:
            constant = self.constants[name]
            changed = replace(constant, value=constant.value * factor)
            return replace(self, constants={**self.constants, name: changed})
        act, _, quantity = name.rpartition(".")
        effect = self.effects[Act(act)]
        value = getattr(effect, quantity) * factor
        return replace(self, effects={**self.effects, Act(act): replace(effect, **{quantity: value})})

    def perturbed(self, share: float, seed: int) -> Rules:
        """The same table with every coefficient multiplied by a number between 1 - share and 1 + share.

        Raises:
            ValueError: `share` is outside [0, 1), where a sign could change.
        """
        if not 0 <= share < 1:
            raise ValueError(f"a perturbation is a share in [0, 1), got {share}: signs are to be kept")
        if share == 0:
            return self
        rules = replace(self, version=f"{self.version} perturbed {share:g} seed {seed}")
        for name in self.coefficients():
            chance = random.Random(f"threefold perturbation {seed} {name}").random()
            rules = rules.scaled(name, 1 + share * (2 * chance - 1))
        return rules


def load_rules(path: str | Path | None = None) -> Rules:
    """Read a table of rules; without a path the one that ships with Threefold.

    Raises:
        ValueError: A part or field is missing or unknown, an act is unknown or stands there twice; the
            message names file, act and the nearest name.
    """
    if path is None:
        return default_rules()
    return _parse(Path(path).read_text(encoding="utf-8"), str(path))


@functools.cache
def default_rules() -> Rules:
    """The shipped `rules.yaml`."""
    file = resources.files("threefold.envs.caregiver") / "rules.yaml"
    return _parse(file.read_text(encoding="utf-8"), "rules.yaml")


def review_sheet(path: str | Path, rules: Rules | None = None, lookup: Lookup | None = None) -> int:
    """Write every rule with its evidence as a table with empty columns for a reviewer's verdict.

    The suffix of the path chooses the form: ".csv" for a spreadsheet, ".md" for Markdown.

    Returns:
        The number of rules written.

    Raises:
        ValueError: Another suffix.
    """
    path = Path(path)
    rows = list(_review_rows(rules or default_rules(), lookup or default_lookup()))
    header = ("part", "rule", "value", "kind", "evidence or meaning", "agree? (yes/no)", "comment")
    if path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows((*row, "", "") for row in rows)
    elif path.suffix == ".md":
        table = [header, ("---",) * len(header), *((*row, "", "") for row in rows)]
        cells = ("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in table)
        path.write_text("\n".join(cells) + "\n", encoding="utf-8")
    else:
        raise ValueError(f"a review sheet is a .csv or a .md file, got {path.name!r}")
    return len(rows)


def _review_rows(rules: Rules, lookup: Lookup) -> Iterator[tuple[str, str, str, str, str]]:
    for label in lookup.labels.values():
        value = f"D {label.distress:+d}, R {label.resistance}"
        yield f"label ({lookup.version})", f"{label.channel}: {label.name}", value, "paper", label.source
    part = f"keyword ({lookup.version})"
    for keyword in lookup.distress_keywords:
        yield part, keyword.phrase, "D +1", "paper", f"App. B.2{_exceptions(keyword)}"
    for keyword in lookup.refusal_keywords:
        yield part, keyword.phrase, "R at least 2", "design", f"the paper prints none{_exceptions(keyword)}"
    for act, effect in rules.effects.items():
        value = ", ".join(f"{quantity} {getattr(effect, quantity):+g}" for quantity in QUANTITIES)
        yield f"act ({rules.version})", act.value, value, effect.kind, effect.evidence
    for name, constant in rules.constants.items():
        yield f"constant ({rules.version})", name, f"{constant.value:g}", constant.kind, constant.meaning
    for s in SUBTYPES.values():
        temperament = ", ".join(f"{name} {value:+d}" for name, value in zip(ICF_B126, s.icf, strict=True))
        symptoms = ", ".join(f"{name} {rate:g}" for name, rate in s.rates.items())
        value = (
            f"{temperament}; {symptoms}; shows more often: {', '.join(s.habits)}; "
            f"old memories {s.remote_gate:g}, cues {s.cue_gain:g}, retention {s.retention:g}, language load "
            f"{s.language_load:g}, fluctuation {s.fluctuation:g}, lability {s.lability:g}"
        )
        yield "subtype", s.name, value, "design", f"after DemMA: {s.memory}; cues: {s.cues}; {s.speech}"


def _exceptions(keyword: Keyword) -> str:
    words = {"after": keyword.not_after, "before": keyword.not_before}
    return "".join(f"; not {where} {', '.join(listed)}" for where, listed in words.items() if listed)


def _parse(text: str, source: str) -> Rules:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping) or set(data) != {"version", "effects", "constants"}:
        raise ValueError(f"{source}: a table of rules has the parts version, effects and constants")
    effects: dict[Act, Effect] = {}
    for row in data["effects"]:
        wanted = {"act", *QUANTITIES, "kind", "evidence"}
        if not isinstance(row, Mapping) or set(row) != wanted:
            raise ValueError(
                f"{source}: a rule has exactly the fields {', '.join(sorted(wanted))}, got {row!r}"
            )
        act = _act(row["act"], source)
        if act in effects:
            raise ValueError(f"{source}: the act {act.value!r} stands there twice")
        values = {name: _number(row[name], f"{source}, {act.value}.{name}") for name in QUANTITIES}
        kind = _kind(row["kind"], f"{source}, {act.value}")
        effects[act] = Effect(**values, kind=kind, evidence=str(row["evidence"]))
    constants = {
        row["name"]: Constant(
            _number(row["value"], f"{source}, {row['name']}"),
            str(row["meaning"]),
            _kind(row["kind"], f"{source}, {row['name']}"),
        )
        for row in data["constants"]
    }
    if source != "rules.yaml":
        missing = sorted(set(default_rules().constants) - set(constants))
        if missing:
            raise ValueError(f"{source}: the constants {', '.join(missing)} are missing")
    return Rules(str(data["version"]), effects, constants)


def _act(name: str, source: str) -> Act:
    try:
        return Act(name)
    except ValueError:
        near = difflib.get_close_matches(str(name), [act.value for act in Act], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "see acts.py"
        raise ValueError(f"{source}: unknown act {name!r}: {hint}") from None


def _kind(kind: str, where: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"{where}: the kind is {kind!r}, use {', '.join(KINDS)}")
    return kind


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: a number is needed, got {value!r}")
    return float(value)
