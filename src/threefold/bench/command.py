"""The command: run benches by name, write their figures, hold them against a baseline."""

from __future__ import annotations

import argparse
import difflib
import gc
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

from threefold.bench import credit, dialogue, page, scaling, step, update
from threefold.bench.record import QUICK, Cell, Options, in_both, load_average, read, regressions, write

BENCHES: dict[str, ModuleType] = {
    "update": update,
    "step": step,
    "dialogue": dialogue,
    "scaling": scaling,
    "credit": credit,
}


def run(arguments: argparse.Namespace) -> int:
    """Run what the command line asks for.

    Returns:
        The exit status: 1 where a ratio is worse than the baseline's, or one of these was not measured.

    Raises:
        ValueError: There is no such bench, an option is out of range, or the baseline is of another bench,
            was measured with other options, or would be overwritten.
        FileNotFoundError: The baseline has no figures of a bench that was run.
        OSError: The output folder cannot be made.
    """
    if arguments.list:
        for name, bench in BENCHES.items():
            print(f"{name:10}{(bench.__doc__ or '').strip().splitlines()[0]}")
        return 0
    names = arguments.names or list(BENCHES)
    for name in names:
        if name not in BENCHES:
            near = difflib.get_close_matches(name, BENCHES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no bench {name!r}{hint} (choose from {', '.join(BENCHES)})")
    options = options_of(arguments)
    baseline = {name: _baseline(arguments.baseline, name, options, arguments.output) for name in names}
    if arguments.baseline is not None and not any(baseline.values()):
        of_bench = read(arguments.baseline)["bench"]
        raise ValueError(f"the baseline {arguments.baseline} is of {of_bench}, not of {', '.join(names)}")
    arguments.output.mkdir(parents=True, exist_ok=True)  # better now than after an hour of measuring
    worse: list[str] = []
    for name in names:
        cells = _measured(name, options, arguments.output)
        if (old := baseline[name]) is not None:
            worse += _held_against(old, cells, name)
    for text in worse:
        print(text, file=sys.stderr)
    return 1 if worse else 0


def _held_against(old: Sequence[Cell], cells: Sequence[Cell], name: str) -> list[str]:
    """What is wrong with a bench beside its baseline, in words; how many ratios were compared is printed."""
    compared, missing = in_both(old, cells)
    slower = [f"slower than the baseline: {name}: {text}" for text in regressions(old, cells)]
    print(f"{name}: {len(compared)} ratios held against the baseline, {len(slower)} grew by over 10 %\n")
    gone = [f"not compared: {name}: {text} is in the baseline and was not measured" for text in missing]
    return slower + gone


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of a command line: `--quick`'s or the defaults, with those that were given."""
    options = replace(Options(), **QUICK) if arguments.quick else Options()
    given = {one.name: getattr(arguments, one.name, None) for one in fields(Options)}
    return replace(options, **{name: value for name, value in given.items() if value is not None})


def _measured(name: str, options: Options, output: Path) -> list[Cell]:
    import torch

    from threefold.memory import keep_freed_memory

    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    before = load_average()
    cells = BENCHES[name].measure(options)
    gc.collect()
    written = write(
        output, name, cells, options, command=" ".join(["threefold", *sys.argv[1:]]), before=before
    )
    print("\n".join(page.section(read(written))))
    print(f"{written} is written\n")
    return cells


def _baseline(path: Path | None, name: str, options: Options, output: Path) -> list[Cell] | None:
    if path is None:
        return None
    file = path / f"{name}.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"the baseline {file} is missing; run `threefold bench {name} --output {path}`"
        )
    data = read(file)
    if data["bench"] != name:
        return None
    if file.resolve() == (output / f"{name}.json").resolve():
        raise ValueError(
            f"the baseline {file} would be overwritten, and what is slower today be tomorrow's baseline; "
            "name another folder with --output"
        )
    # The batches of `credit` are the same whatever is asked for.
    differences = [] if name == "credit" else options.differences(data["options"])
    if differences:
        raise ValueError(
            f"the baseline {file} was measured with {', '.join(differences)}: ratios of different work say "
            f"nothing about speed; its command was `{data['command']}`"
        )
    return data["cells"]
