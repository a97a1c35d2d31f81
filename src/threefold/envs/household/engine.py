"""ALFWorld's engine (TextWorld's PDDL environment on Fast Downward), without the work that it repeats.

`textworld.envs.PddlEnv` translates a game four times before the first turn (twice in `load`, twice in
`reset`, each time once more for a planner that nobody asks), derives every admissible command anew from the
grammar at every turn, and plays in a copy of a C library for each environment: seconds for a game, a tenth of
a second for a turn. Here the same translator runs once for all who play a game (`load`), its output is played
in Python (`sas`), and commands are derived once each. Every word that is read comes from the game's own
grammar through TextWorld. A test plays both side by side and compares them letter by letter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from threefold.envs.household.rooms import require
from threefold.envs.household.sas import Operator, Program, parse

require()

import fast_downward  # noqa: E402
import textworld.logic  # noqa: E402
from alfworld.agents.utils.misc import Demangler  # noqa: E402
from textworld.envs.pddl.logic import GameLogic  # noqa: E402
from textworld.generator.game import EntityInfo  # noqa: E402
from textworld.logic import Placeholder, Proposition, Type, Variable  # noqa: E402

NOTHING = "Nothing happens."
"""The engine's answer to what is not admissible."""
_GOAL = re.compile(r"(Your task is to: )(.*?)(\.?\"\s*\})", re.DOTALL)
_OPEN_GOAL = "UNKNOWN GOAL"


@dataclass(frozen=True)
class Loaded:
    """A game, translated; what all who play it share."""

    logic: GameLogic
    goal: str
    """What stands after "Your task is to:"."""
    program: Program
    types: Mapping[str, str]
    """Type by id of every thing, place and kind."""
    parameters: Mapping[str, tuple[Placeholder, ...]]
    """Of each action, by its name."""
    facts: tuple[Proposition, ...]
    """What is true at first."""
    entities: Mapping[str, EntityInfo]
    commands: dict[str, str] = field(default_factory=dict)
    """Command by operator name, filled while playing: it never changes in a game."""
    phrases: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Command by action and those of its arguments that the template speaks of."""

    def named(self, text: str) -> str:
        """A text with ids in braces, as players would say it."""
        return re.sub(r"\{([^}]*)\}", lambda found: self.entities[found[1]].name, text)


def load(data: Mapping[str, Any]) -> Loaded:
    """Translate a game (the content of a `.tw-pddl` file).

    Raises:
        ValueError: It is no game of this engine.
    """
    missing = [
        key for key in ("pddl_domain", "grammar", "pddl_problem") if not isinstance(data.get(key), str)
    ]
    if missing:
        raise ValueError(f"a game needs {', '.join(missing)} as text; is this a .tw-pddl file?")
    grammar, goal = data["grammar"], ""
    match = _GOAL.search(grammar)
    if match:
        goal = match[2]
        grammar = grammar[: match.start(2)] + _OPEN_GOAL + grammar[match.end(2) :]
    logic = _logic(data["pddl_domain"], grammar)
    with _arguments_kept():
        task, sas = fast_downward.pddl2sas(logic.domain, data["pddl_problem"])
    known = {kind.name for kind in logic.types}  # games share the grammar, and with it the table of types
    for kind in task.types:  # "object" is among them twice
        if kind.name not in known:
            logic.types.add(Type(kind.name, kind.supertype_names))
            known.add(kind.name)
    types = {thing.name: thing.type_name for thing in task.objects}
    program = parse(sas)
    facts = dict.fromkeys(
        Proposition(atom.predicate, [Variable(name, types[name]) for name in atom.args])
        for atom in task.init
        if getattr(atom, "predicate", "=") != "="
    )
    facts |= dict.fromkeys(_proposition(program.atoms[number], types) for number in sorted(program.initial))
    parameters = {
        action.name: tuple(Placeholder(p.name.strip("?"), p.type_name) for p in action.parameters)
        for action in task.actions
    }
    return Loaded(logic, goal, program, types, parameters, tuple(facts), _entities(tuple(facts)))


@lru_cache(maxsize=4)
def _logic(domain: str, grammar: str) -> GameLogic:
    """The parsed grammar: half a second, and the same for all games but for the goal's words."""
    return GameLogic(domain=domain, grammar=grammar)


@contextmanager
def _arguments_kept() -> Iterator[None]:
    """The translator overwrites `sys.argv`."""
    kept = sys.argv
    try:
        yield
    finally:
        sys.argv = kept


def _proposition(atom: str, types: Mapping[str, str]) -> Proposition:
    """A fact in the translator's words: "opened(fridge_bar_...)"."""
    name, arguments = atom.removesuffix(")").split("(", 1)
    return Proposition(name, [Variable(a, types[a]) for a in arguments.split(", ") if a])


def _entities(facts: tuple[Proposition, ...]) -> dict[str, EntityInfo]:
    """Names as ALFWorld's demangler gives them."""
    infos = {v.name: EntityInfo(v.name, v.type) for fact in facts for v in fact.arguments}
    demangler = Demangler(game_infos=infos)
    for info in infos.values():
        info.name = demangler.demangle_alfred_name(info.id)
        info.definite, info.indefinite = "the", "a"
    return infos


class _Facts(textworld.logic.State):
    """What is true, as the grammar asks for it. (TextWorld's own needs its other kind of logic.)"""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(textworld.logic.GameLogic())
        self._logic = loaded.logic
        self.add_facts(loaded.facts)


class Play:
    """One play of a game."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._facts = _Facts(loaded)
        self._state = loaded.program.derive(loaded.program.initial)
        self._moves = self._possible()
        self.opening = self._derive("#intro#", {}).replace(_OPEN_GOAL, loaded.goal)
        """What is seen at first."""

    def step(self, command: str) -> str:
        """Do a command; the engine's answer, `NOTHING` to what is not admissible."""
        operator = self._moves.get(command)
        if operator is None:
            return NOTHING
        self._state, changes = self.loaded.program.apply(operator, self._state)
        for variable, value in changes:
            fact = _proposition(self.loaded.program.atoms[variable], self.loaded.types)
            fact = fact if value else fact.negate()
            self._facts.remove_fact(fact.negate())
            self._facts.add_fact(fact)
        self._moves = self._possible()
        action, mapping = self._bindings(operator.name)
        return self._derive(self.loaded.logic.actions[action].feedback_rule, mapping)

    @property
    def admissible(self) -> tuple[str, ...]:
        """The commands that do something now, sorted."""
        return tuple(sorted(self._moves))

    @property
    def won(self) -> bool:
        return self.loaded.program.won(self._state)

    def _possible(self) -> dict[str, Operator]:
        """What can be done now, by command; where several operators share one, the first."""
        commands = self.loaded.commands
        moves: dict[str, Operator] = {}
        for operator in self.loaded.program.applicable(self._state):
            if operator.name not in commands:
                commands[operator.name] = self._command(operator.name)
            moves.setdefault(commands[operator.name], operator)
        return moves

    def _command(self, operator: str) -> str:
        action, mapping = self._bindings(operator)
        template, phrases = self.loaded.logic.actions[action].template, self.loaded.phrases
        spoken = set(re.findall(r"\w+", template))
        key = (action, *(v.name for p, v in mapping.items() if p.name in spoken))
        if key not in phrases:
            names = {p.name: self.loaded.entities[v.name].name for p, v in mapping.items()}
            phrases[key] = self._derive(template, mapping).format(**names)
        return phrases[key]

    def _bindings(self, operator: str) -> tuple[str, dict[Placeholder, Variable]]:
        """An operator's action and what its parameters stand for."""
        action, *arguments = operator.split()
        parameters = self.loaded.parameters[action]
        return action, {p: Variable(a, p.type) for p, a in zip(parameters, arguments, strict=False)}

    def _derive(self, rule: str, mapping: Mapping[Placeholder, Variable]) -> str:
        entities = self.loaded.entities
        context = {
            "state": self._facts,
            "facts": (),
            "variables": {placeholder.name: entities[v.name] for placeholder, v in mapping.items()},
            "mapping": mapping,
            "entity_infos": entities,
        }
        return self.loaded.logic.grammar.derive(rule, context)


def walk(loaded: Loaded, plan: tuple[str, ...]) -> tuple[Play, list[str]]:
    """Play a plan to its end: the play, and what each action was answered.

    Raises:
        ValueError: An action of the plan is not admissible, or the plan does not win.
    """
    play = Play(loaded)
    answers = []
    for number, action in enumerate(plan):
        command = loaded.named(action)
        if command not in play.admissible:
            raise ValueError(f"action {number} of the plan, {command!r}, is not admissible")
        answers.append(play.step(command))
    if not play.won:
        raise ValueError(f"the plan of {len(plan)} actions does not win the game")
    return play, answers
