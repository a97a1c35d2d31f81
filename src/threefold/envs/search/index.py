"""Passages, and BM25 over them.

What an agent reads of a passage is bounded in `pieces`, an estimate of tokens that needs no tokenizer: four
letters, a digit or a mark each. English takes fewer tokens of a byte-level vocabulary than pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

_PIECE = re.compile(r"[A-Za-z]{1,4}|[^\sA-Za-z]")
_STOP_WORDS = """
a an the of in on at to for and or is are was were be been by with from as that this it its did does
do what who when where which how why many much will can has have had not his her their he she they
you i s t
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Words that say nothing about what a text is about."""


class MissingPackage(ImportError):
    """The package of the index is not installed."""


def require() -> None:
    """Raises MissingPackage, with what to install, where bm25s is not there."""
    try:
        metadata.version("bm25s")
    except metadata.PackageNotFoundError:
        raise MissingPackage(
            "search questions need the package bm25s: pip install 'threefold[search]'"
        ) from None


@dataclass(frozen=True)
class Passage:
    title: str
    text: str


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return re.findall(r"[^\W_]+", text.lower())


def pieces(text: str) -> int:
    """About how many tokens a text has, rather too many than too few."""
    return sum(1 for _ in _PIECE.finditer(text))


def bounded(text: str, limit: int) -> str:
    """The beginning of a text, in whole words, of at most `limit` pieces; "..." where something is left
    out."""
    kept: list[str] = []
    used = 0
    for word in text.split():
        used += pieces(word)
        if used > limit:
            return " ".join([*kept, "..."])
        kept.append(word)
    return " ".join(kept)


class Index:
    """BM25 over passages (title and text), with `bm25s`."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        """
        Raises:
            MissingPackage: bm25s is not installed.
            ValueError: There are no passages.
        """
        require()
        import bm25s

        if not passages:
            raise ValueError("there are no passages to search")
        self.passages = tuple(passages)
        self._vocabulary: dict[str, int] = {}
        corpus = [list(self._numbered(f"{p.title} {p.text}", grow=True)) for p in passages]
        self._bm25: Any = bm25s.BM25()
        self._bm25.index((corpus, self._vocabulary), show_progress=False)

    def search(self, query: str, k: int) -> list[int]:
        """Numbers of the best passages, best first; fewer than k where fewer share a word with the query."""
        numbers = list(self._numbered(query, grow=False))
        if not numbers:
            return []
        scores = self._bm25.get_scores(numbers)
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0.0
        # Ties in a fixed order: all that reach the k-th score, by score and then by number.
        candidates = np.flatnonzero((scores >= least) & (scores > 0)).tolist()
        return sorted(candidates, key=lambda number: (-scores[number], number))[:k]

    def _numbered(self, text: str, grow: bool) -> Iterator[int]:
        for word in words(text):
            if word in STOP_WORDS:
                continue
            if grow:
                yield self._vocabulary.setdefault(word, len(self._vocabulary))
            elif word in self._vocabulary:
                yield self._vocabulary[word]
