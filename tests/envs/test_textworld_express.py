"""TextWorldExpress, the real engine: every game can be won, splits hold, a dead Java process is survived."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines import java_processes, needs
from threefold.environments import named_environment
from threefold.envs import Environment, Task
from threefold.envs.java import EngineDied, EngineError
from threefold.envs.pool import EnvironmentPool
from threefold.envs.textworld_express import GAMES, SEEDS, UNSEEN_GAMES, TextWorldExpress, TextWorldGame
from threefold.recipe import RecipeError, parse_recipe
from threefold.rollout.driver import Limits, Start, run_episodes

pytestmark = needs("textworld_express", "textworld")

SMALL = {"coin": {"numLocations": 2, "numDistractorItems": 0, "includeDoors": 0}}
EOS = 1


@pytest.fixture(scope="module")
def source() -> Iterator[TextWorldExpress]:
    source = TextWorldExpress(turns=100)
    yield source
    source.close()


@pytest.fixture
def java_here() -> Callable[[], list[int]]:
    """The Java processes that the test itself has started, at any depth."""
    before = set(java_processes())
    return lambda: [pid for pid in java_processes() if pid not in before]


@pytest.fixture
def game(source: TextWorldExpress) -> Iterator[TextWorldGame]:
    game = source()
    yield game
    game.close()


def task(game: str, seed: int = 3, fold: str = "train", **parameters: int) -> Task:
    return Task(f"{game}-{seed}", {"game": game, "seed": seed, "fold": fold, "parameters": parameters})


def solution(source: TextWorldExpress, wanted: Task) -> list[str]:
    """The engine's own way to win."""
    engine, fields = source._engine, wanted.fields
    other = engine.game()
    engine.call(other, "load", fields["game"], "")
    engine.call(other, "generateNewGameJSON", fields["seed"], fields["fold"], True)
    actions = list(engine.call(other, "getGoldActionSequence"))
    return actions


def text(observation: Any) -> str:
    return observation.messages[0]["content"]


@pytest.mark.parametrize("name", GAMES)
def test_every_game_can_be_won(source: TextWorldExpress, game: TextWorldGame, name: str) -> None:
    assert isinstance(game, Environment)
    wanted = task(name, 20_011, "test")
    way = solution(source, wanted)
    opening = game.reset(wanted, 0, 0)
    seen = []
    for action in way:
        seen.append(game.step(action))
        if seen[-1].done:  # the engine's own way walks on in some games
            break
    end = seen[-1]
    assert (end.terminated, end.success, end.state["score"]) == (True, True, 1.0)
    assert all(o.rewards["valid"] == 1.0 for o in seen)
    assert sum(o.rewards["gain"] for o in seen) == pytest.approx(1.0)
    assert opening.state == {"turn": 0.0, "score": 0.0}
    assert "\nActions: " in text(opening)
    assert "Actions:" not in text(end)


def test_actions_can_be_told_apart_in_a_list(source: TextWorldExpress, game: TextWorldGame) -> None:
    for wanted in source.tasks("dev", 40, 0):
        game.reset(wanted, 0, 0)
        assert game.admissible
        assert not any("," in action or "\n" in action for action in game.admissible)


def test_seeds_are_the_engines(source: TextWorldExpress) -> None:
    engine = source._engine
    interface = engine.game()
    for fold, method in (("train", "getSeedsTrain"), ("dev", "getSeedsDev"), ("test", "getSeedsTest")):
        engine.call(interface, "load", "coin", "")
        assert list(engine.call(interface, method)) == list(SEEDS[fold])
    assert set(engine.call(interface, "getGameNames")) == set(GAMES)


def test_splits_share_no_game_and_the_unseen_one_has_other_kinds(source: TextWorldExpress) -> None:
    names = ("train", "dev", "seen", "unseen")
    all_tasks = {split: source.tasks(split, 10_000, 0) for split in names}
    games = {split: {t.fields["game"] for t in found} for split, found in all_tasks.items()}
    worlds = {s: {(t.fields["game"], t.fields["seed"]) for t in found} for s, found in all_tasks.items()}
    assert {split: len(found) for split, found in all_tasks.items()} == {
        "train": 6000,
        "dev": 6000,
        "seen": 6000,
        "unseen": 2000,
    }
    assert games["train"] == games["dev"] == games["seen"] == set(GAMES) - set(UNSEEN_GAMES)
    assert games["unseen"] == set(UNSEEN_GAMES)
    assert not worlds["train"] & worlds["seen"]
    assert not worlds["train"] & worlds["dev"]
    assert len({t.id for found in all_tasks.values() for t in found}) == 20_000
    assert source.tasks("test", 5, 0) == source.tasks("unseen", 5, 0)
    first = [t.fields["game"] for t in source.tasks("train", 6, 4)]
    assert sorted(first) == sorted(games["train"])  # the first few are of all kinds
    assert source.tasks("train", 6, 4) != source.tasks("train", 6, 5)


def test_the_same_kind_of_game_may_be_unseen_in_another_size() -> None:
    larger = {"coin": {"numLocations": 9}}
    source = TextWorldExpress(
        games=["coin"], unseen_games=["coin"], parameters=SMALL, unseen_parameters=larger
    )
    (seen,), (unseen,) = source.tasks("seen", 1, 0), source.tasks("unseen", 1, 0)
    assert (seen.fields["parameters"], unseen.fields["parameters"]) == (SMALL["coin"], larger["coin"])
    assert source.groups(unseen) == ("coin",)


def walk(game: TextWorldGame, seed: int, turns: int = 25) -> Iterator[Any]:
    """Plays an opened game at random; the seed is of the player."""
    chance = random.Random(seed)
    for _ in range(turns):
        seen = game.step(chance.choice(game.admissible))
        yield seen
        if seen.done:
            return


@pytest.mark.parametrize("name", GAMES)
def test_members_of_a_group_play_one_game_and_leave_the_others_alone(
    source: TextWorldExpress, name: str
) -> None:
    """Each of four that act in turn sees what it sees alone, and all begin alike."""
    for seed in (5, 20_006):
        played = task(name, seed, "train" if seed < 1000 else "test")
        alone = []
        for member in range(4):
            game = source()
            alone.append([game.reset(played, member, member), *walk(game, member)])
            game.close()
        assert all(episode[0] == alone[0][0] for episode in alone)
        games = [source() for _ in range(4)]
        beside = [[game.reset(played, 0, member)] for member, game in enumerate(games)]
        for turn in zip_longest(*(walk(game, member) for member, game in enumerate(games))):
            for episode, seen in zip(beside, turn, strict=True):
                episode += [seen] if seen is not None else []
        assert beside == alone
        for game in games:
            game.close()


def test_another_process_makes_the_same_games(source: TextWorldExpress) -> None:
    elsewhere = TextWorldExpress(turns=100)
    try:
        for wanted in source.tasks("seen", 6, 1) + source.tasks("unseen", 2, 1):
            one, two = source(), elsewhere()
            assert one.reset(wanted, 0, 0) == two.reset(wanted, 1, 1)
            assert list(walk(one, 0)) == list(walk(two, 0))
    finally:
        elsewhere.close()


def test_an_invalid_action_costs_a_turn_and_nothing_else() -> None:
    game = TextWorldExpress(turns=3, parameters=SMALL)
    playing = game()
    playing.reset(task("coin", **SMALL["coin"]), 0, 0)
    before = playing.admissible
    answer = playing.step("I fly to the moon.")
    assert answer.action == "i fly to the moon"
    assert answer.rewards == {"gain": 0.0, "valid": 0.0}
    assert text(answer).startswith("That is not one of the actions.\nActions: ")
    assert playing.admissible == before
    assert not playing.step("<action>LOOK  around.</action>").done
    last = playing.step("")
    assert (last.truncated, last.terminated, last.success) == (True, False, False)
    playing.close()
    game.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.text(max_size=200))
def test_whatever_the_agent_says_is_answered(game: TextWorldGame, said: str) -> None:
    if not game.admissible or game._turn > 90:
        game.reset(task("twc"), 0, 0)
    assert game.step(said).rewards["valid"] in (0.0, 1.0)


def test_a_lost_game_scores_nothing(game: TextWorldGame) -> None:
    opening = game.reset(task("simonsays"), 0, 0)
    wanted = text(opening).split("'")[1]
    assert game.step(wanted).state["score"] == pytest.approx(0.2)
    end = game.step(wanted if f"'{wanted}'" not in text(opening) else "zzz")
    wrong = next(a for a in game.admissible if f"'{a}'" not in text(end))
    lost = game.step(wrong)
    assert (lost.terminated, lost.success, lost.state["score"]) == (True, False, 0.0)
    assert lost.rewards["gain"] == pytest.approx(-0.2)


def test_demonstrations_are_lucky_wanderings_and_always_the_same() -> None:
    source = TextWorldExpress(games=["coin"], parameters=SMALL, turns=12)
    shown = source.demonstrations("train", 8, 0)
    assert shown == source.demonstrations("train", 8, 0)
    assert source._engine.process is None  # it was started for them alone
    assert sum(dialogue[-1]["content"] == "take coin" for dialogue in shown) > 4
    assert all(m["role"] == ("assistant" if i % 2 else "user") for d in shown for i, m in enumerate(d))


def test_a_dead_java_process_ends_its_games_and_the_next_ones_play_in_a_new_one(java_here: Any) -> None:
    source = TextWorldExpress(parameters=SMALL)
    one, two = source(), source()
    for game in (one, two):
        game.reset(task("coin"), 0, 0)
    (old,) = java_here()
    os.kill(old, signal.SIGKILL)
    for game in (one, two, one):
        with pytest.raises(EngineDied, match="the Java process of TextWorldExpress has died"):
            game.step("look around")
    one.reset(task("coin"), 0, 0)
    assert one.step("look around").rewards["valid"] == 1.0
    with pytest.raises(EngineDied):
        two.step("look around")
    two.reset(task("coin"), 0, 0)
    assert two.step("look around").rewards["valid"] == 1.0
    (new,) = java_here()
    assert new != old
    source.close()
    assert java_here() == []


def test_a_game_that_has_not_begun_begins_in_the_new_process(java_here: Any) -> None:
    source = TextWorldExpress()
    game = source()
    game.reset(task("coin"), 0, 0)
    (old,) = java_here()
    os.kill(old, signal.SIGKILL)
    assert text(game.reset(task("twc"), 0, 0)).startswith("Your task is to pick up objects")
    source.close()


def saying(tokenizer: Any, *turns: str | Callable[[], str]) -> Callable[..., Any]:
    spoken = iter(turns)

    def generate(contexts, max_new_tokens):
        said = next(spoken)
        said = said() if callable(said) else said
        return [(tokenizer(said)["input_ids"] + [EOS], None) for _ in contexts]

    return generate


def test_java_killed_in_a_pool_costs_the_episodes_in_it(tokenizer: Any, java_here: Any) -> None:
    options = {"parameters": SMALL, "turns": 3}
    starts = [
        Start(t, 0, i, i % 2) for t in TextWorldExpress(**options).tasks("seen", 1, 0) for i in range(4)
    ]

    def kill() -> str:
        os.kill(java_processes(pool.processes[0])[0], signal.SIGKILL)
        return "look around"

    with EnvironmentPool(TextWorldExpress, options, workers=2) as pool:

        def play(*turns: Any) -> list[Any]:
            limits = Limits(turns=3, completion_tokens=10_000, turn_tokens=100)
            return run_episodes(starts, pool, saying(tokenizer, *turns), tokenizer, limits=limits)

        episodes = play("look around", kill, "look around")
        assert [e.ended.partition(" ")[0] for e in episodes] == ["error:", "truncated"] * 2
        assert "the Java process of TextWorldExpress has died" in episodes[0].ended
        assert [e.rewards.get("valid") for e in episodes] == [None, 1.0] * 2
        assert {e.environment for e in episodes} == {"TextWorldGame"}
        assert pool.replaced == 0  # the worker itself is well, and starts Java again
        assert [e.ended for e in play("inventory", "look around", "look around")] == ["truncated"] * 4
        assert len(java_here()) == 2
    assert java_here() == []


def test_a_recipe_names_it() -> None:
    recipe = parse_recipe(
        {
            "environment": {
                "name": "textworld",
                "turns": 7,
                "options": {"games": ["coin"], "parameters": SMALL},
            }
        }
    )
    environment = named_environment(recipe)
    assert isinstance(environment.make, EnvironmentPool)
    assert environment.make.workers == 2
    assert environment.rewards == {"score": 1.0, "success": 0.0, "valid": 0.0}
    assert environment.turn_channels == ("gain",)
    assert environment.tasks("unseen", 1, 0)[0].id.startswith("unseen-cookingworld-")
    environment.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"games": ["coins"]}, "games: there is no game 'coins'; did you mean 'coin'"),
        ({"games": ["coin"], "unseen_games": ["coin"]}, "coin is in games and in unseen_games"),
        ({"parameters": {"chess": {}}}, "parameters: there is no game 'chess'"),
        ({"games": []}, "games must name one at least"),
        ({"wanderings": 0}, "wanderings be 1 at least"),
    ],
)
def test_what_cannot_be_played_is_refused(options: dict[str, Any], said: str) -> None:
    recipe = parse_recipe({"environment": {"name": "textworld", "options": options}})
    with pytest.raises(RecipeError, match=said):
        named_environment(recipe)


def test_parameters_are_the_engines_to_judge(game: TextWorldGame) -> None:
    with pytest.raises(ValueError, match="less than or equal to 11"):
        game.reset(task("coin", numLocations=99), 0, 0)
    with pytest.raises(ValueError, match=r"Unrecognized property name \(foo\)"):
        game.reset(task("coin", foo=1), 0, 0)
    with pytest.raises(EngineError, match="nope"):
        game._engine.call(game._engine.game(), "nope")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe({"environment": {"name": "textworld"}})
    with monkeypatch.context() as m:
        m.setitem(__import__("sys").modules, "textworld_express", None)
        with pytest.raises(RecipeError, match=r"pip install 'threefold\[textworld\]'"):
            named_environment(recipe)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RecipeError, match="there is no `java` in PATH or JAVA_HOME"):
        named_environment(recipe)
