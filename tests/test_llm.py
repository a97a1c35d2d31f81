"""The client of chat endpoints against a real server that fails in every way, and the local model."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_server import Reply, chat_server
from threefold.chat import (
    ChatError,
    NotRecordedError,
    Recorded,
    Request,
    ask_all,
    ask_json,
    find_json,
)
from threefold.llm import ChatEndpoint, LocalChat

ASK = [{"role": "user", "content": "How are you?"}]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def endpoint(url: str, **settings: Any) -> ChatEndpoint:
    return ChatEndpoint(url, "tiny", **{"first_wait_s": 0.01, "max_wait_s": 2.0, "retries": 2, **settings})


def test_an_answer_and_what_was_sent_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_TEST_KEY", "secret")
    with chat_server(["Well."]) as server:
        chat = endpoint(server.url + "/", api_key_env="THREEFOLD_TEST_KEY", extra={"top_p": 0.9})
        answer = chat(ASK, temperature=0.5, max_tokens=9, seed=3, schema={"type": "object"})
    assert answer == "Well."
    form = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert server.seen == [
        {
            "model": "tiny",
            "messages": ASK,
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 3,
            "response_format": {"type": "json_schema", "json_schema": form},
            "top_p": 0.9,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(chat) + repr(vars(chat))
    assert (chat.usage.answers, chat.usage.prompt_tokens, chat.usage.completion_tokens) == (1, 7, 3)


@pytest.mark.parametrize(
    ("mode", "form"), [("object", {"type": "json_object"}), ("none", None)], ids=["object", "none"]
)
def test_json_modes_for_servers_that_know_less(mode: Any, form: Any) -> None:
    with chat_server(["{}"]) as server:
        endpoint(server.url, json_mode=mode, extra={"max_tokens": None})(ASK, schema={"type": "object"})
    assert server.seen[0].get("response_format") == form
    assert "max_tokens" not in server.seen[0]


@pytest.mark.parametrize("count", ['"many"', "[3]", "Infinity", "null", "1.5"])
def test_a_strange_count_of_tokens_does_not_cost_the_answer(count: str) -> None:
    body = f'{{"choices": [{{"message": {{"content": "Yes."}}}}], "usage": {{"prompt_tokens": {count}}}}}'
    with chat_server([Reply(body=body.encode())]) as server:
        chat = endpoint(server.url)
        assert chat(ASK) == "Yes."
    assert chat.usage.prompt_tokens == 0


def test_half_a_character_in_an_answer_can_be_kept(tmp_path: Path) -> None:
    with chat_server(["It is \ud83d cold."]) as server:
        chat = Recorded(tmp_path / "record.jsonl", endpoint(server.url), model="tiny")
        assert chat(ASK) == "It is ? cold."
    assert Recorded(tmp_path / "record.jsonl", model="tiny")(ASK) == "It is ? cold."
    with pytest.raises(ValueError, match=r"half of a character, '\\ud83d'"):
        find_json(r'{"mood": "\ud83d"}')


def test_an_empty_answer_is_an_answer() -> None:
    with chat_server([Reply(None), Reply("")]) as server:
        chat = endpoint(server.url)
        assert [chat(ASK), chat(ASK)] == ["", ""]
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=500, body=b"boom"),
        Reply(body=b"<html>not json"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": {"content": 5}}]}'),
        Reply(body=b"[]"),
        Reply(body=b"[" * 200_000),
        Reply(status=529, body=b"overloaded"),
    ],
    ids=["500", "no JSON", "no choices", "content is a number", "a list", "a deep list", "overloaded"],
)
def test_what_may_pass_is_asked_again(bad: Reply) -> None:
    with chat_server([bad, "Better."]) as server:
        chat = endpoint(server.url)
        assert chat(ASK) == "Better."
    assert len(server.seen) == 2
    assert (chat.usage.retries, chat.usage.failures) == (1, 0)


def test_retry_after_is_kept() -> None:
    with chat_server([Reply(status=429, headers={"Retry-After": "0.3"}), "Now."]) as server:
        began = time.monotonic()
        assert endpoint(server.url)(ASK) == "Now."
        assert time.monotonic() - began >= 0.3  # a lower bound: no machine is too slow for it


def test_a_retry_after_beyond_the_limit_is_a_failure_at_once() -> None:
    with chat_server([Reply(status=429, headers={"Retry-After": "3600"})]) as server:
        with pytest.raises(ChatError, match=r"asks to wait 3600 s; lower concurrency"):
            endpoint(server.url)(ASK)
        assert len(server.seen) == 1


def test_a_server_that_never_recovers() -> None:
    with chat_server([Reply(status=503, body=b"loading")]) as server:
        chat = endpoint(server.url)
        with pytest.raises(ChatError) as caught:
            chat(ASK)
    assert len(server.seen) == 3
    assert chat.usage.failures == 1
    for part in (server.url, "'tiny'", "3 attempts", "503", "loading"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("status", "advice"), [(401, "api_key_env"), (404, "base_url"), (400, "json_mode")])
def test_the_requests_own_fault_is_not_sent_again(status: int, advice: str) -> None:
    with chat_server([Reply(status=status, body=b"no such thing")]) as server:
        with pytest.raises(ChatError, match=advice):
            endpoint(server.url).check()
        assert len(server.seen) == 1


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with (
        chat_server([Reply(status=307, headers={"Location": "http://127.0.0.1:9/"})]) as server,
        pytest.raises(ChatError, match="307"),
    ):
        endpoint(server.url)(ASK)


@pytest.mark.parametrize("slow", [Reply("late", delay_s=30), Reply("late", trickle_s=0.05)])
def test_a_time_out_silent_or_trickling(slow: Reply) -> None:
    with (
        chat_server([slow]) as server,
        pytest.raises(ChatError, match=r"1 attempts: no answer within 0\.2 s"),
    ):
        endpoint(server.url, timeout_s=0.2, retries=0)(ASK)


def test_a_time_out_then_an_answer() -> None:
    with chat_server([Reply("late", delay_s=30), "In time."]) as server:
        assert endpoint(server.url, timeout_s=0.5)(ASK) == "In time."


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ChatError, match="is the server running"):
            endpoint(f"http://127.0.0.1:{port}/v1", retries=1)(ASK)


def test_batches_keep_their_order_and_failures_their_place() -> None:
    def script(body: dict[str, Any]) -> Reply | str:
        text = body["messages"][0]["content"]
        if text == "3":
            return Reply(status=404)
        return Reply(f"answer {text}", delay_s=0.05 if int(text) % 2 else 0)

    with chat_server(script) as server:
        asked = [Request(({"role": "user", "content": str(i)},)) for i in range(8)]
        answers = ask_all(endpoint(server.url, concurrency=3), asked, concurrency=8)
    assert [str(a) if i != 3 else type(a) for i, a in enumerate(answers)] == [
        f"answer {i}" if i != 3 else ChatError for i in range(8)
    ]
    assert server.busiest <= 3


def test_requests_a_minute_spread_the_starts() -> None:
    with chat_server(["ok"]) as server:
        chat = endpoint(server.url, requests_per_minute=1200)  # one each 50 ms
        began = time.monotonic()
        ask_all(chat, [Request(tuple(ASK), seed=i) for i in range(5)])
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "http://"),
        ({"retries": -1}, "retries is -1"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"json_mode": "yaml"}, "'schema', 'object', 'none'"),
        ({"api_key_env": "THREEFOLD_NO_SUCH_KEY"}, "THREEFOLD_NO_SUCH_KEY, which is not set"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_sent(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ChatEndpoint(**{"base_url": "http://127.0.0.1:9", "model": "tiny", **settings})


# Record and replay.


def test_a_replay_needs_no_server_and_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    asked = [Request(tuple(ASK), seed=i) for i in range(4)]
    with chat_server(lambda body: f"answer {body['seed']}") as server:
        recorded = ask_all(Recorded(path, endpoint(server.url), model="tiny"), asked)
        Recorded(path, endpoint(server.url), model="tiny")(ASK, seed=2)
        assert len(server.seen) == 4  # the fifth came from the file
    replay = Recorded(path, model="tiny")
    assert len(replay) == 4
    assert ask_all(replay, asked) == recorded == [f"answer {i}" for i in range(4)]


def test_what_was_not_recorded_is_refused_with_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with chat_server(["Well."]) as server:
        Recorded(path, endpoint(server.url), model="tiny")(ASK, seed=1)
    for replay, seed in ((Recorded(path, model="tiny"), 2), (Recorded(path, model="other"), 1)):
        with pytest.raises(NotRecordedError) as caught:
            replay(ASK, seed=seed)
        assert "How are you?" in str(caught.value)
        assert f"seed {seed}" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no record"):
        Recorded(tmp_path / "none.jsonl", model="tiny")


def test_a_failure_is_replayed_as_a_failure_and_asked_again_when_recording(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with chat_server([Reply(status=404), "Well."]) as server:
        chat = Recorded(path, endpoint(server.url), model="tiny")
        with pytest.raises(ChatError, match="404"):
            chat(ASK)
        with pytest.raises(ChatError, match="404"):
            Recorded(path, model="tiny")(ASK)
        assert chat(ASK) == "Well."
    assert Recorded(path, model="tiny")(ASK) == "Well."


def test_a_record_that_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with chat_server(["Well."]) as server:
        Recorded(path, endpoint(server.url), model="tiny")(ASK)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole[:20], encoding="utf-8")
    assert Recorded(path, model="tiny")(ASK) == "Well."
    with chat_server(["More."]) as server:
        Recorded(path, endpoint(server.url), model="tiny")(ASK, seed=7)
    assert Recorded(path, model="tiny")(ASK, seed=7) == "More."
    path.write_text(whole[:20] + "\n" + whole, encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: not a recorded answer"):
        Recorded(path, model="tiny")


FULL_DISK = """
import resource, sys
from threefold.chat import Recorded
answers = Recorded(sys.argv[1], lambda messages, **options: messages[0]["content"] * 40, model="tiny")
ask = lambda text: answers([{"role": "user", "content": text}])
ask("a" * 10)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
try:
    ask("b" * 10)  # the kernel takes a part of its line
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ask("c" * 10)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_disk_that_fills_up_leaves_no_half_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    replay = Recorded(path, model="tiny")
    assert len(replay) == 2
    assert replay([{"role": "user", "content": "c" * 10}]) == "c" * 400


# JSON answers.


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": 1}}',
        'Sure!\n```json\n{"a": {"b": 1}}\n```',
        '<think>perhaps {"a": 2}? {no}</think>{"a": {"b": 1}} Done.',
    ],
)
def test_json_is_found_alone_fenced_and_after_thinking(text: str) -> None:
    assert find_json(text) == {"a": {"b": 1}}


@pytest.mark.parametrize("garbage", ["{" * 1_000_000, '{"a":' * 200_000, "{ " * 500_000])
def test_garbage_of_any_length_is_no_json(garbage: str) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        find_json(garbage)
    assert find_json(garbage + 'x {"a": 1}') == {"a": 1}


@given(st.text())
def test_finding_json_raises_nothing_but_value_errors(text: str) -> None:
    try:
        assert isinstance(find_json(text), dict)
    except ValueError:
        assert text is not None


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.none() | st.booleans())))
def test_any_object_is_found_within_prose(value: dict[str, Any]) -> None:
    assert find_json(f"Here: {json.dumps(value)} I hope it helps.") == value


def positive(answer: Any) -> int:
    if answer.get("x", 0) <= 0:
        raise ValueError("x must be above 0.")
    return int(answer["x"])


def test_a_bad_answer_is_shown_to_the_model_with_the_complaint() -> None:
    with chat_server(["gibberish", '{"x": -1}', '{"x": 4}']) as server:
        asked = ask_json(endpoint(server.url), Request(tuple(ASK), seed=5), positive)
    assert (asked.value, asked.failures) == (4, 2)
    assert [body["seed"] for body in server.seen] == [5, 6, 7]
    assert [m["content"] for m in server.seen[2]["messages"]] == [
        "How are you?",
        '{"x": -1}',
        "That answer cannot be used: x must be above 0. Answer again with the JSON object alone.",
    ]


def test_when_every_answer_is_bad_the_failures_are_counted() -> None:
    with chat_server(["gibberish"]) as server:
        asked = ask_json(endpoint(server.url), Request(tuple(ASK)), positive, attempts=3)
    assert (asked.value, asked.failures, len(server.seen)) == (None, 3, 3)
    assert "no JSON object" in asked.error


def test_an_endpoint_that_gave_up_is_not_asked_again() -> None:
    with chat_server(["gibberish", Reply(status=404), '{"x": 1}']) as server:
        asked = ask_json(endpoint(server.url), Request(tuple(ASK)), positive, attempts=3)
    assert (asked.value, asked.failures, len(server.seen)) == (None, 2, 2)
    assert "404" in asked.error


# A local model.


def test_a_local_model_answers_and_leaves_the_random_state_alone(model_folder: Path) -> None:
    import torch

    chat = LocalChat.load(str(model_folder))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = chat(ASK, temperature=1.0, max_tokens=12, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert chat(ASK, temperature=1.0, max_tokens=12, seed=1) == first
    assert any(chat(ASK, temperature=1.0, max_tokens=12, seed=seed) != first for seed in range(2, 6))
    assert chat(ASK, max_tokens=12) == chat(ASK, max_tokens=12, seed=9)


def test_a_local_model_refuses_what_does_not_fit(model_folder: Path) -> None:
    chat = LocalChat.load(str(model_folder))
    with pytest.raises(ChatError, match="reads 256"):
        chat([{"role": "user", "content": "x" * 300}])
