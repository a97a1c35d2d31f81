"""A small model with words as tokens and random weights, for studies in text environments.

It knows nothing. A recipe's warm start teaches it to act (and, for skills, to read them), so what it knows is
exactly what the recipe shows it. The tokens are learnt from the dialogues that such a warm start shows, so an
errand's action is one or two tokens and a caregiver's sentence about ten; any other word is spelt in pieces.
A word is the same token at the start of a turn and inside a sentence, so that to say a word of the prompt is
to copy its token. The model of errands has 230,000 parameters, enough to copy a word of its prompt and to do
what a skill says: a step of sixty episodes takes a core half a second.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import string
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.envs.caregiver.expert import conversations
from threefold.envs.caregiver.scenarios import generate
from threefold.envs.household.player import sentences
from threefold.skills.placebo_creator import SENTENCES
from threefold.skills.practice import errand_dialogues

SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>")
"""Never part of decoded text."""
CONTEXT = 1536
"""Longest sequence in tokens."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Language:
    """What a model of words is to read and say."""

    texts: Callable[[], list[str]]
    """What its tokens are learnt from."""
    tokens: int
    """Most tokens."""
    hidden: int
    layers: int
    spread: float
    """Standard deviation of the random weights. With the usual 0.02 attention begins all but uniform in a
    narrow model, which has not learnt to copy a word after thousands of dialogues; 1 / sqrt(hidden) does."""


def folder(cache: Path, name: str = "tiny-words") -> Path:
    """The folder of model and tokenizer below `cache`, made on first use. Its name holds a fingerprint of
    vocabulary and size; the weights are those of seed 0.

    Raises:
        KeyError: `name` is not one of `LANGUAGES`.
    """
    language = LANGUAGES[name]
    tokenizer = _tokenizer(name)
    size = f"{language.hidden} wide, {language.layers} layers, spread {language.spread}"
    made_of = f"{tokenizer.backend_tokenizer.to_str()}{CHAT_TEMPLATE}{CONTEXT} {size}"
    target = cache / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:10]}"
    if (target / "config.json").exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "model"
        untrained(len(tokenizer), language.hidden, language.layers, language.spread).save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            made.replace(target)
        except OSError:  # another process was faster; its result is the same
            shutil.rmtree(made)
    return target


def build(texts: Iterable[str], tokens: int) -> Any:
    """The tokenizer, a `PreTrainedTokenizerFast`, with the words of `texts` as at most so many tokens."""
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
        vocab_size=tokens,
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


def untrained(tokens: int, hidden: int, layers: int, spread: float = 0.02) -> Any:
    """The model of so many tokens, with random weights of seed 0; torch's global random state is left as it
    was."""
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
                initializer_range=spread,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=SPECIAL.index("<eos>"),
                pad_token_id=SPECIAL.index("<pad>"),
            )
        )


def _errands() -> list[str]:
    """Dialogues with skills, and the placebo's sentences."""
    dialogues = errand_dialogues("train", 400, 0)
    return [message["content"] for dialogue in dialogues for message in dialogue] + [*SENTENCES] * 4


def _care() -> list[str]:
    """Care dialogues as a warm start shows them: the expert's, the ordinary caregiver's, unsafe replies."""
    shown = conversations(generate(0), turns=4, unsafe_share=0.3, ordinary_share=0.3, short_prompt=True)
    return [message["content"] for played in shown for message in played.messages]


def _household() -> list[str]:
    """The words of household games; needs `threefold[household]`."""
    return sentences()


LANGUAGES: Mapping[str, Language] = {
    "tiny-words": Language(_errands, tokens=640, hidden=64, layers=3, spread=0.125),
    "tiny-care": Language(_care, tokens=1536, hidden=128, layers=2, spread=0.02),
    "tiny-household": Language(_household, tokens=768, hidden=128, layers=3, spread=0.088),
}
"""By name of a model."""


@functools.cache
def _tokenizer(name: str) -> Any:
    return build(LANGUAGES[name].texts(), LANGUAGES[name].tokens)
