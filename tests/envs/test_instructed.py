"""A recipe's instruction stands in openings and demonstrations; the rest of an environment is as it was."""

from __future__ import annotations

import pytest

from threefold.environments import named_environment
from threefold.envs.instructed import instructed
from threefold.recipe import RecipeError, parse_recipe
from threefold.rollout.driver import Limits, Start, run_episodes
from threefold.skills.bank import Bank
from threefold.skills.skill import Skill

SAID = "Answer with one action."
QUESTION = {"role": "user", "content": "Where?"}


def test_it_stands_in_front_or_below_what_the_environment_says() -> None:
    assert instructed((QUESTION,), SAID) == ({"role": "system", "content": SAID}, QUESTION)
    own = {"role": "system", "content": "You are at home."}
    assert instructed((own, QUESTION), SAID) == (
        {"role": "system", "content": f"You are at home.\n\n{SAID}"},
        QUESTION,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_openings_and_demonstrations_carry_it_and_the_rest_is_as_it_was(workers, tokenizer) -> None:
    settings = {"name": "errands", "workers": workers}
    plain = named_environment(parse_recipe({"environment": settings}))
    told = named_environment(parse_recipe({"environment": {**settings, "instruction": SAID}}))
    try:
        (task,) = told.tasks("train", 1, 0)
        first, second = plain.make(), told.make()
        opening = first.reset(task, 3, 0).messages
        assert second.reset(task, 3, 0).messages == instructed(opening, SAID)
        assert second.step("ask") == first.step("ask")
        first.close()
        second.close()
        own, taught = plain.demonstrations(2, 0), told.demonstrations(2, 0)
        assert taught == tuple(instructed(dialogue, SAID) for dialogue in own)
        start = Start(task=task, group_id=0, member=0, seed=3)
        ids = tokenizer("ask", add_special_tokens=False)["input_ids"]
        (episode,) = run_episodes(
            [start],
            told.make,
            lambda contexts, most: [(ids, None) for _ in contexts],
            tokenizer,
            limits=Limits(turns=2),
        )
        assert episode.environment == "Errands"
    finally:
        plain.close()
        told.close()


def test_skills_stand_below_it() -> None:
    told = named_environment(parse_recipe({"environment": {"name": "errands", "instruction": SAID}}))
    bank = Bank(skills=(Skill("ask-first", "At the start.", "Ask."),))
    (task,) = told.tasks("train", 1, 0)
    environment = told.with_bank(bank).make()
    system = environment.reset(task, 3, 0).messages[0]
    assert system["role"] == "system"
    assert system["content"].startswith(SAID)
    assert "ask-first" in system["content"]
    assert type(environment.unwrapped).__name__ == "Errands"


def test_an_empty_instruction_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"environment\.instruction"):
        parse_recipe({"environment": {"name": "errands", "instruction": ""}})
