"""Between dataset rows and TRL's rollout entrance: which episodes to play, and what TRL gets of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from threefold.environments import SUCCESS
from threefold.envs.base import Task
from threefold.rollout.driver import Start
from threefold.trajectory import Trajectory


def starts_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    first_row: int,
    first_group: int,
    group_size: int,
    seed: int,
    tasks: Mapping[str, Task] | None = None,
) -> list[Start]:
    """Where each row's episode starts; group and seed come from the global row index, never from the process.

    Args:
        rows: The local dataset rows, already repeated for their groups; columns are the task's fields.
        first_row: Global index of the first of them in the generation batch.
        first_group: Number of groups before this batch.
        group_size: Members of a group.
        seed: The run's seed; the members of a group share `seed` + group.
        tasks: Tasks by the rows' column `id`, where a row's own columns are not the task.

    Raises:
        ValueError: `tasks` does not hold a row's id.
    """
    starts = []
    for index, row in enumerate(rows, first_row):
        group = first_group + index // group_size
        if tasks is not None:
            if row.get("id") not in tasks:
                raise ValueError(
                    f"a dataset row has the id {row.get('id')!r}, which is none of the {len(tasks)} tasks "
                    "that were given; give tasks= for every row, or no tasks"
                )
            task = tasks[row["id"]]
        else:
            fields = {name: value for name, value in row.items() if name != "prompt"}
            task = Task(id=str(row.get("id", row.get("task_id", group))), fields=fields)
        starts.append(Start(task, seed=seed + group, group_id=group, member=index % group_size))
    return starts


def trl_rollout(trajectories: Sequence[Trajectory], *, filler: int, with_logprobs: bool) -> dict[str, Any]:
    """What TRL's `rollout_func` answers: tokens as sampled, and a mask of what the agent wrote.

    TRL cannot carry an empty prompt or completion: an episode that failed at its start gets one masked token.

    Args:
        trajectories: One-segment trajectories in the order of the rows.
        filler: Token id of the masked token.
        with_logprobs: Also hand over the sampler's log-probabilities, for importance correction.

    Raises:
        ValueError: A trajectory has several segments.
    """
    prompt_ids, completion_ids, masks, logprobs = [], [], [], []
    for trajectory in trajectories:
        if len(trajectory.segments) != 1:
            raise ValueError(
                f"task {trajectory.task_id} gave a trajectory of {len(trajectory.segments)} segments; "
                "training takes one segment an episode"
            )
        segment = trajectory.segments[0]
        cut = segment.prompt_length
        prompt_ids.append(list(segment.token_ids[:cut]) or [filler])
        completion_ids.append(list(segment.token_ids[cut:]) or [filler])
        masks.append([int(turn >= 0) for turn in segment.turn_ids[cut:]] or [0])
        logprobs.append([0.0 if p is None else p for p in segment.logprobs[cut:]] or [0.0])
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": logprobs if with_logprobs else None,
        "env_mask": masks,
        "trajectory": list(trajectories),
    }


def episode_rewards(*channels: str) -> list[Callable[..., list[float | None]]]:
    """A reward function for each channel of an environment's episode scores, called like the channel.

    ```python
    ThreefoldTrainer(..., environment=Caregiver, reward_funcs=episode_rewards("goal", "fit", "term"))
    ```

    A channel that an episode was not scored in, or that failed, answers None: that reward is unscorable.
    "success" is no channel but whether the episode succeeded.

    The functions raise ValueError where episodes were scored, and none of them in the channel.
    """
    return [_reader(channel) for channel in channels]


def declared_rewards(environment: Callable[..., Any]) -> list[Callable[..., list[float | None]]]:
    """The reward functions of an environment that names its `channels` on its class.

    Of a mapping to weights, those that have any; weights are `GRPOConfig.reward_weights` here.

    Raises:
        ValueError: It names none.
    """
    channels = getattr(environment, "channels", None) or getattr(
        getattr(environment, "func", None),
        "channels",
        None,  # functools.partial
    )
    if not channels:
        raise ValueError(
            "there are no reward functions, and the environment does not name its reward channels; give "
            'reward_funcs=episode_rewards("..."), or the class an attribute `channels = ("...",)`'
        )
    if isinstance(channels, Mapping):
        channels = [name for name, weight in channels.items() if weight]
    return episode_rewards(*channels)


def _reader(channel: str) -> Callable[..., list[float | None]]:
    def read(completions: Any, trajectory: Sequence[Trajectory], **columns: Any) -> list[float | None]:
        if channel == SUCCESS:
            return [None if e.success is None else float(e.success) for e in trajectory]
        known = _known([name for e in trajectory for name in e.rewards])
        if known and channel not in known:
            nearest = difflib.get_close_matches(channel, known, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"no episode has the channel {channel!r}, they have {', '.join(known)}{hint}")
        return [episode.rewards.get(channel) for episode in trajectory]

    read.__name__ = channel
    return read


def _known(names: list[str]) -> dict[str, None]:
    """Names without repetitions, those of all processes: a process alone may have seen none of a rare one.
    TRL calls reward functions on all of them."""
    known = dict.fromkeys(names)
    if torch.distributed.is_initialized():
        known = dict.fromkeys(gather_object(list(known)))
    return known
