"""Models with words as tokens: what they can say, and how large they are."""

from __future__ import annotations

import pytest
import torch

from threefold.envs.caregiver.expert import conversations
from threefold.envs.caregiver.scenarios import generate
from threefold.models import load_model, load_tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path))


def test_what_a_caregiver_says_fits_a_turn_and_reads_back_as_it_was_said(cache) -> None:
    tokenizer = load_tokenizer("tiny-care")
    played = conversations(
        generate(0)[::40], turns=5, unsafe_share=0.3, ordinary_share=0.4, short_prompt=True, words=15, seed=9
    )
    said = [m["content"] for p in played for m in p.messages if m["role"] == "assistant"]
    assert len(said) > 80
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    assert [tokenizer.decode(ids) for ids in tokens] == said
    assert max(map(len, tokens)) < 24, "turn_tokens of recipes/caregiver-tiny.yaml, the end token included"


def test_the_care_model_has_fewer_than_a_million_parameters_and_one_set_of_weights(cache) -> None:
    model, again = (load_model("tiny-care", torch.float32) for _ in range(2))
    assert 0.6e6 < sum(p.numel() for p in model.parameters()) < 1e6
    assert torch.equal(model.model.embed_tokens.weight, again.model.embed_tokens.weight)
