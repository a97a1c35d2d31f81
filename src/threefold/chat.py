"""What a language model is to those who only talk to it: a function from messages to text.

Judges, the simulated patient and the skill creator are handed a `Chat` and never learn where it runs; the
backends (an endpoint, a local model) stand in `threefold.llm`. Here are the protocol, its one error, record
and replay, batches, and the reading of JSON answers. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""

T = TypeVar("T")


class ChatError(RuntimeError):
    """No answer could be had, after all retries; the message names the place, the cause and what to do."""


class NotRecordedError(LookupError):
    """A replay was asked for something that is not in the record. Never mended: the record is the wrong
    one."""


class Chat(Protocol):
    """Any language model that answers messages with text."""

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Answer the messages; may be called from several threads.

        Args:
            messages: The whole context, oldest first.
            temperature: 0 asks for the likeliest answer.
            max_tokens: Limit of the answer.
            seed: For backends that can sample reproducibly; a wish, not a promise, on most endpoints.
            schema: JSON schema that the answer should follow. Not every backend enforces it, so the prompt
                has to say it too and the answer has to be checked.

        Returns:
            The text; empty where the model said nothing.

        Raises:
            ChatError: No answer could be had.
        """
        ...


@dataclass(frozen=True)
class Request:
    """The arguments of one call of a `Chat`."""

    messages: tuple[Message, ...]
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    schema: Mapping[str, Any] | None = None

    def send(self, chat: Chat) -> str:
        return chat(
            self.messages,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=self.seed,
            schema=self.schema,
        )

    def key(self, model: str) -> str:
        """SHA-256 of the model's name and everything that the answer may depend on."""
        payload = {**dataclasses.asdict(self), "messages": [dict(m) for m in self.messages], "model": model}
        text = json.dumps(payload, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Recorded:
    """A `Chat` that keeps every answer in a JSONL file, and gives it again when the same is asked.

    With a `chat` behind it, what is not in the file is asked of it and added (a failure too, which is asked
    again the next time). Without one it is a replay: no network, the same answers and the same failures.
    Lines are found by a hash of the request, so their order in the file, which depends on who answered first,
    means nothing. Every line is on disk before its answer is used.

    Args:
        path: The file; made if missing, except for a replay.
        chat: Who answers what is not recorded; None for a replay.
        model: The model's name, part of the hash: another model's answers are never replayed.

    Raises:
        FileNotFoundError: A replay without its file.
        ValueError: A line that is no record; a last line that a crash cut short is left out.
    """

    def __init__(self, path: str | Path, chat: Chat | None = None, *, model: str) -> None:
        self._path, self._chat, self._model = Path(path), chat, model
        self._lock = threading.Lock()
        if chat is None and not self._path.exists():
            raise FileNotFoundError(
                f"there is no record {self._path} to replay: make one by giving Recorded a chat"
            )
        self._lines = _read_record(self._path) if self._path.exists() else {}
        if chat is not None and self._path.exists():
            _cut_unfinished_line(self._path)

    def __len__(self) -> int:
        return len(self._lines)

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        request = Request(tuple(messages), temperature, max_tokens, seed, schema)
        key = request.key(self._model)
        with self._lock:
            line = self._lines.get(key)
        if line is not None and line["answer"] is not None:
            return line["answer"]
        if self._chat is None:
            if line is not None:
                raise ChatError(line["error"])
            raise NotRecordedError(self._summary(request, key))
        try:
            answer = request.send(self._chat)
        except ChatError as error:
            self._keep({"key": key, "model": self._model, "answer": None, "error": str(error)})
            raise
        last = request.messages[-1]["content"] if request.messages else ""
        self._keep({"key": key, "model": self._model, "asked": last[-200:], "answer": answer})
        return answer

    def _keep(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._lines[line["key"]] = line
            self._path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._path.stat().st_size if self._path.exists() else 0
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            except OSError:  # a full disk, say: what it took of the line must not run into the next one
                if self._path.exists():
                    os.truncate(self._path, whole)
                raise

    def _summary(self, request: Request, key: str) -> str:
        last = request.messages[-1]["content"] if request.messages else ""
        return (
            f"{self._path} ({len(self._lines)} answers) has none to this request of model {self._model!r} "
            f"(key {key[:12]}, {len(request.messages)} messages, temperature {request.temperature:g}, "
            f"seed {request.seed}, ends in {last[-80:]!r}): record again with the chat behind it, or use the "
            "seed, prompts and model of the recording"
        )


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    lines: dict[str, dict[str, Any]] = {}
    texts = path.read_text(encoding="utf-8").split("\n")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not {"key", "answer"} <= line.keys():
                raise ValueError("needs the fields 'key' and 'answer'")
        except ValueError as error:
            if number == len(texts):  # no newline after it: a crash cut it short
                continue
            raise ValueError(f"{path}, line {number}: not a recorded answer: {error}") from error
        lines[line["key"]] = line
    return lines


def _cut_unfinished_line(path: Path) -> None:
    """So that the next line does not continue one that a crash cut short."""
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(whole.rfind(b"\n") + 1)


def ask_all(chat: Chat, requests: Sequence[Request], *, concurrency: int = 8) -> list[str | ChatError]:
    """Send requests side by side; answers come back in the requests' order, a failure in its place.

    Args:
        chat: Who answers.
        requests: What to ask.
        concurrency: Number of requests under way at a time, at least 1.
    """

    def one(request: Request) -> str | ChatError:
        try:
            return request.send(chat)
        except ChatError as error:
            return error

    return in_parallel(one, requests, concurrency)


def in_parallel(function: Callable[[Any], T], items: Sequence[Any], concurrency: int) -> list[T]:
    """Results in the order of `items`, at most `concurrency` calls under way."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: give at least 1")
    if len(items) <= 1 or concurrency == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(concurrency, len(items))) as pool:
        return list(pool.map(function, items))


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What came of asking for JSON."""

    value: T | None
    """None where every attempt failed."""
    failures: int
    """Answers that could not be used, and requests that got none."""
    error: str = ""
    """Why the last attempt failed."""


def ask_json(
    chat: Chat,
    request: Request,
    read: Callable[[Mapping[str, Any]], T],
    *,
    attempts: int = 4,
) -> Asked[T]:
    """Ask for a JSON object until one can be read, telling the model each time what was wrong.

    Never raises for an answer or a `ChatError`: the value is None then, and the failures are counted. A
    `ChatError` is not asked again here, since backends have tried again themselves: a dead endpoint must not
    be waited for `attempts` times over.

    Args:
        chat: Who is asked.
        request: The first request. Each further one carries the last bad answer and the complaint, and a seed
            one higher, so neither a fixed seed nor a record repeats the failure.
        read: Makes the value; raises ValueError with what is wrong, in words the model can act on.
        attempts: How often to ask, at least 1.
    """
    current, error = request, ""
    for attempt in range(attempts):
        try:
            answer = current.send(chat)
        except ChatError as failure:
            return Asked(None, attempt + 1, str(failure))
        try:
            return Asked(read(find_json(answer)), attempt)
        except ValueError as failure:
            error = str(failure)
        complaint = f"That answer cannot be used: {error} Answer again with the JSON object alone."
        current = dataclasses.replace(
            request,
            messages=(
                *request.messages,
                {"role": "assistant", "content": answer[-2000:] or "..."},
                {"role": "user", "content": complaint},
            ),
            seed=None if request.seed is None else request.seed + attempt + 1,
        )
    return Asked(None, attempts, error)


LONGEST_JSON = 50_000
"""Characters of an answer, from its end, in which JSON is looked for: far more than a rubric or a skill
needs, and few enough that no garbage takes long to read."""
_OBJECT = re.compile(r"\{(?=\s*[\"}])")
"""Where an object may begin."""


def find_json(text: str) -> dict[str, Any]:
    """The last whole JSON object of a text: alone, in a code fence, or after a model's thinking.

    Raises:
        ValueError: There is none.
    """
    text = text[-LONGEST_JSON:]
    decoder, found, position = json.JSONDecoder(), None, 0
    while match := _OBJECT.search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.end()
            continue
        found = value
    if found is None:
        raise ValueError(f"there is no JSON object in {text[:80]!r}.")
    # "\ud83d" alone is valid JSON and no text: no file and no request could hold it
    if half := re.search("[\ud800-\udfff]", json.dumps(found, ensure_ascii=False)):
        raise ValueError(f"half of a character, {half[0]!r}, is in the JSON object; write characters whole.")
    return found
