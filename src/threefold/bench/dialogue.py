"""What keeping the cache between turns saves: the same dialogues with it, and prefilled at every turn.

Turns have a fixed number of tokens and are greedy, so both arms must write the same tokens, which is checked.
Dialogues of a group share their opening; both arms forward it once in the first turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from threefold.bench import parts
from threefold.bench.record import Cell, Options

AGENT, ENVIRONMENT = 24, 30
"""Tokens of a turn, and of what answers it."""


def measure(options: Options) -> list[Cell]:
    """Dialogues of one turn, of the given number, and of ten."""
    counts = sorted({1, options.turns, 10})
    return [compare(replace(options, turns=count)) for count in counts]


def compare(options: Options) -> Cell:
    """One cell.

    Raises:
        RuntimeError: The arms wrote different tokens.
    """
    from threefold.rollout.samplers import SamplingParameters
    from threefold.rollout.samplers.transformers import TransformersSampler

    model, _ = parts.load(options.model)
    sampler = TransformersSampler(model.eval(), batch_size=256)
    greedy = SamplingParameters(AGENT, temperature=0)
    dialogues = options.groups * options.group
    said: dict[str, list[list[int]]] = {}
    watch = parts.Stopwatch()

    def prefilled() -> Mapping[str, float]:
        with watch.running():
            said["prefilled"] = _talk(lambda c: sampler.generate(c, greedy, seed=0), model, options)
        return {"": watch.read()}

    def kept() -> Mapping[str, float]:
        with watch.running():
            session = sampler.session(greedy, seed=0)
            limits = [AGENT] * dialogues
            said["kept"] = _talk(lambda c: session.turn(range(dialogues), c, limits), model, options)
        return {"": watch.read()}

    seconds, _ = parts.take_turns({"prefilled at every turn": prefilled, "cache kept": kept}, options)
    if said["kept"] != said["prefilled"]:
        raise RuntimeError("the arms wrote different tokens, so their times cannot be compared")
    return Cell(f"{options.turns} turns", seconds)


def _talk(
    generate: Callable[[list[list[int]]], Sequence[Any]], model: Any, options: Options
) -> list[list[int]]:
    """Play the dialogues; the environment's tokens come from a fixed stream and differ by dialogue."""
    import torch

    stream, vocabulary = torch.Generator().manual_seed(options.seed), model.config.vocab_size
    shape = (options.turns, options.groups * options.group, ENVIRONMENT)
    openings = torch.randint(vocabulary, (options.groups, options.prompt), generator=stream).tolist()
    answers = torch.randint(vocabulary, shape, generator=stream).tolist()
    contexts = [list(openings[row // options.group]) for row in range(shape[1])]
    for turn in range(options.turns):
        samples = generate(contexts)
        for context, sample, answer in zip(contexts, samples, answers[turn], strict=True):
            context += [*sample.token_ids, *answer]
    return contexts
