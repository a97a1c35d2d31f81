"""Where the rows of a micro-batch begin alike, and in which passes to score them so that this is used.

Episodes of a group share their prompt, prompts share a system message or skills, dialogues that said the same
so far share their turns. Rows are laid out from column 0 without padding; columns are cut into passes, and in
a pass each different beginning is forwarded once, against the keys and values of the pass before. A row that
has ended takes no part in later passes.

Shapes: B rows, L columns of the longest row, U different beginnings of a pass, C columns of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PASS_TOKENS = 64
"""What a pass costs beside its tokens, in tokens: reading all weights once more, and a copy of the keys and
values before it. It decides how finely rows are cut, not what comes out."""


@dataclass(frozen=True)
class Pass:
    """Forward columns [start - 1, end - 1), which predicts the tokens of columns [start, end).

    The first pass has start 1. The last token that beginnings share is forwarded with the next pass, since
    what follows it differs.
    """

    start: int
    end: int
    rows: tuple[int, ...]
    """One row for each different beginning, U of them."""
    beginning_of_row: tuple[int, ...]
    """For each of the B rows, which of the U it is; -1 where the row has ended before this pass."""
    scored: bool
    """Whether any token of these columns is asked for."""


def plan(ids_BL: np.ndarray, lengths_B: np.ndarray, scored_BL: np.ndarray, head: float) -> list[Pass]:
    """The passes that score these rows with the fewest tokens.

    Args:
        ids_BL: Token ids from column 0; what stands behind a row's end does not matter.
        lengths_B: Tokens of each row up to its last scored one; 0 where none is.
        scored_BL: bool: tokens whose log-probability is asked for; not in column 0, which follows nothing.
        head: Cost of the language-model head for a token, in units of the backbone's.
    """
    n_rows, width = ids_BL.shape
    padded_BL = np.where(np.arange(width) < lengths_B[:, None], ids_BL, -1)
    order = sorted(range(n_rows), key=lambda row: padded_BL[row].tobytes())
    common_B = np.full(n_rows, -1)
    """Columns that a row has in common with the one before it in `order`."""
    for place in range(1, n_rows):
        differ = padded_BL[order[place]] != padded_BL[order[place - 1]]
        common_B[place] = differ.argmax() if differ.any() else width
    sorted_lengths_B = lengths_B[order]
    starts, ends = _cuts(common_B, sorted_lengths_B, scored_BL, head)
    passes = []
    for start, end in zip(starts, ends, strict=True):
        first_B = (common_B < end) & (sorted_lengths_B > start)
        # Rows of one beginning lie beside each other: they are numbered by how many have begun.
        number_B = np.where(sorted_lengths_B > start, first_B.cumsum() - 1, -1)
        beginning_of_row = np.empty(n_rows, dtype=np.int64)
        beginning_of_row[order] = number_B
        passes.append(
            Pass(
                start=start,
                end=end,
                rows=tuple(order[place] for place in first_B.nonzero()[0]),
                beginning_of_row=tuple(beginning_of_row.tolist()),
                scored=bool(scored_BL[:, start:end].any()),
            )
        )
    return passes


def _cuts(
    common_B: np.ndarray, lengths_B: np.ndarray, scored_BL: np.ndarray, head: float
) -> tuple[list[int], list[int]]:
    """The cheapest way to cut the columns, by dynamic programming over those where beginnings change.

    Rows are in order, so a pass over [start, end) has a beginning for each row that goes on past `start` and
    has fewer than `end` columns in common with the row before it.
    """
    width = int(lengths_B.max())
    scored_L = scored_BL[:, :width].any(axis=0)
    places = {*common_B.tolist(), *lengths_B.tolist(), int(scored_L.argmax())}
    cuts = np.array([1, *sorted(place for place in places if 1 < place < width), width])
    new_BN = common_B[:, None] < cuts  # a beginning of its own, were the pass to end at cut n
    goes_on_BN = lengths_B[:, None] > cuts
    beginnings_NN = goes_on_BN.T.astype(np.int64) @ new_BN.astype(np.int64)  # [start, end]
    seen_N = np.concatenate([[0], scored_L.cumsum()])[cuts]
    has_scored_NN = seen_N[None, :] > seen_N[:, None]
    tokens_NN = beginnings_NN * (cuts[None, :] - cuts[:, None])
    cost_NN = PASS_TOKENS + tokens_NN * (1 + head * has_scored_NN)
    best, before = [0.0], [0]
    for end in range(1, len(cuts)):
        totals = np.array(best) + cost_NN[:end, end]
        before.append(int(totals.argmin()))
        best.append(float(totals.min()))
    chosen = [len(cuts) - 1]
    while chosen[-1] > 0:
        chosen.append(before[chosen[-1]])
    columns = cuts[chosen[::-1]].tolist()
    return columns[:-1], columns[1:]


def tokens_forwarded(passes: Sequence[Pass]) -> int:
    """Tokens that the backbone computes."""
    return sum(len(one.rows) * (one.end - one.start) for one in passes)


def left_aligned(values_BW: Tensor, first_B: Tensor, width: int, fill: int) -> Tensor:
    """(B, width): each row from its column `first` on; `fill` behind its end."""
    columns_BL = first_B[:, None] + torch.arange(width, device=values_BW.device)
    inside_BL = columns_BL < values_BW.size(1)
    taken_BL = values_BW.gather(1, columns_BL.clamp(max=values_BW.size(1) - 1))
    return taken_BL.masked_fill(~inside_BL, fill)
