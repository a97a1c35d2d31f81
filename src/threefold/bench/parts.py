"""What the benches share: models, prompts of a given length, a stopwatch, and arms that take turns."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from threefold.bench.record import Options

RANDOM = {"tiny": (128, 4), "small": (320, 8), "medium": (640, 10)}
"""Hidden size and layers of models with random weights and the tokenizer of "tiny-words"."""
WORDS = ("the", "you", "a", "key", "box", "open", "is", "in", "see", "go", "take", "door", "with", "room")


def load(name: str) -> tuple[Any, Any]:
    """Model (fp32) and tokenizer.

    The end token gets a bias of -10,000 in the head, so that no completion ends early and all arms do equal
    work; a bias is part of the model, so generation, scoring and loss agree on it.

    Raises:
        ValueError: There is no such model.
    """
    import torch

    from threefold.models import EMBEDDED, load_model, load_tokenizer
    from threefold.tiny.words import untrained

    if name == EMBEDDED:
        model, tokenizer = load_model(EMBEDDED, torch.float32), load_tokenizer(EMBEDDED)
    elif name in RANDOM:
        tokenizer = load_tokenizer("tiny-words")
        hidden, layers = RANDOM[name]
        model = untrained(len(tokenizer), hidden, layers)
    else:
        raise ValueError(f"unknown model {name!r}: use one of {', '.join([EMBEDDED, *RANDOM])}")
    head = model.get_output_embeddings()
    bias = torch.zeros(len(head.weight))
    bias[tokenizer.eos_token_id] = -1e4
    head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return model, tokenizer


def text_of(tokenizer: Any, tokens: int, seed: int) -> str:
    """Words that are exactly so many tokens."""
    chance = random.Random(seed)
    text = ""
    while len(tokenizer(text)["input_ids"]) < tokens:
        longer = f"{text} {chance.choice(WORDS)}".strip()
        if len(tokenizer(longer)["input_ids"]) <= tokens:
            text = longer
    return text


def config(options: Options, **others: Any) -> Any:
    """A `GRPOConfig` of one update by plain SGD, without a KL term."""
    import torch
    from trl import GRPOConfig

    rows = options.micro_batch or options.group
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=options.gradient_checkpointing,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        optim="sgd",
        learning_rate=1e-6,
        max_grad_norm=0.0,
        seed=options.seed,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=options.groups * options.group // rows,
        num_generations=options.group,
        max_completion_length=options.completion,
        max_steps=1,
        **others,
    )


class Stopwatch:
    """Seconds inside its `running` blocks since it was last read."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - started

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        timed.__name__ = getattr(function, "__name__", "timed")
        return timed

    def read(self) -> float:
        """The seconds, which start again from zero."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def step_watch() -> tuple[Any, Stopwatch]:
    """A trainer callback, and the stopwatch that it runs from the beginning of a step to its end."""
    from transformers import TrainerCallback

    watch = Stopwatch()

    class StepWatch(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._step = watch.running()
            self._step.__enter__()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self._step.__exit__(None, None, None)

    return StepWatch(), watch


def without_log(trainer: Any) -> None:
    """Let a trainer print no log: standard output is for the tables."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


Turn = Callable[[], Mapping[str, float]]
"""One turn of an arm; its seconds in all under "" and those of its parts under their names."""


def take_turns(
    arms: Mapping[str, Turn], options: Options, *, told: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let arms take turns, in changing order; seconds by arm, and of the parts by arm. Each turn is told on
    standard error, where that is wanted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    parts: dict[str, dict[str, list[float]]] = {name: {} for name in arms}
    for number in range(options.warm_up + options.rounds):
        for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
            taken = arms[name]()
            kind = "warm-up" if number < options.warm_up else f"round {number - options.warm_up + 1}"
            if told:
                print(f"{kind}, {name}: {taken['']:.3g} s", file=sys.stderr, flush=True)
            if number < options.warm_up:
                continue
            seconds[name].append(taken[""])
            for part, value in taken.items():
                if part:
                    parts[name].setdefault(part, []).append(value)
    return seconds, {name: mine for name, mine in parts.items() if mine}
