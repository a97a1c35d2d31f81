"""Supervised training of the tiny model: a minute or two on one core, made once and cached.

The demonstrations favour short additions, and training stops early: one-digit sums are then nearly always
right, sums of five digits nearly never, and those between are learned. A few demonstrations answer without
reasoning, so that the probability of an answer without its reasoning, which ISPO's IFD compares with, is one
that the model has learned and not an accident of its weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from threefold.envs import column_addition
from threefold.envs.problems import Problem
from threefold.tiny import tokenizer as characters

logger = logging.getLogger(__name__)

VERSION = 1
"""Raised when the training itself changes, which no fingerprint sees."""
CONTEXT = 128
"""Longest sequence in tokens; an addition of five digits takes 75."""


@dataclass(frozen=True)
class WarmStart:
    """What the supervised training does; a change is another model in the cache."""

    steps: int = 550
    batch_size: int = 32
    learning_rate: float = 3e-3
    """Reached after `warmup` steps, then a cosine down to a twentieth."""
    warmup: int = 50
    weight_decay: float = 0.1
    direct: float = 0.03
    """Share of the demonstrations that state the answer without reasoning."""
    mix: Mapping[str, float] = field(
        default_factory=lambda: {"add1": 0.15, "add22": 0.3, "add33": 0.3, "add44": 0.17, "add55": 0.08}
    )
    """Share of each level among the demonstrations, all of the training split."""
    hidden: int = 128
    layers: int = 4
    seed: int = 0


def folder(cache: Path, settings: WarmStart | None = None) -> Path:
    """The folder of model and tokenizer below `cache`, trained on first use.

    Its name holds a fingerprint of the settings, the tokens and the first demonstrations. The same settings
    give the same weights on the same machine, whatever its number of threads.
    """
    settings = settings or WarmStart()
    target = cache / f"tiny-{_fingerprint(settings)}-seed{settings.seed}"
    if (target / "config.json").exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    logger.warning("training the tiny model by supervision (once, a minute or two) into %s", target)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "model"
        started, busy = time.perf_counter(), time.process_time()
        model, loss = train(settings)
        model.save_pretrained(made)
        characters.build().save_pretrained(made)
        record = {
            "settings": asdict(settings),
            "loss": loss,
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - busy,
        }
        (made / "warm_start.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        try:
            made.replace(target)
        except OSError:  # another process was faster; its result is the same
            shutil.rmtree(made)
    return target


def train(settings: WarmStart) -> tuple[Any, float]:
    """Train the model on one thread, leaving torch's global random state and thread count as they were.

    Returns:
        The model, and its mean loss in nats a token over the last tenth of the steps.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum in another order would be another model
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return _train(settings)
    finally:
        torch.set_num_threads(threads)


def untrained(*, hidden: int = 128, layers: int = 4) -> Any:
    """The model with random weights from torch's global generator: a million parameters by default."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(characters.TOKENS),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=characters.TOKENS.index("<eos>"),
            pad_token_id=characters.TOKENS.index("<pad>"),
        )
    )


def _train(settings: WarmStart) -> tuple[Any, float]:
    import torch

    model = untrained(hidden=settings.hidden, layers=settings.layers)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    losses = []
    for step, batch in enumerate(_batches(settings)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    last = losses[-max(1, len(losses) // 10) :]
    return model.eval(), sum(last) / len(last)


def _schedule(step: int, settings: WarmStart) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return min(1.0, (step + 1) / settings.warmup) * (0.05 + 0.95 * cosine)


def _batches(settings: WarmStart) -> Iterator[dict[str, Any]]:
    """Padded batches; the loss is on the completions alone."""
    import torch

    encode = characters.build()
    demonstrations = _demonstrations(settings, settings.steps * settings.batch_size)
    for first in range(0, len(demonstrations), settings.batch_size):
        pairs = [
            (
                encode(f"<user>{problem.question}<assistant>")["input_ids"],
                encode(completion + encode.eos_token)["input_ids"],
            )
            for problem, completion in demonstrations[first : first + settings.batch_size]
        ]
        longest = max(len(prompt) + len(completion) for prompt, completion in pairs)
        input_ids = torch.full((len(pairs), longest), encode.pad_token_id)
        labels = torch.full_like(input_ids, -100)
        attention_mask = torch.zeros_like(input_ids)
        for row, (prompt, completion) in enumerate(pairs):
            end = len(prompt) + len(completion)
            input_ids[row, :end] = torch.tensor(prompt + completion)
            labels[row, len(prompt) : end] = torch.tensor(completion)
            attention_mask[row, :end] = 1
        yield {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


def _demonstrations(settings: WarmStart, size: int) -> list[tuple[Problem, str]]:
    """Problems of the training split with their completions."""
    problems = column_addition.problems("train", seed=settings.seed, size=size, mix=settings.mix)
    stream = random.Random(f"threefold tiny {settings.seed}")
    return [
        (problem, column_addition.solution(problem, reasoning=stream.random() >= settings.direct))
        for problem in problems
    ]


def _fingerprint(settings: WarmStart) -> str:
    first = [completion for _, completion in _demonstrations(settings, 64)]
    made = [VERSION, CONTEXT, asdict(settings), characters.TOKENS, characters.CHAT_TEMPLATE, first]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:10]
