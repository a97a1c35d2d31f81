"""`ThreefoldTrainer`: TRL's `GRPOTrainer` with credit as a component.

The trainer does not know which algorithm runs. It measures the signals that the estimator names, gathers them
and the rewards from all processes, asks `credit.assign`, and hands the local part of the answer to TRL's
loss, which accepts one advantage per episode or per token. With no component it calls only `super()` and
trains like TRL, bit for bit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from threefold.answers import AnswerFormat, answer_format
from threefold.credit import Advantages, CreditBatch, CreditEstimator, Signal, Signals
from threefold.credit import grpo as grpo_credit
from threefold.credit.importance import Importance
from threefold.credit.outcomes import given_credit
from threefold.envs.base import Environment, Task
from threefold.rollout.driver import Limits, run_episodes
from threefold.rollout.samplers import Sampler
from threefold.signals import locate
from threefold.skills.evolution import Evolution
from threefold.training import checks
from threefold.training.bank_play import BankPlay
from threefold.training.callbacks import MetricsWriter
from threefold.training.diagnostics import answer_logp, diagnose, in_words
from threefold.training.dynamic_sampling import Candidates, DynamicSampling, PromptStream, replace_dead
from threefold.training.gathering import gather_batch, gather_list, gather_rows
from threefold.training.in_step import InStep
from threefold.training.naming import skill_tensors
from threefold.training.play import declared_rewards, starts_of, trl_rollout
from threefold.training.record import CreditedStep
from threefold.training.recorder import Recorder
from threefold.training.run_directory import RunDirectory
from threefold.training.trl_seam import (
    Generation,
    Speedups,
    TrlSeam,
    check_trl,
    fingerprint,
    frozen_copy,
    prompts_of,
    turns_of,
)
from threefold.training.turns import episode_figures, episode_turns, turn_ids

logger = logging.getLogger(__name__)

_STATE_FILE = "threefold_state.json"


class ThreefoldTrainer(TrlSeam):
    """A drop-in for `trl.GRPOTrainer`: same constructor, reward functions and dataset columns, and these
    besides.

    ```python
    from threefold import ISPO, ThreefoldTrainer

    trainer = ThreefoldTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=accuracy,
        args=GRPOConfig(...),
        train_dataset=dataset,
        credit=ISPO(outcome="accuracy"),
        run_dir="runs/first",
    )
    trainer.train()
    ```

    Args:
        *args, **kwargs: Those of `trl.GRPOTrainer`.
        credit (`CreditEstimator`, *optional*): Who deserves what. None keeps TRL's own advantages.
        outcome (`str`, *optional*): Name of the reward function that says right (1) or wrong (0), for the
            diagnostics; defaults to the estimator's, else to the first reward function.
        answer_format (`str` or `AnswerFormat`, defaults to `"boxed"`): How the final answer is told from the
            reasoning, for signals that need it: "boxed", "tags", "final-answer", or a regular expression.
        run_dir (`str` or `Path`, *optional*): Where metrics.jsonl and rollouts.jsonl are written; `threefold
            view` makes a report of it.
        base_model (`PreTrainedModel`, *optional*): The frozen initial model for estimators that compare with
            it. By default it is the reference model where `beta > 0`, the policy with its adapter off with
            LoRA, and else a copy of the model as it was given. Pass it when `model` has been trained already.
        environment (callable, *optional*): Makes an `Environment`; episodes are then played against it, and
            every dataset row is a task (its columns are the task's fields). Without `reward_funcs` its
            `channels` are the reward functions.
        limits (`Limits`, *optional*): Bounds of an environment's episodes.
        tasks (mapping, *optional*): The environment's `Task` by the column `id` of the dataset rows. By
            default a row's columns are the task's fields.
        signals_every (`int`, defaults to 0): Measure entropies and log-probabilities every so many optimizer
            updates for the diagnostics even where the estimator does not need them; 0 never.
        signals_base (`bool`, defaults to False): Score the frozen initial model too at these steps, so that
            the entropy on critical tokens is measured for every method alike. With full fine-tuning it holds
            a second copy of the weights.
        dynamic_sampling (`DynamicSampling`, *optional*): Replace groups that are dead by outcome by groups of
            other prompts (DAPO). On one process, with one-turn completions.
        sampler (`str` or `Sampler`, defaults to `"trl"`): "threefold" generates with our sampler, which
            prefills a prompt once for its group, drops finished rows, and keeps the cache of an environment's
            dialogues between turns; the distribution is the same, the random numbers are not. Or any
            `Sampler`; one with a `push` (an engine, such as `VllmSampler`) is given each update's weights.
        importance (`Importance`, *optional*): Weigh advantages by the ratio of the policy and whoever
            sampled: engines other than TRL's vLLM (TRL corrects there), `rollout_func`s with "logprobs".
        skills (`Evolution`, *optional*): A skill bank in the prompts of an environment's episodes. Each
            episode of training is played under a version that it assigns, and it learns from them (ReSkill);
            evaluations are played under the version in use. On several processes that of the first leads.
        kl_on_dead_groups (`bool`, defaults to True): Whether the KL term of `beta > 0` acts on groups without
            any advantage too, as TRL's does (docs/trl.md).
        speedups (`Speedups`, *optional*): What to compute more cheaply with the same gradient. None leaves
            TRL's micro-batches and forwards alone.

    Raises:
        ValueError: The estimator does not fit the reward functions, the group size or the loss; before any
            step.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Callable] | None = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        *,
        credit: CreditEstimator | None = None,
        outcome: str | None = None,
        answer_format: str | AnswerFormat = "boxed",
        run_dir: str | Path | RunDirectory | None = None,
        base_model: PreTrainedModel | None = None,
        environment: Callable[[], Environment] | None = None,
        limits: Limits | None = None,
        tasks: Mapping[str, Task] | None = None,
        signals_every: int = 0,
        signals_base: bool = False,
        dynamic_sampling: DynamicSampling | None = None,
        sampler: Literal["trl", "threefold"] | Sampler = "trl",
        importance: Importance | None = None,
        speedups: Speedups | None = None,
        skills: Evolution | None = None,
        kl_on_dead_groups: bool = True,
    ) -> None:
        check_trl()
        others = {"rollout_func": rollout_func, "environment_factory": environment_factory, "tools": tools}
        checks.check_entrances(environment=environment, skills=skills, others=others)
        if environment is not None and reward_funcs is None:
            reward_funcs = declared_rewards(environment)
        self.credit = credit
        self.answer_format = _answer_format(answer_format)
        self.signals_every = signals_every
        self.signals_base = signals_base
        self._environment = environment
        self._limits = limits or Limits()
        self._tasks = tasks
        self.skills = skills
        self._groups_seen = 0
        self._episodes_generated = 0
        self.step_in_words = ""
        needs_base = (signals_base and signals_every > 0) or (credit is not None and "base" in credit.needs)
        frozen = base_model
        if frozen is None and needs_base:
            frozen = frozen_copy(model, args, peft_config)
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=self._play_episodes if environment is not None else rollout_func,
            environment_factory=environment_factory,
        )
        self._bank_play = BankPlay(skills, self.accelerator) if skills is not None else None
        self._base_fingerprint = fingerprint(frozen)  # before it may be divided among processes
        self._frozen_base = self._prepare_frozen(frozen) if frozen is not None else None
        if credit is not None:
            checks.check_credit(credit, self, self._weights, plays=environment is not None)
            if "self_certainty" in credit.needs:
                self._check_certainty()
        checks.check_kl(self.args, kl_on_dead_groups=kl_on_dead_groups)
        self.kl_on_dead_groups = kl_on_dead_groups
        self.outcome = checks.resolve_outcome(outcome, credit, self.reward_func_names)
        self.dynamic_sampling = dynamic_sampling
        self._stream: PromptStream | None = None
        if dynamic_sampling is not None:
            checks.check_dynamic_sampling(self, outcome=self.outcome)
            self._stream = PromptStream(len(self.train_dataset), self.args.seed)
        self.run_directory = self._open_run(run_dir)
        self._recorder: Recorder | None = None
        if self.run_directory is not None:
            self._recorder = Recorder(self.run_directory, self._tokenizer, self.accelerator)
        self.importance = importance
        if importance is not None:
            checks.check_importance(
                importance, self, tells_logprobs=sampler != "trl" or rollout_func is not None
            )
        if sampler != "trl":
            self._sample_with(sampler)
        if speedups is not None:
            self._speed_up(speedups)

    # Before the first step

    def _open_run(self, run_dir: str | Path | RunDirectory | None) -> RunDirectory | None:
        if run_dir is None:
            return None
        if not isinstance(run_dir, RunDirectory):
            run_dir = RunDirectory(run_dir, append=not self.accelerator.is_main_process)
            if self.accelerator.is_main_process:
                run_dir.write_environment(self.args.seed)
        if self.args.logging_steps != 1:
            logger.warning(
                "logging_steps=%s: metrics.jsonl gets a line only when TRL logs, of means over those steps; "
                "set logging_steps=1 for one line a step",
                self.args.logging_steps,
            )
        self.add_callback(MetricsWriter(run_dir, lambda: self.step_in_words))
        return run_dir

    # One generation batch

    def _watching(self) -> bool:
        parts = (self.credit, self.run_directory, self._environment, self.dynamic_sampling, self.importance)
        return self.model.training and (any(p is not None for p in parts) or not self.kl_on_dead_groups)

    def _choose_episodes(self, inputs: list[dict[str, Any]]) -> Candidates | None:
        if self.dynamic_sampling is None or self._stream is None:
            return None
        stream, data = self._stream, self.train_dataset
        batch, figures = replace_dead(
            self._generate_candidates(inputs),
            self._generate_candidates,
            lambda count: [data[row] for row in stream.take(count)],
            outcome=self.reward_func_names.index(self.outcome),
            group_size=self.num_generations,
            max_rounds=self.dynamic_sampling.max_rounds,
        )
        self._episodes_generated += int(figures["dynamic_sampling/generated"])
        limit = self.dynamic_sampling.max_episodes
        if limit is not None and self._episodes_generated >= limit:
            self.control.should_save = self.control.should_training_stop = True
        for name, value in figures.items():
            self._log_value(name, value)
        return batch

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._environment is not None:
            self._rows = inputs
        return super()._generate_and_score_completions(inputs)

    def _credit(self, output: dict[str, Any], generation: Generation) -> Tensor | None:
        if self._recorder is not None:
            self._recorder.flush()
        started = time.perf_counter()
        mask_BT, turn_BT = turns_of(output)
        if self._environment is not None:
            turn_BT = turn_ids([row["trajectory"] for row in generation.inputs], mask_BT)
        answers = [
            locate(self._tokenizer, ids, self.answer_format, written=mask_T[: len(ids)].tolist())
            for ids, mask_T in zip(generation.completion_ids, mask_BT, strict=True)
        ]
        local_signals = self._measure(self._needs(), output, generation, mask_BT, answers)
        generation.seconds["signals"] = time.perf_counter() - started
        started = time.perf_counter()
        batch = self._gather_batch(output, generation, mask_BT, turn_BT, local_signals)
        advantages = self._assign(batch, output)
        generation.seconds["credit"] = time.perf_counter() - started
        outcome_B = batch.rewards[self.outcome] if self.outcome else advantages.reward_B
        answer_logp_B = None
        if local_signals.logp_BT is not None:
            answer_logp_B = gather_rows(self.accelerator, answer_logp(local_signals.logp_BT, answers))
        self._log_figures(batch, advantages, outcome_B, answer_logp_B, generation)
        self._observe_skills(generation)
        local = slice(
            self.accelerator.process_index * len(mask_BT), (self.accelerator.process_index + 1) * len(mask_BT)
        )
        if self.beta != 0.0:
            self._mark_dead_groups(output, advantages.values, batch.mask_BT, batch.group_B, local)
        if self._recorder is not None:
            self._keep(
                CreditedStep(
                    prompt_ids=prompts_of(output),
                    completion_ids=generation.completion_ids,
                    inputs=generation.inputs,
                    answers=answers,
                    batch=batch,
                    advantages=advantages,
                    outcome_B=outcome_B,
                    first=local.start,
                    first_group=self._groups_seen,
                    group_size=self.num_generations,
                    seed=self.args.seed,
                    step=self.state.global_step + 1,
                ),
                output,
            )
        self._groups_seen += int(batch.group_B.unique().numel())
        if self.credit is None:
            return None
        values = advantages.values[local]
        return values[:, : mask_BT.size(1)] if values.dim() == 2 else values

    def _needs(self) -> frozenset[Signal]:
        needs: set[Signal] = set(self.credit.needs) if self.credit is not None else set()
        if self.signals_every and self.state.global_step % self.signals_every == 0:
            needs |= {"policy", "base"} if self.signals_base else {"policy"}
        return frozenset(needs)

    def _wants_sampled_scores(self) -> bool:
        return self._watching() and bool(self._needs() & {"policy", "base", "ablated_answer"})

    def _gather_batch(
        self,
        output: dict[str, Any],
        generation: Generation,
        mask_BT: Tensor,
        turn_BT: Tensor,
        signals: Signals,
    ) -> CreditBatch:
        assert generation.rewards_BF is not None
        episodes = None
        if self._environment is not None:
            episodes = [episode_turns(row["trajectory"]) for row in generation.inputs]
            episodes = gather_list(self.accelerator, episodes)
            for name, value in episode_figures(episodes).items():
                self._log_value(name, value)
        return gather_batch(
            self.accelerator,
            rewards_BF=generation.rewards_BF,
            weights=self._weights,
            group_size=self.num_generations,
            mask_BT=mask_BT,
            turn_BT=turn_BT,
            signals=signals,
            truncated=[not ids or ids[-1] not in self._end_tokens for ids in generation.completion_ids],
            step=self.state.global_step,
            episodes=episodes,
            skills=self._named_skills(generation, turn_BT),
        )

    def _named_skills(self, generation: Generation, turn_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of all processes' episodes name a skill, where the estimator asks for it."""
        if self._environment is None or not getattr(self.credit, "names_skills", False):
            return {}
        trajectories = [row["trajectory"] for row in generation.inputs]
        return skill_tensors(
            gather_list(self.accelerator, trajectories),
            gather_rows(self.accelerator, turn_BT, fill=-1),
            self._tokenizer,
        )

    @property
    def _weights(self) -> dict[str, float]:
        """Weight of each reward function, in their order."""
        return dict(zip(self.reward_func_names, self.reward_weights.tolist(), strict=True))

    @property
    def _end_tokens(self) -> set[int]:
        return {*self.eos_token_ids, self._tokenizer.pad_token_id}

    def _assign(self, batch: CreditBatch, output: dict[str, Any]) -> Advantages:
        """The estimator's answer; without one, TRL's own advantages in the same form."""
        if self.credit is not None:
            names = given_credit(batch.weights, self.credit)
            answer = self.credit.assign(replace(batch, rewards={name: batch.rewards[name] for name in names}))
            if answer.values.dim() == 2:
                # an estimator need not say beforehand that it answers so
                checks.check_against_loss(self.credit, self, per_token=True)
            return answer
        outcomes = {name: value for name, value in batch.rewards.items() if name == self.outcome}
        return Advantages(
            values=gather_rows(self.accelerator, output["advantages"]),
            outcome_B=grpo_credit.advantages(grpo_credit.combine(outcomes, batch.weights), batch.group_B),
            reward_B=grpo_credit.combine(batch.rewards, batch.weights),
        )

    def _log_figures(
        self,
        batch: CreditBatch,
        advantages: Advantages,
        outcome_B: Tensor,
        answer_logp_B: Tensor | None,
        generation: Generation,
    ) -> None:
        figures = diagnose(batch, advantages, outcome_B, answer_logp_B=answer_logp_B)
        method = type(self.credit).__name__ if self.credit else "GRPO"
        self.step_in_words = in_words(figures, method, kl=self.beta if self.kl_on_dead_groups else 0.0)
        times = {f"time/{name}": seconds for name, seconds in generation.seconds.items()}
        for name, value in {**figures, **advantages.metrics, **times}.items():
            self._log_value(name, value)

    def _observe_skills(self, generation: Generation) -> None:
        if self._bank_play is None:
            return
        episodes = [row["trajectory"] for row in generation.inputs]
        figures, words = self._bank_play.observe(self.state.global_step + 1, episodes)
        for name, value in figures.items():
            self._log_value(name, value)
        self.step_in_words += f". Skills: {words}" if words else ""

    # The record

    def _keep(self, step: CreditedStep, output: dict[str, Any]) -> None:
        if self._recorder is not None and self._recorder.keep(step):
            self._watch_update(output)

    def _scores_seen(self, logp_BT: Tensor, entropy_BT: Tensor) -> None:
        if self._recorder is not None:
            for name, value in self._recorder.scored(logp_BT, entropy_BT).items():
                self._log_value(name, value)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does; what is still to be recorded is written however it ends."""
        self._pushed_at = None  # steps count from 0 again, or a checkpoint's weights are loaded
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._recorder is not None and self.accelerator.num_processes == 1:
                self._recorder.flush()  # with several processes, others may be gone, and writing gathers

    # Episodes against an environment

    def _play_episodes(self, prompts: list, trainer: Any) -> dict[str, Any]:
        """TRL's rollout entrance: play one episode for each row, and give TRL the tokens with their mask."""
        assert self._environment is not None
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        starts = starts_of(
            self._rows,
            first_row=self.accelerator.process_index * len(prompts),
            first_group=self._groups_seen,
            group_size=group_size,
            seed=self.args.seed,
            tasks=self._tasks,
        )
        make, play = self._environment, self._bank_play
        if play is not None:
            step, training = self.state.global_step + 1, self.model.training
            make = play.environments(make, starts, step=step, training=training)
        together = self._generates_together
        in_step = InStep(self.accelerator, self._generate_turn, self._tokenizer.eos_token_id)
        generate = self._session() or (in_step if together else self._generate_turn)
        trajectories = run_episodes(starts, make, generate, self._tokenizer, limits=self._limits)
        if together:
            in_step.finish()
        if play is not None:
            trajectories = play.stamped(trajectories)
        return trl_rollout(
            trajectories,
            filler=self._tokenizer.eos_token_id,
            with_logprobs=self.use_vllm or self.importance is not None,
        )

    def _generate_turn(
        self, contexts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> list[tuple[list[int], list[float] | None]]:
        """One turn through whichever backend TRL was given: transformers, continuous batching or vLLM."""
        with self._turn_limit(max_new_tokens):
            ids, logprobs = self._generate_single_turn([list(c) for c in contexts], None, {}, 1)
        return [(row, logprobs[i] if logprobs is not None else None) for i, row in enumerate(ids)]

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Ours first: TRL writes last the file by which a checkpoint is known to be whole."""
        # Whatever has episodes counted: their groups' numbers give environments their seeds.
        parts = (self.credit, self.run_directory, self._environment, self.dynamic_sampling)
        if self.args.should_save and any(part is not None for part in parts):
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "groups_seen": self._groups_seen,
                "base_checksum": self._base_fingerprint,
                "prompts_drawn": self._stream.drawn if self._stream is not None else 0,
                "episodes_generated": self._episodes_generated,
            }
            (folder / _STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            if self._bank_play is not None:
                self._bank_play.save(folder)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_ours(Path(checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Be as a checkpoint left it, without training on: TRL trains one more step where none is left."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self._load_ours(checkpoint)

    def _load_ours(self, checkpoint: Path) -> None:
        if self._bank_play is not None:
            self._bank_play.load(checkpoint)
        path = checkpoint / _STATE_FILE
        if not path.exists():
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        self._groups_seen = state["groups_seen"]
        if self._stream is not None:
            self._stream.drawn = state.get("prompts_drawn", 0)
            self._episodes_generated = state.get("episodes_generated", 0)
        # Checkpoints of before have a sum of floats, which another machine gives otherwise.
        if state.get("base_checksum", self._base_fingerprint) != self._base_fingerprint:
            raise ValueError(
                f"the frozen base of this trainer is not the one that {checkpoint} was trained against; "
                "build the trainer from the initial weights (or pass them as base_model=) and resume with "
                "train(resume_from_checkpoint=...)"
            )


def _answer_format(given: str | AnswerFormat) -> AnswerFormat:
    return answer_format(given) if isinstance(given, str) else given
