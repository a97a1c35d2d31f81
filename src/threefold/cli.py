"""The command line. Heavy imports happen inside the commands, so `threefold --help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


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
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, FileNotFoundError, FileExistsError, ConnectionError, ImportError) as error:
        if arguments.traceback:
            raise
        print(f"threefold {arguments.command}: {error}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; overrides may stand before and after options, which argparse alone refuses."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if arguments.command not in ("train", "eval") or len(late) < len(rest):
        arguments = parser.parse_args(argv)  # argparse's own message, and its exit
    else:
        arguments.overrides = [*arguments.overrides, *late]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="threefold", description="GRPO for language-model agents whose learning signal does not vanish."
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--traceback", action="store_true", help="show where a refused input was refused")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model as a recipe says",
        epilog="example: threefold train recipes/demo.yaml training.steps=10 run.dir=runs/short",
    )
    train.add_argument("recipe", type=Path, help="YAML file, such as recipes/demo.yaml")
    train.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted keys, such as training.steps=10"
    )
    train.add_argument(
        "--dry-run", action="store_true", help="check everything and print the complete recipe"
    )
    train.add_argument("--resume", action="store_true", help="go on from the run directory's last checkpoint")
    train.add_argument(
        "--overwrite", action="store_true", help="delete the run directory first if it holds a run"
    )
    train.add_argument("--quiet", action="store_true", help="print results only")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "eval",
        help="measure a model on problems or in an environment, with intervals",
        epilog="example: threefold eval runs/demo --samples 8 --k 1 4 8",
    )
    evaluate.add_argument("model", help="a run directory, a model folder, a hub name, or 'embedded'")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted recipe keys, such as environment.name=toy"
    )
    evaluate.add_argument(
        "--data", help="problems: 'arithmetic', gsm8k, a file or a hub name (default: the run's)"
    )
    evaluate.add_argument(
        "--split", help="held-out split: test, or another that the data has (default: the run's, else test)"
    )
    evaluate.add_argument(
        "--bank",
        help="in an environment: 'none', a version of the run's skill bank such as v3, or a folder with "
        "skills (default: the version that the run has in use)",
    )
    evaluate.add_argument(
        "--problems", type=int, default=200, help="how many problems or tasks (default 200)"
    )
    evaluate.add_argument("--samples", type=int, default=8, help="samples per problem (default 8)")
    evaluate.add_argument("--k", type=int, nargs="+", default=[1, 4, 8], help="k of pass@k (default 1 4 8)")
    evaluate.add_argument("--temperature", type=float, default=1.0, help="of the samples (default 1.0)")
    evaluate.add_argument(
        "--max-tokens", type=int, help="new tokens per answer or dialogue (default: the run's, else 512)"
    )
    evaluate.add_argument("--batch-size", type=int, default=64, help="rows decoded at once (default 64)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--output", type=Path, help="write the figures there as JSON")
    evaluate.add_argument("--quiet", action="store_true", help="print results only")
    evaluate.set_defaults(run=_evaluate)

    view = commands.add_parser(
        "view", help="write a run's report as one HTML file", epilog="example: threefold view runs/demo"
    )
    view.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory")
    view.add_argument("--output", type=Path, help="where to write (default: RUN/report.html)")
    view.set_defaults(run=_view)
    _add_skills(commands)
    return parser


def _add_skills(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    skills = commands.add_parser(
        "skills",
        help="look at a skill bank, compare its versions, check, import and export skills",
        epilog="example: threefold skills history runs/errands",
    )
    actions = skills.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in {
        "list": "the versions of a bank",
        "show": "the skills of a version, or one SKILL.md",
        "diff": "what leads from one version to another",
        "history": "versions with evidence, tests, posteriors and decisions",
        "validate": "check a bank, a folder of skills or a SKILL.md",
        "import": "add skills of others as a new version",
        "export": "copy a version's skills to a folder that coding agents read",
    }.items():
        action = actions.add_parser(name, help=text)
        what = "a run directory, a bank" + (
            ", a folder of skills or a SKILL.md" if name == "validate" else ""
        )
        action.add_argument("bank", type=Path, metavar="BANK", help=what)
        if name == "show":
            action.add_argument("skill", nargs="?", help="one skill's name")
        if name == "diff":
            action.add_argument("old", help="a version, such as v1")
            action.add_argument("new", help="another version")
        if name == "import":
            action.add_argument("source", type=Path, help="a folder of skills, or SkillRL's JSON")
        if name == "export":
            action.add_argument("target", type=Path, help="such as .agents/skills")
        if name in ("show", "export"):
            action.add_argument("--version", help="a version (default: the one in use)")
    skills.set_defaults(run=_skills)


def _version() -> str:
    from threefold import __version__

    return f"threefold {__version__}"


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
    from threefold.training.console import Console
    from threefold.training.run import dry_run, train

    _quiet_libraries()
    console = Console(quiet=arguments.quiet)
    if arguments.dry_run:
        dry_run(recipe, console)
        return 0
    if arguments.overwrite and not arguments.resume:
        from threefold.training.run_directory import delete_run

        delete_run(recipe.run.dir)
    train(recipe, console, resume=arguments.resume)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from threefold.evaluation.command import evaluate_model

    _quiet_libraries()
    evaluate_model(arguments)
    return 0


def _view(arguments: argparse.Namespace) -> int:
    from threefold.report import write_report

    print(write_report(arguments.run_dir, arguments.output))
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


if __name__ == "__main__":
    sys.exit(main())
