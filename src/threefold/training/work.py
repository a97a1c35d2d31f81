"""What a recipe trains on: problems with answers, or an environment's tasks. `run.py` handles both alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from threefold.environments import SUCCESS, NamedEnvironment, named_environment
from threefold.envs import mathematics
from threefold.envs.base import Task
from threefold.envs.problems import Problem
from threefold.evaluation.share import Share, SharedSampler
from threefold.models import context_length, load_tokenizer, resolve
from threefold.recipe import OUTCOME, Recipe, RecipeError
from threefold.skills.bank import Bank
from threefold.tasks import Questioner, held_out_problems, questioner, training_problems
from threefold.training.play import episode_rewards
from threefold.training.skills import check_bank, initial_bank, tokens_to_come

if TYPE_CHECKING:
    from threefold.evaluation.intervals import Interval

Progress = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]
"""(what, how many) -> a context whose value takes (done, in all)."""


class Work(Protocol):
    """Everything about the task that training needs."""

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        ...

    @property
    def title(self) -> str:
        """What is learnt, in a word or two."""
        ...

    @property
    def unit(self) -> str:
        """What one of its tasks is called, in the plural."""
        ...

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Most tokens after the prompt."""
        ...

    @property
    def rewards(self) -> Mapping[str, float]:
        """Weight by reward function, in order."""
        ...

    @property
    def outcome(self) -> str:
        """The reward function that says right or wrong."""
        ...

    @property
    def turn_channels(self) -> tuple[str, ...]:
        """What credit by turn takes where the recipe names nothing; empty where there are no turns."""
        ...

    @property
    def scope(self) -> str:
        """What figures of this work are for, where that must be said; else empty."""
        ...

    @property
    def made_with(self) -> Mapping[str, str]:
        """Versions of what plays and scores, where there are any."""
        ...

    def sizes(self) -> tuple[int, int]:
        """Tasks to learn from, and held out."""
        ...

    def first_prompt(self) -> str:
        """What the model sees of the first training task, for a person to look at."""
        ...

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of `ThreefoldTrainer`: data, reward functions and how episodes are played."""
        ...

    def evaluate(self, model: Any, progress: Progress, share: Share) -> list[Any]:
        """One evaluation of the held-out tasks for each mode, the same on all processes that share it."""
        ...

    def gain(self, before: Any, after: Any, score: str) -> Interval | None:
        """Paired gain between two evaluations; None where nothing can be compared, as between those of
        different tasks."""
        ...

    def close(self) -> None:
        """Give back processes that were started for it."""
        ...


def work_of(recipe: Recipe) -> Work:
    """The work of a recipe, with every check that needs no weights.

    Raises:
        RecipeError, ValueError: Something cannot be used; the message names the key, the row or the task.
    """
    return _problems(recipe) if recipe.environment.name is None else _episodes(recipe)


def _modes(recipe: Recipe) -> list[tuple[str, float, int]]:
    """(mode, temperature, samples) of the held-out evaluations."""
    sampled = ("sampled", recipe.training.temperature, recipe.evaluation.samples)
    return [sampled, ("greedy", 0.0, 1)] if recipe.evaluation.greedy else [sampled]


# Problems


@dataclass(frozen=True)
class Problems:
    """Problems, each a question and an answer that can be verified."""

    recipe: Recipe
    questioner: Questioner
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    longest_prompt: int
    unit = "problems"
    outcome = OUTCOME
    turn_channels: ClassVar[tuple[str, ...]] = ()
    scope = ""
    made_with: ClassVar[Mapping[str, str]] = {}

    @property
    def tokenizer(self) -> Any:
        return self.questioner.tokenizer

    @property
    def title(self) -> str:
        return self.recipe.data.train

    @property
    def completion_tokens(self) -> int:
        return self.recipe.training.max_completion_tokens

    @property
    def rewards(self) -> dict[str, float]:
        weight = self.recipe.credit.format_weight
        return {OUTCOME: 1.0, "format": weight} if weight else {OUTCOME: 1.0}

    def sizes(self) -> tuple[int, int]:
        return len(self.train), len(self.test)

    def first_prompt(self) -> str:
        text = self.tokenizer.decode(self.questioner.prompt_ids(self.train[0]))
        return f"{text}\n\n(answer: {self.train[0].answer})"

    def trainer_options(self) -> dict[str, Any]:
        from datasets import Dataset

        ask = self.questioner
        rows = [
            {
                "prompt": ask.prompt(p),
                "answer": p.answer,
                "question": p.question,
                "id": p.id,
                "difficulty": p.difficulty,
            }
            for p in self.train
        ]
        rewards: list[Any] = [mathematics.accuracy_reward(ask.answer_format)]
        if self.recipe.credit.format_weight:
            rewards.append(mathematics.format_reward(ask.answer_format))
        return {
            "reward_funcs": rewards,
            "train_dataset": Dataset.from_list(rows),
            "answer_format": ask.answer_format,
        }

    def evaluate(self, model: Any, progress: Progress, share: Share) -> list[Any]:
        from threefold.evaluation.evaluate import evaluate
        from threefold.rollout.samplers.transformers import TransformersSampler

        settings, ask = self.recipe.evaluation, self.questioner
        sampler = SharedSampler(
            TransformersSampler(model, self.tokenizer, batch_size=settings.batch_size), share
        )
        results = []
        for mode, temperature, samples in _modes(self.recipe):
            with progress(mode, len(self.test) * samples) as advance:
                results.append(
                    evaluate(
                        sampler,
                        ask.tokenizer,
                        self.test,
                        prompt=ask.prompt_ids,
                        score=ask.scores,
                        confidence=ask.confidence,
                        temperature=temperature,
                        samples=samples,
                        max_new_tokens=self.completion_tokens,
                        seed=settings.seed,
                        progress=advance,
                    )
                )
        return results

    def gain(self, before: Any, after: Any, score: str) -> Interval | None:
        from threefold.evaluation.evaluate import paired_gain

        if (before.problem_ids, before.temperature) != (after.problem_ids, after.temperature):
            return None  # a resumed run may measure otherwise than it began
        return paired_gain(before, after, score)

    def close(self) -> None:
        pass


def _problems(recipe: Recipe) -> Problems:
    evaluation = recipe.evaluation
    train = training_problems(recipe)
    wanted = evaluation.before or evaluation.after or evaluation.every
    test = held_out_problems(recipe, evaluation.problems) if wanted else ()
    ask = questioner(recipe)
    room = recipe.training.max_completion_tokens
    longest = max(
        ask.check_lengths("data.train", train, room), ask.check_lengths("held-out data", test, room)
    )
    return Problems(recipe, ask, train, test, longest)


# Episodes


@dataclass(frozen=True)
class Episodes:
    """Tasks that are played against an environment."""

    recipe: Recipe
    environment: NamedEnvironment
    tokenizer: Any
    train: tuple[Task, ...]
    test: tuple[Task, ...]
    longest_prompt: int
    bank: Bank | None = None
    """Whose skills stand in the prompts of evaluations and of the first prompt; None is without skills."""
    unit = "tasks"

    @property
    def title(self) -> str:
        return self.environment.name

    @property
    def completion_tokens(self) -> int:
        return self.environment.limits.completion_tokens

    @property
    def rewards(self) -> Mapping[str, float]:
        return self.environment.rewards

    @property
    def turn_channels(self) -> tuple[str, ...]:
        return self.environment.turn_channels

    @property
    def scope(self) -> str:
        return self.environment.scope

    @property
    def made_with(self) -> Mapping[str, str]:
        return self.environment.made_with

    @property
    def outcome(self) -> str:
        return SUCCESS if SUCCESS in self.rewards else next(iter(self.rewards))

    def sizes(self) -> tuple[int, int]:
        return len(self.train), len(self.test)

    def first_prompt(self) -> str:
        environment = self.environment.with_bank(self.bank, self.recipe.skills.retrieve)
        ids = environment.opening(self.tokenizer, self.train[0], self.recipe.run.seed)
        return self.tokenizer.decode(ids)

    def trainer_options(self) -> dict[str, Any]:
        from datasets import Dataset

        return {
            "reward_funcs": episode_rewards(*self.rewards),
            "train_dataset": Dataset.from_list([{"prompt": "", "id": task.id} for task in self.train]),
            "environment": self.environment.make,
            "limits": self.environment.limits,
            "tasks": {task.id: task for task in self.train},
            "outcome": self.outcome,
            "answer_format": self.recipe.prompt.answer_format,
        }

    def evaluate(self, model: Any, progress: Progress, share: Share) -> list[Any]:
        from threefold.evaluation.episodes import evaluate_episodes, sessions
        from threefold.rollout.samplers import SamplingParameters
        from threefold.rollout.samplers.transformers import TransformersSampler

        settings, limits = self.recipe.evaluation, self.environment.limits
        sampler = TransformersSampler(model, self.tokenizer, batch_size=settings.batch_size)
        results = []
        for mode, temperature, samples in _modes(self.recipe):
            with progress(mode, len(self.test)) as advance:
                result = evaluate_episodes(
                    sessions(sampler, SamplingParameters(limits.turn_tokens, temperature)),
                    self.tokenizer,
                    self.test,
                    self.environment.with_bank(self.bank, self.recipe.skills.retrieve).make,
                    limits=limits,
                    temperature=temperature,
                    samples=samples,
                    seed=settings.seed,
                    groups=self.environment.groups,
                    measures=self.environment.measures,
                    levels=self.environment.levels,
                    progress=advance,
                    share=share,
                )
                results.append(replace(result, bank=self.bank.version if self.bank else None))
        return results

    def gain(self, before: Any, after: Any, score: str) -> Interval | None:
        from threefold.evaluation.episodes import paired_gain

        if (before.task_ids, before.temperature) != (after.task_ids, after.temperature):
            return None  # a resumed run may measure otherwise than it began
        return paired_gain(before, after, score)

    def close(self) -> None:
        self.environment.close()


def _episodes(recipe: Recipe) -> Episodes:
    from transformers import AutoConfig

    environment, model = named_environment(recipe), recipe.model
    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    tokenizer = load_tokenizer(model.name, **options)
    context = context_length(AutoConfig.from_pretrained(resolve(model.name), **options))
    training, evaluation = recipe.training, recipe.evaluation
    size = recipe.environment.tasks or training.steps * training.prompts_per_step
    train = environment.tasks("train", size, recipe.run.seed)
    if len(train) < training.prompts_per_step:
        raise RecipeError(
            f"environment {environment.name} gives {len(train)} training tasks, fewer than "
            f"training.prompts_per_step = {training.prompts_per_step}; lower it"
            + (" or raise environment.tasks" if recipe.environment.tasks else "")
        )
    wanted = evaluation.before or evaluation.after or evaluation.every
    split = recipe.environment.test_split
    test = environment.tasks(split, evaluation.problems, 0) if wanted else ()
    shared = {task.id for task in train} & {task.id for task in test}
    if shared:
        raise RecipeError(
            f"environment {environment.name}: task {min(shared)!r} is in both splits, so nothing is held out"
        )
    check_bank(recipe, tokenizer)
    bank = initial_bank(recipe) if recipe.skills.on else None
    played, reserve = environment.with_bank(bank, recipe.skills.retrieve), tokens_to_come(recipe, tokenizer)
    longest = max(
        played.check(tokenizer, context, train, recipe.run.seed, reserve=reserve),
        played.check(tokenizer, context, test, evaluation.seed, reserve=reserve),
    )
    return Episodes(recipe, environment, tokenizer, train, test, longest, bank)
