"""The backends of `threefold.chat.Chat`: endpoints that speak OpenAI's chat-completion protocol (vLLM,
llama.cpp, Ollama, SGLang, hosted services) and a local Hugging Face model."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

import requests
import urllib3

from threefold.chat import ChatError, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may pass; every other one above 399 is the request's own fault and is not sent again."""

ADVICE = {
    400: "the server refuses the request: try json_mode='object' or 'none', or leave fields out with extra",
    401: "set the environment variable that api_key_env names to a valid key",
    403: "this key may not use this model",
    404: "check base_url (it usually ends in /v1) and the model's name",
    413: "the context is too long for the server",
    422: "the server refuses a field: try json_mode='object' or 'none', or leave fields out with extra",
    429: "lower concurrency or requests_per_minute",
}

_LONGEST_ANSWER = 16 * 2**20
"""Bytes of an answer that are read; more is no chat completion."""


@dataclass
class Usage:
    """What an endpoint was asked and what it took, since it was made."""

    answers: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _RetryLaterError(Exception):
    """This attempt failed in a way that may pass."""

    def __init__(self, reason: str, wait_s: float | None = None, advice: str = "") -> None:
        super().__init__(reason)
        self.wait_s, self.advice = wait_s, advice


class ChatEndpoint:
    """A `Chat` behind an OpenAI-compatible endpoint; threads may share one.

    Time-outs, dropped connections, overload (429, 5xx) and bodies that are no chat completion are tried again
    after min(max_wait_s, first_wait_s * 2**n) seconds times a random factor in [0.5, 1]; a Retry-After header
    makes every thread wait that long. An empty answer is an answer.

    Args:
        base_url: Such as "http://localhost:8000/v1"; "/chat/completions" is added.
        model: Name of the model as the server knows it.
        api_key_env: Name of the environment variable that holds the key; None sends none. The key itself is
            never stored, shown or recorded.
        timeout_s: Limit of one attempt, from sending to the last byte (noticed at the latest one silent
            `timeout_s` later).
        connect_timeout_s: Limit for making the connection.
        retries: Further attempts after the first.
        first_wait_s, max_wait_s: Bounds of the waits between attempts. A longer Retry-After is a failure.
        concurrency: Requests under way at a time, over all threads.
        requests_per_minute: Spreads the starts of requests evenly; None for no limit.
        json_mode: How a schema is passed on: "schema" (json_schema, enforced by most servers), "object"
            (json_object) or "none" (for servers that refuse the field).
        extra: Further fields of the request's body; a value of None takes a field out, as in
            {"max_tokens": None, "max_completion_tokens": 800}.

    Raises:
        ValueError: A setting that cannot work, before anything is sent.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        connect_timeout_s: float = 10.0,
        retries: int = 4,
        first_wait_s: float = 0.5,
        max_wait_s: float = 30.0,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        json_mode: Literal["schema", "object", "none"] = "schema",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {base_url!r}: it must start with http:// or https://")
        for name, value, lowest in (
            ("retries", retries, 0),
            ("concurrency", concurrency, 1),
            ("first_wait_s", first_wait_s, 0),
            ("max_wait_s", max_wait_s, 0),
        ):
            if value < lowest:
                raise ValueError(f"{name} is {value}: give at least {lowest}")
        for name, value in (("timeout_s", timeout_s), ("connect_timeout_s", connect_timeout_s)):
            if value <= 0:
                raise ValueError(f"{name} is {value}: give more than 0 seconds")
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute is {requests_per_minute}: give more than 0, or None")
        if json_mode not in ("schema", "object", "none"):
            raise ValueError(f"json_mode is {json_mode!r}: one of 'schema', 'object', 'none'")
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise ValueError(
                f"api_key_env names {api_key_env}, which is not set: export it, or pass None for servers "
                "without keys"
            )
        self.url = base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model = model
        self.usage = Usage()
        self._api_key_env = api_key_env
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._retries, self._first_wait_s, self._max_wait_s = retries, first_wait_s, max_wait_s
        self._interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._json_mode = json_mode
        self._extra = dict(extra or {})
        self._places = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._not_before = 0.0
        self._next_start = 0.0

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.url!r}, model={self.model!r})"

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        body = self._body(messages, temperature, max_tokens, seed, schema)
        with self._places:
            for attempt in range(self._retries + 1):
                self._wait_for_turn()
                try:
                    text = self._send(body)
                except _RetryLaterError as problem:
                    if attempt == self._retries or (problem.wait_s or 0) > self._max_wait_s:
                        raise self._failed(problem, attempt + 1) from problem
                    self._pause(attempt, problem.wait_s)
                else:
                    with self._lock:
                        self.usage.answers += 1
                    return text
        raise AssertionError("unreachable: the last attempt returns or raises")

    def check(self) -> None:
        """Send one short question, so that a wrong address, key or model is found before the first step.

        Raises:
            ChatError: The endpoint cannot be used as it is set up.
        """
        self([{"role": "user", "content": "Answer with the word yes."}], max_tokens=16)

    def _body(
        self,
        messages: Sequence[Message],
        temperature: float,
        max_tokens: int,
        seed: int | None,
        schema: Mapping[str, Any] | None,
    ) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        if seed is not None:
            body["seed"] = seed
        if schema is not None and self._json_mode == "object":
            body["response_format"] = {"type": "json_object"}
        elif schema is not None and self._json_mode == "schema":
            form = {"name": "answer", "schema": dict(schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        body |= self._extra
        return json.dumps({name: value for name, value in body.items() if value is not None}).encode()

    def _send(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._api_key_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self._api_key_env, '')}"
        if not hasattr(self._threads, "session"):
            self._threads.session = requests.Session()
        limits = (self._connect_timeout_s, self._timeout_s)
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._threads.session.post(
                self.url, data=body, headers=headers, timeout=limits, stream=True, allow_redirects=False
            ) as response:
                raw = _read(response, deadline)
        except requests.Timeout as error:
            raise _RetryLaterError(
                f"no answer within {self._timeout_s:g} s", advice="raise timeout_s, or look at the server"
            ) from error
        except requests.exceptions.InvalidURL as error:
            raise ChatError(f"{self.url} is no address: {error}") from error
        except requests.RequestException as error:
            raise _RetryLaterError(
                f"the connection failed ({type(error).__name__}: {str(error)[:160]})",
                advice="is the server running, and is base_url right?",
            ) from error
        if response.status_code != 200:
            self._refuse(response, raw)
        return self._read_answer(raw)

    def _refuse(self, response: requests.Response, raw: bytes) -> None:
        status = response.status_code
        reason = f"status {status} {response.reason}: {raw[:200].decode(errors='replace')!r}"
        if status not in RETRIED:
            with self._lock:
                self.usage.failures += 1
            advice = ADVICE.get(status, "see the server's log")
            raise ChatError(f"{self.url} (model {self.model!r}): {reason}; {advice}")
        raise _RetryLaterError(
            reason, _retry_after(response.headers.get("Retry-After")), ADVICE.get(status, "")
        )

    def _read_answer(self, raw: bytes) -> str:
        try:
            answer = json.loads(raw)
            content = answer["choices"][0]["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _RetryLaterError(
                f"the body is no chat completion: {raw[:160].decode(errors='replace')!r}",
                advice="is this an OpenAI-compatible endpoint?",
            ) from error
        if not isinstance(content, str | None):
            raise _RetryLaterError(f"the answer's content is {type(content).__name__}, not text")
        usage = answer.get("usage")
        if isinstance(usage, dict):
            with self._lock:
                self.usage.prompt_tokens += _count(usage.get("prompt_tokens"))
                self.usage.completion_tokens += _count(usage.get("completion_tokens"))
        # a lone surrogate is valid JSON and no text: no file could hold it
        return (content or "").encode("utf-8", "replace").decode("utf-8")

    def _wait_for_turn(self) -> None:
        with self._lock:
            start = max(time.monotonic(), self._not_before, self._next_start)
            self._next_start = start + self._interval_s
        time.sleep(max(0.0, start - time.monotonic()))

    def _pause(self, attempt: int, wait_s: float | None) -> None:
        with self._lock:
            self.usage.retries += 1
            if wait_s is not None:
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
        if wait_s is None:
            # Jitter, so that threads that failed together do not come back together.
            time.sleep(min(self._max_wait_s, self._first_wait_s * 2**attempt) * random.uniform(0.5, 1.0))

    def _failed(self, problem: _RetryLaterError, attempts: int) -> ChatError:
        with self._lock:
            self.usage.failures += 1
        waits = f"; it asks to wait {problem.wait_s:g} s" if problem.wait_s is not None else ""
        advice = f"; {problem.advice}" if problem.advice else ""
        return ChatError(
            f"{self.url} (model {self.model!r}) gave no answer in {attempts} attempts: "
            f"{problem}{waits}{advice}"
        )


def _count(value: Any) -> int:
    """A number of tokens; 0 for whatever else a server puts there, since the answer itself may be sound."""
    return value if isinstance(value, int) else 0


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, within the deadline even if it trickles."""
    parts, size = [], 0
    try:
        # read1 takes what has arrived; iter_content would wait for a full buffer and never see the deadline.
        while part := response.raw.read1(65536, decode_content=True):
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline:
                raise requests.Timeout("the answer trickled past the limit")
            if size > _LONGEST_ANSWER:
                raise requests.RequestException(f"the answer is longer than {_LONGEST_ANSWER} bytes")
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.Timeout(str(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(str(error)) from error
    return b"".join(parts)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: seconds or a date), None where it says nothing."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


class LocalChat:
    """A `Chat` on a causal language model of transformers, one request at a time.

    The same messages and seed give the same answer on the same machine. A schema is not enforced here; the
    prompt has to ask for it and the caller to check.

    Args:
        model, tokenizer: As transformers loads them; the tokenizer needs a chat template.
        template: Keywords for the chat template, such as {"enable_thinking": False}.

    Raises:
        ValueError: The tokenizer has no chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use an instruct model or "
                "set tokenizer.chat_template"
            )
        self._model, self._tokenizer = model, tokenizer
        self._template = dict(template or {})
        self._lock = threading.Lock()

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", template: Mapping[str, Any] | None = None) -> LocalChat:
        """A hub name, a local folder or "embedded"; bfloat16 on an accelerator, else float32."""
        import torch

        from threefold.models import load_model, load_tokenizer

        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        return cls(load_model(name, dtype).to(device), load_tokenizer(name), template=template)

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            **self._template,
        ).to(self._model.device)
        length = inputs["input_ids"].shape[1]
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and length >= longest:
            raise ChatError(
                f"the request has {length} tokens, the local model reads {longest}: shorten the dialogue or "
                "use a model with a longer context"
            )
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        seeded = seed is not None and temperature > 0
        # With a seed the process's own random state is left as it was; training draws from it too.
        with self._lock, torch.random.fork_rng(devices=devices, enabled=seeded), torch.no_grad():
            if seeded:
                torch.manual_seed(seed)
            output = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_tokens if longest is None else min(max_tokens, longest - length),
                pad_token_id=self._tokenizer.pad_token_id,
                **sampling,
            )
        return self._tokenizer.decode(output[0, length:], skip_special_tokens=True)
