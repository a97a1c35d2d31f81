"""TensorBoard, Weights & Biases and trackio, through the callbacks that TRL's `report_to` brings, with the
metrics in groups.

transformers puts "train/" before every name, so that all charts of a run stand in one group. Here a name with
a prefix of its own (`signal/dead_outcome`, `rewards/accuracy/mean`) keeps it, and TRL's plain names (`loss`,
`reward`) stay in "train".
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from requests.utils import get_netrc_auth
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from threefold.recipe import Recipe, RecipeError

PROJECT = "threefold"
"""Where a run is filed, unless WANDB_PROJECT or training.trl.project (trackio) names one."""
_STEP = "train/global_step"
"""The axis that transformers gives the charts of Weights & Biases and trackio."""


class _Grouped(ABC):
    """Sends names with a prefix of their own as they are, and hands the rest to transformers."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        grouped = {name: value for name, value in logs.items() if "/" in name}
        plain = {name: value for name, value in logs.items() if "/" not in name}
        super().on_log(args, state, control, logs=plain, **kwargs)  # type: ignore[misc]
        if state.is_world_process_zero and grouped:
            self.send(grouped, state.global_step)

    @abstractmethod
    def send(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand on metrics under the names that they have."""


class GroupedTensorBoard(_Grouped, TensorBoardCallback):
    """Event files, in `folder` unless TENSORBOARD_LOGGING_DIR names another."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.logging_dir: str | None
        if self.logging_dir is None and folder is not None:
            self.logging_dir = str(folder)

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.tb_writer.add_scalar(name, value, step)
        self.tb_writer.flush()


class GroupedWandb(_Grouped, WandbCallback):
    """A run of Weights & Biases; WANDB_MODE=offline needs no account."""

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        import wandb

        wandb.log({**metrics, _STEP: step})


class GroupedTrackio(_Grouped, TrackioCallback):
    """A run of trackio, in its local database."""

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        import trackio

        trackio.log({**metrics, _STEP: step})


_GROUPED: dict[type, type] = {
    TensorBoardCallback: GroupedTensorBoard,
    WandbCallback: GroupedWandb,
    TrackioCallback: GroupedTrackio,
}


def group_metrics(trainer: Any, run_dir: str | Path | None = None) -> None:
    """Replace the loggers of a trainer by ours, which keep the groups.

    Args:
        trainer: A trainer that was built with `report_to`, TRL's or ours.
        run_dir: Where TensorBoard's event files go, in a folder `tensorboard`; TRL's choice where None.
    """
    for plain, grouped in _GROUPED.items():
        if any(type(callback) is plain for callback in trainer.callback_handler.callbacks):
            trainer.remove_callback(plain)
            inside = plain is TensorBoardCallback and run_dir is not None
            trainer.add_callback(grouped(Path(run_dir) / "tensorboard") if inside and run_dir else grouped())


def send_metrics(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Hand figures that TRL does not log itself to the loggers, at the current step.

    Not by `trainer.log`, which would send along, and forget, what TRL has gathered for its next line. The
    callbacks get a control of their own, for after a log transformers takes the step's line for written.
    """
    trainer.callback_handler.on_log(trainer.args, trainer.state, copy(trainer.control), dict(metrics))


def logger_options(recipe: Recipe) -> dict[str, Any]:
    """TRL's fields for the recipe's loggers.

    Raises:
        RecipeError: A logger is not installed, or training.trl names loggers too.
    """
    loggers = recipe.run.loggers
    if not loggers:
        return {"report_to": "none"}
    if "report_to" in recipe.training.trl:
        raise RecipeError("run.loggers and training.trl.report_to both name loggers; leave the second out")
    missing = [name for name in loggers if not _installed(name)]
    if missing:
        raise RecipeError(
            f"run.loggers names {missing[0]}, which is not installed: run `pip install {missing[0]}`, or "
            "leave it out; metrics.jsonl is written in any case"
        )
    return {"report_to": list(loggers), "run_name": Path(recipe.run.dir).name, "project": PROJECT}


def _installed(name: str) -> bool:
    """A mere folder of that name, such as the one that wandb writes, imports as an empty package."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def set_places(recipe: Recipe) -> None:
    """Keep what Weights & Biases writes in the run directory, under our project; what the environment says
    already counts."""
    if "wandb" in recipe.run.loggers:
        os.environ.setdefault("WANDB_PROJECT", PROJECT)
        os.environ.setdefault("WANDB_DIR", recipe.run.dir)


def wandb_trouble(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why Weights & Biases would ask for a key at the first step, None where it would not."""
    if environment.get("WANDB_MODE", "online") != "online" or environment.get("WANDB_API_KEY"):
        return None
    host = environment.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if get_netrc_auth(host) is not None:
        return None
    return f"there is no key for {host}: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
