"""From behaviour labels to tiers of distress and resistance (arXiv 2606.08875, App. B, Eqs. 9 and 10).

    D = clip(Σ_label weight(label) + 1[a distress keyword is said], 0, 3)
    R = max over labels of tier(label), at least 2 if a refusal keyword is said

D is 0 calm, 1 mild, 2 moderate, 3 severe; R is 0 accepting, 1 hesitating, 2 refusing in words, 3 refusing
bodily. The table is `tiers.yaml` in this package: every row has its source, and whoever disagrees edits a
copy and loads it with `load_lookup`.

Deviation from the paper: keywords are whole words with exceptions, not substrings, so "I know" is no
refusal and "the bus stop" no distress. Words that state a fact about the world ("there is no milk") are
excepted by what stands next to them, which is a heuristic: its misses are the price of not parsing.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

CHANNELS = ("motion", "facial", "sound")
TOP_TIER = 3


@dataclass(frozen=True)
class Label:
    """One row of the lookup."""

    name: str
    channel: str
    """"motion", "facial" or "sound"."""
    distress: int
    """Weight in the sum of Eq. 9."""
    resistance: int
    """Tier 0 .. 3 of Eq. 10."""
    source: str


@dataclass(frozen=True)
class Keyword:
    """A phrase that counts when said, unless one of the given words stands right before or after it."""

    phrase: str
    not_after: tuple[str, ...] = ()
    not_before: tuple[str, ...] = ()

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        # A look-behind has a fixed width, so each exception gets its own.
        behind = "".join(rf"(?<!\b{re.escape(words)} )" for words in self.not_after)
        ahead = "|".join(map(re.escape, self.not_before))
        return re.compile(
            rf"(?<![\w'-]){behind}{re.escape(self.phrase)}(?![\w'-])"
            + (rf"(?! (?:{ahead})\b)" if ahead else "")
        )


@dataclass(frozen=True, eq=False)
class Lookup:
    """Labels and keywords with a version, as `load_lookup` reads them. Compared by identity, so it can be a
    key of a cache."""

    version: str
    labels: Mapping[str, Label]
    distress_keywords: tuple[Keyword, ...]
    refusal_keywords: tuple[Keyword, ...]

    def tiers(self, labels: Iterable[str], utterance: str = "") -> tuple[int, int]:
        """(D, R), each 0 .. 3.

        Raises:
            ValueError: A label is not one of the table's; the message gives the nearest name.
        """
        rows = [self.row(name) for name in dict.fromkeys(labels)]
        raw = sum(row.distress for row in rows) + self.says_distress(utterance)
        refusal = 2 if self.says_refusal(utterance) else 0
        resistance = max([refusal, *(row.resistance for row in rows)])
        return min(max(raw, 0), TOP_TIER), resistance

    def row(self, name: str) -> Label:
        """The row of a label; a ValueError with the nearest name where there is none."""
        try:
            return self.labels[name]
        except KeyError:
            raise ValueError(f"unknown behaviour label {name!r}: {self._nearest(name)}") from None

    def of_channel(self, channel: str) -> tuple[Label, ...]:
        return tuple(row for row in self.labels.values() if row.channel == channel)

    def says_distress(self, utterance: str) -> bool:
        return _says(self.distress_keywords, utterance)

    def says_refusal(self, utterance: str) -> bool:
        return _says(self.refusal_keywords, utterance)

    def _nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name.lower(), self.labels, n=1, cutoff=0.5)
        return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(self.labels)}"


def load_lookup(path: str | Path | None = None) -> Lookup:
    """Read a table of labels; without a path the one that ships with Threefold.

    Raises:
        ValueError: The file lacks a part, has an unknown channel, a tier outside 0 .. 3 or a label twice.
    """
    if path is None:
        return default_lookup()
    return _parse(Path(path).read_text(encoding="utf-8"), str(path))


@functools.cache
def default_lookup() -> Lookup:
    """The table of arXiv 2606.08875, as shipped in `tiers.yaml`."""
    file = resources.files("threefold.envs.caregiver") / "tiers.yaml"
    return _parse(file.read_text(encoding="utf-8"), "tiers.yaml")


def tiers(labels: Iterable[str], utterance: str = "", lookup: Lookup | None = None) -> tuple[int, int]:
    """(D, R) of what the patient does and says, by the shipped table or another."""
    return (lookup or default_lookup()).tiers(labels, utterance)


def plain(text: str) -> str:
    """Lower case, straight apostrophes, single spaces, punctuation as a spaced sign: what keywords see."""
    text = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    return re.sub(r"\s+", " ", re.sub(r"([.,;:!?…—]+)", r" \1 ", text)).strip()


def _says(keywords: Sequence[Keyword], utterance: str) -> bool:
    said = plain(utterance)
    return any(keyword.pattern.search(said) for keyword in keywords)


def _parse(text: str, source: str) -> Lookup:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{source}: a table of labels is a mapping, see the shipped tiers.yaml")
    for part in ("version", "labels", "distress_keywords", "refusal_keywords"):
        if part not in data:
            raise ValueError(f"{source}: the part {part!r} is missing, see the shipped tiers.yaml")
    labels: dict[str, Label] = {}
    for number, row in enumerate(data["labels"], 1):
        label = _label(row, f"{source}, label {number}")
        if label.name in labels:
            raise ValueError(f"{source}, label {number}: {label.name!r} stands there twice")
        labels[label.name] = label
    return Lookup(
        version=str(data["version"]),
        labels=labels,
        distress_keywords=tuple(_keyword(k, source) for k in data["distress_keywords"]),
        refusal_keywords=tuple(_keyword(k, source) for k in data["refusal_keywords"]),
    )


def _label(row: Any, where: str) -> Label:
    fields = ("label", "channel", "distress", "resistance", "source")
    if not isinstance(row, Mapping) or set(row) != set(fields):
        raise ValueError(f"{where}: a row has exactly the fields {', '.join(fields)}, got {row!r}")
    if row["channel"] not in CHANNELS:
        raise ValueError(f"{where}: unknown channel {row['channel']!r}, use {', '.join(CHANNELS)}")
    distress, resistance = row["distress"], row["resistance"]
    if not isinstance(distress, int) or not isinstance(resistance, int):
        raise ValueError(
            f"{where}: distress and resistance are whole numbers, got {distress!r}, {resistance!r}"
        )
    if not 0 <= resistance <= TOP_TIER:
        raise ValueError(f"{where}: the resistance tier is {resistance}, use 0 to {TOP_TIER}")
    return Label(str(row["label"]), row["channel"], distress, resistance, str(row["source"]))


def _keyword(entry: Any, source: str) -> Keyword:
    if isinstance(entry, str):
        entry = {"phrase": entry}
    if not isinstance(entry, Mapping) or not {"phrase"} <= set(entry) <= {
        "phrase",
        "not_after",
        "not_before",
    }:
        raise ValueError(f"{source}: a keyword has `phrase`, `not_after` and `not_before`, got {entry!r}")
    exceptions = [tuple(entry.get(name, ())) for name in ("not_after", "not_before")]
    for words in (entry["phrase"], *exceptions[0], *exceptions[1]):
        if not isinstance(words, str):
            raise ValueError(
                f"{source}: the keyword {entry['phrase']!r} has {words!r}, which is no text; YAML reads a "
                "bare no, yes, on or off as true or false, so write it in quotes"
            )
    return Keyword(plain(entry["phrase"]), *exceptions)
