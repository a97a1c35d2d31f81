"""Completion for bash, zsh and fish: commands, options, files, run directories, and the keys of a recipe.

`shtab` makes a static script of the parser, so that a shell completes without starting Python. It is made
again whenever the command line changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import shtab
from pydantic import BaseModel

from threefold.arguments import OVERRIDES, PATH, RECIPE, RUN, Parser, build, every
from threefold.recipe import Recipe

_KEYS = "_threefold_recipe_keys"
_OFFERED = {
    RECIPE: shtab.FILE,
    PATH: shtab.FILE,
    RUN: shtab.DIRECTORY,
    OVERRIDES: {"bash": _KEYS, "zsh": _KEYS, "fish": f"({_KEYS})"},
}
# A key is followed by its value, so no space may follow. bash decides that outside of shtab's function.
_AFTER_BASH = """
_threefold() {
  _shtab_threefold
  [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  return 0
}
complete -o bashdefault -F _threefold threefold"""


def script(shell: str) -> str:
    """The script that a shell reads to complete `threefold`.

    Args:
        shell: "bash", "zsh" or "fish".
    """
    keys = " ".join(f"{key}=" for key in recipe_keys())
    preamble = {
        "bash": f"{_KEYS}() {{ compgen -W '{keys}' -- \"$1\"; }}",
        "zsh": f"{_KEYS}() {{ compadd -S '' -- {keys}; }}",
        "fish": f"function {_KEYS}\n  printf '%s\\n' {keys}\nend",
    }
    text: str = shtab.complete(_marked(build()), shell, preamble=preamble)  # type: ignore[arg-type]
    return text + _AFTER_BASH if shell == "bash" else text


def recipe_keys(part: type[BaseModel] = Recipe, before: str = "") -> Iterator[str]:
    """The dotted keys of a recipe that hold a value, such as `training.steps`."""
    for name, field in part.model_fields.items():
        inner = _section(field.annotation)
        if inner is None or before:  # a key such as training.dynamic_sampling may be null itself
            yield f"{before}{name}"
        if inner is not None:
            yield from recipe_keys(inner, f"{before}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation))
    return next((a for a in candidates if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _marked(parser: Parser) -> Parser:
    """The parser with what shtab reads: an attribute `complete` on each argument."""
    for part in every(parser):
        for action in part._actions:
            offer = getattr(action, "offer", None)
            if offer is not None:
                action.complete = _OFFERED[offer]  # type: ignore[attr-defined]
    return parser
