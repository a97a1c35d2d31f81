"""Several processes divide an evaluation's rows; together they measure what one would have.

Each takes a run of the rows, and all get the rows of all, so every process ends with the same figures. Rows
draw from the streams that they would have on one process: the number of processes moves no result (up to
rounding, which may differ between batch shapes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from threefold.rollout.samplers import Sample, SamplingParameters, Session

if TYPE_CHECKING:
    from threefold.rollout.samplers.transformers import TransformersSampler


def _alone(items: list[Any]) -> list[Any]:
    return items


@dataclass(frozen=True)
class Share:
    """One process's part of what several do; by default there is one, which does everything."""

    process: int = 0
    processes: int = 1
    gather: Callable[[list[Any]], list[Any]] = _alone
    """The items of all processes, in the order of the processes; every one has to call it."""

    def part(self, rows: int) -> slice:
        """This process's rows of so many; none where there are fewer than processes."""
        first, end = (rows * process // self.processes for process in (self.process, self.process + 1))
        return slice(first, end)


class SharedSampler:
    """A sampler that draws this process's share of the samples, and answers with those of all.

    Args:
        sampler: Draws them; its samples depend on their place, which may start anywhere.
        share: This process's part.
    """

    def __init__(self, sampler: TransformersSampler, share: Share) -> None:
        self._sampler = sampler
        self._share = share

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters,
        *,
        samples_per_prompt: int = 1,
        seed: int | None = None,
    ) -> list[Sample]:
        """As `Sampler.generate`; every process has to call it, with the same arguments and a seed."""
        if seed is None:
            raise ValueError("processes that share samples need one seed; give seed=")
        rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        mine = self._share.part(len(rows))
        samples = self._sampler.generate(rows[mine], parameters, seed=seed, first_place=mine.start)
        return self._share.gather(samples)


class NumberedSession:
    """A session whose dialogues are numbered from `first` on, as those of one process would be."""

    def __init__(self, session: Session, first: int) -> None:
        self._session = session
        self._first = first

    def turn(
        self, dialogues: Sequence[int], contexts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]
    ) -> list[Sample]:
        return self._session.turn([self._first + d for d in dialogues], contexts, max_new_tokens)

    def close(self) -> None:
        self._session.close()
