"""How a bank evolves: the paper's defaults, options beyond it, and the switches of its ablations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from threefold.skills.bank import CAPACITY
from threefold.skills.version_test import VersionTest


@dataclass(frozen=True)
class Settings:
    """How a bank evolves; the defaults are the paper's."""

    period: int = 5
    """Steps of a test (K_e)."""
    min_episodes: int = 50
    clamp: float = 0.2
    margin: float = 0.0
    confidence: float | None = None
    balanced: bool = False
    """Share both versions inside each group instead of drawing every episode on its own."""
    memory: float | None = None
    """M of the discount; None estimates it from the tests that are finished."""
    capacity: int = CAPACITY
    reservoir: int = 200
    min_reservoir: int = 100
    """Episodes before the first creation."""
    groups: int = 30
    """Tasks that a creator is shown."""
    first_step: int = 0
    """No creation before the end of this step ("policy first")."""
    last_step: int | None = None
    """No creation after this step ("skill first", with the policy frozen until then)."""
    retrieve: int | None = None
    """Skills shown at the start of an episode, those most like its task; None shows all (the paper)."""
    auto_accept: bool = False
    """Ablation: a bundle becomes the bank untested; one every `period` steps, as many as a test would let
    through."""
    uniform: bool = False
    """Ablation: both versions are drawn alike, whatever is known."""
    assertions: bool = True
    """False, an ablation: the creator sees no pass rates."""
    triggers: bool = True
    """False, an ablation: every new skill is general."""

    def __post_init__(self) -> None:
        if self.min_reservoir > self.reservoir:
            raise ValueError(
                f"min_reservoir {self.min_reservoir} exceeds the reservoir's capacity {self.reservoir}: no "
                "skill would ever be made"
            )
        if self.retrieve is not None and self.retrieve < 1:
            raise ValueError(f"retrieve {self.retrieve} shows no skill; give at least 1, or None for all")
        self.new_test(math.inf)

    def new_test(self, estimated: float) -> VersionTest:
        return VersionTest(
            self.memory if self.memory is not None else estimated,
            0.5 if self.uniform else self.clamp,
            self.period,
            self.min_episodes,
            margin=self.margin,
            confidence=self.confidence,
        )
