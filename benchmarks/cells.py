"""One cell of a study: a whole `threefold train` in a process of its own, skipped where it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def run_cell(arm: str, seed: int, recipe: Path, words: Sequence[str], run: Path) -> bool:
    """Train and measure one cell, unless it is complete; True where it is now.

    A cell whose recipe or overrides have changed is made again; one whose code has changed is not.
    """
    fingerprint = hashlib.sha256("\n".join([recipe.read_text(encoding="utf-8"), *words]).encode()).hexdigest()
    record = run / "cell.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
        return True
    started = time.perf_counter()
    code = threefold(["train", str(recipe), *words, "--overwrite", "--quiet"], Path(f"{run}.log"))
    seconds = time.perf_counter() - started
    print(f"{arm}, seed {seed}: {'done' if code == 0 else 'FAILED'} in {seconds:.0f} s", flush=True)
    if code == 0:
        cell = {"arm": arm, "seed": seed, "seconds": seconds, "fingerprint": fingerprint}
        record.write_text(json.dumps(cell) + "\n", encoding="utf-8")
    return code == 0


def threefold(words: Sequence[str], log: Path) -> int:
    """The exit status of a `threefold` command on one thread, its output in `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "threefold.cli", *words]
        return subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
