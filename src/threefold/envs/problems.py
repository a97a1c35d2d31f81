"""Problems with a known answer, from a file, a folder or the Hugging Face hub.

Whatever the source, each row is checked when it is loaded: a question or an answer that is missing is an
error that names the row, not a reward of zero at step 120.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A question and its final answer."""

    id: str
    question: str
    answer: str
    """The final answer alone, as text: no worked solution."""
    difficulty: str = ""


@dataclass(frozen=True)
class HubSet:
    """Where a well-known set lies on the Hugging Face hub, and what it calls its columns."""

    path: str
    config: str | None
    splits: tuple[str, ...]
    question_column: str
    answer_column: str


KNOWN_SETS: Mapping[str, HubSet] = {
    "gsm8k": HubSet("openai/gsm8k", "main", ("train", "test"), "question", "answer"),
    "math500": HubSet("HuggingFaceH4/MATH-500", None, ("test",), "problem", "answer"),
    "aime24": HubSet("math-ai/aime24", None, ("test",), "problem", "solution"),
    "aime25": HubSet("math-ai/aime25", None, ("test",), "problem", "answer"),
    "amc23": HubSet("math-ai/amc23", None, ("test",), "question", "answer"),
}
"""Short names that `load_problems` knows."""

_FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")


def load_problems(
    source: str | Path,
    *,
    question_column: str = "question",
    answer_column: str = "answer",
    id_column: str | None = None,
    split: str = "train",
    config: str | None = None,
    limit: int | None = None,
) -> tuple[Problem, ...]:
    """Load problems and check every one of them.

    Args:
        source: A .jsonl, .json (list of objects), .csv or .parquet file; a folder that `datasets` saved or
            can load; a short name in `KNOWN_SETS`; or the name of a data set on the hub ("openai/gsm8k").
        question_column: Column of the questions. For a short name the default means that set's own column, as
            it does for `answer_column`.
        answer_column: Column of the final answers. Of a worked solution that ends in `#### 72`, as GSM8K has
            them, the answer after the last `####` is taken.
        id_column: Column of the ids, which have to be unique. Default: the column "id" where there is one
            without gaps and repetitions, else the name of the source and the row number.
        split: Split to load from a folder or the hub. A file has no splits.
        config: Configuration of a data set on the hub. Default: the short name's own, or none.
        limit: Only the first so many rows, all by default.

    Returns:
        The problems, in the order of the source. `difficulty` comes from the column "difficulty" or "level"
        if any.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: An unknown name or split, a missing column, no rows, a row without question or answer, or
            a repeated id in `id_column`; the message names the row (counted from 1).
        ConnectionError: The hub cannot be reached, or has no such data set.
    """
    if limit is not None and limit < 1:
        raise ValueError(
            f"limit is {limit}, but at least one problem is needed: give 1 or more, or None for all"
        )
    known = KNOWN_SETS.get(str(source)) if not Path(source).exists() else None
    if known is not None:
        question_column = known.question_column if question_column == "question" else question_column
        answer_column = known.answer_column if answer_column == "answer" else answer_column
    rows = list(_rows(source, known, split, config, limit))
    if not rows:
        raise ValueError(f"{source}: the data set is empty")
    for column in filter(None, (question_column, answer_column, id_column)):
        _require_column(source, column, rows)
    ids = _ids(source, rows, id_column)
    return tuple(
        Problem(
            id=ids[index],
            question=_text(source, index, row, question_column),
            answer=_final_answer(_text(source, index, row, answer_column)),
            difficulty=str(
                next((row[name] for name in ("difficulty", "level") if row.get(name) is not None), "")
            ),
        )
        for index, row in enumerate(rows)
    )


# --- Rows of a source
# -------------------------------------------------------------------------------------------------


def _rows(
    source: str | Path, known: HubSet | None, split: str, config: str | None, limit: int | None
) -> Iterable[dict[str, Any]]:
    path = Path(source)
    if path.suffix.lower() in _FILE_TYPES:
        if not path.is_file():
            names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
            nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
            hint = f" Did you mean {path.parent / nearest[0]}?" if nearest else ""
            raise FileNotFoundError(f"no file {source}.{hint}")
        return _first(_file_rows(path), limit)
    if path.is_file():
        raise ValueError(
            f"{source}: problems are read from {', '.join(_FILE_TYPES)} files, not from {path.suffix!r}"
        )
    if path.is_dir():
        return _first(_folder_rows(path, split), limit)
    if known is None and (
        path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1
    ):
        raise FileNotFoundError(f"no folder {source}")
    if known is None and "/" not in str(source):
        nearest = difflib.get_close_matches(str(source).lower(), KNOWN_SETS, n=1, cutoff=0.5)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"unknown problem set {str(source)!r}: give a file, a folder, a hub name such as 'openai/gsm8k', "
            f"or one of {', '.join(KNOWN_SETS)}.{hint}"
        )
    if known is not None and split not in known.splits:
        raise ValueError(f"{source} has no split {split!r}: use {' or '.join(map(repr, known.splits))}")
    return _first(
        _hub_rows(known.path if known else str(source), config or (known.config if known else None), split),
        limit,
    )


def _first(rows: Iterable[dict[str, Any]], limit: int | None) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows):
        if limit is not None and index >= limit:
            return
        yield row


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    elif suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    elif suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _object(f"{path}, line {number}", _json(f"{path}, line {number}", line))
    else:
        data = _json(
            f"{path} (a .json file holds one list; with one object a line, call it .jsonl)",
            path.read_text("utf-8-sig"),
        )
        if not isinstance(data, list):
            raise ValueError(f"{path}: a list of objects is needed, found {type(data).__name__}")
        for number, value in enumerate(data, 1):
            yield _object(f"{path}, row {number}", value)


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: an object with the columns as keys is needed, found {type(value).__name__}"
        )
    return value


def _folder_rows(path: Path, split: str) -> Iterable[dict[str, Any]]:
    import datasets

    if (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(path))
        if split not in splits:
            raise ValueError(f"{path} has no split {split!r}: use {' or '.join(map(repr, splits))}")
        return splits[split]
    try:
        return datasets.load_dataset(str(path), split=split)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path}: not a folder of a data set with a split {split!r}: {error}") from error


def _hub_rows(path: str, config: str | None, split: str) -> Iterable[dict[str, Any]]:
    import datasets

    try:
        return datasets.load_dataset(path, config, split=split)
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            f"cannot load {path!r} (configuration {config!r}, split {split!r}) from the hub: {error}. "
            "Without a network, give a local file or a folder that datasets.save_to_disk wrote."
        ) from error


# --- Checks
# -----------------------------------------------------------------------------------------------------------


def _require_column(source: str | Path, column: str, rows: list[dict[str, Any]]) -> None:
    present = list(dict.fromkeys(name for row in rows for name in row))
    if column not in present:
        nearest = difflib.get_close_matches(column, map(str, present), n=1, cutoff=0.5)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"{source}: no column {column!r}; the columns are {', '.join(map(str, present))}.{hint}"
        )


def _ids(source: str | Path, rows: list[dict[str, Any]], id_column: str | None) -> list[str]:
    values = [row.get(id_column or "id") for row in rows]
    if id_column is None:
        ids = [str(value) for value in values]
        if not any(_is_missing(value) for value in values) and len(set(ids)) == len(ids):
            return ids
        name = Path(source).stem
        return [f"{name}-{number}" for number in range(1, len(rows) + 1)]
    first_seen: dict[str, int] = {}
    for number, value in enumerate(values, 1):
        if _is_missing(value):
            raise ValueError(f"{source}, row {number}: the id in column {id_column!r} is missing")
        if str(value) in first_seen:
            raise ValueError(
                f"{source}, row {number}: the id {value!r} in column {id_column!r} is that of row "
                f"{first_seen[str(value)]}, too; ids have to be unique. Without id_column rows are numbered."
            )
        first_seen[str(value)] = number
    return list(first_seen)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def _text(source: str | Path, index: int, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, list) and len(value) == 1:  # OlympiadBench keeps its answers in lists
        value = value[0]
    if _is_missing(value):
        raise ValueError(f"{source}, row {index + 1}: the column {column!r} is empty")
    if isinstance(value, dict | list):
        raise ValueError(
            f"{source}, row {index + 1}: the column {column!r} needs a text or a number, found {value!r}"
        )
    return str(value).strip()


_SOLUTION_END = re.compile(r"####[ \t]*(\S[^\n]*?)\s*\Z")


def _final_answer(answer: str) -> str:
    found = _SOLUTION_END.search(answer, max(0, answer.rfind("####")))
    return found[1] if found else answer
