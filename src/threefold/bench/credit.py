"""Seconds of the credit itself on batches that grow: it should cost as many times more as there are tokens.

Signals are given, so what is timed is `assign` alone. The arms of a cell are two batches; credit that is
linear has a ratio of at most the factor of their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from threefold.bench import parts
from threefold.bench.record import Cell, Options

SMALL, LARGE = (64, 256), (256, 1024)
"""Episodes and tokens of the two batches."""
GROUP, TURNS = 8, 8
_REPEATS = 5


def measure(options: Options) -> list[Cell]:
    """One cell a method."""
    from threefold.credit.grpo import GRPO
    from threefold.credit.ispo import ISPO
    from threefold.credit.turn_trajectory import T2GRPO

    methods: dict[str, Any] = {"GRPO (and ReSkill)": GRPO(), "ISPO": ISPO("reward"), "T²-GRPO": T2GRPO()}
    times = LARGE[0] * LARGE[1] / (SMALL[0] * SMALL[1])
    cells = []
    for name, estimator in methods.items():
        arms = {f"{b} x {t} tokens": _arm(estimator, b, t, options.seed) for b, t in (SMALL, LARGE)}
        seconds, _ = parts.take_turns(arms, options)
        cells.append(Cell(name, seconds, figures={"times_as_many_tokens": times}))
    return cells


def _arm(estimator: Any, episodes: int, tokens: int, seed: int) -> parts.Turn:
    batch = _batch(episodes, tokens, seed)
    watch = parts.Stopwatch()

    def turn() -> Mapping[str, float]:
        with watch.running():
            for _ in range(_REPEATS):
                estimator.assign(batch)
        return {"": watch.read() / _REPEATS}

    return turn


def _batch(episodes: int, tokens: int, seed: int) -> Any:
    """Episodes with random rewards, signals and answers of four tokens, in turns of equal length."""
    import torch

    from threefold.credit import CreditBatch, Signals

    chance = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Any:
        return torch.rand(*shape, generator=chance)

    turn_BT = (torch.arange(tokens) * TURNS // tokens).expand(episodes, tokens)
    turn_mask_BK = torch.ones(episodes, TURNS, dtype=torch.bool)
    answer_BA = torch.ones(episodes, 4, dtype=torch.bool)
    signals = Signals(
        logp_BT=-drawn(episodes, tokens),
        entropy_BT=drawn(episodes, tokens),
        base_logp_BT=-drawn(episodes, tokens),
        thinking_BT=torch.ones(episodes, tokens, dtype=torch.bool),
        answer_BA=answer_BA,
        answer_ids_BA=answer_BA.long(),
        answer_logp_BA=-drawn(episodes, 4),
        ablated_answer_logp_BA=-drawn(episodes, 4),
    )
    return CreditBatch(
        rewards={"reward": (drawn(episodes) > 0.5).float()},
        weights={"reward": 1.0},
        group_B=torch.arange(episodes) // GROUP,
        mask_BT=torch.ones(episodes, tokens, dtype=torch.bool),
        turn_BT=turn_BT,
        signals=signals,
        turn_rewards={name: drawn(episodes, TURNS).round(decimals=1) for name in ("D", "R")},
        turn_mask_BK=turn_mask_BK,
        violation_B=torch.zeros(episodes, dtype=torch.bool),
        violation_turn_B=torch.full((episodes,), -1),
    )
