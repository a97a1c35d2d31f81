"""The training section of a recipe: the optimisation, who samples, and what may be computed more cheaply.

Nothing here knows what the keys do; `training.trl_config` and `training.batch` make TRL's of them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Speedups(_Part):
    """The same gradient for less; see docs/speed.md. One that would not be exact stays off and says why."""

    share_prompts: bool = True
    """Score a prompt once for all its episodes, and no padding."""
    repack: bool = True
    """Sort the rows of an update and fill its micro-batches by tokens."""
    drop_dead: bool = True
    """Where rows are repacked, leave out those without an advantage."""


class DynamicSampling(_Part):
    """Replace groups whose outcomes are all equal (DAPO, arXiv 2503.14476)."""

    max_rounds: int = Field(3, ge=1)
    """How often a step replaces its dead groups at most."""
    max_episodes: int | None = Field(None, ge=1)
    """Stop training after the step in which so many episodes were generated, those thrown away included."""


class Vllm(_Part):
    """The engine of `training.sampler: vllm`: vLLM on a CPU, in the training process."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of the engine's copy of the weights."""
    cache_gib: float = Field(1.0, gt=0)
    """Memory of its keys and values."""
    max_model_len: int | None = Field(None, ge=1)
    """Most tokens of a prompt with its completion; None is the model's context, or what the cache holds."""


class Training(_Part):
    """The optimisation. Batch sizes in TRL's own terms are derived; see `training.batch.BatchPlan`."""

    steps: int = Field(100, ge=1)
    prompts_per_step: int = Field(8, ge=1)
    group_size: int = Field(8, ge=2)
    micro_batch: int = Field(16, ge=1)
    """Episodes forwarded at once on each process, at most; the largest divisor is taken."""
    updates_per_step: int = Field(1, ge=1)
    """Optimizer updates made on each generation batch (mini-batches)."""
    learning_rate: float = Field(1e-6, gt=0)
    lr_scheduler: str = "constant"
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises to its value."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    kl: float = Field(0.0, ge=0)
    """TRL's beta; 0 loads no reference model."""
    kl_on_dead_groups: bool = True
    """Whether the KL term acts on groups without any advantage too, as in TRL."""
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    """TRL's loss_type."""
    ratio: Literal["token", "sequence"] = "token"
    """TRL's importance_sampling_level."""
    temperature: float = Field(1.0, gt=0)
    max_completion_tokens: int = Field(256, ge=1)
    mask_truncated: bool = False
    gradient_checkpointing: bool = False
    save_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0 saves one at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    sampler: Literal["auto", "threefold", "threefold-bf16", "vllm", "trl"] = "auto"
    """Who generates. "threefold" prefills each prompt once for its whole group and drops finished rows;
    "threefold-bf16" does so with a copy of the policy in bf16; "vllm" is vLLM on a CPU; "trl" is TRL's own
    path (transformers, continuous batching, vLLM on accelerators). "auto" is "trl" with TRL's vLLM or
    continuous batching, DeepSpeed or FSDP, else "threefold"."""
    importance: Literal["token", "sequence", "off"] = "token"
    """With "threefold-bf16" and "vllm", which sample from weights of their own: weigh advantages by the ratio
    of policy and engine, for each token or episode."""
    importance_cap: float = Field(3.0, ge=1)
    """Largest such ratio."""
    vllm: Vllm = Field(default_factory=Vllm)
    dynamic_sampling: DynamicSampling | None = None
    """Replace dead groups by groups of other prompts; None leaves them."""
    signals_every: int = Field(0, ge=0)
    """Measure entropies for the diagnostics every so many steps where the method does not need them."""
    speedups: Speedups = Field(default_factory=Speedups)
    signals_base: bool = False
    """Score the frozen initial model too at these steps: entropy on critical tokens, for every method."""
    trl: dict[str, Any] = Field(default_factory=dict)
    """Any other field of TRL's GRPOConfig, by its own name (use_vllm, deepspeed, fsdp, report_to, ...)."""
