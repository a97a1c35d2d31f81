"""A process of `envs.pool` that holds environments: `python -m threefold.envs.worker FD`.

It answers one request after the other over the socket FD and ends with it, so a parent that is killed leaves
no worker behind. What environments print goes to standard error.

    parent                                      worker
    pickle of (kind, options)                   ("answer", "") or ("failed", why)
    (seat, "open", ())                          ("answer", name of what plays) or ("failed", why)
    (seat, method or "close", arguments)        ("answer", value) or ("failed", why)
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from threefold.envs.base import Environment, is_source


def serve(connection: Connection) -> None:
    """Answer the parent until it hangs up."""
    try:
        kind, options = pickle.loads(connection.recv_bytes())
        make = kind(**options) if is_source(kind) else partial(kind, **options)
    except Exception as error:  # whatever it is, the parent says it to a person
        connection.send(("failed", _reason(error)))
        return
    connection.send(("answer", ""))
    seats: dict[int, Environment] = {}
    try:
        while True:
            request = connection.recv()
            answer = _answer(seats, make, *request)
            try:
                connection.send(answer)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                connection.send(("failed", f"the answer cannot be sent to another process: {error}"))
    except (EOFError, ConnectionError):  # the parent has closed the pool, or is gone
        pass
    finally:
        for environment in seats.values():
            environment.close()
        if callable(close := getattr(make, "close", None)):
            close()


def _answer(
    seats: dict[int, Environment],
    make: Callable[[], Environment],
    seat: int,
    method: str,
    arguments: tuple[Any, ...],
) -> tuple[str, Any]:
    """What a request comes to; an environment's failure is an answer too, and its neighbours play on."""
    try:
        if method == "open":
            environment = seats[seat] = make()
            return "answer", type(getattr(environment, "unwrapped", environment)).__name__
        if method == "close":
            seats.pop(seat).close()
            return "answer", None
        return "answer", getattr(seats[seat], method)(*arguments)
    except Exception as error:  # an environment may fail in any way
        return "failed", _reason(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    parent = Connection(int(sys.argv[1]))
    os.dup2(2, 1)
    serve(parent)
