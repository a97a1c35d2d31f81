"""A translated game as Fast Downward's translator writes it (SAS), and what may be done in it.

TextWorld plays these with a C library, of which it loads a copy of 34 MB for each environment; a crash in it
ends the process that trains. The games are small, so they are played here in Python: an operator applies
where its preconditions hold, its effects are taken in the state before it, and the goal is the translator's,
derived by its rules (axioms) layer by layer. The translator is told to keep every variable binary, so a state
is the set of what is true.

Format: https://www.fast-downward.org/latest/documentation/translator-output-format/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Condition = tuple[int, bool]
"""A variable and whether it must be true."""
State = frozenset[int]
"""The variables that are true."""


@dataclass(frozen=True)
class Operator:
    name: str
    """The action and its arguments: "openobject agent1 loc_bar_3 fridge_bar_...". """
    conditions: tuple[Condition, ...]
    effects: tuple[tuple[tuple[Condition, ...], int, bool], ...]
    """(conditions, variable, value) each."""


@dataclass(frozen=True)
class Rule:
    """A derived variable becomes true (or false) where the conditions hold."""

    conditions: tuple[Condition, ...]
    variable: int
    value: bool


@dataclass(frozen=True)
class Program:
    """A translated game."""

    atoms: tuple[str, ...]
    """What each variable says where it is true: "opened(fridge_bar_...)"."""
    initial: State
    derived: frozenset[int]
    operators: tuple[Operator, ...]
    rules: tuple[tuple[Rule, ...], ...]
    """By layer."""
    goal: tuple[Condition, ...]
    _watched: dict[int, list[Operator]] = field(default_factory=dict)
    """Operators by a variable that must be true for them; -1 for those without one."""

    def __post_init__(self) -> None:
        for operator in self.operators:
            needed = [variable for variable, value in operator.conditions if value]
            # What is false at first is mostly false later: where the agent stands, what it holds.
            rare = [variable for variable in needed if variable not in self.initial]
            self._watched.setdefault((rare or needed or [-1])[0], []).append(operator)

    def applicable(self, state: State) -> list[Operator]:
        """The operators that apply in a state, in the translator's order of each group."""
        return [
            operator
            for variable in (-1, *sorted(state))
            for operator in self._watched.get(variable, ())
            if _hold(operator.conditions, state)
        ]

    def apply(self, operator: Operator, state: State) -> tuple[State, list[Condition]]:
        """The state after an operator, and what its effects said."""
        said = [
            (variable, value) for conditions, variable, value in operator.effects if _hold(conditions, state)
        ]
        false = {variable for variable, value in said if not value}
        true = {variable for variable, value in said if value}
        return self.derive((state - false) | true), said

    def derive(self, state: State) -> State:
        """The state with its derived variables."""
        found = set(state - self.derived) | (self.initial & self.derived)
        for layer in self.rules:
            changed = True
            while changed:
                changed = False
                for rule in layer:
                    if (rule.variable in found) != rule.value and _hold(rule.conditions, found):
                        (found.add if rule.value else found.discard)(rule.variable)
                        changed = True
        return frozenset(found)

    def won(self, state: State) -> bool:
        return _hold(self.goal, state)


def _hold(conditions: Iterable[Condition], state: State | set[int]) -> bool:
    return all((variable in state) == value for variable, value in conditions)


def parse(text: str) -> Program:
    """The program in a translator's output.

    Raises:
        ValueError: It is none, or a variable is not binary.
    """
    lines = iter(text.splitlines())
    _skip_to(lines, "end_metric")
    atoms: list[str] = []
    layers: list[int] = []
    for _ in range(int(next(lines))):
        _skip_to(lines, "begin_variable")
        _, layer, size, one, other, _ = (next(lines) for _ in range(6))
        atom = one.removeprefix("Atom ")
        if size != "2" or other not in (f"NegatedAtom {atom}", "<none of those>"):
            raise ValueError(f"variable {len(atoms)} is not binary: {one!r} and {other!r}")
        atoms.append(atom)
        layers.append(int(layer))
    _skip_to(lines, "begin_state")
    values = [next(lines) for _ in atoms]
    initial = frozenset(number for number, value in enumerate(values) if value == "0")
    _skip_to(lines, "begin_goal")
    goal = _conditions(lines)
    _skip_to(lines, "end_goal")
    operators = tuple(_operator(lines) for _ in range(int(next(lines))))
    rules = [_rule(lines) for _ in range(int(next(lines)))]
    by_layer = tuple(
        tuple(rule for rule in rules if layers[rule.variable] == layer)
        for layer in sorted({layers[rule.variable] for rule in rules})
    )
    derived = frozenset(number for number, layer in enumerate(layers) if layer >= 0)
    return Program(tuple(atoms), initial, derived, operators, by_layer, goal)


def _skip_to(lines: Iterator[str], mark: str) -> None:
    for line in lines:
        if line == mark:
            return
    raise ValueError(f"the translated game has no {mark!r}")


def _conditions(lines: Iterator[str]) -> tuple[Condition, ...]:
    return tuple(_condition(*next(lines).split()) for _ in range(int(next(lines))))


def _condition(variable: str, value: str) -> Condition:
    return int(variable), value == "0"


def _operator(lines: Iterator[str]) -> Operator:
    _skip_to(lines, "begin_operator")
    name = next(lines)
    conditions = list(_conditions(lines))
    effects: list[tuple[tuple[Condition, ...], int, bool]] = []
    for _ in range(int(next(lines))):
        count, *rest = next(lines).split()
        *given, variable, before, after = rest
        when = tuple(_condition(*given[2 * i : 2 * i + 2]) for i in range(int(count)))
        if before != "-1":
            conditions.append(_condition(variable, before))
        effects.append((when, *_condition(variable, after)))
    _skip_to(lines, "end_operator")
    return Operator(name, tuple(conditions), tuple(effects))


def _rule(lines: Iterator[str]) -> Rule:
    _skip_to(lines, "begin_rule")
    conditions = _conditions(lines)
    variable, _, value = next(lines).split()
    return Rule(conditions, *_condition(variable, value))
