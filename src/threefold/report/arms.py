"""Sorts runs into arms: runs of one recipe that differ only in their seed.

Chance enters a comparison twice, by the seed of training and by the problems. Only runs of equal settings
tell what a seed does, so they are found by their recipes, never by their folders' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.report.outcomes import Results, read_results
from threefold.report.reading import Run, read_run

_CHANCE = frozenset({"run.seed", "run.dir", "run.threads", "credit.noise_seed"})
"""Settings that are no part of the method."""
_NOISE = "credit.noise_control"
_LABEL_KEYS = 3
"""Most settings that an arm's name spells out."""


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    run: Run
    results: tuple[Results, ...]
    settings: Mapping[str, Any]
    """The recipe by dotted key."""

    @property
    def seed(self) -> int | None:
        seed = self.settings.get("run.seed", self.run.environment.get("seed"))
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    def of_mode(self, mode: str) -> Results | None:
        return next((results for results in self.results if results.mode == mode), None)


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed."""

    name: str
    entries: tuple[Entry, ...]
    noise: str | None = None
    """How its rewards were made noise, where the arm is a noise control."""

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.entries[0].settings

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(entry.seed for entry in self.entries)


def read_entries(run_dirs: Sequence[Path], notes: list[str]) -> list[Entry]:
    """Read the runs; what is missing becomes a sentence in `notes`.

    Raises:
        FileNotFoundError: A directory does not exist, or holds no run.
        ValueError: There are fewer than two, or one is named twice.
    """
    if len(run_dirs) < 2:
        raise ValueError("a comparison needs two runs or more")
    seen: dict[Path, Path] = {}
    for run_dir in run_dirs:
        resolved = run_dir.resolve()
        if resolved in seen:
            raise ValueError(f"{run_dir} and {seen[resolved]} are one run; give each run once")
        seen[resolved] = run_dir
    entries = []
    for run_dir in run_dirs:
        run = read_run(run_dir, episode_limit=0)
        if not run.config and not run.metrics.columns and not run.evaluations:
            raise FileNotFoundError(
                f"{run_dir} holds no run: give a directory with config.yaml and after.json"
            )
        entries.append(Entry(run, read_results(run_dir, notes), flatten(run.config)))
    return entries


def arms_of(entries: Sequence[Entry], notes: list[str]) -> list[Arm]:
    """The arms, in the order of their first runs. A second run of one seed adds nothing and is named."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        key = _identity(entry.settings) if entry.settings else str(entry.run.directory)
        group = groups.setdefault(key, [])
        twin = next((other for other in group if other.seed == entry.seed), None)
        if twin is None:
            group.append(entry)
        else:
            notes.append(
                f"{entry.run.directory} has the recipe and the seed {entry.seed} of {twin.run.directory}; it "
                "is left out, as it is no further draw of chance."
            )
    settings = [group[0].settings for group in groups.values()]
    names = [_base_name(group[0]) for group in groups.values()]
    arms = []
    for index, group in enumerate(groups.values()):
        alike = [settings[i] for i, name in enumerate(names) if name == names[index]]
        name = names[index]
        if len(alike) > 1:
            name += f" ({_spell(settings[index], differing(alike), group)})"
        arms.append(Arm(name, tuple(group), settings[index].get(_NOISE)))
    return arms


def control_pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """(noise control, its method) for every control whose method is here: equal in everything but the
    noise."""
    return [
        (control, method)
        for control in arms
        for method in arms
        if control.noise is not None
        and method.noise is None
        and method.settings
        and _identity(control.settings, leave_out={_NOISE}) == _identity(method.settings, leave_out={_NOISE})
    ]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys in which recipes differ, those of chance left out."""
    keys = dict.fromkeys(key for one in settings for key in one if key not in _CHANCE)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def flatten(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def _identity(settings: Mapping[str, Any], leave_out: set[str] | None = None) -> tuple[tuple[str, str], ...]:
    kept = settings.keys() - _CHANCE - (leave_out or set())
    return tuple(sorted((key, repr(settings[key])) for key in kept if settings[key] is not None))


def _base_name(entry: Entry) -> str:
    method = entry.settings.get("credit.method")
    if method is None:
        return entry.run.directory.resolve().name
    noise = entry.settings.get(_NOISE)
    return f"{method}, noise control ({noise})" if noise is not None else str(method)


def _spell(settings: Mapping[str, Any], keys: Sequence[str], group: Sequence[Entry]) -> str:
    if not keys or len(keys) > _LABEL_KEYS:
        return group[0].run.directory.resolve().name
    said = [f"{key.rpartition('.')[2]} {settings[key]}" for key in keys if settings.get(key) is not None]
    return ", ".join(said) or f"without {keys[0].rpartition('.')[2]}"
