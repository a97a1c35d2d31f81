"""Regroup the micro-batches of one optimizer update so that the same gradient costs less.

TRL shuffles the rows of a generation batch, cuts it into micro-batches of equal row counts, and forwards rows
whose advantage is zero. Here, inside each optimizer update:

  * rows without an advantage are left out (they add nothing to the gradient),
  * episodes of one prompt stay together (`shared_prompt` then scores the prompt once), shortest first, and
  * micro-batches are filled by tokens, not by rows; the fewest that hold them all, of about equal size.

It is exact where a loss is a sum over rows with weights that do not depend on what else is in the
micro-batch: `dapo` and `cispo` divide by the generation batch's tokens as they are. `grpo`, `sapo` and
`dr_grpo` average over a micro-batch's rows, so the advantages of a micro-batch of n rows are scaled by
n / (TRL's row count): all three are linear in the advantage at a fixed sign. Other losses are left alone;
`why_not` names the reason.

TRL runs a fixed number of micro-batches an update. Those that stay empty are empty dictionaries here, and
are skipped, but never all of them: where no row has an advantage the shortest is forwarded, because a
gradient of zero is not no gradient. An optimizer with momentum or weight decay moves the weights with the
first and leaves them with the second, and processes sum gradients up in the backward of the last micro-batch.
Several processes, whose losses gather one figure a row from each other, agree on row counts first, and fill
up with idle rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MicroBatch = dict[str, Any]
"""What TRL hands to its loss: tensors with the rows first, 0-dim tensors, or None."""

_WEIGHTED_BY_ROWS = ("grpo", "sapo", "dr_grpo")
_WEIGHTED_BY_TOKENS = ("dapo", "cispo")


def why_not(args: Any, *, auxiliary_loss: bool = False) -> str | None:
    """Why an update with this `GRPOConfig` cannot be repacked exactly; None where it can."""
    if args.loss_type not in (*_WEIGHTED_BY_ROWS, *_WEIGHTED_BY_TOKENS):
        return f"loss_type={args.loss_type!r} weighs a row by its micro-batch"
    if args.beta != 0.0 and args.loss_type not in _WEIGHTED_BY_TOKENS:
        return f"beta > 0: with loss_type={args.loss_type!r} the weight of a row's KL is its micro-batch's"
    if args.top_entropy_quantile < 1.0:
        return "top_entropy_quantile ranks the tokens of a micro-batch"
    if args.entropy_coef != 0.0 or args.use_adaptive_entropy:
        return "the entropy bonus averages over a micro-batch, rows without an advantage included"
    if auxiliary_loss:
        return "the experts' balance is measured on the tokens of a micro-batch"
    return None


def why_not_dropped(args: Any, *, kl_on_dead_groups: bool) -> str | None:
    """Why rows without an advantage have to be forwarded all the same; None where they need not be."""
    if args.beta != 0.0 and kl_on_dead_groups:
        return "beta > 0: the KL term pulls on rows without an advantage too"
    return None


def repack(
    micro_batches: Sequence[MicroBatch],
    *,
    loss_type: str,
    drop_dead: bool = True,
    shared: bool = True,
    agree: Callable[[list[int]], list[int]] | None = None,
    row_number: str = "",
    without_kl: str = "",
) -> list[MicroBatch]:
    """The micro-batches of one optimizer update, with the same gradient and less to compute.

    Args:
        micro_batches: TRL's, of equal row counts, with `prompt_ids`, `prompt_mask`, `completion_ids`,
            `completion_mask` and `advantages`, (B,) or (B, T).
        loss_type: TRL's; decides whether advantages have to be scaled.
        drop_dead: Leave out rows whose advantages are all zero where the loss counts.
        shared: Prompts will be scored once a micro-batch, so that is how they are counted.
        agree: Row counts of this process -> row counts that all processes can fill, for losses that gather
            one figure a row. Rows that are missing here are idle: one token, no advantage.
        row_number: Entry that numbers the rows; -1 for idle ones.
        without_kl: Entry that says, with a KL term, which rows it leaves out: where there is one, these rows
            alone are dropped, and idle ones are of them.

    Returns:
        As many entries as were given: an empty dictionary for each that has no rows, then those that have, at
        least one.
    """
    rows_each = len(micro_batches[0]["advantages"])
    merged = _merged(micro_batches)
    kept = list(range(len(merged["advantages"])))
    if drop_dead and without_kl in merged:
        kept = (~merged[without_kl]).nonzero()[:, 0].tolist()
    elif drop_dead:
        kept = _alive(merged)
    kept = kept or [_shortest(merged)]
    chunks = _filled(merged, kept, len(micro_batches), rows_each, shared=shared)
    packed = [_trimmed(_rows(merged, rows)) for rows in chunks]
    # Empty ones first: DDP adds the processes' gradients up in the backward of the last one.
    empty = len(micro_batches) - len(chunks)
    counts = [0] * empty + [len(rows) for rows in chunks]
    packed = [*({} for _ in range(empty)), *packed]
    if agree is not None:
        agreed = agree(counts)
        packed = [
            _with_idle_rows(part, wanted - count, merged, row_number, without_kl)
            for part, count, wanted in zip(packed, counts, agreed, strict=True)
        ]
        counts = agreed
    if loss_type in _WEIGHTED_BY_ROWS:
        for part, count in zip(packed, counts, strict=True):
            if part and count != rows_each:
                part["advantages"] = part["advantages"] * (count / rows_each)
    return packed


def _with_idle_rows(
    part: MicroBatch, count: int, merged: MicroBatch, row_number: str, without_kl: str
) -> MicroBatch:
    """The micro-batch with `count` rows more that add nothing: its first row's prompt and first token."""
    if count == 0:
        return part
    idle = _rows(part or _trimmed(_rows(merged, [0])), [0] * count)
    idle["advantages"] = torch.zeros_like(idle["advantages"])
    idle["completion_mask"] = torch.zeros_like(idle["completion_mask"])
    idle["completion_mask"][:, 0] = 1
    if row_number in idle:
        idle[row_number] = torch.full_like(idle[row_number], -1)
    if without_kl in idle:
        idle[without_kl] = torch.ones_like(idle[without_kl])
    return _merged([part, idle]) if part else _trimmed(idle)


def _merged(micro_batches: Sequence[MicroBatch]) -> MicroBatch:
    first = micro_batches[0]
    merged: MicroBatch = {}
    for name, value in first.items():
        parts = [micro_batch[name] for micro_batch in micro_batches]
        if isinstance(value, Tensor) and value.dim() > 0:
            merged[name] = torch.cat(parts)
        elif isinstance(value, list):
            merged[name] = [item for part in parts for item in part]
        else:
            merged[name] = value
    return merged


def _rows(batch: MicroBatch, rows: Sequence[int]) -> MicroBatch:
    """These rows of a batch; entries without a row dimension as they are."""
    taken: MicroBatch = {}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            taken[name] = value[torch.tensor(rows, device=value.device)]
        elif isinstance(value, list):
            taken[name] = [value[row] for row in rows]
        else:
            taken[name] = value
    return taken


def _trimmed(batch: MicroBatch) -> MicroBatch:
    """The batch without the columns after its longest completion. (Prompts keep their padding: columns before
    a token move it where positions are absolute.)"""
    width = batch["completion_ids"].size(1)
    longest = max(int(batch["completion_mask"].sum(dim=1).max()), 1)
    return {
        name: value[:, :longest]
        if isinstance(value, Tensor) and value.dim() == 2 and value.size(1) == width and name not in _PROMPT
        else value
        for name, value in batch.items()
    }


_PROMPT = ("prompt_ids", "prompt_mask")


def _alive(batch: MicroBatch) -> list[int]:
    """The rows with an advantage on a token that the loss counts."""
    mask_BT = batch["completion_mask"].bool()
    if "tool_mask" in batch:
        mask_BT = mask_BT & batch["tool_mask"].bool()
    advantages = batch["advantages"]
    values_BT = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    return ((values_BT != 0) & mask_BT).any(dim=1).nonzero()[:, 0].tolist()


def _shortest(batch: MicroBatch) -> int:
    """The row with the fewest tokens, of those with any that count."""
    completion_B = batch["completion_mask"].sum(dim=1)
    tokens_B = batch["prompt_mask"].sum(dim=1) + completion_B
    return int(torch.where(completion_B > 0, tokens_B, tokens_B.max() + 1).argmin())


def _filled(
    batch: MicroBatch, kept: Sequence[int], most: int, rows_each: int, *, shared: bool
) -> list[list[int]]:
    """Rows of each micro-batch: as few micro-batches as hold them, none larger than TRL's largest."""
    costs = _Costs(batch, shared=shared)
    rows = costs.in_order(kept)
    limit = rows_each * (max(costs.prompt_R) + max(costs.completion_R))
    for count in range(1, most):
        chunks = _evenly(rows, count, costs)
        if all(costs.of(chunk) <= limit and len(chunk) <= _MOST_ROWS * rows_each for chunk in chunks):
            return chunks
    return _evenly(rows, most, costs)


_MOST_ROWS = 4
"""Rows of a micro-batch, in units of TRL's: keys and values of a shared prompt are still held once a row."""


class _Costs:
    """Tokens that a micro-batch makes the model compute: prompts (once where shared), and completions padded
    to the longest."""

    def __init__(self, batch: MicroBatch, *, shared: bool) -> None:
        self.prompt_R: list[int] = batch["prompt_mask"].sum(dim=1).tolist()
        self.completion_R: list[int] = batch["completion_mask"].sum(dim=1).tolist()
        numbers: dict[bytes, int] = {}
        ids = batch["prompt_ids"].cpu().numpy()
        self.prompt_of_R = [numbers.setdefault(row.tobytes(), len(numbers)) for row in ids]
        self._shared = shared

    def in_order(self, rows: Sequence[int]) -> list[int]:
        """Episodes of one prompt beside each other, prompts with short completions first."""
        longest: dict[int, int] = {}
        for row in rows:
            prompt = self.prompt_of_R[row]
            longest[prompt] = max(longest.get(prompt, 0), self.completion_R[row])

        def key(row: int) -> tuple[int, int, int]:
            prompt = self.prompt_of_R[row]
            return longest[prompt], prompt, self.completion_R[row]

        return sorted(rows, key=key)

    def growing(self, rows: Sequence[int]) -> list[int]:
        """Cost of the first row, the first two, and so on."""
        seen: set[int] = set()
        prompts = longest = 0
        costs = []
        for count, row in enumerate(rows, 1):
            if not (self._shared and self.prompt_of_R[row] in seen):
                prompts += self.prompt_R[row]
                seen.add(self.prompt_of_R[row])
            longest = max(longest, self.completion_R[row])
            costs.append(prompts + count * longest)
        return costs

    def of(self, rows: Sequence[int]) -> int:
        return self.growing(rows)[-1]


def _evenly(rows: Sequence[int], count: int, costs: _Costs) -> list[list[int]]:
    """Cut rows into at most `count` runs, each of about an equal share of the cost that is left."""
    chunks: list[list[int]] = []
    rest = list(rows)
    while rest:
        growing = costs.growing(rest)
        share = growing[-1] / (count - len(chunks))
        size = len(rest)
        if len(chunks) < count - 1:
            size = max(1, sum(cost <= share for cost in growing))
        chunks.append(rest[:size])
        rest = rest[size:]
    return chunks
