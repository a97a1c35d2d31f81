"""Threefold: GRPO for language-model agents whose learning signal does not vanish.

The public names load on first use, so `import threefold` stays fast and free of torch.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threefold.credit.dr_grpo import DrGRPO
    from threefold.credit.grpo import GRPO
    from threefold.credit.gtpo import GRPOS, GTPO
    from threefold.credit.ispo import ISPO
    from threefold.credit.lens import LENS
    from threefold.credit.ngrpo import NGRPO
    from threefold.credit.rl_zvp import RLZVP
    from threefold.rollout.driver import Limits
    from threefold.training.trainer import ThreefoldTrainer

__version__ = metadata.version("threefold")

_HOMES = {
    "DrGRPO": "threefold.credit.dr_grpo",
    "GRPO": "threefold.credit.grpo",
    "GRPOS": "threefold.credit.gtpo",
    "GTPO": "threefold.credit.gtpo",
    "ISPO": "threefold.credit.ispo",
    "LENS": "threefold.credit.lens",
    "Limits": "threefold.rollout.driver",
    "NGRPO": "threefold.credit.ngrpo",
    "RLZVP": "threefold.credit.rl_zvp",
    "ThreefoldTrainer": "threefold.training.trainer",
}

__all__ = [
    "GRPO",
    "GRPOS",
    "GTPO",
    "ISPO",
    "LENS",
    "NGRPO",
    "RLZVP",
    "DrGRPO",
    "Limits",
    "ThreefoldTrainer",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'threefold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
