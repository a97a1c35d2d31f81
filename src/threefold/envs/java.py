"""A text game's engine in a Java process, with many games in it.

TextWorldExpress and ScienceWorld ship their engines as jars. Their Python classes start a Java process for
every game; here one process holds as many games as are played side by side (`envs.pool` has several of them),
and only what is needed of a game is asked for.

A process is started when it is first needed and again where it has died. It ends with `close`, and with this
process whatever that ends of, for it reads from a pipe to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
import subprocess
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_OPTIONS = ("-XX:+UseSerialGC", "-Xmx2g")
"""Of the Java machine: one thread collects garbage, for the cores are the model's."""
EQUAL_HASHES = ("-XX:+IgnoreUnrecognizedVMOptions", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
"""Every object has the identity hash 1, so a set of objects is in the order in which they came into it, and
not in one that differs from process to process. Of HotSpot; another machine leaves it out."""
_GOODBYE = 5.0
"""Seconds to end in."""


class EngineDied(RuntimeError):
    """The Java process is gone, with the games in it."""


class EngineError(RuntimeError):
    """The engine raised; the message is Java's."""


class JavaEngine:
    """One Java process that holds an engine's games."""

    def __init__(
        self, title: str, package: str, extra: str, interface: str, *, options: Sequence[str] = ()
    ) -> None:
        """Check that it can be started; nothing is started yet.

        Args:
            title: What the engine is called.
            package: The Python package that ships the jar.
            extra: What to install it with, `threefold[extra]`.
            interface: The Java class of a game.
            options: Of the Java machine, besides those that all engines have.

        Raises:
            ModuleNotFoundError: The package or Java is missing; the message says what to install.
        """
        for name in (package, "py4j"):
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(
                    f"{title} needs the package {name}, which is not installed: "
                    f"pip install 'threefold[{extra}]'"
                )
        if java() is None:
            raise ModuleNotFoundError(
                f"{title} runs on Java, and there is no `java` in PATH or JAVA_HOME: install a Java runtime "
                "(apt-get install default-jre-headless, or your system's)"
            )
        self._title, self._package, self._interface = title, package, interface
        self._options = tuple(options)
        self._gateway: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self.lives = 0
        """Processes that were started so far."""
        self._closer: Any = lambda: None

    @property
    def process(self) -> int | None:
        """Its process id, None where it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def game(self) -> Any:
        """A new game's Java object."""
        if self.process is None:
            self.close()
            self._start()
        return self.call(self._gateway.jvm, self._interface)

    def call(self, target: Any, method: str, *arguments: Any) -> Any:
        """`target.method(*arguments)` in Java.

        Raises:
            EngineDied: The process is gone.
            EngineError: The engine raised.
        """
        from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError

        try:
            for name in method.split("."):
                target = getattr(target, name)
            return target(*arguments)
        except Py4JJavaError as error:
            raise EngineError(f"{self._title}: {error.java_exception}") from error
        except (Py4JError, OSError) as error:
            lost = isinstance(error, (Py4JNetworkError, OSError))
            if not self._ended() and not lost:  # a call that does not exist, say
                raise EngineError(f"{self._title}: {error}") from error
            raise EngineDied(f"the Java process of {self._title} has died, and the game with it") from error

    def _ended(self) -> bool:
        """Whether the process has ended or is about to: its connection is lost a little earlier."""
        if self._process is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        return self._process.poll() is not None

    def close(self) -> None:
        """End the process."""
        self._closer()
        self._gateway = self._process = None

    def _start(self) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        # It logs every lost connection as an error with a traceback; we say what died in our own words.
        logging.getLogger("py4j").setLevel(logging.CRITICAL)
        jar = importlib.import_module(f"{self._package}.constants").JAR_PATH
        port, secret, self._process = launch_gateway(
            classpath=jar,
            javaopts=[*_OPTIONS, *self._options],
            die_on_exit=True,
            java_path=java(),
            enable_auth=True,
            cwd=os.path.dirname(jar),
            return_proc=True,
        )
        parameters = GatewayParameters(auto_field=True, port=port, auth_token=secret)
        self._gateway = JavaGateway(gateway_parameters=parameters, java_process=self._process)
        self._closer = weakref.finalize(self, _end, self._gateway, self._process)
        self.lives += 1


def java() -> str | None:
    """The program `java`: that of JAVA_HOME, else of PATH."""
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=os.path.join(home, "bin")) if home else None) or shutil.which("java")


def _end(gateway: Any, process: subprocess.Popen[bytes]) -> None:
    gateway.shutdown()
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()  # it ends when it can read no more
    try:
        process.wait(timeout=_GOODBYE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
