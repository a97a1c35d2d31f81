"""Seconds of the credit itself: on batches that grow, and beside a sort of as many numbers.

Signals are given, so what is timed is `assign` alone. A method has two cells: the arms of the first are two
batches, and credit that is linear has a ratio of at most the factor of their tokens; the second holds the
larger batch against a yardstick that is not ours, so that credit slower on both is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from threefold.bench import parts
from threefold.bench.record import Cell, Options

SMALL, LARGE = (64, 256), (256, 1024)
"""Episodes and tokens of the two batches."""
GROUP, TURNS = 8, 8
_ROUNDS = 15
"""Rounds in the place of one: a call is so short that the machine's other work moves a ratio of few."""


def measure(options: Options) -> list[Cell]:
    """A cell a method for how it grows, and one beside the sort for those that read tokens."""
    from threefold.credit.grpo import GRPO
    from threefold.credit.ispo import ISPO
    from threefold.credit.turn_trajectory import T2GRPO

    methods: dict[str, Any] = {"GRPO (and ReSkill)": GRPO(), "ISPO": ISPO("reward"), "T²-GRPO": T2GRPO()}
    small, large = (_batch(*size, options.seed) for size in (SMALL, LARGE))
    times = LARGE[0] * LARGE[1] / (SMALL[0] * SMALL[1])
    names = [f"{b} x {t} tokens" for b, t in (SMALL, LARGE)]
    often = replace(options, rounds=_ROUNDS * options.rounds, warm_up=max(options.warm_up, 1))
    cells = []
    for name, estimator in methods.items():
        arms = [_arm(estimator, small), _arm(estimator, large)]
        seconds, _ = parts.take_turns(dict(zip(names, arms, strict=True)), often, told=False)
        cells.append(Cell(name, seconds, figures={"times_as_many_tokens": times}))
    del methods["GRPO (and ReSkill)"]  # it reads no tokens; its microseconds would be noise beside a sort
    for name, estimator in methods.items():
        beside = {f"a sort of {names[1]}": _sort(large), "credit": _arm(estimator, large)}
        seconds, _ = parts.take_turns(beside, often, told=False)
        cells.append(Cell(f"{name} beside a sort", seconds))
    return cells


def _arm(estimator: Any, batch: Any) -> parts.Turn:
    return _turn(lambda: estimator.assign(batch))


def _sort(batch: Any) -> parts.Turn:
    return _turn(lambda: batch.signals.logp_BT.sort(dim=1))


def _turn(call: Callable[[], Any]) -> parts.Turn:
    watch = parts.Stopwatch()

    def turn() -> Mapping[str, float]:
        with watch.running():
            call()
        return {"": watch.read()}

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
