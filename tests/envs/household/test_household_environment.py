"""Household games as an environment of a recipe."""

import json
import os
import random
import subprocess
import sys
from importlib import metadata

import pytest

pytest.importorskip("alfworld", reason="pip install 'threefold[household]'")
pytest.importorskip("textworld", reason="pip install 'threefold[household]'")

from threefold.environments import named_environment
from threefold.envs import Environment, Task
from threefold.envs.household import official
from threefold.envs.household.environment import GENERATED, HouseholdGames
from threefold.envs.household.games import TYPES, Goal, data, goals, make
from threefold.envs.household.player import Searcher
from threefold.envs.pool import EnvironmentPool
from threefold.recipe import RecipeError, parse_recipe
from threefold.rollout.driver import Limits, Start, run_episodes
from threefold.skills.triggers import Trigger, fires

SMALL = {"receptacles": 5, "things": 4, "data": GENERATED}


@pytest.fixture(scope="module")
def source():
    return HouseholdGames(turns=12, **SMALL)


def solution(source, task):
    game = make(Goal(**task.fields))
    loaded = source.load(task)
    return [loaded.named(action) for action in game.plan]


def test_a_game_is_won_by_its_solution_and_says_so(source):
    task = source.tasks("train", 6, 0)[2]
    game = source()
    assert isinstance(game, Environment)
    opening = game.reset(task, seed=0, member=0)
    text = opening.messages[-1]["content"]
    assert text.startswith("You are in the middle of a room.")
    assert "Your task is to: " in text
    *before, last = solution(source, task)
    for action in before:
        seen = game.step(action)
        assert seen.action == action
        assert seen.rewards == {"valid": 1.0}
        assert not seen.done
    seen = game.step(f"I bring it home. <action>{last.upper()}.</action>")
    assert seen.action == last  # as it was parsed, which is what skill triggers see
    assert seen.terminated
    assert seen.success is True
    assert not seen.truncated
    game.close()


def test_all_members_of_a_group_see_the_same_game(source):
    task = source.tasks("train", 1, 0)[0]
    chance = random.Random(0)
    one, other = source(), source()
    assert one.reset(task, 0, 0) == other.reset(task, 0, 7)
    for _ in range(10):
        action = chance.choice(one.admissible)
        assert one.step(action) == other.step(action)


def test_games_are_the_same_in_every_process(source):
    """Text may not depend on the order of a set, which Python draws anew for each process."""
    task = source.tasks("seen", 1, 3)[0]
    script = (
        "import json, sys; from threefold.envs import Task;"
        "from threefold.envs.household.environment import HouseholdGames;"
        f"source = HouseholdGames(turns=12, **{SMALL!r}); task = source.tasks('seen', 1, 3)[0];"
        "game = source(); said = [game.reset(task, 0, 0).messages[0]['content']];\n"
        "for _ in range(4): said.append(game.step(game.admissible[-1]).messages[0]['content'])\n"
        "print(json.dumps([task.id, *said]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = json.loads(subprocess.check_output([sys.executable, "-c", script], env=environment, text=True))
    game = source()
    said = [game.reset(task, 0, 0).messages[0]["content"]]
    for _ in range(4):
        said.append(game.step(game.admissible[-1]).messages[0]["content"])
    assert told == [task.id, *said]


def test_whatever_an_agent_says_is_answered_and_costs_a_turn(source):
    game = source()
    game.reset(source.tasks("train", 1, 0)[0], 0, 0)
    for number, said in enumerate(["", "\n", "fly", "<action>", "{r}", "go to " + "x" * 5000, "\x00"], 1):
        seen = game.step(said)
        assert seen.messages[0]["content"].startswith("Nothing happens.")
        assert seen.rewards == {"valid": 0.0}
        assert seen.state == {"turn": float(number)}
    for _ in range(5):
        seen = game.step("fly")
    assert seen.truncated
    assert not seen.terminated
    assert seen.success is False


@pytest.mark.parametrize("shown", ["all", "near", "none"])
def test_which_commands_are_listed(shown):
    source = HouseholdGames(turns=12, actions=shown, **SMALL)
    game = source()
    task = source.tasks("train", 1, 0)[0]
    game.reset(task, 0, 0)
    seen = game.step(solution(source, task)[0])
    text, _, listed = seen.messages[0]["content"].partition("\nActions: ")
    assert "you see" in text or "closed" in text
    if shown == "all":
        assert listed.split(", ") == list(game.admissible)
    elif shown == "near":
        near = listed.split(", ")
        assert near[-1] == "go to another place"
        assert not any("look" in a or "inventory" in a for a in near)
        assert set(near[:-1]) < set(game.admissible)
    else:
        assert listed == ""


def test_tasks_take_turns_and_keep_the_splits_apart(source):
    train = source.tasks("train", 12, 5)
    assert train == source.tasks("train", 12, 5) != source.tasks("train", 12, 6)
    assert {task.fields["type"] for task in train[:6]} == set(TYPES)
    assert source.tasks("test", 5, 0) == source.tasks("unseen", 5, 0)
    everything = [source.tasks(split, 400, 0) for split in ("train", "seen", "unseen")]
    ids = [task.id for of_split in everything for task in of_split]
    assert len(ids) == len(set(ids)) == 1200
    json.dumps([task.fields for task in train])  # the record keeps them


def test_more_tasks_than_goals_have_things_in_other_places():
    source = HouseholdGames(types=["look_at_obj_in_light"], **SMALL)
    one_round = len(goals("seen", ("look_at_obj_in_light",)))
    tasks = source.tasks("seen", one_round + 5, 0)
    assert len({task.id for task in tasks}) == one_round + 5
    assert {task.fields["number"] for task in tasks[one_round:]} == {1}


def test_families_and_types_are_shown_apart(source):
    task = Task("x", {"type": "pick_heat_then_place_in_recep"})
    assert source.groups(task) == ("transform", "pick_heat_then_place_in_recep")
    assert "cannot be compared with ALFWorld" in source.scope


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="did you mean 'pick_two_obj_and_place'"):
        HouseholdGames(types=["pick_two_obj"])
    with pytest.raises(ValueError, match="all, near, none"):
        HouseholdGames(actions="some")
    with pytest.raises(ValueError, match="at least 4"):
        HouseholdGames(receptacles=2)
    with pytest.raises(OSError, match="alfworld-download"):
        HouseholdGames(data="/nowhere")


def test_the_searcher_who_knows_no_more_than_the_agent_wins_most_games():
    source = HouseholdGames(turns=25, **SMALL)
    won = 0
    for number, task in enumerate(source.tasks("unseen", 6, 1)):
        game, searcher = source(), Searcher(random.Random(number))
        seen = game.reset(task, 0, 0)
        searcher.begin(seen.messages[-1]["content"])
        while not seen.done:
            action = searcher.act(game.admissible)
            seen = game.step(action)
            searcher.done(action, bool(seen.rewards["valid"]))
        won += bool(seen.success)
    assert won >= 5


def test_demonstrations_begin_as_episodes_do(source):
    shown = source.demonstrations("train", 5, 0)
    assert len(shown) == 5
    assert shown == source.demonstrations("train", 5, 0)
    openings = {source().reset(task, 0, 0).messages[0]["content"] for task in source.tasks("train", 2, 0)}
    assert {dialogue[0]["content"] for dialogue in shown} == openings
    assert {message["role"] for message in shown[0][1::2]} == {"assistant"}


def test_skill_triggers_fire_on_the_parsed_command(source):
    game = source()
    task = source.tasks("train", 1, 0)[0]
    game.reset(task, 0, 0)
    seen = game.step(f"<action>{solution(source, task)[0].title()}</action>")
    assert fires(Trigger("action_pattern", "go to .*"), 1, seen.action)
    assert not fires(Trigger("action_pattern", "open .*"), 1, seen.action)


class Letters:
    """A tokenizer of characters."""

    eos_token_id = 0

    def apply_chat_template(self, conversation, add_generation_prompt=False, **_):
        ids = [i for m in conversation for i in [*map(ord, m["content"]), 0]]
        return [*ids, 1] if add_generation_prompt else ids

    def decode(self, token_ids, skip_special_tokens=False):
        return "".join(chr(i) for i in token_ids if i > 1)


def test_a_task_that_is_no_game_ends_its_own_episode_alone(source):
    good = source.tasks("train", 1, 0)[0]
    bad = Task("bad", {**good.fields, "thing": "Dragon"})
    starts = [Start(task, 0, number, 0) for number, task in enumerate((good, bad))]
    played = run_episodes(
        starts,
        source,
        lambda contexts, _: [([*map(ord, "look"), 0], None) for _ in contexts],
        Letters(),
        limits=Limits(turns=2, turn_tokens=8, completion_tokens=5000),
    )
    assert played[0].environment == "Household"
    assert played[0].ended == "truncated"
    assert played[1].ended.startswith("error: ValueError: floor plan")


@pytest.fixture
def official_games(tmp_path):
    """Games laid out as `alfworld-download` leaves them. The real files cannot be had here, so the content is
    generated: this shows that the layout is read, not that the real games play."""
    for split in official.SPLITS.values():
        for number, goal in enumerate(random.Random(split).sample(goals("train", things=4), 3)):
            folder = tmp_path / official.GAMES / split / goal.type / f"trial_{number}"
            folder.mkdir(parents=True)
            game = {**data(make(goal)), "solvable": number != 2}
            (folder / "game.tw-pddl").write_text(json.dumps(game))
            (folder / "traj_data.json").write_text(json.dumps({"task_type": goal.type}))
    return tmp_path


def test_official_files_are_used_where_they_are_and_only_then_called_alfworld(official_games, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(official_games))
    source = HouseholdGames(turns=3)
    assert source.scope == "ALFWorld: the official game files."
    assert type(source()).__name__ == "ALFWorld"
    tasks = source.tasks("train", 10, 0)
    assert len(tasks) == 2  # the third is marked unsolvable
    opening = source().reset(tasks[0], 0, 0).messages[0]["content"]
    assert "Your task is to: " in opening
    assert "UNKNOWN" not in opening
    assert HouseholdGames(data=GENERATED).scope != source.scope
    with pytest.raises(ValueError, match="is no game of"):
        source.load(Task("x", {"type": TYPES[0], "game": "../../etc"}))


def test_a_recipe_without_the_packages_says_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    recipe = parse_recipe({"environment": {"name": "household"}})
    with pytest.raises(RecipeError, match=r"pip install 'threefold\[household\]'"):
        named_environment(recipe)


def test_games_play_in_processes_of_their_own_as_they_do_here(source):
    task = source.tasks("train", 1, 0)[0]
    with EnvironmentPool(HouseholdGames, {"turns": 12, **SMALL}, workers=1) as pool:
        there, here = pool(), source()
        assert there.reset(task, 0, 0) == here.reset(task, 0, 0)
        for action in solution(source, task):
            assert there.step(action) == here.step(action)
