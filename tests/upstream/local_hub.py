"""The tiny models and data sets that TRL's tests load by hub name, made on the spot.

transformers and datasets take a relative folder of that name before they ask the hub, so it is enough to
write the folders into the directory that the tests run in. Weights are random, as those of the originals are;
chat templates are the ones that TRL itself ships.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ORGANISATION = "trl-internal-testing"

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 1024,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "tiny-Qwen2ForCausalLM-2.5": ("qwen2", "AutoModelForCausalLM", "qwen2_5", {}),
    "tiny-Qwen2ForSequenceClassification-2.5": (
        "qwen2",
        "AutoModelForSequenceClassification",
        "qwen2_5",
        {"num_labels": 1},
    ),
    "tiny-Qwen3ForCausalLM": ("qwen3", "AutoModelForCausalLM", "qwen3", {}),
    "tiny-Qwen3ForSequenceClassification": (
        "qwen3",
        "AutoModelForSequenceClassification",
        "qwen3",
        {"num_labels": 1},
    ),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", "AutoModelForCausalLM", "qwen3", EXPERTS),
    "tiny-LlamaForCausalLM-3.2": ("llama", "AutoModelForCausalLM", "llama3_2", {}),
    "tiny-LlamaForSequenceClassification-3.2": (
        "llama",
        "AutoModelForSequenceClassification",
        "llama3_2",
        {"num_labels": 1},
    ),
    "tiny-MistralForCausalLM-0.2": ("mistral", "AutoModelForCausalLM", "llama3", {}),
    "tiny-Gemma2ForCausalLM": ("gemma2", "AutoModelForCausalLM", "gemma", {}),
    "tiny-Cohere2ForCausalLM": ("cohere2", "AutoModelForCausalLM", "cohere2", {}),
}
"""Folder name: (model type, auto class, TRL's chat template, further settings)."""

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]

SENTENCES = [
    "Beautiful is better than",
    "Explicit is",
    "Simple is better",
    "Complex is better than complicated",
    "Flat is better",
    "Sparse is better than",
    "Readability",
    "Special cases are not special enough",
    "Although practicality",
    "Errors should never",
    "Unless explicitly",
    "In the face of ambiguity, refuse",
    "There should be one",
    "Now is better",
    "Although never is often",
    "If the implementation is hard to explain,",
    "Namespaces are one",
]


def build(folder: Path) -> None:
    """Write models and data sets under `folder`/trl-internal-testing."""
    for name, recipe in MODELS.items():
        _model(folder / ORGANISATION / name, *recipe)
    _zen(folder / ORGANISATION / "zen")


def _model(folder: Path, model_type: str, auto_class: str, template: str, extra: dict[str, Any]) -> None:
    import transformers
    import trl

    tokenizer = _tokenizer()
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    transformers.set_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), bos_token_id=None, **ends, **SIZES, **extra
    )
    getattr(transformers, auto_class).from_config(config).save_pretrained(folder)


def _tokenizer() -> Any:
    """Byte-level pairs learnt from the sentences, with the special tokens of the Qwen family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def _zen(folder: Path) -> None:
    rows = {"train": SENTENCES, "test": SENTENCES[:2]}
    configs = {
        "standard_prompt_only": lambda text: {"prompt": text},
        "conversational_prompt_only": lambda text: {"prompt": [{"role": "user", "content": text}]},
    }
    header = ["---", "configs:"]
    for config, make in configs.items():
        header += [f"- config_name: {config}", "  data_files:"]
        for split, texts in rows.items():
            _jsonl(folder / config / f"{split}.jsonl", [make(text) for text in texts])
            header += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]), encoding="utf-8")


def _jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
