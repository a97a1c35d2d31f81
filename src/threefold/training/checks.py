"""What does not fit together is said before the first step: credit, rewards, loss, data, TRL's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trl import GRPOTrainer

from threefold.credit import CreditEstimator
from threefold.credit.importance import Importance
from threefold.credit.losses import check_loss
from threefold.credit.named_skills import NamedSkills
from threefold.credit.outcomes import given_credit


def check_credit(
    credit: CreditEstimator, trainer: GRPOTrainer, weights: Mapping[str, float], *, plays: bool
) -> None:
    """Raise ValueError where an estimator cannot serve a trainer.

    Args:
        credit: The estimator.
        trainer: Its options and data set.
        weights: Of each reward function, by name.
        plays: Whether the trainer plays episodes against an environment.
    """
    name = type(credit).__name__
    credit.check(given_credit(weights, credit), trainer.num_generations)
    check_against_loss(credit, trainer)
    columns = getattr(trainer.train_dataset, "column_names", None)
    if "reference_answer" in credit.needs and columns is not None and "answer" not in columns:
        raise ValueError(
            f"{name} reads the true answer from a column 'answer', and the dataset "
            f"has {', '.join(columns)}; rename one of them"
        )
    if trainer.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"multi_objective_aggregation={trainer.multi_objective_aggregation!r} belongs to TRL's own "
            "advantages; with credit= the estimator normalises, so leave it at 'sum_then_normalize'"
        )
    turns = getattr(credit, "turns", ())
    if turns and not plays:
        raise ValueError(
            f"{name} credits the turns {turns} of episodes that the trainer plays; give environment=..., or "
            "an estimator that needs no turns"
        )
    method = credit.method if isinstance(credit, NamedSkills) else credit
    scale = getattr(method, "scale", "group")
    if trainer.scale_rewards not in ("group", scale):
        name = type(method).__name__
        own = f"whose scale is {scale!r}; set {name}(scale={trainer.scale_rewards!r}) instead"
        if not hasattr(method, "scale"):
            own = f"for {name} has a unit of its own; leave it at 'group'"
        raise ValueError(f"scale_rewards={trainer.scale_rewards!r} has no effect with credit=, {own}")


def check_entrances(*, environment: object, skills: object, others: Mapping[str, object]) -> None:
    """Raise ValueError where a trainer is given two sources of episodes, or skills and no episodes."""
    if skills is not None and environment is None:
        raise ValueError("skills stand in the prompts of episodes; give environment= too")
    if environment is not None and any(others.values()):
        raise ValueError(f"give either `environment` or TRL's own {' / '.join(others)}, not both")


def check_kl(args: Any, *, kl_on_dead_groups: bool) -> None:
    """Raise ValueError where the KL term cannot be taken from dead groups, or is none."""
    if kl_on_dead_groups:
        return
    if args.beta == 0.0:
        raise ValueError(
            "kl_on_dead_groups=False takes the KL term from groups without an advantage, and beta is 0, so "
            "there is none; leave it at True, or set beta"
        )
    if args.use_liger_kernel:
        raise ValueError(
            "kl_on_dead_groups=False does not reach the loss of use_liger_kernel=True; switch one of them off"
        )


def check_against_loss(
    credit: CreditEstimator, trainer: GRPOTrainer, *, per_token: bool | None = None
) -> None:
    """Raise ValueError where the trainer's loss cannot carry what the estimator answers."""
    check_loss(
        credit,
        loss=trainer.loss_type,
        ratio=trainer.importance_sampling_level,
        off_policy_mask=trainer.off_policy_mask_threshold,
        per_token=per_token,
    )


def check_importance(importance: Importance, trainer: GRPOTrainer, *, tells_logprobs: bool) -> None:
    """Raise ValueError where advantages cannot carry an engine's importance ratio.

    Args:
        importance: Level and cap.
        trainer: Its options.
        tells_logprobs: Whether who samples says with which log-probabilities.
    """
    if trainer.use_vllm:
        raise ValueError(
            "importance= is for engines other than TRL's vLLM, for which TRL corrects itself "
            "(vllm_importance_sampling_correction); leave it out"
        )
    if not tells_logprobs:
        raise ValueError(
            "importance= needs the log-probabilities of whoever sampled, which TRL's own generation does not "
            "tell; give sampler='threefold', an engine, or a rollout_func that answers 'logprobs'"
        )
    if trainer.beta != 0.0:
        raise ValueError(
            f"importance= weighs advantages, and the KL term of beta={trainer.beta} would stay the engine's: "
            "set beta=0 (in a recipe training.kl=0), or leave importance out"
        )
    if trainer.loss_type == "vespo":
        raise ValueError(
            "the loss 'vespo' is not linear in the advantage, so importance= has no place; take 'dapo'"
        )
    if trainer.args.use_liger_kernel:
        raise ValueError(
            "importance= weighs advantages when the update has scored the policy, and the loss of "
            "use_liger_kernel scores it inside; leave one of them out"
        )
    if importance.level == "sequence":
        return
    by_row = {
        "importance_sampling_level='sequence'": trainer.importance_sampling_level == "sequence"
        and trainer.loss_type != "cispo",
        "off_policy_mask_threshold": trainer.off_policy_mask_threshold is not None,
    }
    found = [name for name, present in by_row.items() if present]
    if found:
        raise ValueError(
            f"a ratio for each token makes advantages (B, T), which {' and '.join(found)} would read as one "
            "of the row; take Importance(level='sequence')"
        )


def resolve_outcome(outcome: str | None, credit: CreditEstimator | None, names: Sequence[str]) -> str | None:
    """The reward function that says right or wrong: the one asked for, the estimator's, or the first.

    Raises:
        ValueError: There is no reward function of that name.
    """
    outcome = outcome or getattr(credit, "outcome", None)
    if outcome is None:
        return names[0] if names else None
    if outcome not in names:
        raise ValueError(
            f"outcome={outcome!r} is not among the reward functions {list(names)}; name one of them"
        )
    return outcome


def check_dynamic_sampling(trainer: GRPOTrainer, *, outcome: str | None) -> None:
    """Raise ValueError where a trainer is one that dynamic sampling does not serve."""
    data = trainer.train_dataset
    columns = getattr(data, "column_names", None) or []
    processes, plays = trainer.accelerator.num_processes, bool(trainer.rollout_func or trainer.tools)
    unserved = {
        f"{processes} processes (start one)": processes > 1,
        "episodes against an environment, tools or a rollout_func": plays,
        "a data set without a length": not hasattr(data, "__len__"),
        "images": any(name in columns for name in ("image", "images")),
        "a trainer without a reward function that says right or wrong": outcome is None,
    }
    found = [name for name, present in unserved.items() if present]
    if found:
        raise ValueError(f"dynamic_sampling does not serve {'; '.join(found)}; leave it out")
