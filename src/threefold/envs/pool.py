"""Environments in processes of their own, which step side by side and may die.

    pool = EnvironmentPool(Household, {"turns": 30}, workers=4)
    with pool:
        run_episodes(starts, pool, session, tokenizer)

A pool is called for an environment, as the class itself would be; what it gives plays in one of its worker
processes. A worker holds several environments and answers one at a time, the workers answer side by side
(`concurrency` tells the driver so). They start when they are first needed.

When a worker dies (a crash in native code, too little memory, `kill -9`) or does not answer in time, it is
killed with all that it has started and a new one takes its place. Episodes that were under way in it raise
`WorkerDied`, which ends them as errors (counted by the metric `episodes/failed`); an episode that was only
about to begin there begins in the new one. Whatever happens, workers end with the pool, with its owner's
exit, and with its owner's death, for they hang on a socket to it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from threefold.envs.base import EpisodeScore, Observation, Task
from threefold.trajectory import Trajectory

WORKERS = 2
"""Processes of a pool unless said otherwise."""
TIMEOUT = 300.0
"""Seconds that an answer may take; the first one includes the start of the process."""
_GOODBYE = 5.0
"""Seconds that a worker has for closing its environments."""

_log = logging.getLogger(__name__)


class WorkerDied(RuntimeError):
    """The process that an episode was played in is gone, and the episode with it."""


class EnvironmentFailed(RuntimeError):
    """An environment raised in its process; the message says what."""


class EnvironmentPool:
    """Makes environments that play in worker processes. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        kind: Callable[..., Any],
        options: Mapping[str, Any] | None = None,
        *,
        workers: int = WORKERS,
        timeout: float = TIMEOUT,
    ) -> None:
        """Nothing is started yet.

        Args:
            kind: A class of environments, a function that makes one, or a class of sources
                (`envs.base.EnvironmentSource`), of which every worker makes one.
            options: Its keyword arguments.
            workers: Number of processes; episodes are spread evenly over them.
            timeout: Seconds after which a process that does not answer is killed and replaced.

        Raises:
            ValueError: `workers` or `timeout` is out of range, or the class cannot be found by its name in
                another process.
        """
        if workers < 1:
            raise ValueError(f"workers is the number of processes, at least 1, got {workers}")
        if timeout <= 0:
            raise ValueError(f"timeout is in seconds and must be positive, got {timeout}")
        try:
            recipe = pickle.dumps((kind, dict(options or {})))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{getattr(kind, '__qualname__', kind)} cannot be sent to another process ({error}); define "
                "it at the top of a module, with plain options, or play without workers"
            ) from error
        self.kind = kind
        self.workers = workers
        self._slots = [_Slot(recipe, timeout) for _ in range(workers)]
        self._closer = weakref.finalize(self, _close_all, self._slots, os.getpid())

    @property
    def channels(self) -> Any:
        """Reward channels that the class names, None where it names none."""
        return getattr(self.kind, "channels", None)

    @property
    def concurrency(self) -> int:
        """Episodes that may be stepped at the same time: enough for no worker to wait for another's."""
        return 4 * self.workers

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers that run."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    @property
    def replaced(self) -> int:
        """Workers that died or hung since the beginning."""
        return sum(slot.lost for slot in self._slots)

    def __call__(self) -> PooledEnvironment:
        """An environment for one episode at a time."""
        if not self._closer.alive:
            raise RuntimeError("the pool of environments is closed; make a new one")
        slot = min(self._slots, key=lambda slot: len(slot.seats))
        return PooledEnvironment(self, slot)

    def close(self) -> None:
        """End all workers; once is enough."""
        self._closer()

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PooledEnvironment:
    """One seat in a worker; implements `Environment`."""

    def __init__(self, pool: EnvironmentPool, slot: _Slot) -> None:
        self._pool = pool  # an environment in use keeps its pool open
        self._slot = slot
        self._life = -1
        self._seat = slot.take_seat()
        self.played_as = "PooledEnvironment"
        """Name of what plays, for the record; known once it has begun."""

    @property
    def concurrency(self) -> int:
        return self._pool.concurrency

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        for attempt in (0, 1):
            try:
                self._open()
                return self._ask("reset", task, seed, member)
            except WorkerDied:  # nothing of the episode is lost yet
                if attempt:
                    raise
        raise AssertionError

    def step(self, action_text: str) -> Observation:
        return self._ask("step", action_text)

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        self._open()
        return self._ask("score", list(episodes))

    def close(self) -> None:
        """Give the seat back."""
        if self._seat in self._slot.seats:
            with suppress(WorkerDied):
                if self._life == self._slot.life:
                    self._ask("close")
            self._slot.seats.discard(self._seat)

    def _open(self) -> None:
        """Sit in a worker that runs; where this one has died since, in its successor."""
        if self._life != self._slot.life or self._slot.process is None:
            self._life, self.played_as = self._slot.ask(None, self._seat, "open")

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._slot.ask(self._life, self._seat, method, *arguments)[1]


class _Slot:
    """The place of one worker after the other; `life` counts them. One request at a time."""

    def __init__(self, recipe: bytes, timeout: float) -> None:
        self.seats: set[int] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.life = 0
        self.lost = 0
        self._recipe, self._timeout = recipe, timeout
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._numbers = 0

    def take_seat(self) -> int:
        self._numbers += 1
        self.seats.add(self._numbers)
        return self._numbers

    def ask(self, life: int | None, seat: int, method: str, *arguments: Any) -> tuple[int, Any]:
        """Put a request to the worker of that `life`; None is whoever runs, started where none does.

        Returns:
            The worker's `life` and the answer.

        Raises:
            WorkerDied: It died, now or before.
            EnvironmentFailed: The environment raised.
        """
        with self._lock:
            if life is None and self.process is None:
                self._start()
            if self.process is None or (life is not None and life != self.life):
                raise WorkerDied("the process that this episode was played in has died, and was replaced")
            kind, value = self._exchange((seat, method, arguments), f"in the middle of `{method}`")
            if kind == "failed":
                raise EnvironmentFailed(value)
            return self.life, value

    def _start(self) -> None:
        ours, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "threefold.envs.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
                start_new_session=True,  # is killed with all that it has started, and never by our Ctrl-C
            )
        self._connection = ours
        self.life += 1
        kind, why = self._exchange(self._recipe, "at its start")
        if kind == "failed":
            self._bury()
            raise EnvironmentFailed(f"it cannot be made in a process of its own: {why}")

    def _exchange(self, message: Any, when: str) -> Any:
        """Send, and wait for the answer; a worker that dies or takes too long is buried."""
        connection, process = self._connection, self.process
        assert connection is not None
        assert process is not None
        try:
            if isinstance(message, bytes):
                connection.send_bytes(message)
            else:
                connection.send(message)
            if connection.poll(self._timeout):
                return connection.recv()
            how = f"did not answer within {self._timeout:g} s {when}"
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GOODBYE)
            how = f"ended {_exit_words(process.returncode)} {when}"
        except KeyboardInterrupt:  # its answer would be taken for the next one's
            self._bury()
            raise
        self.lost += 1
        self._bury()
        text = f"the environments' process {process.pid} {how}; a new one takes its place"
        _log.warning("%s. Its episodes end as errors", text)
        raise WorkerDied(text)

    def close(self) -> None:
        """Let the worker close its environments and end; kill it where it does not."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            if self.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=_GOODBYE)
                self._bury()

    def _bury(self) -> None:
        """Kill the worker with all that it has started, and forget it."""
        process, self.process = self.process, None
        assert process is not None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _exit_words(code: int | None) -> str:
    if code is None:
        return "its connection"
    return f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit status {code}"


def _close_all(slots: Sequence[_Slot], owner: int) -> None:
    if os.getpid() != owner:  # a forked child has a copy of the pool, and none of its processes
        return
    for slot in slots:
        slot.close()
