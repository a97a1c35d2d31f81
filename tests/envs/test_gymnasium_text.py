"""The adapter, on environments that Gymnasium ships: told in text, acted in by text, scored as they score."""

from __future__ import annotations

from typing import Any

import pytest

from engines import needs
from threefold.environments import named_environment
from threefold.envs import Environment, Task
from threefold.envs.gymnasium_text import GymnasiumEpisode, GymnasiumText, picture, written_out
from threefold.envs.pool import EnvironmentPool
from threefold.recipe import RecipeError, parse_recipe
from threefold.trajectory import Opening, Trajectory, Turn

pytestmark = needs("gymnasium", "gymnasium", runs_on_java=False)

LAKE = {
    "id": "FrozenLake-v1",
    "kwargs": {"is_slippery": False, "render_mode": "ansi"},
    "unseen_kwargs": {"is_slippery": False, "render_mode": "ansi", "map_name": "8x8"},
    "instruction": "Walk from S to G. You drown in a hole H.",
    "actions": ["left", "down", "right", "up"],
}
TAXI_ACTIONS = ["south", "north", "east", "west", "pick up", "drop off"]


def opened(source: GymnasiumText, seed: int = 3, member: int = 0, split: str = "train") -> tuple[Any, str]:
    episode = source()
    variant = "unseen" if split == "unseen" else "seen"
    opening = episode.reset(Task("t", {"seed": seed, "variant": variant}), 0, member)
    return episode, opening.messages[0]["content"]


def play(episode: GymnasiumEpisode, *actions: str) -> Any:
    *before, last = [episode.step(action) for action in actions]
    assert not any(o.done for o in before)
    return last


def test_frozen_lake_from_start_to_goal() -> None:
    episode, text = opened(GymnasiumText(**LAKE))
    assert isinstance(episode, Environment)
    assert text == (
        "Walk from S to G. You drown in a hole H.\n\n[S]FFF\nFHFH\nFFFH\nHFFG\nActions: left, down, right, up"
    )
    end = play(episode, "down", "Down.", "<action>right</action>", "right", "down", "action: right")
    assert (end.terminated, end.success, end.rewards) == (True, True, {"reward": 1.0, "valid": 1.0})
    assert end.messages[0]["content"].endswith("SFFF\nFHFH\nFFFH\nHFF[G]")
    episode.close()


def test_a_hole_is_a_failure_and_a_limit_is_one_too() -> None:
    episode, _ = opened(GymnasiumText(**LAKE))
    end = play(episode, "down", "right")
    assert (end.terminated, end.success, end.rewards["reward"]) == (True, False, 0.0)
    episode, _ = opened(GymnasiumText(**LAKE, turns=3))
    end = play(episode, "left", "left", "left")
    assert (end.truncated, end.terminated, end.success) == (True, False, False)


def test_an_invalid_action_costs_a_turn_and_nothing_else() -> None:
    episode, _ = opened(GymnasiumText(**LAKE))
    for said in ("jump", "", "7", "left right"):
        seen = episode.step(said)
        assert seen.rewards == {"reward": 0.0, "valid": 0.0}
        assert seen.messages[0]["content"].startswith("That is not one of the actions.\nActions: left")
    assert play(episode, "down", "down", "right", "right", "down", "right").success is True


def test_members_begin_alike_and_chance_differs_later() -> None:
    slippery = GymnasiumText(**{**LAKE, "kwargs": {"is_slippery": True, "render_mode": "ansi"}})
    ways = []
    for member in (0, 0, *range(1, 6)):
        episode, text = opened(slippery, seed=11, member=member)
        ways.append([text, *(episode.step("right").messages[0]["content"] for _ in range(4))])
    assert ways[0] == ways[1]  # the same member, the same chance
    assert len({way[0] for way in ways}) == 1
    assert len({tuple(way) for way in ways}) > 1


def test_blackjack_is_written_out_in_figures() -> None:
    source = GymnasiumText(id="Blackjack-v1", actions=["stick", "hit"], success_reward=1.0)
    results = set()
    for seed in range(30):
        episode, text = opened(source, seed)
        assert text.startswith("(")
        assert text.endswith("\nActions: stick, hit")
        end = episode.step("stick")
        assert end.terminated
        assert end.success is (end.rewards["reward"] >= 1)
        results.add(end.success)
    assert results == {True, False}


def test_taxi_offers_what_makes_sense_and_its_return_is_summed() -> None:
    source = GymnasiumText(
        id="Taxi-v4", kwargs={"render_mode": "ansi"}, actions=TAXI_ACTIONS, success_reward=20, turns=4
    )
    episode, text = opened(source)
    assert text.endswith("\nActions: south, east")
    assert episode.step("north").rewards == {"reward": 0.0, "valid": 0.0}  # a wall
    assert episode.step("south").state == {"turn": 2.0, "return": -1.0}
    turns = tuple(Turn("south", rewards={"reward": -1.0, "valid": v}) for v in (1.0, 0.0))
    record = Trajectory("t", 0, 0, 0, "e", Opening(""), (), turns, success=False)
    (score,) = episode.score([record])
    assert score.rewards == {"return": -2.0, "success": 0.0, "valid": 0.5}


def tell(observation: Any) -> str:
    return f"The pole leans {'right' if observation[2] > 0 else 'left'}."


def push(text: str) -> int:
    return {"push left": 0, "push right": 1}[text.strip().lower()]


def test_a_users_own_words() -> None:
    """CartPole: an array becomes a sentence, a sentence an action; a success is a return."""
    options = {"id": "CartPole-v1", "describe": f"{__name__}:tell", "parse": push, "success_return": 3.0}
    episode, text = opened(GymnasiumText(**options, turns=3), seed=1)
    assert text in ("The pole leans right.", "The pole leans left.")
    assert episode.step("push up").rewards == {"reward": 0.0, "valid": 0.0}
    assert episode.step("Push left").rewards == {"reward": 1.0, "valid": 1.0}
    end = episode.step("push right")
    assert (end.truncated, end.success) == (True, False)  # two of three
    episode, _ = opened(GymnasiumText(**options, turns=3), seed=1)
    assert play(episode, "push left", "push right", "push left").success is True


def test_splits_share_no_seed_and_the_unseen_one_is_another_environment() -> None:
    source = GymnasiumText(**LAKE)
    assert source.splits == ("seen", "unseen")
    found = {s: source.tasks(s, 50, 0) for s in ("train", "seen", "unseen")}
    seeds = {s: {t.fields["seed"] for t in tasks} for s, tasks in found.items()}
    assert [len(s) for s in seeds.values()] == [50, 50, 50]
    assert not seeds["train"] & (seeds["seen"] | seeds["unseen"])
    assert source.tasks("test", 5, 0) == source.tasks("seen", 5, 0)
    assert source.tasks("train", 5, 0) != source.tasks("train", 5, 1)
    assert len(opened(source, split="unseen")[1].split("\n")) == 2 + 8 + 1
    assert GymnasiumText(id="Blackjack-v1").splits == ("seen",)


def test_observations_and_pictures_in_words() -> None:
    import numpy as np

    assert written_out({"a": np.array([0.123456, 2.0]), "b": (1, "x")}) == "a: (0.1235, 2), b: (1, x)"
    assert written_out("as it is") == "as it is"
    assert picture("\n\x1b[41mS\x1b[0mF\n\x1b[34;1mG\x1b[0m") == "[S]F\n[G]"


def test_a_recipe_plays_it_with_and_without_processes() -> None:
    for workers in (0, 1):
        data = {"name": "gymnasium", "options": LAKE, "turns": 9, "workers": workers}
        environment = named_environment(parse_recipe({"environment": data}))
        assert isinstance(environment.make, EnvironmentPool) is bool(workers)
        episode = environment.make()
        (task,) = environment.tasks("unseen", 1, 0)
        assert episode.reset(task, 0, 0).messages[0]["content"].startswith("Walk from S to G.")
        assert episode.step("right").rewards["valid"] == 1.0
        episode.close()
        environment.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "CartPole-v9"}, "CartPole"),
        ({"id": "FrozenLake-v1", "kwargs": {"slippery": True}}, "slippery"),
        ({"id": "FrozenLake-v1", "actions": ["left", "right"]}, r"names 2 actions, .* Discrete\(4\)"),
        ({"id": "Pendulum-v1"}, "give parse="),
        ({"id": "CartPole-v1", "describe": "no.such:thing"}, "describe = 'no.such:thing'"),
        ({"id": "CartPole-v1", "describe": "threefold.envs.gymnasium_text:HELD_OUT"}, "is no function"),
    ],
)
def test_what_cannot_be_played_is_refused(options: dict[str, Any], said: str) -> None:
    recipe = parse_recipe({"environment": {"name": "gymnasium", "options": options}})
    with pytest.raises(RecipeError, match=said):
        named_environment(recipe)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    with pytest.raises(RecipeError, match=r"pip install 'threefold\[gymnasium\]'"):
        named_environment(parse_recipe({"environment": {"name": "gymnasium", "options": LAKE}}))
