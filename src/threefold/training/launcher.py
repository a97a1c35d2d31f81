"""Which of a launcher's processes this is; torchrun and accelerate say it in the environment.

Imported without torch: it is asked before anything is loaded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

_PATIENCE = 5.0
"""Seconds after which another process than the first says why it ends."""


def processes() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_here() -> bool:
    """Whether this is the first one of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process that is to run alone, started by one that a launcher started."""
    exact = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    begins = ("LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_")
    return {k: v for k, v in environment.items() if k not in exact and not k.startswith(begins)}


def use_own_accelerator() -> None:
    """Make this process's accelerator the current one. TRL does so too, but later than environments load
    their models (a local judge), which would all go to the first."""
    import torch

    if processes() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def say_why(text: str) -> None:
    """Print why this process ends, to standard error.

    A wrong recipe is refused by all of them alike, and it is enough to read that once: the first speaks at
    once, and a launcher ends the others when it has gone. One that is still there after a moment has
    something of its own to say.
    """
    if not is_first():
        time.sleep(_PATIENCE)
    print(text, file=sys.stderr, flush=True)
