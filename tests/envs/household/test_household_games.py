"""The games: what splits they come in, what makes one, that each can be solved."""

import random
from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("alfworld", reason="pip install 'threefold[household]'")
pytest.importorskip("textworld", reason="pip install 'threefold[household]'")

from threefold.envs.household import engine
from threefold.envs.household.games import TREATMENT, TYPES, Goal, data, goals, make
from threefold.envs.household.rooms import holds, room, rooms


def drawn(split, count, seed=0, **bounds):
    """A few goals of each type."""
    chance = random.Random(seed)
    found = list(goals(split, **bounds))
    return [
        goal
        for type_ in TYPES
        for goal in chance.sample([goal for goal in found if goal.type == type_], count)
    ]


def test_the_rooms_are_alfreds_with_its_held_out_ones():
    assert [place.number for place in rooms(held_out=True)] == [
        *range(1, 7), *range(201, 207), *range(301, 307), *range(401, 407)
    ]  # fmt: skip
    assert len(rooms(held_out=False)) == 96
    kitchen = room(10)
    assert kitchen.kind == "Kitchen"
    assert not kitchen.held_out
    assert Counter(kitchen.receptacles.values())["Drawer"] == 3
    assert "SinkBasin" in kitchen.receptacles.values()
    assert "Mug" in kitchen.objects


def test_an_unknown_floor_plan_is_refused():
    with pytest.raises(ValueError, match="no floor plan 99"):
        room(99)


def test_no_goal_is_in_two_splits_and_all_types_are_in_each():
    found = {split: set(goals(split)) for split in ("train", "seen", "unseen")}
    keys = {
        split: {(g.type, g.room, g.thing, g.target) for g in of_split} for split, of_split in found.items()
    }
    assert not keys["train"] & keys["seen"]
    assert {g.room for g in found["seen"]} <= {g.room for g in found["train"]}
    assert not {g.room for g in found["unseen"]} & {g.room for g in found["train"]}
    for of_split in found.values():
        assert {goal.type for goal in of_split} == set(TYPES)
        assert len(of_split) > 3000
    # a quarter of the goals of the training rooms
    assert 0.23 < len(keys["seen"]) / len(keys["seen"] | keys["train"]) < 0.27


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="train, seen and unseen"):
        goals("valid")


def test_a_goal_makes_one_game_and_its_number_another():
    goal = drawn("train", 1)[2]
    again = Goal(**goal.fields)
    make.cache_clear()
    first = make(goal)
    make.cache_clear()
    assert make(again) == first
    other = make(replace(goal, number=1))
    assert other.problem != first.problem
    assert other.type == first.type


def test_a_goal_that_a_room_cannot_have_is_refused():
    with pytest.raises(ValueError, match="floor plan 401 has no goal"):
        make(Goal("pick_heat_then_place_in_recep", 401, "Potato", "Shelf"))


def walk_plans(goals_to_walk):
    for goal in goals_to_walk:
        game = make(goal)
        loaded = engine.load(data(game))
        play, answers = engine.walk(loaded, game.plan)
        assert play.won
        assert engine.NOTHING not in answers
        with pytest.raises(ValueError, match="does not win"):
            engine.walk(loaded, game.plan[:-1])


@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
def test_every_plan_wins_in_the_engine_and_not_a_step_earlier(split):
    walk_plans(drawn(split, 1, receptacles=6, things=5))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
def test_every_plan_wins_in_whole_rooms(split):
    walk_plans(drawn(split, 5, seed=3))


def test_bounds_hold_and_keep_what_the_goal_needs():
    for goal in drawn("train", 5, seed=1, receptacles=6, things=4):
        lines = [line for line in make(goal).problem.splitlines() if "_bar_" in line]
        assert 2 <= sum(line.endswith(" - receptacle") for line in lines) <= 6
        things = {line.split("_bar_")[0].strip() for line in lines if line.endswith("- object")}
        assert len(things) <= 4
        assert goal.thing in things


def test_nothing_lies_where_it_would_end_the_game_or_where_it_does_not_fit():
    for goal in drawn("train", 10, seed=2):
        problem = make(goal).problem
        apart = {goal.target, *(TREATMENT[goal.type][2] if goal.type in TREATMENT else ())}
        for line in problem.splitlines():
            if line.strip().startswith("(inReceptacle ") and "?" not in line:
                thing, place = (part.split("_bar_") for part in line.strip(" ()").split()[1:])
                kind = place[-1] if place[-1].endswith("Basin") else place[0]
                if goal.type != "look_at_obj_in_light" and thing[0] == goal.thing:
                    assert kind not in apart
                if not thing[0].endswith("Lamp"):
                    assert thing[0] in holds(kind)
