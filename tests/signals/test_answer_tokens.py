"""Answers found in the sampler's own tokens, at every way that tokens and characters can fall apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.answers import answer_format
from threefold.models import EMBEDDED, ModelError, load_tokenizer
from threefold.signals import AnswerTokens, locate

BOXED = answer_format("boxed")


class Pieces:
    """A decoder over given pieces of text: token i is piece i."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, token_ids, *, skip_special_tokens=False):
        kept = [self.pieces[i] for i in token_ids]
        if skip_special_tokens:
            kept = [piece for piece in kept if not piece.startswith("<")]
        return "".join(kept)

    @property
    def ids(self):
        return list(range(len(self.pieces)))


def test_reasoning_lead_in_and_answer_are_cut_at_tokens():
    decoder = Pieces("2+2", " is", r"\boxed{", "4", "}", ".", "<eos>")
    assert locate(decoder, decoder.ids, BOXED) == AnswerTokens(lead=2, start=3, end=4)


def test_a_token_of_lead_in_and_answer_belongs_to_the_answer():
    decoder = Pieces("so", r" \boxed", "{1", "2}", "!")
    found = locate(decoder, decoder.ids, BOXED)
    assert found == AnswerTokens(lead=1, start=2, end=4)
    assert decoder.decode(range(found.start, found.end)) == "{12}"


def test_the_whole_completion_in_one_token():
    decoder = Pieces(r"it is \boxed{7}.")
    assert locate(decoder, [0], BOXED) == AnswerTokens(lead=0, start=0, end=1)


def test_an_answer_first_thing_leaves_no_reasoning():
    decoder = Pieces(r"\boxed", "{", "7", "}")
    assert locate(decoder, decoder.ids, BOXED) == AnswerTokens(lead=0, start=2, end=3)


def test_special_tokens_do_not_shift_the_positions():
    decoder = Pieces("<think>", "a", "</think>", r"\boxed{", "7", "}", "<eos>")
    found = locate(decoder, decoder.ids, BOXED)
    assert (found.start, found.end) == (4, 5)


@pytest.mark.parametrize("pieces", [(), ("no", " answer"), (r"\boxed{", "}"), (r"\boxed{", "4")])
def test_no_answer_is_none(pieces):
    decoder = Pieces(*pieces)
    assert locate(decoder, decoder.ids, BOXED) is None


def test_the_last_answer_counts():
    decoder = Pieces(r"\boxed{", "1", "}", " no ", r"\boxed{", "2", "}")
    assert locate(decoder, decoder.ids, BOXED) == AnswerTokens(lead=4, start=5, end=6)


def test_on_single_characters(tokenizer):
    ids = tokenizer(r"3+4 is \boxed{7}.")["input_ids"] + [tokenizer.eos_token_id]
    found = locate(tokenizer, ids, BOXED)
    assert tokenizer.decode(ids[found.lead : found.start]) == r"\boxed{"
    assert tokenizer.decode(ids[found.start : found.end]) == "7"


@given(
    text=st.text(alphabet="ab 1+", max_size=12),
    answer=st.text(alphabet="0123456789", min_size=1, max_size=5),
    after=st.text(alphabet=" .\n", max_size=4),
    cuts=st.sets(st.integers(1, 40)),
)
def test_however_the_text_is_cut_the_answers_characters_are_inside(text, answer, after, cuts):
    whole = text + r"\boxed{" + answer + "}" + after
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    decoder = Pieces(*(whole[a:b] for a, b in itertools.pairwise(edges)))
    found = locate(decoder, decoder.ids, BOXED)
    begin = whole.index(answer + "}", len(text))
    # The tokens that hold a character of the answer, and no other.
    touching = [i for i, a in enumerate(edges[:-1]) if a < begin + len(answer) and edges[i + 1] > begin]
    assert (found.start, found.end) == (touching[0], touching[-1] + 1)
    assert found.lead == min(max(i for i, a in enumerate(edges[:-1]) if a <= len(text)), found.start)


@pytest.mark.model
@pytest.mark.parametrize("reasoning", ["", "12 + 30 = 42, so ", "Zwölf und 三十 😀 → "])
@pytest.mark.parametrize("answer", ["42", "-1,234.5", r"\frac{1}{2}", "x"])
def test_with_a_real_tokenizer(reasoning, answer):
    try:
        tokenizer = load_tokenizer(EMBEDDED)
    except ModelError as error:
        pytest.skip(str(error))
    ids = tokenizer(reasoning + r"\boxed{" + answer + "}.")["input_ids"] + [tokenizer.eos_token_id]
    found = locate(tokenizer, ids, BOXED)
    assert answer in tokenizer.decode(ids[found.start : found.end])
    assert answer not in tokenizer.decode(ids[found.start + 1 : found.end])
    assert answer not in tokenizer.decode(ids[found.start : found.end - 1])
    assert reasoning.startswith(tokenizer.decode(ids[: found.lead]).rstrip())
