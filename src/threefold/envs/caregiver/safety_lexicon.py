"""Reads the words of the safety rules from `safety.yaml`; `plain` brings text into the form they are for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

Pattern = re.Pattern[str]


@dataclass(frozen=True)
class Guarded:
    """A pattern that counts where a hazard of the scenario matches, or anywhere if `hazard` is None."""

    rule: str
    hazard: Pattern | None
    words: Pattern


def _load() -> tuple[Mapping[str, Any], Mapping[str, str]]:
    file = resources.files("threefold.envs.caregiver") / "safety.yaml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    pieces: dict[str, str] = {}
    for name, pattern in data["pieces"].items():
        pieces[name] = _fill(pattern, pieces)
    return data, pieces


def _fill(pattern: str, pieces: Mapping[str, str]) -> str:
    return re.sub(r"<([a-z]+)>", lambda m: pieces.get(m[1], m[0]), pattern)


def _words(rows: Sequence[str]) -> Pattern:
    """One pattern that finds any of the rows as whole words."""
    return re.compile(r"\b(?:" + "|".join(_fill(row, _PIECES) for row in rows) + r")(?!\w)")


def _guarded(rows: Sequence[Mapping[str, Any]]) -> tuple[Guarded, ...]:
    return tuple(
        Guarded(row["rule"], _words(row["hazard"]) if "hazard" in row else None, _words(row["words"]))
        for row in rows
    )


_DATA, _PIECES = _load()
VERSION: str = _DATA["version"]
DANGEROUS_ACTS = {rule: _words(rows) for rule, rows in _DATA["dangerous_acts"].items()}
ACTS_BY_SENTENCE = _guarded(_DATA["acts_by_sentence"])
STATEMENTS = {rule: _words(rows) for rule, rows in _DATA["statements"].items()}
COERCION = {rule: _words(rows) for rule, rows in _DATA["coercion"].items()}
CORRECTING = _words(_DATA["correcting"])
RISKS = _guarded(_DATA["risks"])
DIETS = _guarded(_DATA["diets"])
PLACES = _guarded(_DATA["places"])
FIELDS = {field: _words(rows) for field, rows in _DATA["fields"].items()}
INTENT = _words(_DATA["intent"])
PRUDENT = _words(_DATA["prudent"])
REFUSES = _words(_DATA["refuses"])
OMISSION = _words(_DATA["omission"])
DECLINES = _words(_DATA["declines"])
UNATTENDED = _words(_DATA["unattended"])
NEGATION = _words(_DATA["negation"])
WITHDRAWN = _words(_DATA["withdrawn"])
DENIED = _words(_DATA["denied"])
QUOTED = _words(_DATA["quoted"])
REQUEST = _words(_DATA["request"])
GRANT = _words(_DATA["grant"])
GRANT_OF_MORE = _words(_DATA["grant_of_more"])
GRANT_OF_LESS = _words(_DATA["grant_of_less"])
AGREE = _words(_DATA["agree"])
ATTENDS = _words(_DATA["attends"])
TAG_QUESTION = re.compile(_DATA["tag_question"])
SAFEGUARD = _words(_DATA["safeguard"])
PLAN = _words(_DATA["plan"])
DIRECTIVE = re.compile(_DATA["directive"])
SUGGESTING_NOT = re.compile(_DATA["suggesting_not"])
ACKNOWLEDGEMENT = re.compile(_DATA["acknowledgement"])
ECHO = re.compile("|".join(_DATA["echo"]))
SENT = re.compile(_DATA["sent"])
BASE_FORMS: Mapping[str, str] = _DATA["announced"]
ANNOUNCED = re.compile(r"\b(?:i am|we are) (?:just |now )?(" + "|".join(BASE_FORMS) + r")\b")
COMMON = frozenset(_DATA["common"].split())

_CONTRACTIONS = [
    (re.compile(pattern), full)
    for pattern, full in (
        (r"\bcan(?:'t|not|t)\b", "can not"),
        (r"\bwon'?t\b", "will not"),
        (r"\bshan't\b", "shall not"),
        (r"\bain't\b", "is not"),
        (r"\b(do|does|did|is|are|was|were|has|have|had|would|could|should|must|need)n'?t\b", r"\1 not"),
        (r"\blet's\b", "let us"),
        (r"\b(i)'m\b", r"\1 am"),
        (r"'re\b", " are"),
        (r"'ll\b", " will"),
        (r"'ve\b", " have"),
        (r"\b(you|we|they|he|she|i)'d better\b", r"\1 had better"),
        (r"'d\b", " would"),
        (
            r"\b(it|that|there|here|what|who|he|she|where|how|nobody|everything|nothing)'s\b",
            r"\1 is",
        ),
        (r"\bgonna\b", "going to"),
        (r"\bwanna\b", "want to"),
        (r"\bgotta\b", "have to"),
        (r"\bok\b|\bokey\b", "okay"),
        (r"\balright\b", "all right"),
    )
]
_QUOTES = str.maketrans({0x2019: "'", 0x2018: "'", 0x02BC: "'", 0x201C: '"', 0x201D: '"'})


def plain(text: str) -> str:
    """Lower case, straight quotes, contractions written out, one space between words."""
    text = text.lower().translate(_QUOTES)
    for pattern, full in _CONTRACTIONS:
        text = pattern.sub(full, text)
    return re.sub(r"\s+", " ", text).strip()
