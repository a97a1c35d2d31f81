"""A real HTTP server on 127.0.0.1 that answers chat completions as a test wants them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer of the server."""

    content: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent instead of a chat completion."""
    delay_s: float = 0.0
    """Silence before the answer."""
    trickle_s: float = 0.0
    """Time between the bytes of the answer."""


@dataclass
class ChatServer:
    url: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests, in the order of their arrival."""
    headers: list[dict[str, str]] = field(default_factory=list)
    busiest: int = 0
    """The most requests that were under way at a time."""


Script = Sequence[Reply | str] | Callable[[dict[str, Any]], Reply | str]
"""Replies in order, the last one for ever; or a function of the request's body."""


@contextmanager
def chat_server(script: Script) -> Iterator[ChatServer]:
    lock, stop = threading.Lock(), threading.Event()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                busy += 1
                served.busiest = max(served.busiest, busy)
                number = len(served.seen)
                served.seen.append(body)
                served.headers.append(dict(self.headers))
            try:
                reply = script(body) if callable(script) else script[min(number, len(script) - 1)]
                self.answer(reply if isinstance(reply, Reply) else Reply(reply))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up, which is what such a test is about
            finally:
                with lock:
                    busy -= 1

        def answer(self, reply: Reply) -> None:
            stop.wait(reply.delay_s)
            message = {"role": "assistant", "content": reply.content}
            completion = {
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3},
            }
            body = reply.body if reply.body is not None else json.dumps(completion).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not reply.trickle_s:
                self.wfile.write(body)
                return
            for byte in body:
                if stop.wait(reply.trickle_s):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Tests stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
