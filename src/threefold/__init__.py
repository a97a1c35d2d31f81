"""Threefold: GRPO for language-model agents whose learning signal does not vanish.

The public names load on first use, so `import threefold` stays fast and free of torch.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threefold.credit.grpo import GRPO
    from threefold.credit.ispo import ISPO
    from threefold.rollout.driver import Limits
    from threefold.training.trainer import ThreefoldTrainer
    from threefold.training.trl_seam import Speedups

__version__ = metadata.version("threefold")

_HOMES = {
    "GRPO": "threefold.credit.grpo",
    "ISPO": "threefold.credit.ispo",
    "Limits": "threefold.rollout.driver",
    "Speedups": "threefold.training.trl_seam",
    "ThreefoldTrainer": "threefold.training.trainer",
}

__all__ = ["GRPO", "ISPO", "Limits", "Speedups", "ThreefoldTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'threefold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
