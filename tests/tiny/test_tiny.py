"""The tiny model: its tokens, its supervised training, and the state in which it leaves the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from threefold.answers import BOXED
from threefold.envs import column_addition
from threefold.recipe import RecipeError, parse_recipe
from threefold.signals import locate
from threefold.tasks import held_out_problems, questioner
from threefold.tiny import tokenizer as characters
from threefold.tiny.warm_start import CONTEXT, WarmStart, folder, untrained

SHORT = WarmStart(steps=3, batch_size=4, hidden=16, layers=1)


@pytest.fixture(scope="module")
def tokenizer():
    return characters.build()


def test_a_solution_survives_the_tokenizer_and_has_a_token_a_character(tokenizer) -> None:
    for problem in column_addition.problems("validation", size=30):
        text = column_addition.solution(problem)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) == len(text) - len("\\boxed{") + 1
        assert tokenizer.unk_token_id not in ids
        assert len(tokenizer(problem.question)["input_ids"]) + len(ids) + 3 <= CONTEXT


def test_the_answer_begins_and_ends_where_tokens_do(tokenizer) -> None:
    ids = tokenizer(r"3+4=7 \boxed{57}<eos>")["input_ids"]
    answer = locate(tokenizer, ids, BOXED)
    assert tokenizer.decode(ids[answer.start : answer.end]) == "57"
    assert tokenizer.decode(ids[: answer.lead]) == "3+4=7 "


def test_the_chat_template_is_what_the_model_was_trained_on(tokenizer) -> None:
    chat = [{"role": "user", "content": "2+3=?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == tokenizer("<user>2+3=?<assistant>")["input_ids"]


def test_a_million_parameters() -> None:
    attention, feed_forward, norms = 4 * 128 * 128, 3 * 128 * 512, 2 * 128
    by_hand = 4 * (attention + feed_forward + norms) + 128 + 128 * len(characters.TOKENS)
    assert sum(p.numel() for p in untrained().parameters()) == by_hand == 1_052_672


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    one, other = (folder(tmp_path / name, SHORT) for name in ("one", "other"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    second = folder(tmp_path / "one", WarmStart(**{**vars(SHORT), "seed": 1}))
    assert second != one
    assert (one / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_it_is_trained_once(tmp_path: Path) -> None:
    made = folder(tmp_path, SHORT)
    written = (made / "model.safetensors").stat().st_mtime_ns
    assert folder(tmp_path, SHORT) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == written


def test_problems_that_it_cannot_read_are_refused(tmp_path: Path) -> None:
    model = str(folder(tmp_path, SHORT))
    fits = parse_recipe({"model": {"name": model}, "data": {"train": "tiny-arithmetic"}})
    questioner(fits).check_lengths("held-out data", held_out_problems(fits, 20), 64)
    other = parse_recipe({"model": {"name": model}, "data": {"train": "arithmetic"}})
    with pytest.raises(RecipeError, match=r"row 0 .*no token for a part.*tiny-arithmetic"):
        questioner(other).check_lengths("held-out data", held_out_problems(other, 20), 24)


@pytest.mark.slow
def test_most_groups_are_dead_at_the_start_and_not_all_for_one_reason() -> None:
    """The real one, trained on first use: what the page on it claims."""
    from threefold.models import load_model, load_tokenizer
    from threefold.rollout.samplers import SamplingParameters
    from threefold.rollout.samplers.transformers import TransformersSampler

    recipe = parse_recipe({"model": {"name": "tiny"}, "data": {"train": "tiny-arithmetic"}})
    ask = questioner(recipe)
    sampler = TransformersSampler(load_model("tiny", torch.float32), load_tokenizer("tiny"), batch_size=256)
    problems = column_addition.problems("train", seed=7, size=100)
    prompts = [ask.prompt_ids(problem) for problem in problems]
    samples = sampler.generate(prompts, SamplingParameters(64), samples_per_prompt=8, seed=0)
    right = [
        ask.scores(ask.tokenizer.decode(s.token_ids, skip_special_tokens=True), problems[i // 8])["strict"]
        for i, s in enumerate(samples)
    ]
    groups = [sum(right[i : i + 8]) for i in range(0, len(right), 8)]
    all_wrong, all_right = groups.count(0) / 100, groups.count(8) / 100
    assert 0.5 <= all_wrong + all_right <= 0.85
    assert min(all_wrong, all_right) >= 0.15
