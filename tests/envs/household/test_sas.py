"""The interpreter of translated games on one written by hand."""

import pytest

from threefold.envs.household.sas import parse

LIGHT = """begin_version
3
end_version
begin_metric
1
end_metric
3
begin_variable
var0
-1
2
Atom here(a)
NegatedAtom here(a)
end_variable
begin_variable
var1
-1
2
Atom on(lamp)
NegatedAtom on(lamp)
end_variable
begin_variable
var2
0
2
Atom done()
NegatedAtom done()
end_variable
0
begin_state
1
1
1
end_state
begin_goal
1
2 0
end_goal
2
begin_operator
go a
0
1
0 0 1 0
1
end_operator
begin_operator
switch lamp
1
0 0
2
1 1 1 1 -1 0
1 1 0 1 -1 1
1
end_operator
1
begin_rule
2
0 0
1 0
2 1 0
end_rule
"""


def test_operators_apply_where_their_conditions_hold_and_effects_see_the_state_before():
    program = parse(LIGHT)
    assert program.atoms == ("here(a)", "on(lamp)", "done()")
    state = program.derive(program.initial)
    assert [operator.name for operator in program.applicable(state)] == ["go a"]
    state, said = program.apply(program.applicable(state)[0], state)
    assert said == [(0, True)]
    assert not program.won(state)
    (switch,) = program.applicable(state)  # here already, so "go a" is not possible
    on, said = program.apply(switch, state)
    # the lamp was off, so only the first of the two effects counts
    assert said == [(1, True)]
    assert program.won(on)
    off, said = program.apply(switch, on)
    assert said == [(1, False)]
    # a derived variable does not stay true once its reason is gone
    assert not program.won(off)
    assert off == state


def test_text_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="begin_operator"):
        parse(LIGHT.split("begin_operator")[0] + "end_metric")
    with pytest.raises(ValueError, match="not binary"):
        parse(LIGHT.replace("NegatedAtom here(a)", "Atom here(b)"))
