"""The skill loop on transcripts of household games and search questions: the parsed action reaches triggers
and record, and the creator without a language model writes skills whose patterns fire there."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from threefold.skills.bank import Add, Bank
from threefold.skills.creator import Evidence, trigger_rate
from threefold.skills.offline_creator import OfflineCreator
from threefold.skills.placement import SkilledEnvironment, without_skills
from threefold.skills.reservoir import Reservoir, experience
from threefold.skills.skill import Skill
from threefold.skills.triggers import Trigger
from threefold.trajectory import Opening, Trajectory, Turn


def play(environment, task, say, member=0):
    """An episode of one who says `say(observation)`; as the driver records it."""
    seen = environment.reset(task, 0, member)
    opening = Opening("\n".join(message["content"] for message in seen.messages))
    turns = []
    while not seen.done:
        skills, text = seen.skills, say(seen)
        seen = environment.step(text)
        told = "\n".join(message["content"] for message in seen.messages)
        turns.append(Turn(text, seen.action, told, rewards=dict(seen.rewards), skills=skills))
    return Trajectory(
        task.id, 0, member, 0, "game", opening, (), tuple(turns), success=seen.success, task=dict(task.fields)
    )


def evidence_of(episodes):
    reservoir = Reservoir()
    for number, episode in enumerate(episodes):
        entry = experience(episode, step=0, arm="old", version="v0")
        reservoir.add(replace(entry, step=number))
    groups = tuple(reservoir.sample_groups(np.random.default_rng(0)))
    return Evidence(0, Bank(), reservoir.experiences, groups)


class TestHousehold:
    @pytest.fixture(scope="class")
    @classmethod
    def source(cls):
        pytest.importorskip("alfworld", reason="pip install 'threefold[household]'")
        from threefold.envs.household.environment import GENERATED, HouseholdGames

        return HouseholdGames(
            turns=14, receptacles=4, things=2, data=GENERATED, types=["pick_clean_then_place_in_recep"]
        )

    def test_a_skill_for_closed_places_is_shown_after_going_to_one(self, source):
        skill = Skill(
            "open-what-is-closed",
            "You have come to a place that is closed.",
            "Open it.",
            trigger=Trigger("action_pattern", "^go to .*"),
        )
        game = source()
        task = source.tasks("train", 1, 0)[0]
        environment = SkilledEnvironment(game, Bank("v1", (skill,)))

        def say(seen):
            return next(a for a in game.admissible if a.startswith("go to ")).upper() + "."

        episode = play(environment, task, say)
        assert [turn.skills for turn in episode.turns] == [()] + [("open-what-is-closed",)] * 13
        assert episode.turns[0].observation.count("Open it.") == 1
        assert "skills apply again" in episode.turns[1].observation
        plain = without_skills(episode.turns[0].observation)
        assert plain.startswith("You arrive at ")
        assert "Open it." not in plain

    def test_the_offline_creator_learns_from_games_what_wins_them(self, source):
        from threefold.envs.household.player import Searcher

        episodes = []
        for number, task in enumerate(source.tasks("train", 8, 0)):
            for member in range(4):
                chance = random.Random(f"{number}/{member}")
                game, searcher = source(), Searcher(random.Random(number))
                begun = False

                def say(seen, game=game, searcher=searcher, chance=chance):
                    nonlocal begun
                    if not begun:
                        searcher.begin(seen.messages[-1]["content"])
                        begun = True
                    action = searcher.act(game.admissible)
                    if chance.random() < 0.1:
                        return "wait a moment"
                    if action.startswith("clean") and chance.random() < 0.5:
                        return "look"
                    searcher.done(action, True)
                    return action

                episodes.append(play(game, task, say, member))
        outcomes = [bool(episode.success) for episode in episodes]
        assert 0.2 < np.mean(outcomes) < 0.95
        evidence = evidence_of(episodes)
        creation = OfflineCreator(lift=0.1, support=2)(evidence)
        assert creation == OfflineCreator(lift=0.1, support=2)(evidence)
        (operation,) = creation.operations
        assert isinstance(operation, Add)
        # about commands, not about names of things
        assert not any(character.isdigit() for character in operation.skill.description)
        assert trigger_rate(operation.skill.trigger, evidence.experiences) >= 0.5


class TestSearch:
    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, tmp_path_factory):
        pytest.importorskip("bm25s", reason="pip install 'threefold[search]'")
        from threefold.envs.search.environment import SearchQuestions

        folder = tmp_path_factory.mktemp("questions")

        def write(name, rows):
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

        towns = [f"{a}{b}" for a in ("nor", "sou", "wes") for b in ("ton", "ham", "field", "bury")]
        write("passages.jsonl", [{"title": t, "text": f"The mayor of {t} is Ms {t}well."} for t in towns])
        asked = [("who is mayor of", "name the mayor of")[i % 2] for i in range(len(towns))]
        rows = [
            {"question": f"{words} {t}", "answers": [f"Ms {t}well"]}
            for words, t in zip(asked, towns, strict=True)
        ]
        for split, of in (("train", rows[:8]), ("seen", rows[8:10]), ("unseen", rows[10:])):
            write(f"{split}.jsonl", of)
        return SearchQuestions(turns=4, data=str(folder))

    def test_who_searches_first_wins_and_the_creator_says_so(self, source):
        episodes = []
        for task in source.tasks("train", 8, 0):
            for member in range(2):
                answer = task.fields["answers"][0] if member else "nobody"
                said = [f"search[{task.fields['question']}]", f"answer[{answer}]"][1 - member :]
                steps = iter(said)
                episodes.append(play(source(), task, lambda seen, steps=steps: next(steps), member))
        assert [bool(e.success) for e in episodes] == [False, True] * 8
        assert episodes[1].turns[0].action.startswith("search ")
        creation = OfflineCreator()(evidence_of(episodes))
        (operation,) = creation.operations
        assert operation.skill.name == "search-something-before-answer-something"
        assert operation.skill.body.startswith("First search something. Only then answer something.")

    def test_a_skill_is_shown_after_a_search(self, source):
        skill = Skill("read", "You have searched.", "Read it.", trigger=Trigger("action_pattern", "^search "))
        environment = SkilledEnvironment(source(), Bank("v1", (skill,)))
        steps = iter(["hello", "<search>mayor</search>", "answer[x]"])
        episode = play(environment, source.tasks("train", 1, 0)[0], lambda _: next(steps))
        assert [turn.skills for turn in episode.turns] == [(), (), ("read",)]
