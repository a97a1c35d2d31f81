"""The policy model as the writer of its own skills: a `Chat` on the model in training.

It is asked between an update and the next rollouts, so what it says comes from the weights of that step, and
a resumed run, which has them again, hears the same. Requests are sampled from a seed that depends on their
words alone; the process's random state is left as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from threefold.chat import Message
from threefold.llm import LocalChat


class PolicyChat:
    """A `Chat` that is handed its model once there is one."""

    def __init__(self) -> None:
        self._model: Any = None
        self._chat: LocalChat | None = None

    def bind(self, model: Any, tokenizer: Any) -> None:
        """Answer with this model from now on; its weights are read when it is asked.

        Raises:
            ValueError: The tokenizer has no chat template.
        """
        self._model, self._chat = model, LocalChat(model, tokenizer)

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        assert self._chat is not None, "the trainer binds its model before the first step"
        if seed is None:
            asked = json.dumps([dict(message) for message in messages], sort_keys=True)
            seed = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:4], "big")
        training, caching = self._model.training, self._model.config.use_cache
        self._model.eval()  # no dropout, and the cache that gradient checkpointing forbids
        self._model.config.use_cache = True
        try:
            return self._chat(messages, temperature=temperature, max_tokens=max_tokens, seed=seed)
        finally:
            self._model.train(training)
            self._model.config.use_cache = caching
