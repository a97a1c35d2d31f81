"""Recipes are read strictly: what is wrong is named with its key, its value and the nearest valid name."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml

from threefold.credit import CreditEstimator
from threefold.credit.grpo import GRPO
from threefold.credit.ispo import ISPO
from threefold.credit.lens import LENS
from threefold.credit.ngrpo import NGRPO
from threefold.credit.rl_zvp import RLZVP
from threefold.credit.turn_trajectory import T2GRPO
from threefold.recipe import Recipe, RecipeError, build_credit, load_recipe, parse_recipe
from threefold.recipe_credit import METHODS, Credit, method_settings

RECIPES = Path(__file__).parents[2] / "recipes"


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
        ({"credit": {"method": "ispo", "combine": "both"}}, "credit.combine = 'both'"),
        ({"credit": {"method": "ispo", "lambda_ifd": -1}}, "credit.lambda_ifd = -1"),
        ({"model": {"dtype": "fp8"}}, "model.dtype = 'fp8'"),
        ({"steps": 4}, "unknown key 'steps'; did you mean 'training.steps'? (valid here: model, data, "),
        ({"model": "embedded"}, "model = 'embedded': model is a section, with the keys model.name, "),
        ({"credit": {"method": "t2-grpo"}}, "or 'summed_grpo'; did you mean 't2grpo'?"),
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


@pytest.mark.parametrize("override", ["training.steps", "=3", "training.steps.x=3", "model.lora={r:"])
def test_a_malformed_override_is_refused(tmp_path, override: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("training: {steps: 3}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="override"):
        load_recipe(path, [override])


def test_a_missing_or_broken_file_is_refused(tmp_path) -> None:
    (tmp_path / "other.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"no recipe at .*demo.yaml; recipes there: other\.yaml"):
        load_recipe(tmp_path / "demo.yaml")
    with pytest.raises(RecipeError, match=r"no recipe at .*other; did you mean .*other\.yaml\?"):
        load_recipe(tmp_path / "other")
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
    assert credit(method="ispo-paper") == ISPO.paper("accuracy")
    assert credit(method="ispo") == ISPO.recommended("accuracy")
    assert credit(method="ispo-paper", hinge=0.5, scale="none") == ISPO("accuracy", hinge=0.5, scale="none")
    assert credit(method="ispo", noise_control="shuffle") == replace(
        ISPO.recommended("accuracy"), noise_control="shuffle"
    )
    assert credit(method="t2grpo", noise_control="all", noise_seed=3) == T2GRPO(
        noise_control="all", noise_seed=3
    )
    assert credit(method="rl_zvp", alpha=0.2) == RLZVP("accuracy", alpha=0.2)
    assert credit(method="lens") == LENS("accuracy", alpha=0.25)
    assert credit(method="ngrpo") == NGRPO()


def test_every_method_has_a_name_and_is_an_estimator_or_none() -> None:
    assert set(get_args(Credit.model_fields["method"].annotation)) == set(METHODS)
    for method, estimator in METHODS.items():
        assert method_settings(method).keys() <= Credit.model_fields.keys()
        if estimator is not None:
            assert isinstance(estimator, CreditEstimator)
            assert build_credit(parse_recipe({"credit": {"method": method}}).credit) == estimator


@pytest.mark.parametrize("method", METHODS)
def test_the_complete_recipe_shows_the_keys_of_the_method_and_reads_back_equal(method: str) -> None:
    recipe = parse_recipe({"credit": {"method": method}})
    shown = yaml.safe_load(recipe.to_yaml())
    assert shown["credit"].keys() == {"method", "format_weight", *method_settings(method)}
    assert parse_recipe(shown) == recipe


def test_an_option_that_is_off_when_null_can_be_turned_off_and_stays_off() -> None:
    recipe = parse_recipe({"credit": {"method": "ispo", "intrinsic_cap": None, "hinge_quantile": None}})
    assert build_credit(recipe.credit) == replace(
        ISPO.recommended("accuracy"), intrinsic_cap=None, hinge_quantile=None
    )
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "grpo", "lambda_ifd": 0.5},
            "credit: lambda_ifd belongs to the method(s) ispo-paper, ispo, not to 'grpo' "
            "(its keys: scale, eps)",
        ),
        (
            {"method": "ngrpo", "alpha": 0.1},
            "alpha belongs to the method(s) rl_zvp, lens, ispo-paper, ispo, t2grpo, not to 'ngrpo' "
            "(its keys: max_reward, eps)",
        ),
        ({"method": "dr_grpo", "scale": "group"}, "not to 'dr_grpo' (its keys: none)"),
        ({"method": "rl_zvp", "alpha": None}, "alpha is null; leave it out for the method's own value 0.1"),
        ({"method": "lens", "outcome": "accuracy"}, "unknown key 'credit.outcome'; did you mean"),
        ({"method": "ispo", "hinge_quantile": 2}, "credit.hinge_quantile = 2"),
        ({"method": "ispo", "entropy_target": 1.0}, "set token_credit=True as well"),
        ({"method": "zvp"}, "credit.method = 'zvp'"),
        (
            {"method": "ispo", "noise_control": "turns"},
            "noise_control is 'turns', valid: 'shuffle', 'gaussian'",
        ),
        (
            {"method": "gdpo", "noise_control": "all"},
            "belongs to the method(s) ispo-paper, ispo, t2grpo, not to",
        ),
    ],
)
def test_a_key_of_another_method_is_refused_with_its_owners(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_recipe({"credit": settings})
    assert message in str(refused.value)


def test_dr_grpo_brings_its_loss_and_refuses_another() -> None:
    assert parse_recipe({"credit": {"method": "dr_grpo"}}).training.loss == "dr_grpo"
    assert parse_recipe({"credit": {"method": "grpo"}}).training.loss == "dapo"
    with pytest.raises(RecipeError, match=r"DrGRPO goes with the loss 'dr_grpo'.*but the loss is 'bnpo'"):
        parse_recipe({"credit": {"method": "dr_grpo"}, "training": {"loss": "bnpo"}})


def test_credit_per_token_is_refused_with_sequence_ratios_before_anything_is_loaded() -> None:
    with pytest.raises(RecipeError, match=r"RLZVP gives credit per token.*training\.ratio=token"):
        parse_recipe({"credit": {"method": "rl_zvp"}, "training": {"ratio": "sequence"}})
    masked = {"trl": {"off_policy_mask_threshold": 0.5}}
    with pytest.raises(RecipeError, match="off_policy_mask_threshold drops a row"):
        parse_recipe({"credit": {"method": "gtpo"}, "training": masked})


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECIPES.glob("*.yaml"))])
def test_the_recipes_that_ship_are_valid(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert isinstance(recipe, Recipe)


def test_numbers_in_scientific_notation_are_numbers_and_quoted_ones_are_text(tmp_path):
    """In keys that take anything too, where nothing else would turn YAML 1.1's text into what was meant."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "training: {trl: {adam_epsilon: 1e-7}}\n"
        "environment: {name: toy, options: {share: 5e-1, all: [1E3]}}\n"
        'model: {revision: "7e3"}\n',
        encoding="utf-8",
    )
    recipe = load_recipe(path, ["training.trl.max_steps_per_second=2e3", "environment.options.label='1e5'"])
    assert recipe.training.trl == {"adam_epsilon": 1e-7, "max_steps_per_second": 2000.0}
    assert recipe.environment.options == {"share": 0.5, "all": [1000.0], "label": "1e5"}
    assert recipe.model.revision == "7e3"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe
