"""All touches of TRL's private parts, in one folder. Written for and tested with TRL 1.16.

`TrlSeam` is `GRPOTrainer` with eyes: each method that it overrides calls `super()` and keeps what passed
through (`Generation`), and offers the trainer above it one hook, `_credit`, to replace the advantages
before TRL's loss sees them. Without a hook it is `GRPOTrainer`, bit for bit.

Four layers, each standing on the one before: `scoring.py` scores given tokens, `update.py` makes the update
cheaper and reads its scores, `generation.py` keeps what was generated, `measuring.py` takes its signals.
`check_trl` names what has moved when a new release breaks an assumption.
"""

from threefold.training.trl_seam.generation import Generation, prompts_of, turns_of
from threefold.training.trl_seam.measuring import TrlSeam
from threefold.training.trl_seam.scoring import fingerprint, frozen_copy
from threefold.training.trl_seam.signatures import check_trl
from threefold.training.trl_seam.update import ROW, Speedups

__all__ = [
    "ROW",
    "Generation",
    "Speedups",
    "TrlSeam",
    "check_trl",
    "fingerprint",
    "frozen_copy",
    "prompts_of",
    "turns_of",
]
