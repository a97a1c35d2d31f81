"""Recipes are read strictly: what is wrong is named with its key, its value and the nearest valid name."""

import pytest
import yaml

from threefold.credit.grpo import GRPO
from threefold.credit.ispo import ISPO
from threefold.recipe import Recipe, RecipeError, build_credit, load_recipe, parse_recipe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"training": {"grup_size": 4}}, "unknown key 'training.grup_size'; did you mean 'group_size'?"),
        ({"model": {"lora": {"rank": 4}}}, "unknown key 'model.lora.rank'"),
        (
            {"training": {"group_size": 1}},
            "training.group_size = 1: input should be greater than or equal to 2",
        ),
        ({"training": {"steps": "many"}}, "training.steps = 'many'"),
        ({"credit": {"combine": "both"}}, "credit.combine = 'both'"),
        ({"credit": {"lambda_ifd": -1}}, "credit.lambda_ifd = -1"),
        ({"model": {"dtype": "fp8"}}, "model.dtype = 'fp8'"),
    ],
)
def test_a_bad_key_or_value_is_refused_by_name(data: dict, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_recipe(data)
    assert message in str(refused.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(RecipeError) as refused:
        parse_recipe({"training": {"group_size": 1, "steps": 0}})
    assert len(str(refused.value).splitlines()) == 2


def test_the_complete_recipe_reads_back_equal() -> None:
    recipe = parse_recipe(
        {"credit": {"method": "ispo"}, "model": {"lora": {"r": 4}}, "data": {"mix": {"add1": 1.0}}}
    )
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_overrides_reach_into_sections_and_keep_their_types(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("training:\n  steps: 3\n", encoding="utf-8")
    overrides = [
        "training.learning_rate=1e-5",
        "run.dir=runs/a",
        "training.trl.use_vllm=true",
        "model.lora.r=8",
    ]
    recipe = load_recipe(path, overrides)
    assert recipe.training.steps == 3
    assert recipe.training.learning_rate == 1e-5
    assert recipe.run.dir == "runs/a"
    assert recipe.training.trl == {"use_vllm": True}
    assert recipe.model.lora is not None
    assert recipe.model.lora.r == 8


@pytest.mark.parametrize("override", ["training.steps", "=3", "training.steps.x=3"])
def test_a_malformed_override_is_refused(tmp_path, override: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("training: {steps: 3}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="override"):
        load_recipe(path, [override])


def test_a_missing_or_broken_file_is_refused(tmp_path) -> None:
    (tmp_path / "other.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"no recipe at .*recipes there: other\.yaml"):
        load_recipe(tmp_path / "demo.yaml")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "other.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="must hold a mapping"):
        load_recipe(tmp_path / "list.yaml")


def test_the_method_names_build_their_estimators() -> None:
    def credit(**settings: object) -> object:
        return build_credit(parse_recipe({"credit": settings}).credit)

    assert credit(method="none") is None
    assert credit() == GRPO()
    assert credit(method="ispo") == ISPO.paper("accuracy")
    assert credit(method="ispo", hinge=0.5, scale="none") == ISPO("accuracy", hinge=0.5, scale="none")


@pytest.mark.parametrize("name", ["demo", "gsm8k", "ispo-paper"])
def test_the_recipes_that_ship_are_valid(name: str, pytestconfig) -> None:
    recipe = load_recipe(pytestconfig.rootpath / f"recipes/{name}.yaml")
    assert isinstance(recipe, Recipe)
