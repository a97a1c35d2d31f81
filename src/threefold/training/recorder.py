"""When an episode's record is written: at once where its tokens have scores, else after the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from threefold.signals import AnswerTokens
from threefold.training.diagnostics import answer_logp, certainty, confidence
from threefold.training.gathering import gather_list, gather_rows
from threefold.training.record import CreditedStep, records, with_token_signals
from threefold.training.run_directory import RunDirectory
from threefold.trajectory import Credited


class Recorder:
    """Writes the credited episodes of all processes into the run directory, from the main one."""

    def __init__(self, run_directory: RunDirectory, tokenizer: Any, accelerator: Accelerator) -> None:
        self._directory = run_directory
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        self._waiting: _Waiting | None = None

    def keep(self, step: CreditedStep) -> bool:
        """Record this process's episodes; whether they now wait for `scored`."""
        episodes = records(step, self._tokenizer)
        if step.batch.signals.entropy_BT is not None:
            self._write(episodes)
            return False
        self._waiting = _Waiting(episodes, step.answers, step.outcome_B, step.batch.mask_BT)
        return True

    def scored(self, logp_BT: Tensor, entropy_BT: Tensor) -> Mapping[str, float]:
        """Write what waits with the update's own scores, (B, T) each; answer the figures on certainty.

        With several updates a batch, later rows are scored by a policy that has moved since it sampled them.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return {}
        answer_logp_B = gather_rows(self._accelerator, answer_logp(logp_BT, waiting.answers))
        figures = {
            **certainty(gather_rows(self._accelerator, entropy_BT), waiting.mask_BT, waiting.outcome_B),
            **confidence(answer_logp_B, waiting.outcome_B),
        }
        self._write(
            [
                with_token_signals(episode, {"entropy": entropy_T, "logp": logp_T})
                for episode, entropy_T, logp_T in zip(
                    waiting.episodes, entropy_BT.tolist(), logp_BT.tolist(), strict=True
                )
            ]
        )
        return figures

    def flush(self) -> None:
        """Write episodes that the update never scored: a run that ended, or a step that was not taken."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._write(waiting.episodes)

    def _write(self, episodes: list[Credited]) -> None:
        episodes = gather_list(self._accelerator, episodes)
        if self._accelerator.is_main_process:
            self._directory.append_rollouts(episodes)


@dataclass(frozen=True)
class _Waiting:
    """Episodes whose record waits for the scores that the update computes."""

    episodes: list[Credited]
    answers: Sequence[AnswerTokens | None]
    outcome_B: Tensor
    """Of all processes, as the mask."""
    mask_BT: Tensor
