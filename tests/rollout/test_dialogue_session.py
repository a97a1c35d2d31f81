"""Dialogues with a cache kept between turns against one forward of the whole, and against prefilling again.

All models are real ones with random weights, small enough that a test takes a moment.
"""

from __future__ import annotations

import logging

import pytest
import torch
from architectures import (
    SIZES,
    count_forwards,
    gemma3,
    gemma3_wide,
    gpt2,
    llama,
    lora,
    mamba,
    own_cache,
    qwen2,
    scored_whole,
    teacher_forced,
)
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.transformers import TransformersSampler

OPENINGS = {0: [5, 3, 8, 9, 20, 31], 1: [5, 3, 8, 9, 20, 31], 2: [4], 3: [60, 61, 62], 4: [12] * 11}
SAMPLING = SamplingParameters(max_new_tokens=1, temperature=0.9)


def answer(dialogue: int, turn: int) -> list[int]:
    """What the environment says: one to five tokens, of different lengths in one turn."""
    return [(11 * dialogue + 5 * turn + i) % 90 + 2 for i in range((dialogue + 2 * turn) % 5 + 1)]


def converse(model, *, turns=4, limit=6, openings=OPENINGS, leaves=None, batch_size=64, **options):
    """Play dialogues; `leaves` says before which turn a dialogue is over. Answers contexts and samples."""
    parameters = options.pop("parameters", SAMPLING)
    session = TransformersSampler(model, batch_size=batch_size).session(parameters, seed=3, **options)
    contexts = {dialogue: list(ids) for dialogue, ids in openings.items()}
    spoken: dict[tuple[int, int], tuple[list[int], object]] = {}
    for turn in range(turns):
        live = [d for d in contexts if (leaves or {}).get(d, turns) > turn]
        if not live:
            break
        limits = [limit + d % 2 for d in live]
        samples = session.turn(live, [contexts[d] for d in live], limits)
        for dialogue, sample, most in zip(live, samples, limits, strict=True):
            assert 1 <= len(sample.token_ids) <= most
            spoken[dialogue, turn] = (list(contexts[dialogue]), sample)
            contexts[dialogue] += [*sample.token_ids, *answer(dialogue, turn)]
    return spoken, session


def tokens(spoken):
    return {key: sample.token_ids for key, (_, sample) in spoken.items()}


KEEPING = [llama, qwen2, gpt2, gemma3_wide, lora]


@pytest.mark.parametrize("make", [*KEEPING, gemma3, mamba, own_cache])
def test_logprobs_are_those_of_one_forward_of_the_dialogue(make):
    model = make()
    spoken, _ = converse(model)
    assert len({len(sample.token_ids) for _, sample in spoken.values()}) > 2
    for context, sample in spoken.values():
        expected = torch.from_numpy(teacher_forced(model, context, sample, temperature=0.9))
        assert torch.tensor(sample.logprobs) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("make", [*KEEPING, gemma3, mamba])
@pytest.mark.parametrize("temperature", [0.9, 0.0])
def test_entropies_are_those_of_one_forward_of_the_dialogue(make, temperature):
    """The last two cannot keep their caches: they report entropies as well."""
    model = make()
    parameters = SamplingParameters(1, temperature=temperature, top_k=20, entropies=True)
    spoken, _ = converse(model, parameters=parameters, turns=3)
    asked_for_none, _ = converse(
        model, parameters=SamplingParameters(1, temperature=temperature, top_k=20), turns=3
    )
    assert tokens(spoken) == tokens(asked_for_none)
    assert all(sample.entropies is None for _, sample in asked_for_none.values())
    for context, sample in spoken.values():
        logprobs, entropies = scored_whole(model, context, sample, temperature=temperature or 1.0)
        torch.testing.assert_close(torch.tensor(sample.logprobs), logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(sample.entropies), entropies, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [*KEEPING, gemma3, mamba, own_cache])
@pytest.mark.parametrize("temperature", [0.9, 0.0])
def test_the_same_tokens_as_prefilling_at_every_turn(make, temperature):
    model, parameters = make(), SamplingParameters(1, temperature=temperature)
    kept, _ = converse(model, parameters=parameters)
    again, _ = converse(model, parameters=parameters, keep_cache=False)
    assert tokens(kept) == tokens(again)


@pytest.fixture
def fresh_memory_is_nan():
    """PyTorch fills memory that it is given with NaN: whoever reads it before writing is found out."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("limit", [1, 2, 6])
@pytest.mark.parametrize("make", KEEPING)
def test_memory_that_was_not_written_is_never_read(make, limit, fresh_memory_is_nan):
    """A turn of one token forwards nothing: with a limit of 1 some dialogues keep no slot of their own."""
    model = make()
    kept, _ = converse(model, limit=limit)
    again, _ = converse(model, limit=limit, keep_cache=False)
    assert tokens(kept) == tokens(again)


@pytest.mark.parametrize("make", KEEPING)
def test_each_token_is_forwarded_once(make):
    model = make()
    shapes = count_forwards(model)
    openings = dict.fromkeys(range(4), OPENINGS[0])
    spoken, _ = converse(model, turns=3, openings=openings)
    longest = {
        turn: max(len(s.token_ids) for (_, t), (_, s) in spoken.items() if t == turn) for turn in range(3)
    }
    assert shapes[0] == (1, 6)  # the opening that all share
    widths = [columns for _, columns in shapes]
    chunks = [at for at, columns in enumerate(widths) if columns > 1]
    # An opening, then for each later turn one forward of the last drawn token and the environment's answer.
    assert len(chunks) == 3
    for turn, at in enumerate(chunks[1:]):
        assert widths[at] <= 1 + max(len(answer(d, turn)) for d in openings)
    assert len(widths) == 3 + sum(longest.values()) - 3


def test_dialogues_that_are_over_cost_nothing_more_and_give_their_memory_back():
    model = llama()
    shapes = count_forwards(model)
    _, session = converse(model, turns=4, leaves={0: 1, 1: 2, 2: 2, 4: 2})
    rows = [rows for rows, columns in shapes]
    assert rows[-1] == 1
    held = sum(batch.cache.layers[0].keys.size(0) for batch in session._batches)
    assert held == 1
    session.close()
    assert not session._batches


def test_no_dialogue_is_held_twice_however_they_are_batched():
    """With small batches dialogues move between them every turn; what they leave is given back."""
    model = llama()
    session = TransformersSampler(model, batch_size=2).session(SAMPLING, seed=3)
    contexts = {d: list(ids) for d, ids in OPENINGS.items()}
    for turn in range(5):
        live = [d for d in contexts if not (d == 1 and turn > 2)]
        samples = session.turn(live, [contexts[d] for d in live], [5] * len(live))
        for dialogue, sample in zip(live, samples, strict=True):
            contexts[dialogue] += [*sample.token_ids, *answer(dialogue, turn)]
        held = [d for batch in session._batches for d in batch.dialogues]
        assert sorted(held) == live
        assert sum(batch.cache.layers[0].keys.size(0) for batch in session._batches) == len(live)


def test_neither_batch_size_nor_who_else_talks_touches_a_dialogue():
    model = llama()
    whole, _ = converse(model)
    assert tokens(converse(model, batch_size=2)[0]) == tokens(whole)
    fewer = tokens(converse(model, leaves={0: 2, 3: 1})[0])
    assert fewer == {key: tokens(whole)[key] for key in fewer}
    assert len(fewer) < len(whole)


def test_a_context_that_was_cut_is_continued_from_where_it_was_cut():
    """The driver cuts a turn that passes the episode's budget; the tokens behind the cut must not be seen."""
    model = llama()
    session = TransformersSampler(model).session(SAMPLING, seed=3)
    openings = [OPENINGS[0], OPENINGS[3]]
    first = session.turn([0, 1], openings, [6, 6])
    contexts = [[*openings[0], *first[0].token_ids[:2], 70, 71], [*openings[1], 80, 81, 82]]
    for context, sample in zip(contexts, session.turn([0, 1], contexts, [5, 5]), strict=True):
        expected = torch.from_numpy(teacher_forced(model, context, sample, temperature=0.9))
        assert torch.tensor(sample.logprobs) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(gemma3, "sliding window of 4"), (mamba, "Mamba"), (own_cache, "Opaque")],
)
def test_what_cannot_be_kept_is_prefilled_again_and_the_reason_is_logged_once(make, reason, caplog):
    with caplog.at_level(logging.WARNING, logger="threefold.rollout.samplers.dialogue"):
        converse(make())
    said = [r.getMessage() for r in caplog.records if "prefilled again at every turn" in r.getMessage()]
    assert len(said) == 1
    assert reason in said[0] or reason == "Mamba"


def test_a_window_that_is_outgrown_on_the_way(caplog):
    torch.manual_seed(2)
    layers = ["sliding_attention", "full_attention"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=24, layer_types=layers)).eval()
    with caplog.at_level(logging.WARNING, logger="threefold.rollout.samplers.dialogue"):
        spoken, session = converse(model)
    assert "outgrows the model's sliding window of 24" in caplog.text
    assert not session._batches
    assert max(len(context) for context, _ in spoken.values()) > 24
    for context, sample in spoken.values():
        expected = torch.from_numpy(teacher_forced(model, context, sample, temperature=0.9))
        assert torch.tensor(sample.logprobs) == pytest.approx(expected, abs=1e-5)


def test_bad_calls_are_refused():
    session = TransformersSampler(llama()).session(SAMPLING, seed=0)
    with pytest.raises(ValueError, match="one turn at a time"):
        session.turn([1, 1], [[3], [4]], [2, 2])
    with pytest.raises(ValueError, match="numbered from 0"):
        session.turn([-1], [[3]], [2])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        session.turn([1], [[3]], [0])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        session.turn([0, 1], [[3], []], [2, 2])
    with pytest.raises(ValueError, match="model's context has 128"):
        session.turn([0], [[3] * 127], [2])
