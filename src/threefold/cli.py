"""The command line: what each command of `arguments` does. Heavy imports happen inside the commands, so
`threefold --help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from threefold.arguments import STARTERS, parse

__all__ = ["STARTERS", "main", "parse"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 2 for input that was refused, 130 after an interrupt that could not save.
    """
    arguments = parse(argv)
    # Trainers phone home from their constructors; a training library should not do so unasked.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from threefold.training import launcher

    if arguments.command != "train" and not launcher.is_first():
        return 0  # training alone is a matter of several processes
    try:
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError,
            PermissionError, ConnectionError, ImportError) as error:  # fmt: skip
        if arguments.traceback:
            raise
        launcher.say_why(f"threefold {arguments.command}: {error}")
        return 2


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and deprecation notes, which nobody can act upon, out of the way."""
    import warnings

    from datasets import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\b")


def _train(arguments: argparse.Namespace) -> int:
    from threefold.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from threefold.training import launcher
    from threefold.training.console import Console
    from threefold.training.run import dry_run, train
    from threefold.training.run_directory import replaced

    _quiet_libraries()
    console = Console(quiet=arguments.quiet, json=arguments.json, silent=not launcher.is_first())
    if arguments.dry_run:
        dry_run(recipe, console)
        return 0
    replaces = arguments.overwrite and not arguments.resume and launcher.is_first()
    with replaced(recipe.run.dir) if replaces else nullcontext() as delete:
        train(recipe, console, resume=arguments.resume, ready=delete)
    return 0


def _init(arguments: argparse.Namespace) -> int:
    from importlib import resources

    path: Path = arguments.path
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file, such as {path / 'recipe.yaml'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    if path.exists() and not arguments.overwrite:
        raise FileExistsError(f"{path} exists; give another path, or --overwrite")
    text = (resources.files("threefold") / "starters" / f"{arguments.kind}.yaml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    print(f"{path} is written; next:")
    print(f"  threefold doctor {path}     # what will be slow or fail")
    print(f"  threefold train {path}      # then: threefold view RUN")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from rich.console import Console

    from threefold.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from threefold.training.doctor import examine

    _quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}
    findings = []
    for finding in examine(recipe, step=not arguments.no_step):
        findings.append(finding)
        if not arguments.json:
            console.print(f"{finding.level:5}", style=styles[finding.level], end="")
            console.print(f"{finding.what:14}{finding.text}", markup=False)
    failed = any(finding.level == "fail" for finding in findings)
    if arguments.json:
        said = {"recipe": str(arguments.recipe), "ok": not failed, "findings": [asdict(f) for f in findings]}
        print(json.dumps(said, ensure_ascii=False, indent=2))
    return 2 if failed else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from threefold.evaluation.command import evaluate_model

    _quiet_libraries()
    evaluate_model(arguments)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from threefold.bench.command import run

    _quiet_libraries()
    return run(arguments)


def _view(arguments: argparse.Namespace) -> int:
    from threefold.report import write_comparison, write_report

    runs = arguments.run_dirs

    def write(reload: float | None = None) -> Path:
        if runs[1:]:
            return write_comparison(runs, arguments.output, reload=reload)
        return write_report(runs[0], arguments.output, reload=reload)

    if not arguments.watch:
        print(write())
        return 0
    from threefold.report.watch import Written, watch

    def tell(written: Written) -> None:
        rest = "complete" if written.done else f"looking again every {arguments.interval:g} s, Ctrl-C stops"
        print(f"{written.path} ({written.seconds:.1f} s; {rest})", file=sys.stderr)

    print(watch(runs, write, every=arguments.interval, tell=tell))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    import json

    from threefold.report.compare import compare
    from threefold.report.compare_page import comparison_html
    from threefold.report.compare_table import print_comparison
    from threefold.report.document import write_page

    found = compare(arguments.run_dirs, scores=arguments.score, baseline=arguments.baseline)
    if arguments.json:
        print(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
    else:
        print_comparison(found)
    if arguments.output is not None:
        page = write_page(arguments.output, comparison_html(found))
        print(f"report: {page}", file=sys.stderr)
    return 0


def _skills(arguments: argparse.Namespace) -> int:
    from threefold.skills import command

    bank = arguments.bank
    if arguments.action == "validate":
        problems = command.validate(bank)
        print("\n".join(problems) or f"{bank}: no problem found")
        return 2 if problems else 0
    lines = {
        "list": lambda: command.list_versions(bank),
        "show": lambda: command.show(bank, arguments.version, arguments.skill),
        "diff": lambda: command.diff(bank, arguments.old, arguments.new),
        "history": lambda: command.history(bank),
        "import": lambda: command.import_skills(bank, arguments.source),
        "export": lambda: command.export(bank, arguments.target, arguments.version),
    }[arguments.action]()
    for line in lines:
        print(line)
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    from threefold.completion import script

    print(script(arguments.shell))
    return 0


_COMMANDS = {
    "train": _train,
    "init": _init,
    "doctor": _doctor,
    "eval": _evaluate,
    "view": _view,
    "compare": _compare,
    "bench": _bench,
    "skills": _skills,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
