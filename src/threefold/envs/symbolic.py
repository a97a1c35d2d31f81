"""Are two formulas the same? Math-Verify answers, in a process of its own.

An answer that a policy samples is untrusted input for a computer algebra system: seven characters, `9^{9^9}`,
keep it busy for hours inside C code that no signal interrupts, and Math-Verify's own time limit works in the
main thread alone. So the comparisons run in one child process that a watchdog ends after
`TIME_LIMIT_SECONDS`; the parent sees the pipe close, says "not equal", and starts a new child when it next
needs one. The child never outlives its parent: its input ends with it.

This file is both sides. The child runs it as a script and imports Math-Verify only, not this package.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import logging
import os
import subprocess
import sys
import threading

TIME_LIMIT_SECONDS = 5.0
"""For one comparison, wall clock; a usual one takes 0.002 to 0.2 s."""


@functools.lru_cache(maxsize=65536)
def same_formula(predicted: str, gold: str) -> bool:
    """Whether Math-Verify finds two LaTeX (or plain) formulas equal. Not symmetric: see its docs.

    Works from any thread and never raises on bad formulas: what cannot be parsed, or takes longer than
    `TIME_LIMIT_SECONDS`, is not equal. The first call starts the child (about a second).

    Raises:
        RuntimeError: The child cannot start, because math-verify is not installed.
    """
    with _lock:
        return _ask(predicted, gold)


_lock = threading.Lock()
_child: tuple[int, subprocess.Popen[str]] | None = None
"""Id of the process that started the child, and the child: a fork must not share its parent's pipe."""


def _ask(predicted: str, gold: str) -> bool:
    global _child
    if _child is None or _child[0] != os.getpid() or _child[1].poll() is not None:
        _child = (os.getpid(), _start())
    process = _child[1]
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps([predicted, gold]) + "\n")
        process.stdin.flush()
        reply = process.stdout.readline()
    except (
        BrokenPipeError
    ):  # it died since the last call, for instance by a signal to the whole process group
        reply = ""
    except KeyboardInterrupt:  # its answer would be taken for the next formula's
        process.kill()
        _child = None
        raise
    if not reply:
        process.wait()
        _child = None
        return False
    return bool(json.loads(reply))


def _start() -> subprocess.Popen[str]:
    # -P: the folder of this script must not come before the standard library in the child's search path.
    process = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for the training run: it ends in order and closes our pipe
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(
            "the process that compares formulas did not start; try in a shell: "
            f"{sys.executable} -c 'import math_verify' (pip install 'math-verify[antlr4_13_2]')"
        )
    return process


def _serve() -> None:
    """The child: one JSON pair a line in, one JSON boolean a line out."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    # Without the anchor words of Math-Verify's plain extraction, which would take "7 or maybe 8" for an 8.
    config = [LatexExtractionConfig()]

    def formula(text: str) -> list[object]:
        return parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)

    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        predicted, gold = json.loads(line)
        # The watchdog is a thread in C: it ends the process even while the interpreter is stuck in one
        # operation.
        faulthandler.dump_traceback_later(TIME_LIMIT_SECONDS, exit=True, file=sys.stdout)
        try:
            equal = bool(verify(formula(gold), formula(predicted), timeout_seconds=None))
        except (RecursionError, MemoryError):
            equal = False
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(equal) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
