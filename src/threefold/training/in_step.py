"""Turns of episodes on several processes, where one generation is all of theirs.

A vLLM server is asked by the first process for everybody, vLLM over several GPUs by all that share them, and
weights that are sharded are gathered by every process for each generation. TRL generates once a step there,
with as many rows on each process. Episodes end when they will: one process has three dialogues in its sixth
turn while another has none left. So each turn the processes agree on a number of rows, those with fewer fill
theirs up, and one whose episodes have ended takes part until the others' have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator

Turn = list[tuple[list[int], list[float] | None]]
"""Token ids and log-probabilities of one turn of each dialogue."""


class InStep:
    """`generate`, called equally often and with as many rows on every process.

    Args:
        accelerator: Joins the processes.
        generate: (contexts, max_new_tokens) -> one turn of each context; all processes have to call it.
        filler: Token id of which a row is made where one is only needed for the number.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        generate: Callable[[Sequence[Sequence[int]], int], Turn],
        filler: int,
    ) -> None:
        self._accelerator = accelerator
        self._generate = generate
        self._filler = filler

    def __call__(self, contexts: Sequence[Sequence[int]], max_new_tokens: int) -> Turn:
        """One turn of this process's dialogues, of at most `max_new_tokens` tokens each."""
        n_rows, limit = self._agree(len(contexts), max_new_tokens)
        fill = [[self._filler]] * (n_rows - len(contexts))
        turns = self._generate([*contexts, *fill], limit)[: len(contexts)]
        return [
            (ids[:max_new_tokens], logprobs[:max_new_tokens] if logprobs is not None else None)
            for ids, logprobs in turns
        ]

    def finish(self) -> None:
        """Take part in the others' turns until no process has any left."""
        while True:
            n_rows, limit = self._agree(0, 0)
            if n_rows == 0:
                return
            self._generate([[self._filler]] * n_rows, limit)

    def _agree(self, n_rows: int, limit: int) -> tuple[int, int]:
        """The largest of each over the processes."""
        wanted = torch.tensor([[n_rows, limit]], device=self._accelerator.device)
        n_rows, limit = self._accelerator.gather(wanted).amax(dim=0).tolist()
        return n_rows, limit
