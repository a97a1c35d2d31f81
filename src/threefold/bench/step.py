"""A whole step, generation included: plain `GRPOTrainer` beside `ThreefoldTrainer` with each of the methods.

ISPO answers prompts in one turn; T²-GRPO and ReSkill play the dialogues of `talk.py`. TRL's arm is GRPO with
transformers' generation: in dialogues a `rollout_func` that gives `generate` the whole context at every
turn, which is what TRL's own tool loop does. Token counts are equal in all arms, as are the prompts; what is
sampled is not, since the random numbers differ.

Parts of a step: "generate" (sampling), "environment" (rewards, environment, skill loop), "signals", "credit",
and "update", which is the rest.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from threefold.bench import parts
from threefold.bench.record import Cell, Options
from threefold.bench.talk import Talk

METHODS = ("ISPO", "T²-GRPO", "ReSkill")


def measure(options: Options) -> list[Cell]:
    """One cell a method. Every cell has models of its own, given back before the next."""
    cells = []
    for method in METHODS:
        arms = {"TRL GRPO": _plain(method, options), f"Threefold {method}": _ours(method, options)}
        seconds, spent = parts.take_turns(arms, options)
        cells.append(Cell(method, seconds, spent))
        del arms
        gc.collect()
    return cells


def parity(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any
) -> list[float]:
    """Right where the tokens' sum is even: half of the completions, whatever the model writes."""
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


def _plain(method: str, options: Options) -> parts.Turn:
    from trl import GRPOTrainer

    model, tokenizer = parts.load(options.model)
    generating, environment = parts.Stopwatch(), parts.Stopwatch()
    model.generate = generating.watch(model.generate)
    callback, whole = parts.step_watch()
    if method == "ISPO":
        special = {"reward_funcs": environment.watch(parity)}
    else:
        special = _talk_for_trl(tokenizer, options, environment)
    trainer: Any = GRPOTrainer(
        model=model,
        args=parts.config(options),
        train_dataset=_problems(tokenizer, options),
        processing_class=tokenizer,
        callbacks=[callback],
        **special,
    )
    parts.without_log(trainer)

    def turn() -> Mapping[str, float]:
        trainer.train()
        spent = {"generate": generating.read(), "environment": environment.read()}
        return _with_rest(whole.read(), spent)

    return turn


def _ours(method: str, options: Options) -> parts.Turn:
    from threefold.credit.grpo import GRPO
    from threefold.credit.ispo import ISPO
    from threefold.credit.turn_trajectory import T2GRPO
    from threefold.training.trainer import ThreefoldTrainer
    from threefold.training.trl_seam import Speedups

    model, tokenizer = parts.load(options.model)
    environment = parts.Stopwatch()
    callback, whole = parts.step_watch()
    special: dict[str, Any]
    if method == "ISPO":
        special = {"credit": ISPO("parity"), "answer_format": r"(\S+)\s*$", "reward_funcs": parity}
    else:
        special = {"environment": _maker(tokenizer, options, environment), "limits": _limits(options)}
        special |= _reward_funcs()
        special |= (
            {"credit": T2GRPO()} if method == "T²-GRPO" else {"credit": GRPO(), "skills": _skill_loop()}
        )
    trainer = ThreefoldTrainer(
        model=model,
        args=parts.config(options),
        train_dataset=_problems(tokenizer, options),
        processing_class=tokenizer,
        callbacks=[callback],
        sampler="threefold",
        speedups=Speedups(),
        **special,
    )
    parts.without_log(trainer)

    def turn() -> Mapping[str, float]:
        trainer.train()
        log = next(log for log in reversed(trainer.state.log_history) if "time/generate" in log)
        outside = environment.read()
        spent = {
            "generate": log["time/generate"] - outside,
            "environment": log["time/rewards"] + outside + log.get("skills/seconds", 0.0),
            "signals": log["time/signals"],
            "credit": log["time/credit"],
        }
        return _with_rest(whole.read(), spent)

    return turn


def _with_rest(whole: float, spent: Mapping[str, float]) -> Mapping[str, float]:
    return {"": whole, **spent, "update": whole - sum(spent.values())}


def _problems(tokenizer: Any, options: Options) -> Any:
    from datasets import Dataset

    texts = [parts.text_of(tokenizer, options.prompt, options.seed + i) for i in range(options.groups)]
    return Dataset.from_list([{"prompt": text, "opening": text} for text in texts])


# Dialogues


def _limits(options: Options) -> Any:
    from threefold.rollout.driver import Limits

    return Limits(
        turns=options.turns,
        turn_tokens=max(options.completion // options.turns - Talk.answer_tokens, 1),
        completion_tokens=2 * options.completion,
    )


def _maker(tokenizer: Any, options: Options, watch: parts.Stopwatch) -> Callable[[], Talk]:
    answer = parts.text_of(tokenizer, Talk.answer_tokens - Talk.markers, options.seed)
    return lambda: Talk(options.turns, answer, watch)


def _reward_funcs() -> dict[str, Any]:
    from threefold.training.play import episode_rewards

    return {"reward_funcs": episode_rewards(*Talk.channels)}


def _talk_for_trl(tokenizer: Any, options: Options, watch: parts.Stopwatch) -> dict[str, Any]:
    """The same dialogues for a plain `GRPOTrainer`: a `rollout_func`, and its reward functions."""
    from threefold.rollout.driver import run_episodes
    from threefold.training.play import starts_of, trl_rollout

    make, limits = _maker(tokenizer, options, watch), _limits(options)

    def rollout(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        starts = starts_of(
            [{"opening": prompt} for prompt in prompts],
            first_row=0,
            first_group=0,
            group_size=options.group,
            seed=options.seed,
        )
        episodes = run_episodes(
            starts, make, _generate_with(trainer.model, tokenizer), tokenizer, limits=limits
        )
        return trl_rollout(episodes, filler=tokenizer.eos_token_id, with_logprobs=False)

    return {"rollout_func": rollout, **_reward_funcs()}


def _generate_with(model: Any, tokenizer: Any) -> Callable[..., Any]:
    """A turn by transformers' `generate`, as TRL calls it: whole contexts, padded on the left."""
    import torch

    def generate(contexts: Sequence[Sequence[int]], max_new_tokens: int) -> list[tuple[list[int], None]]:
        longest = max(map(len, contexts))
        ids = torch.full((len(contexts), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, context in enumerate(contexts):
            ids[row, longest - len(context) :] = torch.tensor(context)
            mask[row, longest - len(context) :] = 1
        with torch.no_grad():
            written = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        return [(row, None) for row in written[:, longest:].tolist()]

    return generate


def _skill_loop() -> Any:
    """The loop of ReSkill with its offline creator run at every step, whose proposal is dropped: prompts stay
    as long as the other arm's."""
    from threefold.skills.creator import Creation, Evidence
    from threefold.skills.evolution import Evolution
    from threefold.skills.offline_creator import OfflineCreator
    from threefold.skills.settings import Settings

    creator = OfflineCreator()

    def dropped(evidence: Evidence) -> Creation:
        creator(evidence)
        return Creation()

    return Evolution(dropped, settings=Settings(min_reservoir=4))
