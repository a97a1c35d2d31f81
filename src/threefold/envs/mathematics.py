"""Mathematics problems: what a completion is rewarded with, and how the question is put to a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from threefold.answers import BOXED, AnswerFormat, last_number
from threefold.envs.problems import Problem
from threefold.envs.verifier import verify

__all__ = [
    "ARITHMETIC",
    "BARE",
    "GENERIC",
    "QWEN_MATH",
    "SMALL",
    "STYLES",
    "AccuracyReward",
    "FormatReward",
    "PromptStyle",
    "Score",
    "WorkedExample",
    "accuracy_reward",
    "completion_text",
    "format_reward",
    "messages",
    "plain_prompt",
    "score",
    "style_for",
    "verify",
]

Message = dict[str, str]


@dataclass(frozen=True)
class Score:
    """How one completion did. Success in the asked format and success by the last number are told apart,
    because a small model first learns the one and then the other."""

    strict: bool
    """The answer in the asked format is right."""
    last_number: bool
    """The last number of the text is right, whatever the format."""
    formatted: bool
    """There is an answer in the asked format."""


def score(text: str, problem: Problem, answer_format: AnswerFormat) -> Score:
    """Score the text of one completion."""
    span = answer_format.find(text)
    number = last_number(text)
    return Score(
        strict=span is not None and verify(span.text, problem.answer),
        last_number=number is not None and verify(number, problem.answer),
        formatted=span is not None,
    )


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion as TRL hands it to reward functions: a string, or chat messages, of which the
    last one by the assistant counts. Empty where the assistant said nothing."""
    if isinstance(completion, str):
        return completion
    for message in reversed(completion):
        if message.get("role") == "assistant":
            content = message.get("content") or ""
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ""


@dataclass(frozen=True)
class AccuracyReward:
    """1.0 where the answer in the asked format is right, else 0.0. A reward function for TRL, picklable."""

    answer_format: AnswerFormat = BOXED
    column: str = "answer"
    """Column of the data set that holds the gold answer."""

    @property
    def __name__(self) -> str:
        """Name of the reward in logs and in `reward_names`."""
        return "accuracy"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """(B,) rewards of B completions; `columns` are those of the data set, B values each.

        Raises:
            ValueError: The column with the gold answers is missing.
        """
        if self.column not in columns:
            nearest = difflib.get_close_matches(self.column, columns, n=1, cutoff=0.5)
            raise ValueError(
                f"the accuracy reward needs the column {self.column!r} with the true answers; the data set "
                f"has {', '.join(sorted(columns)) or 'no columns'}."
                + (f" Did you mean AccuracyReward(column={nearest[0]!r})?" if nearest else "")
            )
        rewards = []
        for completion, gold in zip(completions, columns[self.column], strict=True):
            span = self.answer_format.find(completion_text(completion))
            rewards.append(float(span is not None and verify(span.text, str(gold))))
        return rewards


@dataclass(frozen=True)
class FormatReward:
    """1.0 where there is an answer in the asked format, right or wrong, else 0.0. A reward function for
    TRL."""

    answer_format: AnswerFormat = BOXED

    @property
    def __name__(self) -> str:
        """Name of the reward in logs and in `reward_names`."""
        return "format"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """(B,) rewards of B completions."""
        return [float(self.answer_format.find(completion_text(c)) is not None) for c in completions]


def accuracy_reward(answer_format: AnswerFormat, *, column: str = "answer") -> AccuracyReward:
    """The reward for a right answer; see `AccuracyReward`."""
    return AccuracyReward(answer_format, column)


def format_reward(answer_format: AnswerFormat) -> FormatReward:
    """The reward for an answer in the asked format; see `FormatReward`."""
    return FormatReward(answer_format)


@dataclass(frozen=True)
class WorkedExample:
    """A solved problem that is shown before the real one."""

    question: str
    reasoning: str
    answer: str


@dataclass(frozen=True)
class PromptStyle:
    """How a family of models likes to be asked. Short, for on a CPU every token of a prompt costs time."""

    system: str = ""
    """System message; none where empty, for some chat templates know no such role."""
    question_template: str = "{question}\n{instruction}"
    """The user's message. `{question}`, and `{instruction}` for the sentence of the answer format."""
    examples: tuple[WorkedExample, ...] = ()
    """Shown as earlier turns of the chat."""
    only_format: str = ""
    """Name of the answer format that the system message asks for, if it does; other formats are refused."""


_EXAMPLE = WorkedExample("What is 2 + 3?", "2 + 3 = 5.", "5")
GENERIC = PromptStyle(question_template="{question}\nReason step by step. {instruction}")
"""For instruction-tuned models of more than a billion parameters."""
SMALL = PromptStyle("Answer the question.", "{question} {instruction}", (_EXAMPLE,))
"""For small models, which follow a format that they are shown and hardly ever one that they are told about:
SmolLM2-135M keeps to a box in 75 to 95 % of samples at temperature 1 with one worked example."""
QWEN_MATH = PromptStyle(
    system=r"Please reason step by step, and put your final answer within \boxed{}.",
    question_template="{question}",
    only_format="boxed",
)
"""The prompt that Qwen2.5-Math was trained with."""


ARITHMETIC = PromptStyle(
    system=r"Put the answer in \boxed{}.",
    question_template="{question}",
    examples=(WorkedExample("2 + 3 = ?", "2 + 3 = 5.", "5"),),
    only_format="boxed",
)
"""The shortest prompt that shows a small model what is wanted of a bare sum; for the embedded default
problems."""
BARE = PromptStyle(question_template="{question}")
"""The question alone, for a model that knows nothing else: the tiny one."""
STYLES: Mapping[str, PromptStyle] = {
    "bare": BARE,
    "generic": GENERIC,
    "small": SMALL,
    "arithmetic": ARITHMETIC,
    "qwen-math": QWEN_MATH,
}


def style_for(model_name: str, model_type: str = "", answer_format: AnswerFormat = BOXED) -> PromptStyle:
    """The prompt style for a model.

    Args:
        model_name: Hub name or path; its last part tells family and size, such as "Qwen2.5-Math-1.5B".
        model_type: `model_type` of the model's configuration, such as "qwen2" or "gemma2".
        answer_format: The answer format in use. Qwen2.5-Math's own prompt asks for a box; with other formats
            the model gets the general style.
    """
    name = PurePath(model_name).name.lower()
    if "qwen2.5-math" in name and answer_format.name == "boxed":
        return QWEN_MATH
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", name)
    small = "smollm" in name or (size is not None and (size[2] == "m" or float(size[1]) <= 1.0))
    if not small:
        return GENERIC
    if model_type.startswith("gemma"):  # Gemma's chat template raises on a system message
        return PromptStyle("", SMALL.question_template, SMALL.examples)
    return SMALL


def messages(problem: Problem, style: PromptStyle, answer_format: AnswerFormat) -> list[Message]:
    """The chat that asks for a problem's answer, ending with the user's message.

    Worked examples are left out where the answer format has no template to write them in.

    Raises:
        ValueError: The style's system message asks for another answer format.
    """
    _check_format(style, answer_format)
    chat: list[Message] = [{"role": "system", "content": style.system}] if style.system else []
    for example in style.examples if answer_format.template is not None else ():
        chat.append({"role": "user", "content": _question(example.question, style, answer_format)})
        chat.append(
            {"role": "assistant", "content": f"{example.reasoning} {answer_format.state(example.answer)}"}
        )
    chat.append({"role": "user", "content": _question(problem.question, style, answer_format)})
    return chat


def plain_prompt(problem: Problem, style: PromptStyle, answer_format: AnswerFormat) -> str:
    """The same question for a base model without a chat template: a text that ends in "Answer:".

    Such a model needs an example to continue in kind, so there is one even where the style has none.

    Raises:
        ValueError: The style's system message asks for another answer format.
    """
    _check_format(style, answer_format)
    parts = [style.system] if style.system else []
    for example in (style.examples or (_EXAMPLE,)) if answer_format.template is not None else ():
        solution = f"{example.reasoning} {answer_format.state(example.answer)}"
        parts.append(f"Question: {_question(example.question, style, answer_format)}\nAnswer: {solution}")
    parts.append(f"Question: {_question(problem.question, style, answer_format)}\nAnswer:")
    return "\n\n".join(parts)


def _question(question: str, style: PromptStyle, answer_format: AnswerFormat) -> str:
    # Replaced one after the other and never str.format: questions are full of braces.
    return style.question_template.replace("{instruction}", answer_format.instruction).replace(
        "{question}", question
    )


def _check_format(style: PromptStyle, answer_format: AnswerFormat) -> None:
    if style.only_format and style.only_format != answer_format.name:
        raise ValueError(
            f"this prompt style's system message asks for the answer format {style.only_format!r}, but the "
            f"format in use is {answer_format.name!r}: take style_for(model_name, model_type, "
            "answer_format), or change one of the two"
        )
