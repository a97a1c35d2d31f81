"""The skills section of a recipe: a bank that stands in the agent's prompts, and how it evolves (ReSkill).

Nothing here knows what the keys do. `training.skills` builds the loop of them, and `skills.settings.Settings`
explains those that it shares with it; a test holds their defaults together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SkillChat(BaseModel):
    """The language model behind `creator: chat`: any endpoint that speaks OpenAI's chat-completion
    protocol."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str
    """Such as http://localhost:8000/v1."""
    model: str
    """Its name as the server knows it."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is never stored."""
    temperature: float = Field(0.2, ge=0)
    max_tokens: int = Field(4096, ge=1)
    timeout_s: float = Field(120.0, gt=0)
    retries: int = Field(4, ge=0)
    concurrency: int = Field(4, ge=1)
    """Requests under way at a time."""
    requests_per_minute: float | None = Field(None, gt=0)
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request's body; null takes one out."""


class PolicyWriter(BaseModel):
    """How the policy model answers where it writes the skills itself (`creator: policy`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(0.2, ge=0)
    max_tokens: int = Field(1024, ge=1)


class Skills(BaseModel):
    """A skill bank in the agent's prompts. Off while `creator` is "none" and `bank` is not set; a bank
    without a creator stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    creator: Literal["none", "offline", "chat", "policy", "memory", "placebo"] = "none"
    """Who proposes versions: "offline" from contrasts of episodes, "chat" a language model behind an
    endpoint, "policy" the model in training, "memory" episodes that succeeded, as they were (a baseline),
    "placebo" skills that say nothing (a control), "none" nobody."""
    bank: str | None = None
    """The bank to begin with: a run directory, a bank, a folder of skills, or SkillRL's JSON; None is an
    empty one."""
    version: str | None = None
    """Version of `bank`; None is the one in use."""
    chat: SkillChat | None = None
    policy: PolicyWriter = Field(default_factory=PolicyWriter)
    retrieve: int | None = Field(None, ge=1)
    """Show only so many skills at the start of an episode, those whose words are most like the task's; None
    shows all that are triggered, as the paper does."""
    deletions: bool = True
    """False: the offline creator only adds."""
    period: int = Field(5, ge=1)
    min_episodes: int = Field(50, ge=1)
    clamp: float = Field(0.2, ge=0, le=0.5)
    margin: float = Field(0.0, ge=0)
    confidence: float | None = Field(None, ge=0.5, lt=1)
    balanced: bool = False
    memory: float | None = Field(None, gt=0)
    capacity: int = Field(8, ge=1)
    reservoir: int = Field(200, ge=1)
    min_reservoir: int = Field(100, ge=1)
    groups: int = Field(30, ge=1)
    first_step: int = Field(0, ge=0)
    last_step: int | None = Field(None, ge=0)
    frozen_steps: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """The weights do not move in the first so many steps, while skills evolve; "all" is the whole run."""
    auto_accept: bool = False
    uniform: bool = False
    naming_credit: float | None = Field(None, gt=0)
    """Weight of the credit of their own for tokens that name a skill (`credit.named_skills`); None is off."""
    assertions: bool = True
    triggers: bool = True

    @property
    def on(self) -> bool:
        """Whether the agent's prompts may hold skills at all."""
        return self.creator != "none" or self.bank is not None

    @model_validator(mode="after")
    def _fits_together(self) -> Skills:
        if (self.creator == "chat") != (self.chat is not None):
            raise ValueError(
                "creator: chat needs a section chat with base_url and model, and only it has one; got "
                f"creator {self.creator!r} {'with' if self.chat else 'without'} chat"
            )
        if self.frozen_steps and self.creator == "none":
            raise ValueError(
                f"frozen_steps {self.frozen_steps!r} holds the weights while skills evolve, and nobody makes "
                "any; name a creator"
            )
        if self.naming_credit is not None and not self.on:
            raise ValueError("naming_credit is for skills, and there are none: name a creator or a bank")
        if self.version is not None and self.bank is None:
            raise ValueError(f"version {self.version!r} is that of a bank; set bank too")
        return self
