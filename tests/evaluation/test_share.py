"""Processes that share an evaluation measure together what one would have; threads stand for them here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from threefold.envs.base import Task
from threefold.envs.toy import EchoThenNext
from threefold.evaluation.episodes import evaluate_episodes, sessions
from threefold.evaluation.share import Share, SharedSampler
from threefold.rollout.driver import Limits
from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.transformers import TransformersSampler


def together(processes: int, work: Callable[[Share], Any]) -> list[Any]:
    """What each of several processes answers that gather from each other."""
    given: list[list[Any]] = [[] for _ in range(processes)]
    all_here = threading.Barrier(processes, timeout=60)

    def gathering(process: int) -> Callable[[list[Any]], list[Any]]:
        def gather(items: list[Any]) -> list[Any]:
            given[process] = items
            all_here.wait()
            everything = [item for part in given for item in part]
            all_here.wait()
            return everything

        return gather

    shares = [Share(process, processes, gathering(process)) for process in range(processes)]
    with ThreadPoolExecutor(processes) as threads:
        return list(threads.map(work, shares))


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_parts_hold_every_row_once_and_differ_by_one_at_most(rows, processes):
    parts = [list(range(rows))[Share(process, processes).part(rows)] for process in range(processes)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_shared_samples_are_those_of_one_process(make_model, tokenizer, temperature, processes):
    prompts = [tokenizer(text)["input_ids"] for text in ("1+1=", "23", "1+1=")]
    drawing = {"parameters": SamplingParameters(6, temperature), "samples_per_prompt": 2, "seed": 5}
    models = [make_model() for _ in range(processes)]  # which are built by a global seed, so one by one

    def work(share: Share) -> list[tuple[int, ...]]:
        sampler = SharedSampler(TransformersSampler(models[share.process], tokenizer), share)
        return [sample.token_ids for sample in sampler.generate(prompts, **drawing)]

    alone = TransformersSampler(make_model(), tokenizer).generate(prompts, **drawing)
    assert together(processes, work) == [[sample.token_ids for sample in alone]] * processes


def test_shared_samples_need_one_seed(make_model, tokenizer):
    sampler = SharedSampler(TransformersSampler(make_model(), tokenizer), Share())
    with pytest.raises(ValueError, match="one seed"):
        sampler.generate([[5]], SamplingParameters(2))


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_shared_episodes_are_those_of_one_process(make_model, tokenizer, processes):
    models = [make_model() for _ in range(processes)]
    measured: list[list[str]] = [[] for _ in range(processes)]

    def evaluated(share: Share) -> Any:
        def measures(episodes: Any) -> list[dict[str, float | None]]:
            measured[share.process] += [f"{e.task_id}.{e.member}" for e in episodes]
            return [{"letters": float(len(e.turns[0].text))} for e in episodes]

        sampler = TransformersSampler(models[share.process], tokenizer)
        result = evaluate_episodes(
            sessions(sampler, SamplingParameters(4)),
            tokenizer,
            [Task(f"digit-{d}", {"digit": d}) for d in range(3)],
            EchoThenNext,
            limits=Limits(turns=2, turn_tokens=4, completion_tokens=40),
            temperature=1.0,
            samples=2,
            episodes_at_once=4,
            measures=measures,
            share=share,
        )
        return replace(result, seconds=0.0)

    results = together(processes, evaluated)
    names = [name for of_process in measured for name in of_process]
    measured[0] = []
    alone = evaluated(Share())
    assert results == [alone] * processes
    assert names == measured[0]  # each episode is measured once, for a judge may be asked
