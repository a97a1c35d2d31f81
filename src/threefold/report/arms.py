"""Sorts runs into arms: runs of one recipe that differ only in their seed.

Chance enters a comparison twice, by the seed of training and by the problems. Only runs of equal settings
tell what a seed does, so they are found by their recipes, never by their folders' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.report.outcomes import Results, read_results
from threefold.report.reading import Run, read_run

_CHANCE = frozenset({"run.seed", "run.dir", "run.threads", "run.loggers", "evaluation.every"})
"""Settings that are no part of the method."""
_ADDED = re.compile(r"credit\.together\.[^.]+\.method")
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
        notes.extend(f"{run_dir}: {note}" for note in run.notes if note.startswith("config.yaml"))
        entries.append(Entry(run, read_results(run_dir, notes), settings_of(run.config)))
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
        arms.append(Arm(name, tuple(group), _noise(settings[index])))
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
        and _identity(control.settings, noise=False) == _identity(method.settings, noise=False)
    ]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys in which recipes differ, those of chance left out; one not known differs in none."""
    settings = [one for one in settings if one]
    keys = dict.fromkeys(key for one in settings for key in one if not _is_chance(key))
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe by dotted key. What it does not name has its default, so that a recipe from before a setting
    was there is the one that leaves it out; empty where no recipe is known."""
    from threefold.recipe import Recipe  # brings torch along, which pages of one run do without

    return {**flatten(Recipe().model_dump(mode="json")), **flatten(config)} if config else {}


def flatten(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; a method of `credit.together` stands under its name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            value = {str(v.get("method", i)): v for i, v in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def _is_chance(key: str) -> bool:
    return key in _CHANCE or (key.startswith("credit.") and key.endswith(".noise_seed"))


def _is_noise(key: str) -> bool:
    return key.startswith("credit.") and key.endswith(".noise_control")


def _noise(settings: Mapping[str, Any]) -> str | None:
    """How rewards are made noise, of the leading method or of one that is added to it."""
    found = [str(value) for key, value in settings.items() if _is_noise(key) and value is not None]
    return ", ".join(found) or None


def _identity(settings: Mapping[str, Any], *, noise: bool = True) -> tuple[tuple[str, str], ...]:
    kept = [key for key in settings if not _is_chance(key) and (noise or not _is_noise(key))]
    return tuple(sorted((key, repr(settings[key])) for key in kept if settings[key] is not None))


def _base_name(entry: Entry) -> str:
    method = entry.settings.get("credit.method")
    if method is None:
        return entry.run.directory.resolve().name
    added = [value for key, value in entry.settings.items() if _ADDED.fullmatch(key)]
    name, noise = " + ".join([str(method), *map(str, added)]), _noise(entry.settings)
    return f"{name}, noise control ({noise})" if noise is not None else name


def _spell(settings: Mapping[str, Any], keys: Sequence[str], group: Sequence[Entry]) -> str:
    if not keys or len(keys) > _LABEL_KEYS:
        return group[0].run.directory.resolve().name
    said = [f"{key.rpartition('.')[2]} {settings[key]}" for key in keys if settings.get(key) is not None]
    return ", ".join(said) or f"without {keys[0].rpartition('.')[2]}"
