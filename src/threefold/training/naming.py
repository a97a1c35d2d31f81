"""Where an agent's own words name a skill of its prompt, token by token: for `credit.named_skills`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from threefold.training.record import token_texts
from threefold.trajectory import Trajectory


def skill_tensors(trajectories: Sequence[Trajectory], turn_BT: Tensor, tokenizer: Any) -> dict[str, Tensor]:
    """The fields of `CreditBatch` that are about named skills.

    A token names a skill if any of its characters belongs to the skill's whole name (a name inside a longer
    word or name does not count), in a turn up to which the skill has been shown.

    Args:
        trajectories: One for each row of `turn_BT`.
        turn_BT: int64, the turn of each token that the agent wrote, -1 elsewhere.
        tokenizer: What the tokens are of.
    """
    shown = [list(_shown(trajectory)) for trajectory in trajectories]
    names = sorted({name for turns in shown for turn in turns for name in turn})
    skill_BT = torch.full(turn_BT.shape, -1, dtype=torch.int64)
    shown_BS = torch.zeros(len(trajectories), len(names), dtype=torch.bool)
    for row, (trajectory, turns) in enumerate(zip(trajectories, shown, strict=True)):
        for name in turns[-1] if turns else ():
            shown_BS[row, names.index(name)] = True
        segment = trajectory.segments[0]
        ids = segment.token_ids[segment.prompt_length :]
        for turn, known in enumerate(turns):
            places = (turn_BT[row] == turn).nonzero()[:, 0].tolist()
            if not known or not places:
                continue
            texts = token_texts(tokenizer, [ids[place] for place in places])
            for token, name in _named(texts, known):
                skill_BT[row, places[token]] = names.index(name)
    device = turn_BT.device
    return {"named_skill_BT": skill_BT.to(device), "shown_skill_BS": shown_BS.to(device)}


def _shown(trajectory: Trajectory) -> list[set[str]]:
    """For each turn, the skills that had stood in the prompt when it was written."""
    known: set[str] = set()
    return [known := known | set(turn.skills) for turn in trajectory.turns]


def _named(texts: Sequence[str], names: set[str]) -> list[tuple[int, str]]:
    """Index of each token that names a skill, with the name."""
    owners = [index for index, text in enumerate(texts) for _ in text]
    written = "".join(texts)
    found: dict[int, str] = {}
    for name in sorted(names, key=len):  # a longer name has the last word
        for match in re.finditer(rf"(?<![\w-]){re.escape(name)}(?![\w-])", written):
            found |= dict.fromkeys(owners[match.start() : match.end()], name)
    return sorted(found.items())
