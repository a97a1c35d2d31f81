"""Threefold: GRPO for language-model agents whose learning signal does not vanish.

The public names load on first use, so `import threefold` stays fast and free of torch.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threefold.credit.dr_grpo import DrGRPO
    from threefold.credit.gdpo import GDPO
    from threefold.credit.gigpo import GiGPO
    from threefold.credit.grpo import GRPO
    from threefold.credit.gtpo import GRPOS, GTPO
    from threefold.credit.ispo import ISPO
    from threefold.credit.lens import LENS
    from threefold.credit.mt_grpo import MTGRPO
    from threefold.credit.ngrpo import NGRPO
    from threefold.credit.rl_zvp import RLZVP
    from threefold.credit.summed_grpo import SummedGRPO
    from threefold.credit.together import Together
    from threefold.credit.turn_trajectory import T2GRPO
    from threefold.rollout.driver import Limits
    from threefold.training.play import episode_rewards
    from threefold.training.trainer import ThreefoldTrainer
    from threefold.training.trl_seam import Speedups

__version__ = metadata.version("threefold")

_HOMES = {
    "DrGRPO": "threefold.credit.dr_grpo",
    "GDPO": "threefold.credit.gdpo",
    "GRPO": "threefold.credit.grpo",
    "GRPOS": "threefold.credit.gtpo",
    "GTPO": "threefold.credit.gtpo",
    "GiGPO": "threefold.credit.gigpo",
    "ISPO": "threefold.credit.ispo",
    "LENS": "threefold.credit.lens",
    "Limits": "threefold.rollout.driver",
    "MTGRPO": "threefold.credit.mt_grpo",
    "NGRPO": "threefold.credit.ngrpo",
    "RLZVP": "threefold.credit.rl_zvp",
    "Speedups": "threefold.training.trl_seam",
    "SummedGRPO": "threefold.credit.summed_grpo",
    "T2GRPO": "threefold.credit.turn_trajectory",
    "ThreefoldTrainer": "threefold.training.trainer",
    "Together": "threefold.credit.together",
    "episode_rewards": "threefold.training.play",
}

__all__ = [
    "GDPO",
    "GRPO",
    "GRPOS",
    "GTPO",
    "ISPO",
    "LENS",
    "MTGRPO",
    "NGRPO",
    "RLZVP",
    "T2GRPO",
    "DrGRPO",
    "GiGPO",
    "Limits",
    "Speedups",
    "SummedGRPO",
    "ThreefoldTrainer",
    "Together",
    "__version__",
    "episode_rewards",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'threefold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
