"""Evaluation end to end: a real sampler, a real tokenizer, a model with random weights.

Right and wrong are defined on the text ("contains an a", ...), so that a random model is sometimes right.
"""

import json
import string
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from threefold.envs.problems import Problem
from threefold.evaluation.evaluate import evaluate, paired_gain
from threefold.evaluation.intervals import Interval
from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.transformers import TransformersSampler

CHARACTERS = string.ascii_lowercase + string.digits + " +=?"


PROBLEMS = [
    Problem("p0", "1+1=?", "a", "easy"),
    Problem("p1", "what is the sum of 7 and 8?", "e", "hard"),
    Problem("p2", "2=?", "3", "easy"),
    Problem("p3", "is 3?", "q"),
    Problem("p4", "9+9=?", "b", "hard"),
]


@pytest.fixture(scope="module")
def tokenizer():
    words = {word: i for i, word in enumerate(["<pad>", "<end>", *CHARACTERS])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


@pytest.fixture(scope="module")
def sampler(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
    )
    return TransformersSampler(LlamaForCausalLM(config), tokenizer)


def contains_answer(text, problem):
    return {"contains": problem.answer in text, "short": len(text) < 12}


@pytest.fixture
def run(sampler, tokenizer):
    def run(problems=PROBLEMS, **options):
        options = {"temperature": 1.0, "max_new_tokens": 16, "score": contains_answer} | options
        return evaluate(
            sampler, tokenizer, problems, prompt=lambda p: tokenizer.encode(p.question), **options
        )

    return run


def test_greedy_measures_what_the_sampler_writes(run, sampler, tokenizer):
    result = run(temperature=0)
    prompts = [tokenizer.encode(problem.question) for problem in PROBLEMS]
    samples = sampler.generate(prompts, SamplingParameters(16, temperature=0))
    texts = [tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in samples]
    assert result.texts == [[text] for text in texts]
    assert "<end>" not in "".join(texts)
    right = [problem.answer in text for problem, text in zip(PROBLEMS, texts, strict=True)]
    assert result.outcomes["contains"] == [[value] for value in right]
    assert (result.mode, result.temperature, result.problems, result.samples) == ("greedy", 0, 5, 1)
    assert result.scores["contains"].mean == pytest.approx(np.mean(right))
    assert result.pass_at["contains"][1] == result.scores["contains"]
    assert result.mean_length == pytest.approx(np.mean([len(sample.token_ids) for sample in samples]))
    assert result.truncated == pytest.approx(np.mean([s.finish_reason == "length" for s in samples]))
    assert run(temperature=0, seed=9).texts == result.texts


def test_sampled_counts_by_problem_score_and_difficulty(run):
    result = run(samples=8, ks=(8, 1, 4))
    assert result.mode == "sampled"
    assert [len(row) for row in result.texts] == [8] * 5
    table = np.array(result.outcomes["contains"])
    for i, problem in enumerate(PROBLEMS):
        assert table[i].tolist() == [problem.answer in text for text in result.texts[i]]
    assert 0 < table.mean() < 1, "pick another seed: nothing is measured where all is right or wrong"
    score = result.scores["contains"]
    assert score.mean == pytest.approx(table.mean())
    assert score.low <= score.mean <= score.high
    assert list(result.pass_at["contains"]) == [1, 4, 8]
    assert result.pass_at["contains"][1].mean == pytest.approx(table.mean())
    assert result.pass_at["contains"][8].mean == pytest.approx(table.any(axis=1).mean())
    assert set(result.by_difficulty) == {"easy", "hard"}
    assert result.by_difficulty["easy"]["contains"] == pytest.approx(table[[0, 2]].mean())
    assert result.by_difficulty["hard"]["short"] == pytest.approx(
        np.mean(result.outcomes["short"], axis=1)[[1, 4]].mean()
    )
    assert 0 < result.truncated < 1
    assert result.seconds > 0


def test_seed_fixes_the_answers_and_no_two_problems_share_their_draws(run):
    first, again, other = run(samples=2, seed=3), run(samples=2, seed=3), run(samples=2, seed=4)
    assert first.texts == again.texts
    assert first.scores == again.scores
    assert first.texts != other.texts
    same = [Problem(f"q{i}", "1+1=?", "a") for i in range(4)]
    texts = [text for row in run(same, samples=2, rows_per_call=2).texts for text in row]
    assert len(set(texts)) == 8


def test_progress_is_told_after_each_call(run):
    seen = []
    run(samples=2, rows_per_call=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    seen.clear()
    run(samples=8, rows_per_call=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_json_has_the_summary_and_nothing_that_json_cannot_hold(run):
    result = run(samples=4, ks=(1, 4))
    written = json.loads(json.dumps(result.to_json(when="before", step=0), allow_nan=False))
    assert list(written)[:2] == ["when", "step"]
    assert (written["when"], written["step"]) == ("before", 0)
    assert {"mode", "temperature", "problems", "samples", "mean_length", "truncated", "seconds"} <= set(
        written
    )
    assert written["problems"] == 5
    assert set(written["scores"]["contains"]) == {"mean", "low", "high"}
    assert written["pass_at"]["contains"]["4"]["mean"] == result.pass_at["contains"][4].mean
    assert written["by_difficulty"] == result.by_difficulty
    assert not {"when", "step"} & set(result.to_json())
    with pytest.raises(FrozenInstanceError):
        result.samples = 5


def test_confidence_is_held_against_the_first_score_and_survives_the_record(run):
    def sure(sample):
        """No confidence in a sample that begins with a digit; else that of its first token."""
        return None if sample.token_ids[0] > 27 else float(np.exp(sample.logprobs[0]))

    result = run(samples=4, confidence=sure)
    flat = [c for row in result.confidences for c in row]
    right = [r for row in result.outcomes["contains"] for r in row]
    pairs = [(c, r) for c, r in zip(flat, right, strict=True) if c is not None]
    assert 0 < len(pairs) < 20
    found = result.calibration()
    assert (found.samples, found.no_answer) == (len(pairs), 20 - len(pairs))
    assert found.brier == pytest.approx(np.mean([(c - r) ** 2 for c, r in pairs]))
    written = json.loads(json.dumps(result.to_json(), allow_nan=False))["calibration"]
    assert written["score"] == "contains"
    assert sum(level["samples"] for level in written["by_difficulty"].values()) <= len(pairs)
    assert set(written["by_difficulty"]) <= {"easy", "hard"}
    again = type(result).from_record(json.loads(json.dumps(result.to_record())))
    assert again.calibration() == found
    older = {k: v for k, v in result.to_record().items() if k not in ("confidences", "difficulties")}
    assert type(result).from_record(older).calibration() is None
    assert run(samples=4).calibration() is None


def test_a_scorer_that_fails_on_one_answer_loses_only_that_answer(run, caplog):
    def fragile(text, problem):
        if problem.id == "p1":
            raise RecursionError("parser gave up")
        return {"right": True}

    result = run(score=fragile, samples=2)
    assert result.outcomes["right"] == [[True, True], [False, False], *[[True, True]] * 3]
    assert result.scores["right"].mean == pytest.approx(0.8)
    assert result.failures == (
        "problem p1, sample 0: RecursionError: parser gave up",
        "problem p1, sample 1: RecursionError: parser gave up",
    )
    assert result.to_json()["scoring_failures"] == 2
    assert "scoring an answer to p1 failed" in caplog.text


def test_a_scorer_that_always_fails_is_an_error(run):
    def broken(text, problem):
        raise KeyError("answer")

    with pytest.raises(RuntimeError, match=r"every one of 5 samples, first: problem p0, sample 0: KeyError"):
        run(score=broken)


def test_refuses_scores_that_are_not_outcomes(run):
    with pytest.raises(ValueError, match=r"problem p0: score 'f1' must be True or False, got 0.5"):
        run(score=lambda text, problem: {"f1": 0.5})
    with pytest.raises(ValueError, match=r"the first has \['p0'\], one to problem p1 has \['p1'\]"):
        run(score=lambda text, problem: {problem.id: True})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problems": []}, "no problems"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"temperature": 0, "samples": 4}, "greedy decoding .* samples must be 1, got 4"),
        ({"samples": 4, "ks": (1, 8)}, "pass@8 cannot be estimated from 4 samples"),
    ],
)
def test_refuses_before_it_samples(run, options, message):
    def never(text, problem):
        pytest.fail("an answer was sampled before the arguments were checked")

    with pytest.raises(ValueError, match=message):
        run(score=never, **options)


def test_paired_gain_is_the_difference_by_problem(run):
    before = run(samples=4, score=lambda text, problem: {"right": problem.id in ("p0", "p1")})
    after = run(samples=2, score=lambda text, problem: {"right": problem.id in ("p0", "p1", "p2")})
    gain = paired_gain(before, after, "right")
    assert gain.mean == pytest.approx(0.2)
    # Of five problems one gained: resampling five gives 0 gains about once in three, never a loss.
    assert (gain.low, gain.high) == pytest.approx((0.0, 0.6))
    none = paired_gain(before, before, "right")
    # Five problems without change: 1 - 0.025^(1/5) = 0.5218 of all could still differ either way.
    assert isinstance(none, Interval)
    assert (none.mean, none.low, none.high) == pytest.approx((0, -0.5218, 0.5218), abs=5e-5)


def test_paired_gain_refuses_what_cannot_be_paired(run):
    before = run(samples=2)
    with pytest.raises(ValueError, match="problem 0 is 'p0' before and 'p1' after"):
        paired_gain(before, run([PROBLEMS[i] for i in (1, 0, 2, 3, 4)]), "contains")
    with pytest.raises(ValueError, match="5 problems before, 3 after"):
        paired_gain(before, run(PROBLEMS[:3]), "contains")
    with pytest.raises(ValueError, match=r"before has no score 'contain'; did you mean 'contains'\?"):
        paired_gain(before, before, "contain")
    with pytest.raises(ValueError, match=r"temperature 1.0 \(sampled\) before and 0 \(greedy\) after"):
        paired_gain(before, run(temperature=0), "contains")
