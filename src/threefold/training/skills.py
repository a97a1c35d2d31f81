"""From a recipe's skills section to the loop that the trainer drives: the bank to begin with, creator, gate.

What can be checked before a model is loaded is checked by `check_skills`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from threefold.chat import Chat, ChatError, Recorded
from threefold.llm import ChatEndpoint
from threefold.recipe import Recipe, RecipeError
from threefold.skills.bank import Bank
from threefold.skills.chat_creator import ChatCreator
from threefold.skills.command import left_out, read_bank_or_skills
from threefold.skills.creator import Creation, Creator, Evidence, Gate
from threefold.skills.evolution import Evolution
from threefold.skills.memory_creator import MemoryCreator
from threefold.skills.offline_creator import OfflineCreator
from threefold.skills.placebo_creator import PlaceboCreator
from threefold.skills.placement import render
from threefold.skills.settings import Settings
from threefold.skills.skill import Skill
from threefold.skills.store import drop_versions
from threefold.training.callbacks import HoldWeights
from threefold.training.policy_writer import PolicyChat

_log = logging.getLogger(__name__)
BANK_FOLDER = "bank"
"""Folder of a run's bank versions."""
ANSWERS = "skill_answers.jsonl"
"""File of a run with what the language model answered: a resumed run asks nothing twice."""


def check_skills(recipe: Recipe) -> None:
    """Everything about the skills section that needs no weights. Says what is left out of skills of others.

    Raises:
        RecipeError: Skills cannot work in this run, or a setting is out of range.
        FileNotFoundError, SkillError: The bank to begin with cannot be read.
    """
    section = recipe.skills
    if not section.on:
        return
    if recipe.environment.name is None:
        raise RecipeError(
            "skills stand in the prompts of an environment's episodes, and this recipe trains on problems; "
            "set environment.name, or skills.creator to none and skills.bank to null"
        )
    settings = settings_of(recipe)
    bank = initial_bank(recipe)
    if section.creator != "none" and len(bank.skills) > settings.capacity:
        raise RecipeError(
            f"skills.bank holds {len(bank.skills)} skills, more than skills.capacity = {settings.capacity}; "
            "raise it, or nothing could ever be added"
        )
    for note in left_out(section.bank, section.version) if section.bank is not None else []:
        _log.warning("skills.bank: %s", note)
    if section.chat is not None:
        _endpoint(recipe)


def initial_bank(recipe: Recipe) -> Bank:
    """The bank to begin with, as version v0 of the run.

    Raises:
        FileNotFoundError, SkillError: It cannot be read; the message names the file.
    """
    section = recipe.skills
    if section.bank is None:
        return Bank()
    return Bank("v0", read_bank_or_skills(section.bank, section.version).skills)


def check_bank(recipe: Recipe, tokenizer: Any) -> None:
    """That no skill of the bank to begin with spells a special token where it stands in a prompt. The gate
    sees to those that a creator writes.

    Raises:
        RecipeError: One does.
    """
    if not recipe.skills.on:
        return
    for skill in initial_bank(recipe).skills:
        for token in tokenizer.all_special_tokens:
            if token in render([skill]):
                raise RecipeError(
                    f"skills.bank: skill {skill.name!r} holds {token!r}, a special token of this model; take "
                    "it out of its SKILL.md"
                )


def tokens_to_come(recipe: Recipe, tokenizer: Any) -> int:
    """Tokens of the general skills that a creator may still add, each of the greatest length: what prompts
    must have room for."""
    section = recipe.skills
    shown = min(section.capacity, section.retrieve or section.capacity)
    room = shown - len(initial_bank(recipe).skills)
    if section.creator == "none" or room <= 0:
        return 0
    words = ("open it before you go on and then look around " * 12)[: Gate().length - 40].strip()
    skills = [
        Skill(f"room-for-skill-{n}", "You are at work on a task of this kind.", words) for n in range(room)
    ]
    return len(tokenizer(render(skills), add_special_tokens=False)["input_ids"])


def settings_of(recipe: Recipe) -> Settings:
    """How the bank evolves; `first_step` and `last_step` in optimizer updates, as a run's metrics count.

    Raises:
        RecipeError: A setting is out of range.
    """
    section, updates = recipe.skills, recipe.training.updates_per_step
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(Settings)}
    values["first_step"] = (section.first_step - 1) * updates + 1 if section.first_step else 0
    # What is created at the end of the last step would never be tested.
    last = recipe.training.steps - 1 if section.last_step is None else section.last_step
    values["last_step"] = min(last, recipe.training.steps - 1) * updates
    try:
        return Settings(**values)
    except ValueError as error:
        raise RecipeError(f"skills: {error}") from error


def build_evolution(
    recipe: Recipe,
    tokenizer: Any,
    run: Path,
    executor: Executor | None,
    *,
    resume: bool = False,
    main: bool = True,
) -> Evolution | None:
    """The loop of a recipe, None where skills are off.

    Args:
        recipe: Checked by `check_skills`.
        tokenizer: Whose special tokens no skill may hold.
        run: The run directory.
        executor: Runs the creator beside the policy update.
        resume: Keep the versions that are in the run; else those that a run left which never made a step are
            deleted.
        main: False for the processes that are told what the first one's bank does (`bank_play`): theirs
            neither asks anybody nor writes.
    """
    if not recipe.skills.on:
        return None
    if not main:
        return Evolution(nobody, initial_bank(recipe), settings_of(recipe))
    if not resume:
        drop_versions(run / BANK_FOLDER, keep=set())
        _ask_once(recipe)
    return Evolution(
        _creator(recipe, Gate(forbidden=tuple(tokenizer.all_special_tokens)), run),
        initial_bank(recipe),
        settings_of(recipe),
        seed=recipe.run.seed,
        root=run / BANK_FOLDER,
        # The policy cannot write while it is updated: it does so before the next rollouts.
        executor=None if recipe.skills.creator == "policy" else executor,
    )


def _creator(recipe: Recipe, gate: Gate, run: Path) -> Creator:
    section = recipe.skills
    if section.creator == "placebo":
        return PlaceboCreator()
    if section.creator == "memory":
        return MemoryCreator()
    if section.creator == "policy":
        policy = _Asked(PolicyChat(), section.policy.temperature, section.policy.max_tokens)
        return ChatCreator(policy, gate, workers=1)
    if section.creator == "offline":
        return OfflineCreator(gate, deletions=section.deletions)
    if section.chat is not None:
        answers = Recorded(run / ANSWERS, _endpoint(recipe), model=section.chat.model)
        chat = _Asked(answers, section.chat.temperature, section.chat.max_tokens)
        return ChatCreator(chat, gate, workers=section.chat.concurrency)
    return nobody


def join_policy(recipe: Recipe, trainer: Any) -> None:
    """What skills and weights have to do with each other beside the prompts: a policy that writes its skills
    itself is handed to their creator, and one that is frozen for a while is held.

    Raises:
        RecipeError: The policy is to write its skills, and its weights are sharded.
    """
    chat = getattr(trainer.skills.creator, "chat", None) if trainer.skills is not None else None
    if isinstance(chat, _Asked) and isinstance(chat.chat, PolicyChat):
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise RecipeError(
                "skills.creator = policy asks the policy on one process, and none holds all of a sharded "
                "model; take another creator, or train without DeepSpeed and FSDP"
            )
        chat.chat.bind(trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class)
    steps = recipe.skills.frozen_steps
    if steps:
        frozen = recipe.training.steps if steps == "all" else steps
        trainer.add_callback(HoldWeights(frozen * recipe.training.updates_per_step))


def nobody(evidence: Evidence) -> Creation:
    """The creator of a bank that stays as it is."""
    return Creation(diagnosis="a static bank")


def _endpoint(recipe: Recipe) -> ChatEndpoint:
    chat = recipe.skills.chat
    assert chat is not None
    try:
        return ChatEndpoint(**chat.model_dump(exclude={"temperature", "max_tokens"}))
    except ValueError as error:
        raise RecipeError(f"skills.chat: {error}") from error


def _ask_once(recipe: Recipe) -> None:
    """Find a wrong address, key or model before the first step, not when the reservoir is full."""
    if recipe.skills.chat is None:
        return
    try:
        _endpoint(recipe).check()
    except ChatError as error:
        raise RecipeError(f"skills.chat: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A language model with its sampling settings: what `ChatCreator` takes."""

    chat: Chat
    temperature: float
    max_tokens: int

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        return self.chat(messages, temperature=self.temperature, max_tokens=self.max_tokens)
