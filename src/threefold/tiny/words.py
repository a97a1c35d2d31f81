"""A small model with words as tokens and random weights, for studies in text environments.

It knows nothing. A recipe's warm start teaches it to act (and, for skills, to read them), so what it knows is
exactly what the recipe shows it. It has 230,000 parameters: enough to copy a word of its prompt and to do
what a skill says, and a step of sixty episodes takes a core half a second. The tokens are learnt from the
dialogues that such a warm start shows, so an errand's action is one or two tokens; any other word is spelt in
pieces. A word is the same token at the start of a turn and inside a sentence, so that to say a word of the
prompt is to copy its token.
"""

from __future__ import annotations

import hashlib
import shutil
import string
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from threefold.skills.placebo_creator import SENTENCES
from threefold.skills.practice import errand_dialogues

SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>")
"""Never part of decoded text."""
VOCABULARY = 640
"""Most tokens."""
CONTEXT = 1536
"""Longest sequence in tokens."""
WEIGHTS = "64 wide, 3 layers, spread 1/8"
"""What `untrained` makes, for the name of the folder that keeps it."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def folder(cache: Path) -> Path:
    """The folder of model and tokenizer below `cache`, made on first use. Its name holds a fingerprint of
    the vocabulary; the weights are those of seed 0."""
    tokenizer = build(_texts())
    made_of = tokenizer.backend_tokenizer.to_str() + CHAT_TEMPLATE + f"{CONTEXT} {WEIGHTS}"
    target = cache / f"tiny-words-{hashlib.sha256(made_of.encode()).hexdigest()[:10]}"
    if (target / "config.json").exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "model"
        untrained(len(tokenizer)).save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            made.replace(target)
        except OSError:  # another process was faster; its result is the same
            shutil.rmtree(made)
    return target


def build(texts: Iterable[str]) -> Any:
    """The tokenizer, a `PreTrainedTokenizerFast`, with the words of `texts` as tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=[*string.printable, "\u2581"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def untrained(tokens: int, hidden: int = 64, layers: int = 3) -> Any:
    """The model of so many tokens, with random weights of seed 0; torch's global random state is left as it
    was.

    Weights have the spread 1 / sqrt(hidden). With the usual 0.02 attention begins all but uniform in so
    narrow a model, and it has not learnt to copy a word after thousands of dialogues.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokens,
                hidden_size=hidden,
                intermediate_size=4 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=CONTEXT,
                initializer_range=hidden**-0.5,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=SPECIAL.index("<eos>"),
                pad_token_id=SPECIAL.index("<pad>"),
            )
        )


def _texts() -> list[str]:
    """What the vocabulary is learnt from: dialogues with skills, and the placebo's sentences."""
    dialogues = errand_dialogues("train", 400, 0)
    return [message["content"] for dialogue in dialogues for message in dialogue] + [*SENTENCES] * 4
