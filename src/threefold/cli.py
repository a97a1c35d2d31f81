"""The command line. Heavy imports happen inside the commands, so `threefold --help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

STARTERS = ("problems", "environment", "caregiver")
"""Recipes that `init` writes: the files of the folder `starters`."""


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
    if arguments.command not in ("train", "eval", "doctor") or len(late) < len(rest):
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
    train.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a step on standard output, everything else on standard error",
    )
    train.set_defaults(run=_train)

    init = commands.add_parser(
        "init",
        help="write a commented recipe to start from",
        epilog="examples: threefold init problems    threefold init environment my-recipe.yaml",
    )
    init.add_argument("kind", choices=STARTERS, help="what the model learns")
    init.add_argument("path", type=Path, nargs="?", default=Path("recipe.yaml"), help="default recipe.yaml")
    init.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    init.set_defaults(run=_init)

    doctor = commands.add_parser(
        "doctor",
        help="say what of a recipe will be slow or fail, up to a step at full length",
        epilog="example: threefold doctor recipes/demo.yaml training.max_completion_tokens=512",
    )
    doctor.add_argument("recipe", type=Path, help="YAML file, such as recipes/demo.yaml")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, as for train")
    doctor.add_argument("--no-step", action="store_true", help="load no weights and rehearse no step")
    doctor.set_defaults(run=_doctor)

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
    evaluate.add_argument(
        "--swap",
        nargs="+",
        action="append",
        default=[],
        metavar="key=value",
        help="also measure in the environment so changed, and how far scores move on the same tasks; may be "
        "given again",
    )
    evaluate.add_argument("--output", type=Path, help="write the figures there as JSON")
    evaluate.add_argument("--quiet", action="store_true", help="print results only")
    evaluate.set_defaults(run=_evaluate)

    view = commands.add_parser(
        "view",
        help="write the report of a run, or of several side by side, as one HTML file",
        epilog="examples: threefold view runs/demo    threefold view runs/demo --watch    "
        "threefold view runs/grpo runs/ispo",
    )
    view.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="run directories")
    view.add_argument(
        "--output",
        type=Path,
        help="where to write (default: RUN/report.html; comparison.html beside the first of several)",
    )
    view.add_argument(
        "--watch",
        action="store_true",
        help="write it again whenever the run goes on, until it is complete or Ctrl-C; an open page follows",
    )
    view.add_argument(
        "--interval", type=float, default=10.0, metavar="SECONDS", help="between two looks (default: 10)"
    )
    view.set_defaults(run=_view)
    _add_compare(commands)
    _add_skills(commands)
    return parser


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="paired differences of runs on the same held-out problems, over seeds where there are several",
        epilog="example: threefold compare runs/grpo-0 runs/grpo-1 runs/ispo-0 runs/ispo-1",
    )
    compare.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="two run directories or more")
    compare.add_argument(
        "--baseline", type=Path, help="a run of the arm to compare with (default: the first)"
    )
    compare.add_argument(
        "--score",
        nargs="+",
        default=[],
        metavar="NAME",
        help="scores to compare, or 'all' (default: strict, in environments success)",
    )
    compare.add_argument("--json", action="store_true", help="print one JSON object in place of tables")
    compare.add_argument(
        "--output", type=Path, help="also write the report page there, such as comparison.html"
    )
    compare.set_defaults(run=_compare)


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
    console = Console(quiet=arguments.quiet, json=arguments.json)
    if arguments.dry_run:
        dry_run(recipe, console)
        return 0
    if arguments.overwrite and not arguments.resume:
        from threefold.training.run_directory import delete_run

        delete_run(recipe.run.dir)
    train(recipe, console, resume=arguments.resume)
    return 0


def _init(arguments: argparse.Namespace) -> int:
    from importlib import resources

    path: Path = arguments.path
    if path.exists() and not arguments.overwrite:
        raise FileExistsError(f"{path} exists; give another path, or --overwrite")
    text = (resources.files("threefold") / "starters" / f"{arguments.kind}.yaml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    print(f"{path} is written; next:")
    print(f"  threefold doctor {path}     # what will be slow or fail")
    print(f"  threefold train {path}      # then: threefold view RUN")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from threefold.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from threefold.training.doctor import examine

    _quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    failed = False
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}
    for finding in examine(recipe, step=not arguments.no_step):
        failed = failed or finding.level == "fail"
        console.print(f"{finding.level:5}", style=styles[finding.level], end="")
        console.print(f"{finding.what:14}{finding.text}", markup=False)
    return 2 if failed else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from threefold.evaluation.command import evaluate_model

    _quiet_libraries()
    evaluate_model(arguments)
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
