"""Our play of a translated game against TextWorld's own, letter by letter."""

import random
import sys

import pytest

pytest.importorskip("alfworld", reason="pip install 'threefold[household]'")
textworld = pytest.importorskip("textworld", reason="pip install 'threefold[household]'")

from alfworld.agents.utils.misc import Demangler  # noqa: E402
from textworld.envs import PddlEnv  # noqa: E402

from threefold.envs.household import engine  # noqa: E402
from threefold.envs.household.games import TYPES, data, goals, make  # noqa: E402


def untouched(game_data):
    """The unmodified engine with ALFWorld's names."""
    env = PddlEnv(textworld.EnvInfos())
    env.load(game_data)
    demangler = Demangler(game_infos=env._entity_infos)
    for info in env._entity_infos.values():
        info.name = demangler.demangle_alfred_name(info.id)
    return env


def compare(goal, steps, chance):
    """Play the plan half-way, then at random: nothing that is read or possible may differ."""
    game = make(goal)
    theirs, loaded = untouched(data(game)), engine.load(data(game))
    ours, state = engine.Play(loaded), theirs.reset()
    assert ours.opening == state.feedback
    half = [loaded.named(action) for action in game.plan[: -1 - len(game.plan) // 3]]
    for number in range(steps):
        assert list(ours.admissible) == state["admissible_commands"]
        assert ours.won == state["won"]
        action = half[number] if number < len(half) else chance.choice([*ours.admissible, "fly away"])
        state, _, _ = theirs.step(action)
        assert ours.step(action) == state.feedback


@pytest.mark.parametrize("type_", TYPES)
def test_it_reads_and_plays_as_the_unmodified_engine(type_):
    chance = random.Random(type_)
    goal = chance.choice(goals("train", (type_,), receptacles=6, things=6))
    compare(goal, 25, chance)


@pytest.mark.slow
@pytest.mark.parametrize("type_", TYPES)
def test_it_plays_whole_rooms_as_the_unmodified_engine(type_):
    chance = random.Random(type_)
    compare(chance.choice(goals("unseen", (type_,))), 60, chance)


def small_game():
    goal = goals("train", ("pick_heat_then_place_in_recep",), receptacles=4, things=3)[0]
    return make(goal)


def test_what_is_not_admissible_changes_nothing():
    loaded = engine.load(data(small_game()))
    play = engine.Play(loaded)
    before = play.admissible
    for said in ("fly away", "", "go to", "GO TO " + before[0], "take " * 1000):
        assert play.step(said) == engine.NOTHING
    assert play.admissible == before
    assert not play.won


def test_plays_of_one_game_do_not_touch_each_other():
    game = small_game()
    loaded = engine.load(data(game))
    first, answers = engine.walk(loaded, game.plan)
    second, again = engine.walk(loaded, game.plan)
    assert answers == again
    assert first.won
    assert second.won
    assert not engine.Play(loaded).won


def test_the_translator_leaves_the_arguments_of_the_process_alone():
    before = list(sys.argv)
    engine.load(data(small_game()))
    assert sys.argv == before


def test_what_is_no_game_is_refused():
    with pytest.raises(ValueError, match="pddl_problem"):
        engine.load({"pddl_domain": "", "grammar": ""})
