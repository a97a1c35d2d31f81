"""Signals of a generation batch: scores that passed through TRL or came with the samples, and those that TRL
is asked for besides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from threefold.credit import Signal, Signals
from threefold.signals import AnswerTokens, measure
from threefold.training.shared_prompt import rotated_alike
from threefold.training.trl_seam.generation import Generation, GenerationSeam, prompts_of


class TrlSeam(GenerationSeam):
    """The whole seam: `GRPOTrainer` whose batches can be measured."""

    def _measure(
        self,
        needs: frozenset[Signal],
        output: dict[str, Any],
        generation: Generation,
        mask_BT: Tensor,
        answers: Sequence[AnswerTokens | None],
    ) -> Signals:
        """What `needs` names, of this process's rows; scores that passed through TRL or came with the samples
        are not computed again.

        Raises:
            ValueError: The batch holds images.
        """

        def score_policy(
            input_ids: Tensor, attention_mask: Tensor, keep: int
        ) -> tuple[Tensor, Tensor | None]:
            return self._score(self.model, input_ids, attention_mask, keep, compute_entropy=True)

        def score_base(input_ids: Tensor, attention_mask: Tensor, keep: int) -> tuple[Tensor, Tensor | None]:
            with self._as_base() as base:
                return self._score(base, input_ids, attention_mask, keep, compute_entropy=False)

        def score_certainty(
            input_ids: Tensor, attention_mask: Tensor, keep: int
        ) -> tuple[Tensor, Tensor | None, Tensor]:
            return self._score_certainty(self.model, input_ids, attention_mask, keep)

        if needs and "pixel_values" in output:
            raise ValueError(
                "signals are measured on text only; train vision models with an estimator without needs"
            )
        return measure(
            needs,
            input_ids=torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
            attention_mask=torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
            mask_BT=mask_BT,
            prompt_ids=prompts_of(output),
            completion_ids=generation.completion_ids,
            answers=answers,
            pad_token_id=self._tokenizer.pad_token_id,
            score_policy=score_policy,
            score_base=score_base,
            policy_scores=self._policy_scores(generation, mask_BT.size(1)),
            base_logp_BT=self._reference_scores(generation),
            every_row=self.accelerator.num_processes > 1,
            score_certainty=score_certainty,
            reference_ids=self._reference_ids(generation) if "reference_answer" in needs else None,
        )

    def _reference_ids(self, generation: Generation) -> list[list[int]]:
        """Token ids of each row's true answer, from the dataset's column "answer"."""
        texts = [str(row["answer"]) for row in generation.inputs]
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _policy_scores(
        self, generation: Generation, n_completion: int
    ) -> tuple[Tensor, Tensor | None] | None:
        """The old policy's scores (B, T), where TRL needed them anyway or they came with the samples."""
        if len(generation.scored) > (self.beta != 0.0):
            return generation.scored[0]
        return self._sampled_scores(generation, n_completion)

    def _sampled_scores(self, generation: Generation, n_completion: int) -> tuple[Tensor, Tensor] | None:
        """Log-probabilities and entropies (B, T) that the samples were drawn with; None where they are not
        these episodes', or where half precision, or a rotation that changes with length, lets decoding and a
        whole forward differ."""
        exact = self.accelerator.mixed_precision == "no" and self.model.dtype == torch.float32
        exact = exact and rotated_alike(self.model.config.get_text_config()) == math.inf
        if not (exact and self._uses_sampled_scores) or len(generation.sampled) != 1:
            return None
        n_rows = len(generation.completion_ids)
        scores = torch.zeros(2, n_rows, n_completion)
        for row, ids in enumerate(generation.completion_ids):
            places = _written(generation.inputs[row], len(ids))
            samples = generation.sampled[0].get(row, [])
            if [ids[place] for place in places] != [token for s in samples for token in s.token_ids]:
                return None
            if any(sample.entropies is None for sample in samples):
                return None
            scores[0, row, places] = torch.tensor([logp for s in samples for logp in s.logprobs])
            scores[1, row, places] = torch.tensor([nats for s in samples for nats in s.entropies or ()])
        logp_BT, entropy_BT = scores.to(self.accelerator.device)
        return logp_BT, entropy_BT

    def _reference_scores(self, generation: Generation) -> Tensor | None:
        """The reference model's log-probabilities, where beta > 0 and the reference stays the initial
        model."""
        if self.beta == 0.0 or self.args.sync_ref_model:
            return None
        return generation.scored[-1][0]


def _written(inputs: dict[str, Any], n_completion: int) -> list[int]:
    """Places in a row's completion that the agent wrote: all of them but in an environment."""
    if "trajectory" not in inputs:
        return list(range(n_completion))
    segment = inputs["trajectory"].segments[0]
    turn_ids = segment.turn_ids[segment.prompt_length :]
    return [place for place, turn in enumerate(turn_ids) if turn >= 0]
