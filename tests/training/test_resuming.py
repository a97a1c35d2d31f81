"""A run is gone on with under its own recipe alone, and a refusal leaves its record as it was."""

import pytest

from threefold.recipe import Recipe, RecipeError
from threefold.training.resuming import check_resumed
from threefold.training.run_directory import RunDirectory

RECIPE = {"model": {"name": "tiny"}, "data": {"train": "tiny-arithmetic"}, "training": {"steps": 8}}


def _changed(**sections) -> Recipe:
    return Recipe.model_validate(
        {name: {**RECIPE.get(name, {}), **keys} for name, keys in sections.items()}
        | {name: keys for name, keys in RECIPE.items() if name not in sections}
    )


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run of eight steps, two updates each."""
    folder = tmp_path / "checkpoints" / "checkpoint-16"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
    directory = RunDirectory(tmp_path, resume=True)
    directory.write_config(_changed().to_yaml())
    return directory


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"name": "embedded"}}, "model.name was 'tiny' and is 'embedded'"),
        ({"model": {"lora": {"r": 4}}}, "model.lora was None and is {'r': 4"),
        ({"data": {"train": "arithmetic"}}, "data.train was 'tiny-arithmetic'"),
        ({"credit": {"method": "ispo"}}, "credit.method was 'grpo' and is 'ispo'"),
        ({"run": {"seed": 1}}, "run.seed was 0 and is 1"),
    ],
)
def test_another_recipe_is_refused_with_both_values(run, sections, said) -> None:
    with pytest.raises(RecipeError) as refusal:
        check_resumed(_changed(**sections), run, 2)
    assert said in str(refusal.value)


def test_the_run_may_go_on_for_longer_and_be_measured_otherwise(run) -> None:
    assert check_resumed(_changed(), run, 2) == {}
    longer = _changed(training={"steps": 20, "learning_rate": 2e-6}, evaluation={"problems": 3})
    assert check_resumed(longer, run, 2) == {
        "training.steps": (8, 20),
        "training.learning_rate": (1e-6, 2e-6),
        "evaluation.problems": (200, 3),
    }


def test_fewer_steps_than_are_trained_are_refused(run) -> None:
    with pytest.raises(RecipeError, match=r"training.steps = 7, but .* has trained 8 steps"):
        check_resumed(_changed(training={"steps": 7}), run, 2)


@pytest.mark.parametrize("content", [None, ": [", "3", "model: {name: tiny}\n"])
def test_a_record_that_is_damaged_or_of_an_earlier_version_stops_nothing(run, content) -> None:
    config = run.path / "config.yaml"
    config.unlink() if content is None else config.write_text(content, encoding="utf-8")
    check_resumed(_changed(run={"seed": 1}), run, 2)


def test_a_folder_that_cannot_be_made_is_said_in_words(tmp_path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"run\.dir = .*file cannot be made a folder: it is a file"):
        RunDirectory(tmp_path / "file")
