"""The tokenizer of the tiny model: a token for each character, and one for each marker."""

from __future__ import annotations

from typing import Any

SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
"""Never part of decoded text. Padding and end have tokens of their own."""
TOKENS = (*SPECIAL, *"0123456789", "+", "-", "*", "=", "?", " ", "\\boxed{", "}")
"""The vocabulary in the order of its ids. The answer's lead-in is a single token, so that an answer begins
where a token begins."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat of one question is "<user>2+3=?<assistant>"."""


def build() -> Any:
    """The tokenizer, a `PreTrainedTokenizerFast`. Characters that it does not have become "<unk>"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|.|\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
