"""TRL's own vLLM on a CPU, in this process or behind a real server, for tests.

All of it is TRL's and vLLM's but how weights get there, which on a CPU cannot be as on an accelerator: TRL's
`load_weights` finds them packed away by vLLM's CPU backend, and its server is sent them with NCCL. Both are
replaced by vLLM's own `reload_weights`, from memory, or from the folder that the server was started on.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import torch
from safetensors.torch import save_file

from tiny_parts import tiny_model, tiny_tokenizer

SIZES = {"hidden_size": 128, "intermediate_size": 128}
"""Heads of 32, the smallest that vLLM's CPU kernels know."""
MAX_LENGTH = 256
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def missing() -> str | None:
    """Why TRL's vLLM cannot be used here, None where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; docs/speed.md says how to get it"
    from trl.import_utils import is_vllm_available

    return None if is_vllm_available() else "TRL does not know this vLLM"


def save_model(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model that vLLM can run, with its tokenizer; colocated vLLM runs in the precision it is saved
    with, but for fp32, which it takes for bf16."""
    tiny_model(**SIZES).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _with_head(weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """A tied head too, of which the CPU backend holds a packed copy."""
    for name, weight in weights:
        yield name, weight.detach()
        if name == "model.embed_tokens.weight":
            yield "lm_head.weight", weight.detach()


def push_from_memory(generation: Any) -> None:
    """In place of `VLLMGeneration.sync_weights` of a colocated vLLM."""
    model = generation.llm.llm_engine.model_config
    named = _with_head(generation._iter_named_params())
    weights = ((name, weight.to(model.dtype)) for name, weight in named)
    arguments = {"weights_iterator": weights, "is_checkpoint_format": True}
    with torch.no_grad():
        generation.llm.collective_rpc("reload_weights", kwargs=arguments)
    assert generation.llm.reset_prefix_cache()


def push_through_folder(client: Any, metadata: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """In place of `VLLMClient.update_named_params`; the served model's name is its folder."""
    path = Path(client.model) / "model.safetensors"
    written = path.with_suffix(".new")
    tensors = {name: weight.clone() for name, weight in _with_head(weights)}
    save_file(tensors, written, metadata={"format": "pt"})
    written.replace(path)
    client._post(f"{client.base_url}/collective_rpc", json={"method": "reload_weights"})


@contextmanager
def on_a_cpu() -> Iterator[None]:
    """TRL's vLLM gets its weights the CPU's way; afterwards everything is as it was, the environment
    too."""
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    sync = VLLMGeneration.sync_weights

    def sync_weights(self: Any) -> None:
        (push_from_memory if self.mode == "colocate" else sync)(self)

    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    kept = VLLMClient.init_communicator, VLLMClient.update_named_params
    VLLMGeneration.sync_weights = sync_weights
    VLLMClient.init_communicator = lambda self, device=0: None
    VLLMClient.update_named_params = push_through_folder
    os.environ.update(_SETTINGS)
    try:
        yield
    finally:
        VLLMGeneration.sync_weights = sync
        VLLMClient.init_communicator, VLLMClient.update_named_params = kept
        torch.set_num_threads = set_num_threads
        os.environ.clear()
        os.environ.update(environment)


def close(trainer: Any) -> None:
    """End a trainer's colocated vLLM, so that another one can start in this process."""
    llm = getattr(trainer.vllm_generation, "llm", None)
    if llm is not None:
        from vllm.distributed import cleanup_dist_env_and_memory

        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A vLLM server of the model in `folder`, in fp32; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {**_SETTINGS, "VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": "1"}
    settings.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    options = {
        "--model": folder,
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": "float32",
        "--max-model-len": MAX_LENGTH,
        "--block-size": 32,
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": -1,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [str(word) for pair in options.items() for word in pair]
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            env={**os.environ, **settings},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(server, address, log)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def _wait(server: subprocess.Popen, address: str, log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until and server.poll() is None:
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise RuntimeError(f"the vLLM server did not start:\n{log.read_text()[-3000:]}")
