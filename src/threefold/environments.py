"""The environment that a recipe names: its class, its tasks, and the bounds of its episodes.

Shared by training and evaluation, as `tasks.py` is for problems. A class, or a function that makes an
environment of plain options, is found by a short name or as "package.module:name", and so is a class of
sources (`envs.base.EnvironmentSource`), which is made once. The hooks `tasks`, `splits`, `channels`,
`turn_channels`, `demonstrations`, `groups`, `measures`, `levels`, `scope` and `made_with` are looked for on
it, then in its module.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from threefold.envs.base import Environment, Message, Task, is_source
from threefold.envs.instructed import InstructedEnvironment, instructed
from threefold.envs.pool import EnvironmentPool
from threefold.recipe import Recipe, RecipeError
from threefold.rollout.driver import Limits, between_turns
from threefold.skills.bank import Bank
from threefold.skills.placement import SkilledEnvironment
from threefold.trajectory import Trajectory

SHORT_NAMES = {
    "toy": "threefold.envs.toy:EchoThenNext",
    "errands": "threefold.envs.errands:Errands",
    "textworld": "threefold.envs.textworld_express:TextWorldExpress",
    "scienceworld": "threefold.envs.scienceworld:ScienceWorld",
    "gymnasium": "threefold.envs.gymnasium_text:GymnasiumText",
    "caregiver": "threefold.caregiver:CaregiverDialogues",
    "household": "threefold.envs.household.environment:HouseholdGames",
    "search": "threefold.envs.search.environment:SearchQuestions",
}
"""Environments that come with the package."""

SUCCESS = "success"
"""The reward that is not a channel: whether the episode succeeded."""

_OPENINGS_CHECKED = 64
"""Tasks of a split that are opened before the first step; opening all may be slow."""


@dataclass(frozen=True)
class NamedEnvironment:
    """An environment of a recipe, checked as far as can be without playing."""

    name: str
    """Name of the class or function."""
    make: Callable[[], Environment]
    limits: Limits
    rewards: Mapping[str, float]
    """Weight by episode reward channel ("success" included), in the recipe's order."""
    source: Callable[..., Environment]
    """The class, the function, or the source that was made of the options."""
    pool: EnvironmentPool | None = None
    """The processes that it plays in, where it has any."""
    instruction: str | None = None
    """What openings and demonstrations say in their system message besides."""

    @property
    def turn_channels(self) -> tuple[str, ...]:
        """Reward channels of a turn that credit by turn takes where a recipe names none."""
        return tuple(_attribute(self.source, "turn_channels") or ())

    @property
    def levels(self) -> tuple[str, ...]:
        """States whose course over the turns is worth showing."""
        return tuple(_attribute(self.source, "levels") or ())

    @property
    def scope(self) -> str:
        """What its figures are for, said at the top of every report; empty where nothing is said."""
        return _attribute(self.source, "scope") or ""

    @property
    def made_with(self) -> dict[str, str]:
        """Versions of what plays and scores, by name, for the record."""
        return dict(_attribute(self.source, "made_with") or {})

    def groups(self, task: Task) -> tuple[str, ...]:
        """Groups of held-out tasks that a task belongs to, whose scores are shown apart too."""
        hook = _hook(self.source, "groups")
        return tuple(hook(task)) if hook is not None else ()

    def measures(self, episodes: Sequence[Trajectory]) -> list[Mapping[str, float | None]]:
        """What is measured of held-out episodes beside their rewards, by name; None where it could not be."""
        hook = _hook(self.source, "measures")
        return list(hook(episodes)) if hook is not None else [{} for _ in episodes]

    def close(self) -> None:
        """End the processes that it plays in, where it has any; they would end with this one."""
        if self.pool is not None:
            self.pool.close()

    def with_bank(self, bank: Bank | None, retrieve: int | None = None) -> NamedEnvironment:
        """The environment whose agent sees the skills of a bank version, or the `retrieve` of them that are
        most like its task; without a bank it is left alone."""
        if bank is None:
            return self
        make = self.make
        return replace(self, make=lambda: SkilledEnvironment(make(), bank, retrieve))

    def tasks(self, split: str, size: int, seed: int) -> tuple[Task, ...]:
        """Up to `size` tasks of a split.

        Raises:
            RecipeError: There is no such split, it has none, they are no tasks, or two have one id.
        """
        known = ("train", "test", *(_attribute(self.source, "splits") or ()))
        if split not in known:
            raise RecipeError(
                f"environment {self.name} has no split {split!r}{_nearest(split, known)} (it has "
                f"{', '.join(known)})"
            )
        hook = _hook(self.source, "tasks")
        if hook is None:
            raise RecipeError(
                f"environment {self.name} offers no tasks: give the class a static method "
                "`tasks(split, size, seed)` that returns a list of threefold.envs.Task, or its module such a "
                "function"
            )
        tasks = tuple(_call(hook, split, size, seed, f"environment {self.name}: tasks"))[:size]
        if not tasks:
            raise RecipeError(f"environment {self.name}: tasks({split!r}, {size}, {seed}) returned none")
        seen: set[str] = set()
        for number, task in enumerate(tasks):
            if not isinstance(task, Task):
                raise RecipeError(
                    f"environment {self.name}: task {number} of {split!r} is a {type(task).__name__}, "
                    "expected a threefold.envs.Task"
                )
            if task.id in seen:
                raise RecipeError(f"environment {self.name}: two tasks of {split!r} have the id {task.id!r}")
            seen.add(task.id)
        return tasks

    def demonstrations(
        self, size: int, seed: int, source: str | None = None
    ) -> tuple[Sequence[Message], ...]:
        """Up to `size` demonstrations of the training split.

        Args:
            size: How many at most.
            seed: Of what is drawn.
            source: "package.module:function" in place of the environment's own hook.

        Raises:
            RecipeError: There are none.
        """
        hook = (
            _hook(self.source, "demonstrations") if source is None else _import(source, "warm_start.source")
        )
        if hook is None:
            raise RecipeError(
                f"environment {self.name} offers no demonstrations, which warm_start.dialogues asks for: "
                "give the class a static method `demonstrations(split, size, seed)` that returns lists of "
                "chat messages, or set warm_start.dialogues to 0"
            )
        where = (
            f"environment {self.name}: demonstrations" if source is None else f"warm_start.source: {source}"
        )
        found = tuple(_call(hook, "train", size, seed, where))[:size]
        if not found:
            raise RecipeError(f"{where}('train', {size}, {seed}) returned none")
        if self.instruction is None:
            return found
        return tuple(instructed(dialogue, self.instruction) for dialogue in found)

    def check(
        self, tokenizer: Any, context: int | None, tasks: Sequence[Task], seed: int, *, reserve: int = 0
    ) -> int:
        """Open the first tasks and look at what the agent would see. `reserve` tokens must be left besides.

        Returns:
            The longest opening, in tokens.

        Raises:
            RecipeError: The tokenizer cannot render a dialogue, an opening fails, or an episode would not fit
                the model's context; the message names the task.
        """
        if tokenizer.chat_template is None:
            raise RecipeError(
                f"environment {self.name} needs a model with a chat template; this tokenizer has none"
            )
        try:
            between_turns([], [{"role": "user", "content": "."}], tokenizer)
        except ValueError as error:
            raise RecipeError(f"environment {self.name}: {error}") from error
        longest = 0
        room = self.limits.completion_tokens
        for number, task in enumerate(tasks[:_OPENINGS_CHECKED]):
            length = len(self.opening(tokenizer, task, seed + number))
            if context is not None and length + room + reserve > context:
                skills = f" and {reserve} tokens for skills to come" if reserve else ""
                raise RecipeError(
                    f"environment {self.name}, task {task.id}: the opening has {length} tokens, and with "
                    f"{room} tokens of dialogue{skills} it passes the model's context of {context}; lower "
                    f"environment.completion_tokens{' or skills.capacity' if reserve else ''} or shorten the "
                    "opening"
                )
            longest = max(longest, length)
        return longest

    def opening(self, tokenizer: Any, task: Task, seed: int) -> list[int]:
        """Tokens of a task's opening, as the agent sees it.

        Raises:
            RecipeError: The environment cannot open the task.
        """
        environment = self.make()
        try:
            messages = list(environment.reset(task, seed, 0).messages)
            return tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except (
            Exception
        ) as error:  # an environment may fail in any way; before the first step it is a refusal
            raise RecipeError(
                f"environment {self.name} cannot open task {task.id}: {type(error).__name__}: {error}"
            ) from error
        finally:
            environment.close()

    def told_in_a_turn(self, task: Task, seed: int) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the rewards and of the states that a task tells in its first turn, in which the agent says
        nothing.

        Raises:
            RecipeError: The environment cannot play it.
        """
        environment = self.make()
        try:
            opening, turn = environment.reset(task, seed, 0), environment.step("")
            return frozenset(turn.rewards), frozenset(opening.state) | frozenset(turn.state)
        except Exception as error:  # as for an opening
            raise RecipeError(
                f"environment {self.name} cannot play task {task.id}: {type(error).__name__}: {error}"
            ) from error
        finally:
            environment.close()


def named_environment(recipe: Recipe) -> NamedEnvironment:
    """The environment of a recipe whose `environment.name` is set.

    Raises:
        RecipeError: There is nothing of that name, it is no environment, an option does not fit, or a reward
            is not one of its channels.
    """
    section = recipe.environment
    assert section.name is not None
    kind = _find(section.name)
    options = dict(section.options)
    if "turns" in inspect.signature(kind).parameters:
        options.setdefault("turns", section.turns)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(kind).parameters) or "none"
        raise RecipeError(
            f"environment.options: {error} ({section.name} takes these options: {accepted})"
        ) from error
    limits = Limits(
        turns=section.turns,
        turn_tokens=section.turn_tokens,
        completion_tokens=section.completion_tokens or recipe.training.max_completion_tokens,
    )
    rewards = _rewards(kind, section.rewards)
    source: Any = kind
    make: Any = partial(kind, **options)
    if is_source(kind):
        try:
            source = make = kind(**options)
        except ImportError as error:
            raise RecipeError(f"environment.name = {section.name!r}: {error}") from error
        except (ValueError, OSError) as error:
            raise RecipeError(f"environment.options: {error}") from error
    workers = section.workers if section.workers is not None else _attribute(source, "workers") or 0
    pool = None
    if workers:
        try:
            make = pool = EnvironmentPool(kind, options, workers=workers)
        except ValueError as error:
            raise RecipeError(f"environment.workers: {error}") from error
    if section.instruction is not None:
        make = _instructing(make, section.instruction)
    return NamedEnvironment(kind.__name__, make, limits, rewards, source, pool, section.instruction)


def _instructing(make: Callable[[], Environment], instruction: str) -> Callable[[], Environment]:
    return lambda: InstructedEnvironment(make(), instruction)


def _find(name: str) -> Callable[..., Environment]:
    target = SHORT_NAMES.get(name, name)
    if ":" not in target:
        raise RecipeError(
            f"environment.name = {name!r} is none of {', '.join(SHORT_NAMES)}, and not of the form "
            f"package.module:Class{_nearest(name, SHORT_NAMES)}"
        )
    found = _import(target, "environment.name")
    attribute = target.partition(":")[2]
    missing = [
        part for part in ("reset", "step", "score", "close") if not callable(getattr(found, part, None))
    ]
    if isinstance(found, type) and missing and not is_source(found):
        raise RecipeError(
            f"environment.name = {name!r}: {attribute} is no environment, it lacks {', '.join(missing)}; "
            "see docs/environments.md"
        )
    return found


def _import(target: str, key: str) -> Callable[..., Any]:
    """What "package.module:name" names; `key` is the recipe's, for the messages."""
    module_name, colon, attribute = target.partition(":")
    if not colon:
        raise RecipeError(f"{key} = {target!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(f"{key} = {target!r}: {module_name} cannot be imported: {error}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        callables = [name for name, value in vars(module).items() if callable(value)]
        raise RecipeError(
            f"{key} = {target!r}: {module_name} has no class or function {attribute!r}"
            f"{_nearest(attribute, callables)}"
        )
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _rewards(kind: Callable[..., Environment], given: Mapping[str, float]) -> dict[str, float]:
    declared = _attribute(kind, "channels")
    channels = tuple(name for name in declared or () if name != SUCCESS)
    unknown = [name for name in given if channels and name not in (*channels, SUCCESS)]
    if unknown:
        raise RecipeError(
            f"environment.rewards: {kind.__name__} has no channel {unknown[0]!r}; it has "
            f"{', '.join((*channels, SUCCESS))}"
        )
    if not given and isinstance(declared, Mapping):
        return dict(declared)
    return dict(given) or dict.fromkeys(channels or (SUCCESS,), 1.0)


def _call(hook: Any, split: str, size: int, seed: int, where: str) -> Any:
    try:
        inspect.signature(hook).bind(split, size, seed)
    except TypeError as error:
        raise RecipeError(f"{where} must take (split, size, seed): {error}") from error
    return hook(split, size, seed)


def _hook(kind: Any, name: str) -> Any:
    found = _attribute(kind, name)
    return found if callable(found) else None


def _attribute(kind: Any, name: str) -> Any:
    """Of the class or function, else of its module; None on a class says that it has none."""
    return getattr(kind, name) if hasattr(kind, name) else getattr(inspect.getmodule(kind), name, None)
