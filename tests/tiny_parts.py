"""A tiny model, its tokenizer, problems and a reward: real parts, small enough to train within a test."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}a:{{ m['content'] }}<eos>"
    "{% else %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE, pad_token: str | None = "<pad>") -> Any:
    """A token for each printable character; a message is rendered as "u:text\\n" or "a:text<eos>"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, **{c: i for i, c in enumerate(CHARACTERS, 3)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".|\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"eos_token": "<eos>", "bos_token": "<bos>"}
    if pad_token is not None:
        special["pad_token"] = pad_token
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = chat_template
    return fast


def tiny_model(seed: int = 0, **options: Any) -> Any:
    """A Llama of two layers and about 15 000 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    sizes = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **special, **options}))


def tiny_config(output_dir: str | Path, **fields: Any) -> Any:
    """GRPOConfig of a short run of the tiny model on a CPU; keywords replace its fields."""
    from trl import GRPOConfig

    defaults = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 1,
        "disable_tqdm": True,
    }
    return GRPOConfig(**{**defaults, **fields})


def sums(count: int = 32) -> Any:
    """Prompts such as "3+1=" with their answers."""
    from datasets import Dataset

    pairs = [(i, j) for i in range(8) for j in range(4)][:count]
    return Dataset.from_list([{"prompt": f"{i}+{j}=", "answer": str(i + j)} for i, j in pairs])


def digit(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the completion holds a digit: random text does now and then, so groups are mixed."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(any(character.isdigit() for character in text)) for text in texts]


def leave_group() -> None:
    """End a script of several processes. A trainer that is not collected yet holds the group, whose threads
    would outlive the interpreter and abort the process, and one that has left may take the others down."""
    from accelerate import PartialState

    PartialState().destroy_process_group()
    gc.collect()
