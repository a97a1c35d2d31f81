"""From rewards to relative rewards: every way in which an episode is compared with the others of its group.

A group is named by an integer per episode. Groups may be of any size and need not lie side by side. NaN marks
a value that is not there: it takes no part in its group's statistics and gets 0, which moves nothing.

In float32, with groups of one size, `zscore` makes the floating point operations of TRL 1.16's GRPOTrainer in
the same order, so the two are equal bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def zscore(
    values_B: Tensor, group_B: Tensor, *, ddof: int = 1, eps: float = 1e-4, std_floor: float = 0.0
) -> Tensor:
    """How many standard deviations a value lies above the mean of its group: (v - mean) / (std + eps).

    Args:
        values_B: (B,) values; NaN where there is none.
        group_B: (B,) group of each value, any integers.
        ddof: What is taken off the count in the variance: 1 unbiased (TRL's choice), 0 for the population's.
        eps: Added to the standard deviation, in units of the values. It is also a soft floor: a group whose
            spread is far below it gets scores far below 1.
        std_floor: The standard deviation counts as at least this, in units of the values: a hard floor.

    Returns:
        (B,) scores; 0 for NaN, and for a group with no more than `ddof` values, whose deviation is undefined.

    Raises:
        ValueError: The arguments are not two vectors of one length.
    """
    values_B = _floating(values_B)
    values_NG, row_B, _ = _rows(values_B, group_B)
    mean_N, std_N = torch.nanmean(values_NG, dim=1), nan_std(values_NG, ddof=ddof)
    if std_floor:
        std_N = std_N.clamp(min=std_floor)
    return torch.nan_to_num((values_B - mean_N[row_B]) / (std_N[row_B] + eps), nan=0.0)


@torch.no_grad()
def leave_one_out(values_B: Tensor, group_B: Tensor) -> Tensor:
    """How far a value lies above the mean of its group's *other* values: RLOO's baseline (arXiv 2402.14740).

    Args:
        values_B: (B,) values; NaN where there is none.
        group_B: (B,) group of each value, any integers.

    Returns:
        (B,) differences, in units of the values; 0 for NaN and where there are no others.

    Raises:
        ValueError: The arguments are not two vectors of one length.
    """
    values_B = _floating(values_B)
    values_NG, row_B, _ = _rows(values_B, group_B)
    mean_B = torch.nanmean(values_NG, dim=1)[row_B]
    count_B = (~values_NG.isnan()).sum(dim=1)[row_B]
    # The others' mean is (n * mean - v) / (n - 1): the distance to it is n / (n - 1) times that to the mean.
    return torch.nan_to_num((values_B - mean_B) * (count_B / (count_B - 1).clamp(min=1)), nan=0.0)


@torch.no_grad()
def centred_rank(values_B: Tensor, group_B: Tensor, *, valid_B: Tensor | None = None) -> Tensor:
    """Rank of a value in its group, stretched to [-1, 1]: 2 (rank - 1) / (n - 1) - 1, the mean rank for ties.

    T²-GRPO's Eq. 3. The same number is (values below - values above) / (n - 1), which is what is computed:
    whole numerators, so a group of equal values gets exact zeros.

    It is bounded and blind to magnitudes. It is *not* gentler than a z-score to values that tie: in a group
    of two distinct values the two are proportional.

    Args:
        values_B: (B,) values; NaN where there is none.
        group_B: (B,) group of each value, any integers.
        valid_B: (B,) bool, the values that take part; all by default.

    Returns:
        (B,) centred ranks; 0 for values that take no part and in groups of one.

    Raises:
        ValueError: The arguments are not vectors of one length.
    """
    values_B = _floating(values_B)
    if valid_B is not None:
        _same_length(values_B, valid_B, "valid_B")
        values_B = values_B.masked_fill(~valid_B, torch.nan)
    values_NG, row_B, column_B = _rows(values_B, group_B)
    # NaN is neither below nor above anything: padding and missing values drop out of both counts.
    below_NG = (values_NG[:, None, :] < values_NG[:, :, None]).sum(dim=2)
    above_NG = (values_NG[:, None, :] > values_NG[:, :, None]).sum(dim=2)
    others_N1 = ((~values_NG.isnan()).sum(dim=1, keepdim=True) - 1).clamp(min=1)
    ranks_NG = (below_NG - above_NG).to(values_NG.dtype) / others_N1
    return ranks_NG[row_B, column_B]


@torch.no_grad()
def dead_groups(rewards_B: Tensor, group_B: Tensor, *, tol: float = 0.0) -> Tensor:
    """The episodes whose group teaches nothing, because all its rewards are equal.

    Decided on the rewards themselves. The float standard deviation of equal rewards need not be 0: that of
    eight times 0.1 is 8e-9 in float32, rounding dust that a division by it would blow up to full size.

    Args:
        rewards_B: (B,) rewards; NaN where unscorable.
        group_B: (B,) group of each episode, any integers.
        tol: Largest difference inside a group that still counts as equal, in units of the rewards.

    Returns:
        (B,) bool, the same for all episodes of a group. A group without any score is dead.

    Raises:
        ValueError: The arguments are not two vectors of one length.
    """
    rewards_NG, row_B, _ = _rows(_floating(rewards_B), group_B)
    missing_NG = rewards_NG.isnan()
    top_N = rewards_NG.masked_fill(missing_NG, -torch.inf).amax(dim=1)
    bottom_N = rewards_NG.masked_fill(missing_NG, torch.inf).amin(dim=1)
    # The equality is for groups of infinite rewards, whose difference is NaN.
    return ((top_N == bottom_N) | (top_N - bottom_N <= tol))[row_B]


@torch.no_grad()
def clamp_to_outcome(values: Tensor, outcome_B: Tensor, group_B: Tensor) -> Tensor:
    """Keep right episodes at or above their group's mean, and wrong ones at or below, where a group has both.

    Args:
        values: (B,) or (B, T) advantages.
        outcome_B: (B,) outcomes in [0, 1], right from 0.5; NaN is neither.
        group_B: (B,) group of each episode, any integers.

    Returns:
        Advantages, those of right episodes >= 0 and of wrong ones <= 0; other groups are left alone.

    Raises:
        ValueError: The arguments are not of one length.
    """
    _same_length(outcome_B, values if values.ndim == 1 else values[:, 0], "values")
    right_B, wrong_B = outcome_B >= 0.5, outcome_B < 0.5
    mixed_B = ~dead_groups(right_B.float().masked_fill(outcome_B.isnan(), torch.nan), group_B)
    up_B, down_B = mixed_B & right_B, mixed_B & wrong_B
    if values.ndim == 2:
        up_B, down_B = up_B[:, None], down_B[:, None]
    return torch.where(down_B, values.clamp(max=0), torch.where(up_B, values.clamp(min=0), values))


@torch.no_grad()
def group_mean(values_B: Tensor, group_B: Tensor) -> Tensor:
    """(B,) mean of the values in each one's group, without NaN; NaN in a group that has none.

    Raises:
        ValueError: The arguments are not two vectors of one length.
    """
    values_NG, row_B, _ = _rows(_floating(values_B), group_B)
    return torch.nanmean(values_NG, dim=1)[row_B]


@torch.no_grad()
def group_std(values_B: Tensor, group_B: Tensor, *, ddof: int = 1) -> Tensor:
    """(B,) standard deviation in each value's group, without NaN; NaN in groups of at most `ddof` values.

    Raises:
        ValueError: The arguments are not two vectors of one length.
    """
    values_NG, row_B, _ = _rows(_floating(values_B), group_B)
    return nan_std(values_NG, ddof=ddof)[row_B]


@torch.no_grad()
def group_max(values_B: Tensor, group_B: Tensor) -> Tensor:
    """(B,) largest of the values in each one's group, without NaN; NaN in a group that has none.

    Raises:
        ValueError: The arguments are not two vectors of one length.
    """
    values_NG, row_B, _ = _rows(_floating(values_B), group_B)
    empty_N = values_NG.isnan().all(dim=1)
    top_N = values_NG.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(dim=1)
    return top_N.masked_fill(empty_N, torch.nan)[row_B]


@torch.no_grad()
def group_size(values_B: Tensor, group_B: Tensor) -> Tensor:
    """(B,) how many values each one's group has, without NaN; at least 1, so that it can divide.

    Raises:
        ValueError: The arguments are not two vectors of one length.
    """
    values_NG, row_B, _ = _rows(_floating(values_B), group_B)
    return (~values_NG.isnan()).sum(dim=1).clamp(min=1)[row_B]


@torch.no_grad()
def nan_std(values: Tensor, *, ddof: int = 1) -> Tensor:
    """Deviation over the last dimension without NaN, in TRL's order of operations; NaN where undefined."""
    mean = torch.nanmean(values, dim=-1, keepdim=True)
    variance = torch.nanmean((values - mean) ** 2, dim=-1)
    count = (~values.isnan()).sum(dim=-1).to(values.dtype)
    correction = torch.where(count > ddof, count / (count - ddof), torch.nan)
    return torch.sqrt(variance * correction)


def _rows(values_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The groups as rows (N, G of the largest), free places NaN; and each value's row and column in them."""
    _same_length(values_B, group_B, "group_B")
    _, row_B, size_N = torch.unique(group_B, return_inverse=True, return_counts=True)
    order_B = torch.argsort(row_B, stable=True)
    start_N = size_N.cumsum(0) - size_N
    column_B = torch.empty_like(row_B)
    column_B[order_B] = torch.arange(len(row_B), device=row_B.device) - start_N[row_B[order_B]]
    largest = int(size_N.max()) if len(size_N) else 1
    values_NG = values_B.new_full((len(size_N), largest), torch.nan)
    values_NG[row_B, column_B] = values_B
    return values_NG, row_B, column_B


def _floating(values: Tensor) -> Tensor:
    return values if values.is_floating_point() else values.float()


def _same_length(values_B: Tensor, other_B: Tensor, name: str) -> None:
    if values_B.ndim != 1 or other_B.shape != values_B.shape:
        raise ValueError(
            f"one value and one entry of {name} per episode are needed, both as vectors (B,): "
            f"got values {tuple(values_B.shape)} and {name} {tuple(other_B.shape)}"
        )
