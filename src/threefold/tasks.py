"""Problems, and how they are put to a model and scored: what training and evaluation of a recipe share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threefold.answers import AnswerFormat, answer_format
from threefold.envs import column_addition, mathematics, procedural
from threefold.envs.problems import Problem, load_problems
from threefold.models import context_length, load_tokenizer, resolve
from threefold.recipe import Recipe, RecipeError
from threefold.rollout.samplers import Sample
from threefold.signals import locate

ARITHMETIC = "arithmetic"
"""Name of the embedded default problems."""
TINY_ARITHMETIC = "tiny-arithmetic"
"""Name of the problems of the tiny model."""
_MADE: dict[str, Callable[..., tuple[Problem, ...]]] = {
    ARITHMETIC: procedural.arithmetic,
    TINY_ARITHMETIC: column_addition.problems,
}
"""Problems that are made on the spot, by name."""


@dataclass(frozen=True)
class Questioner:
    """Puts problems to one model and scores its answers."""

    tokenizer: Any
    style: mathematics.PromptStyle
    answer_format: AnswerFormat
    context: int | None
    """Longest sequence the model was built for, None where unknown."""

    def prompt(self, problem: Problem) -> Any:
        """What TRL calls a prompt: chat messages, or text for a model without a chat template."""
        if self.tokenizer.chat_template is None:
            return mathematics.plain_prompt(problem, self.style, self.answer_format)
        return mathematics.messages(problem, self.style, self.answer_format)

    def prompt_ids(self, problem: Problem) -> list[int]:
        """The tokens of the prompt, as TRL would make them."""
        prompt = self.prompt(problem)
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        return self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def scores(self, text: str, problem: Problem) -> dict[str, bool]:
        """Success in the asked format and by the last number, apart."""
        score = mathematics.score(text, problem, self.answer_format)
        return {"strict": score.strict, "last_number": score.last_number, "format": score.formatted}

    def confidence(self, sample: Sample) -> float | None:
        """The probability that the policy gave to the whole answer after its reasoning; None without one."""
        answer = locate(self.tokenizer, sample.token_ids, self.answer_format)
        if answer is None:
            return None
        return min(1.0, math.exp(math.fsum(sample.logprobs[answer.start : answer.end])))

    def check_lengths(self, name: str, problems: Sequence[Problem], max_completion_tokens: int) -> int:
        """Longest prompt in tokens.

        Raises:
            RecipeError: A prompt leaves no room for the completion, or the tokenizer cannot write it; the
                message names the row.
        """
        longest, unknown = 0, self.tokenizer.unk_token_id
        for row, problem in enumerate(problems):
            ids = self.prompt_ids(problem)
            length = len(ids)
            # A tokenizer whose end or pad token is its unknown token has no unknown text (byte-level).
            if unknown in ids and unknown not in (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id):
                raise RecipeError(
                    f"{name}, row {row} (id {problem.id}): the tokenizer has no token for a part of the "
                    f"prompt {self.tokenizer.decode(ids)!r}; the tiny model can read "
                    f"data.train = {TINY_ARITHMETIC} alone, in the answer format 'boxed'"
                )
            if self.context is not None and length + max_completion_tokens > self.context:
                raise RecipeError(
                    f"{name}, row {row} (id {problem.id}): the prompt has {length} tokens, and with "
                    f"{max_completion_tokens} new tokens it passes the model's context of {self.context}; "
                    "shorten it, drop the row, or lower training.max_completion_tokens"
                )
            longest = max(longest, length)
        return longest


def questioner(recipe: Recipe, model_name: str | None = None) -> Questioner:
    """The questioner of a recipe; `model_name` takes tokenizer and context from another folder, such as a
    checkpoint.

    Raises:
        RecipeError: The recipe names an unknown prompt style.
        ValueError: The answer format is unknown, or the tokenizer cannot be used.
    """
    from transformers import AutoConfig

    model = recipe.model
    name = model_name or model.name
    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    tokenizer = load_tokenizer(name, **options)
    config = AutoConfig.from_pretrained(resolve(model.name), **options)
    fmt = answer_format(recipe.prompt.answer_format)
    return Questioner(tokenizer, _style(recipe, fmt, config.model_type), fmt, context_length(config))


def _style(recipe: Recipe, fmt: AnswerFormat, model_type: str) -> mathematics.PromptStyle:
    """The prompt style that the recipe names, or the one that suits model and problems."""
    name, styles = recipe.prompt.style, mathematics.STYLES
    if name != "auto":
        if name not in styles:
            nearest = difflib.get_close_matches(name, styles, n=1, cutoff=0.4)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise RecipeError(f"prompt.style = {name!r} is none of auto, {', '.join(styles)}{hint}")
        style = styles[name]
    elif recipe.data.train == ARITHMETIC and fmt.name == "boxed":
        style = mathematics.ARITHMETIC
    elif recipe.data.train == TINY_ARITHMETIC:
        style = mathematics.BARE
    else:
        style = mathematics.style_for(resolve(recipe.model.name), model_type, fmt)
    return style if recipe.prompt.system is None else replace(style, system=recipe.prompt.system)


def training_problems(recipe: Recipe) -> tuple[Problem, ...]:
    """The problems to learn from.

    Raises:
        RecipeError: There are fewer than a step needs.
        ValueError: The data cannot be read; the message names file and row.
    """
    data, training = recipe.data, recipe.training
    if data.train in _MADE:
        size = data.limit or training.steps * training.prompts_per_step
        return _MADE[data.train]("train", seed=recipe.run.seed, size=size, mix=data.mix)
    problems = load_problems(
        data.train,
        question_column=data.question_column,
        answer_column=data.answer_column,
        config=data.config,
        split=data.split,
        limit=data.limit,
    )
    if len(problems) < training.prompts_per_step:
        raise RecipeError(
            f"data.train has {len(problems)} problems, fewer than training.prompts_per_step = "
            f"{training.prompts_per_step}; lower it or give more problems"
        )
    return problems


def held_out_problems(recipe: Recipe, size: int, source: str | None = None) -> tuple[Problem, ...]:
    """The first `size` held-out problems: those of `source`, else of `data.test`, else the test split of
    `data.train`.

    Raises:
        RecipeError: Training and held-out problems would be the same.
        ValueError: The data cannot be read; the message names file and row.
    """
    data = recipe.data
    if source is None and data.test is None and Path(data.train).is_file():
        raise RecipeError(
            f"data.train = {data.train} is one file, so nothing is held out; name other problems in "
            "data.test, or set evaluation.before and evaluation.after to false"
        )
    source = source or data.test or data.train
    if source in _MADE:
        return _MADE[source](data.test_split, size=size, mix=data.mix)
    same = source == data.train
    return load_problems(
        source,
        question_column=data.test_question_column or (data.question_column if same else "question"),
        answer_column=data.test_answer_column or (data.answer_column if same else "answer"),
        config=data.config if same else None,
        split=data.test_split,
        limit=size,
    )
