"""What may be typed after `threefold`: commands, options, help with examples, and refusals that help.

Only the standard library is imported here, so `threefold --help` answers at once. `cli` does what is asked.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

STARTERS = ("problems", "environment", "caregiver")
"""Recipes that `init` writes: the files of the folder `starters`."""
SHELLS = ("bash", "zsh", "fish")
RECIPE, RUN, OVERRIDES, PATH = "recipe", "run", "overrides", "path"
"""What a shell should offer for an argument, as `completion` translates it."""


class Parser(argparse.ArgumentParser):
    """argparse whose help ends with examples, and whose refusals name the nearest valid word."""

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        self.examples = tuple(examples)
        if examples:
            options["epilog"] = "\n".join(("examples:", *(f"  {example}" for example in examples)))
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    @property
    def commands(self) -> dict[str, Parser]:
        """The parsers of its commands, by name; empty where it has none."""
        action = next((a for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)
        return dict(action.choices) if action else {}

    def error(self, message: str) -> NoReturn:
        found = re.fullmatch(r"(.*invalid choice: '([^']*)') \(choose from (.*)\)", message, re.DOTALL)
        if found:
            valid = [word.strip(" '") for word in found[3].split(",")]
            message = f"{found[1]}{_nearest(found[2], valid)} (choose from {', '.join(valid)})"
        elif message.startswith("the following arguments are required"):
            if self.commands:
                message += f" ({', '.join(self.commands)}; {self.prog} -h says what each does)"
            elif self.examples:
                message += f"; for example: {self.examples[0]}"
        super().error(message)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse words that are neither options nor arguments of this command."""
        word = next((word for word in words if word.startswith("-")), words[0])
        name = word.partition("=")[0]
        if name in self._option_string_actions:  # its value is what does not fit
            self.error(f"unrecognized arguments: {' '.join(words)}")
        hint = _nearest(name, self._option_string_actions)
        if not hint and any(action.dest == OVERRIDES for action in self._actions):
            hint = "; keys of the recipe are given without dashes, such as training.steps=40"
        self.error(f"{word} is no option of {self.prog}{hint}" if word.startswith("-") else
                   f"one argument too many: {word}{hint}")  # fmt: skip


def _nearest(word: str, valid: Any) -> str:
    near = difflib.get_close_matches(word, [v for v in valid if v], n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; overrides may stand before and after options, which argparse alone refuses.

    Raises:
        SystemExit: With status 2 where it cannot be parsed, after usage and a sentence on standard error.
    """
    parser = build()
    arguments, rest = parser.parse_known_args(argv)
    command = parser.commands[arguments.command]
    if hasattr(arguments, OVERRIDES):
        late = [word for word in rest if "=" in word and not word.startswith("-")]
        arguments.overrides = [*arguments.overrides, *late]
        rest = [word for word in rest if word not in late]
    if rest:
        command.unknown(rest)
    return arguments


def every(parser: Parser) -> Iterator[Parser]:
    """A parser and those of all its commands and actions."""
    yield parser
    for child in parser.commands.values():
        yield from every(child)


def build() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="threefold",
        description="GRPO for language-model agents whose learning signal does not vanish.",
        examples=(
            "threefold init problems",
            "threefold doctor recipe.yaml",
            "threefold train recipe.yaml",
            "threefold view runs/first",
        ),
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--traceback", action="store_true", help="show where a refused input was refused")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_train, _init, _doctor, _eval, _view, _compare, _bench, _skills, _completion):
        add(commands)
    return parser


def _version() -> str:
    from threefold import __version__

    return f"threefold {__version__}"


def _command(commands: Any, name: str, about: str, examples: Sequence[str]) -> Parser:
    parser: Parser = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}.", examples=examples
    )
    return parser


def _offer(action: argparse.Action, what: str) -> None:
    """Say what a shell should offer for an argument."""
    action.offer = what  # type: ignore[attr-defined]


def _recipe(parser: Parser) -> None:
    _offer(parser.add_argument("recipe", type=Path, help="YAML file, such as recipes/demo.yaml"), RECIPE)
    _overrides(parser, "dotted keys, such as training.steps=10")


def _overrides(parser: Parser, text: str) -> None:
    _offer(parser.add_argument(OVERRIDES, nargs="*", default=[], metavar="key=value", help=text), OVERRIDES)


def _train(commands: Any) -> None:
    train = _command(
        commands,
        "train",
        "train a model as a recipe says",
        (
            "threefold train recipes/demo.yaml --dry-run",
            "threefold train recipes/demo.yaml",
            "threefold train recipes/demo.yaml training.steps=10 run.dir=runs/short",
            "threefold train recipes/demo.yaml credit.method=ispo run.dir=runs/ispo --json",
            "threefold train recipes/demo.yaml --resume training.steps=40",
        ),
    )
    _recipe(train)
    train.add_argument(
        "--dry-run", action="store_true", help="check everything and print the complete recipe"
    )
    train.add_argument("--resume", action="store_true", help="go on from the run directory's last checkpoint")
    train.add_argument(
        "--overwrite", action="store_true", help="replace the run that the run directory holds"
    )
    train.add_argument("--quiet", action="store_true", help="print results only")
    train.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a step on standard output, everything else on standard error",
    )


def _init(commands: Any) -> None:
    init = _command(
        commands,
        "init",
        "write a commented recipe to start from",
        ("threefold init problems", "threefold init environment my-recipe.yaml"),
    )
    init.add_argument("kind", choices=STARTERS, help="what the model learns")
    path = init.add_argument(
        "path", type=Path, nargs="?", default=Path("recipe.yaml"), help="default recipe.yaml"
    )
    _offer(path, PATH)
    init.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _doctor(commands: Any) -> None:
    doctor = _command(
        commands,
        "doctor",
        "say what of a recipe will be slow or fail, up to a step at full length",
        (
            "threefold doctor recipes/demo.yaml",
            "threefold doctor recipes/demo.yaml training.max_completion_tokens=64 --no-step",
            "threefold doctor recipes/demo.yaml --json",
        ),
    )
    _recipe(doctor)
    doctor.add_argument("--no-step", action="store_true", help="load no weights and rehearse no step")
    doctor.add_argument("--json", action="store_true", help="print one JSON object in place of lines")


def _eval(commands: Any) -> None:
    evaluate = _command(
        commands,
        "eval",
        "measure a model on problems or in an environment, with intervals",
        (
            "threefold eval runs/demo --samples 8 --k 1 4 8",
            "threefold eval runs/demo --problems 50 --output demo.json",
            "threefold eval runs/errands --split unseen --bank none",
        ),
    )
    model = evaluate.add_argument("model", help="a run directory, a model folder, a hub name, or 'embedded'")
    _offer(model, RUN)
    _overrides(evaluate, "dotted recipe keys, such as environment.name=toy")
    data = evaluate.add_argument(
        "--data", help="problems: 'arithmetic', gsm8k, a file or a hub name (default: the run's)"
    )
    _offer(data, PATH)
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
    evaluate.add_argument(
        "--k", type=int, nargs="+", help="k of pass@k (default: those of 1 4 8 up to --samples)"
    )
    evaluate.add_argument("--temperature", type=float, default=1.0, help="of the samples (default 1.0)")
    evaluate.add_argument(
        "--max-tokens", type=int, help="new tokens per answer or dialogue (default: the run's, else 512)"
    )
    evaluate.add_argument("--batch-size", type=int, default=64, help="rows decoded at once (default 64)")
    evaluate.add_argument("--seed", type=int, default=0, help="of sampling (default 0)")
    evaluate.add_argument(
        "--swap",
        nargs="+",
        action="append",
        default=[],
        metavar="key=value",
        help="also measure in the environment so changed, and how far scores move on the same tasks; may be "
        "given again",
    )
    output = evaluate.add_argument("--output", type=Path, help="write the figures there as JSON")
    _offer(output, PATH)
    evaluate.add_argument("--quiet", action="store_true", help="print results only")


def _view(commands: Any) -> None:
    view = _command(
        commands,
        "view",
        "write the report of a run, or of several side by side, as one HTML file",
        (
            "threefold view runs/demo",
            "threefold view runs/demo runs/ispo --output comparison.html",
            "threefold view runs/demo --watch",
        ),
    )
    _offer(view.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="run directories"), RUN)
    output = view.add_argument(
        "--output",
        type=Path,
        help="where to write (default: RUN/report.html; comparison.html beside the first of several)",
    )
    _offer(output, PATH)
    view.add_argument(
        "--watch",
        action="store_true",
        help="write it again whenever the run goes on, until it is complete or Ctrl-C; an open page follows",
    )
    view.add_argument(
        "--interval", type=float, default=10.0, metavar="SECONDS", help="between two looks (default: 10)"
    )


def _compare(commands: Any) -> None:
    compare = _command(
        commands,
        "compare",
        "paired differences of runs on the same held-out problems, over seeds where there are several",
        (
            "threefold compare runs/demo runs/ispo",
            "threefold compare runs/demo runs/ispo --score all --output comparison.html",
            "threefold compare runs/ispo runs/demo --baseline runs/demo --json",
        ),
    )
    runs = compare.add_argument(
        "run_dirs", type=Path, nargs="+", metavar="RUN", help="two run directories or more"
    )
    baseline = compare.add_argument(
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
    output = compare.add_argument(
        "--output", type=Path, help="also write the report page there, such as comparison.html"
    )
    for action, what in ((runs, RUN), (baseline, RUN), (output, PATH)):
        _offer(action, what)


_SKILL_ACTIONS = {
    "list": ("the versions of a bank", "threefold skills list runs/errands"),
    "show": (
        "the skills of a version, or one SKILL.md",
        "threefold skills show runs/errands ask-before-open-something",
    ),
    "diff": ("what leads from one version to another", "threefold skills diff my-bank v0 v1"),
    "history": (
        "versions with evidence, tests, posteriors and decisions",
        "threefold skills history runs/errands",
    ),
    "validate": ("check a bank, a folder of skills or a SKILL.md", "threefold skills validate runs/errands"),
    "import": ("add skills of others as a new version", "threefold skills import my-bank my-skills"),
    "export": (
        "copy a version's skills to a folder that coding agents read",
        "threefold skills export runs/errands .agents/skills",
    ),
}


def _skills(commands: Any) -> None:
    skills = _command(
        commands,
        "skills",
        "look at a skill bank, compare its versions, check, import and export skills",
        [example for _, example in _SKILL_ACTIONS.values()],
    )
    actions = skills.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (text, example) in _SKILL_ACTIONS.items():
        action = _command(actions, name, text, (example,))
        what = "a run directory, a bank" + (
            ", a folder of skills or a SKILL.md" if name == "validate" else ""
        )
        _offer(action.add_argument("bank", type=Path, metavar="BANK", help=what), RUN)
        if name == "show":
            action.add_argument("skill", nargs="?", help="one skill's name")
        if name == "diff":
            action.add_argument("old", help="a version, such as v1")
            action.add_argument("new", help="another version")
        if name == "import":
            source = action.add_argument("source", type=Path, help="a folder of skills, or SkillRL's JSON")
            _offer(source, PATH)
        if name == "export":
            _offer(action.add_argument("target", type=Path, help="such as .agents/skills"), PATH)
        if name in ("show", "export"):
            action.add_argument("--version", help="a version (default: the one in use)")


def _bench(commands: Any) -> None:
    bench = _command(
        commands,
        "bench",
        "measure Threefold beside plain TRL on this machine",
        (
            "threefold bench --list",
            "threefold bench --quick",
            "threefold bench update --prompt 512 --rounds 3 --baseline results/performance",
        ),
    )
    bench.add_argument("names", nargs="*", metavar="BENCH", help="which benches (default: all)")
    bench.add_argument("--list", action="store_true", help="say what there is to measure")
    bench.add_argument("--quick", action="store_true", help="a tiny model and short rows: does it all run?")
    bench.add_argument("--model", help="embedded, or random weights: tiny, small, medium (default embedded)")
    for name, text in {
        "prompt": "tokens of a prompt (default 512)",
        "completion": "tokens of the longest completion (default 128)",
        "groups": "prompts of a step (default 2)",
        "group": "episodes of a prompt (default 8)",
        "turns": "turns of a dialogue (default 4)",
        "rounds": "turns of each arm that count (default 3)",
        "micro-batch": "rows of TRL's micro-batches (default: the episodes of one prompt)",
        "warm-up": "turns before that, which do not (default 1)",
        "seed": "of prompts and completions (default 0)",
        "threads": "CPU threads (default: torch's choice)",
    }.items():
        bench.add_argument(f"--{name}", type=int, help=text)
    bench.add_argument(
        "--gradient-checkpointing", action="store_true", default=None, help="in all arms (default off)"
    )
    output = bench.add_argument(
        "--output", type=Path, default=Path("bench"), help="folder for the figures (default bench)"
    )
    baseline = bench.add_argument(
        "--baseline",
        type=Path,
        help="figures of before, a folder or a file; exit status 1 where a ratio has grown by over 10 %%",
    )
    _offer(output, PATH)
    _offer(baseline, PATH)


def _completion(commands: Any) -> None:
    completion = _command(
        commands,
        "completion",
        "print a script that completes commands, options and recipe keys in a shell",
        [f"threefold completion {shell}" for shell in SHELLS],
    )
    completion.add_argument("shell", choices=SHELLS, help="the shell that is to read the script")
