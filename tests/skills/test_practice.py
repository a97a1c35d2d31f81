"""Practice in reading skills: it obeys them, holds none that helps, and a blank model of words reads it."""

from __future__ import annotations

import re

import pytest

from threefold.envs.errands import Errands, tasks
from threefold.models import load_model, load_tokenizer
from threefold.skills.placebo_creator import SENTENCES
from threefold.skills.practice import NEXTS, ORDERS, errand_dialogues

DIALOGUES = errand_dialogues("train", 120, 3)


def test_every_skill_is_obeyed_and_none_is_a_strategy() -> None:
    shown = 0
    for dialogue in DIALOGUES:
        said = [message["content"] for message in dialogue if message["role"] == "assistant"]
        orders = re.findall(r"^First (.+)\. Only then (.+)\.$", dialogue[0]["content"], re.MULTILINE)
        assert set(orders) <= set(ORDERS)
        assert not {("ask", "open something"), ("get key", "open something")} & set(orders)
        firsts = {first for first, _ in orders}
        assert firsts == set(said[: len(firsts)])
        shown += bool(orders)
    assert 0.3 < shown / len(DIALOGUES) < 1


def test_what_is_next_after_an_action_is_done_and_sentences_of_the_placebo_are_not_shown() -> None:
    answered = 0
    for dialogue in errand_dialogues("train", 600, 3):
        text = "\n".join(message["content"] for message in dialogue)
        assert not any(sentence in text for sentence in SENTENCES)
        orders = re.findall(r"^First (.+)\. Only then", dialogue[0]["content"], re.MULTILINE)
        shown: dict[str, str] = {}
        said = [m["content"] for m in dialogue if m["role"] == "assistant"]
        for number, message in enumerate(dialogue):
            found = re.findall(
                r"^When: Your last action was: (.+)\.\nNext, (.+)\.$", message["content"], re.M
            )
            assert set(found) <= set(NEXTS)
            shown |= dict(found)
            turn = (number - 1) // 2
            if message["role"] == "assistant" and turn >= max(1, len(set(orders))):
                after = shown.get(said[turn - 1])
                assert after is None or message["content"] == after
                answered += after is not None
    assert answered >= 10


def test_examples_are_written_as_the_creator_writes_them() -> None:
    openings = "\n".join(dialogue[0]["content"] for dialogue in DIALOGUES)
    assert openings.count("- DO: ") == openings.count("- DON'T: ") > 20


def test_what_it_says_is_offered_and_opens_what_was_named() -> None:
    for dialogue in DIALOGUES:
        for heard, said in zip(dialogue[::2], dialogue[1::2], strict=True):
            offered = heard["content"].rpartition("Actions: ")[2].split(", ")
            assert said["content"] in offered
        text = "\n".join(message["content"] for message in dialogue)
        named = re.search(r"(?:from|is in) the (\w+) ", text)
        opened = [m["content"] for m in dialogue if m["content"].startswith("open ")]
        if named and opened and text.index(named[0]) < text.index(f"\n{opened[0]}"):
            assert opened == [f"open {named[1]}"]


def test_the_same_seed_gives_the_same_dialogues_and_another_gives_others() -> None:
    assert errand_dialogues("train", 9, 3) == DIALOGUES[:9]
    assert errand_dialogues("train", 9, 4) != DIALOGUES[:9]


@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
def test_the_hook_deals_the_tasks_of_a_split_in_an_order_of_its_seed(split) -> None:
    dealt = Errands.tasks(split, 100, 1)
    assert sorted(task.id for task in dealt) == sorted(task.id for task in tasks(split))
    assert dealt[:5] == Errands.tasks(split, 5, 1)
    assert dealt != Errands.tasks(split, 100, 2)
    assert len({task.fields["kind"] for task in dealt[:16]}) > 1
    if split == "unseen":
        assert Errands.tasks("test", 100, 1) == dealt


def test_a_blank_model_of_words_reads_and_says_errands(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path))
    tokenizer = load_tokenizer("tiny-words")
    ask = tokenizer("ask", add_special_tokens=False)["input_ids"]
    assert len(ask) == 1
    assert (
        ask[0] in tokenizer("First ask. Only then", add_special_tokens=False)["input_ids"]
    )  # the same token
    for text in ("open red", "get key", "a word that nobody taught: xylophone"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
    import torch

    model, again = (load_model("tiny-words", torch.float32) for _ in range(2))
    assert model.config.vocab_size == len(tokenizer)
    assert 0.2e6 < sum(p.numel() for p in model.parameters()) < 0.3e6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
