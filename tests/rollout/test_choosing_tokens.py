"""How one token is chosen from logits: shares worked out by hand, filters, edges, ranges."""

import numpy as np
import pytest
import torch

from threefold.rollout.samplers import SamplingParameters
from threefold.rollout.samplers.choosing import choose


def test_samples_of_one_prompt_are_independent():
    """Repeats among pairs of samples are as frequent as the sum of squared probabilities says."""
    logits_RV = torch.tensor([0.5, 0.25, 0.25]).log().expand(2, 3)
    draws = np.random.default_rng(0).random((4000, 2))
    pairs = [choose(logits_RV, SamplingParameters(1), torch.from_numpy(d))[0].tolist() for d in draws]
    assert np.mean([a == b for a, b in pairs]) == pytest.approx(0.375, abs=0.03)


PROBS = [0.1, 0.4, 0.05, 0.3, 0.15]


def drawn(parameters, probs=PROBS, count=2000):
    draws_R = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    logits_RV = torch.tensor(probs).log().expand(count, len(probs))
    tokens_R, logprobs_R, _ = choose(logits_RV, parameters, draws_R)
    np.testing.assert_allclose(logprobs_R.exp().numpy(), np.array(probs)[tokens_R.numpy()], rtol=1e-5)
    return np.bincount(tokens_R.numpy(), minlength=len(probs)) / count


def test_filters_keep_the_right_tokens_with_the_right_shares():
    """Evenly spaced draws give the shares exactly, up to one draw; the reported scores stay unfiltered."""
    one = 1 / 2000
    np.testing.assert_allclose(drawn(SamplingParameters(1)), PROBS, atol=one)
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_k=1)), [0, 1, 0, 0, 0])
    top2 = [0, 4 / 7, 0, 3 / 7, 0]
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_k=2)), top2, atol=one)
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_k=99)), PROBS, atol=one)
    # 0.4 + 0.3 falls short of 0.71, so the third token comes in; 0.69 is reached with two.
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_p=0.69)), top2, atol=one)
    top3 = np.array([0, 0.4, 0, 0.3, 0.15]) / 0.85
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_p=0.71)), top3, atol=one)
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_p=1e-6)), [0, 1, 0, 0, 0])
    # top_p is a share of what top_k left: 4/7 and 3/7.
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_k=2, top_p=0.5)), [0, 1, 0, 0, 0])
    np.testing.assert_allclose(drawn(SamplingParameters(1, top_k=2, top_p=0.6)), top2, atol=one)


def test_temperature_divides_the_logits():
    draws_R = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    tokens_R, logprobs_R, _ = choose(
        torch.tensor([0.8, 0.2]).log().expand(2000, 2), SamplingParameters(1, temperature=0.5), draws_R
    )
    # Squared odds: 16 to 1.
    assert (tokens_R == 0).double().mean() == pytest.approx(16 / 17, abs=1e-3)
    assert logprobs_R[0].exp() == pytest.approx(16 / 17, abs=1e-6)


def test_the_entropy_is_the_whole_distributions_at_the_sampling_temperature():
    logits_RV = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    half = torch.tensor([0.5], dtype=torch.float64)
    filtered = SamplingParameters(1, top_k=1, entropies=True)
    assert choose(logits_RV, filtered, half)[2].item() == pytest.approx(1.5 * np.log(2))
    squared = SamplingParameters(1, temperature=0.5, entropies=True)  # 4 to 1 to 1
    expected = -(4 / 6 * np.log(4 / 6) + 2 / 6 * np.log(1 / 6))
    assert choose(logits_RV, squared, half)[2].item() == pytest.approx(expected)
    greedy = SamplingParameters(1, temperature=0, entropies=True)
    assert choose(logits_RV, greedy, None)[2].item() == pytest.approx(1.5 * np.log(2))
    assert choose(logits_RV, SamplingParameters(1), half)[2] is None


def test_a_token_without_probability_is_never_drawn_at_the_edges():
    logits_RV = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, 4)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for parameters in (
        SamplingParameters(1),
        SamplingParameters(1, top_k=3),
        SamplingParameters(1, top_p=0.99),
    ):
        tokens_R, logprobs_R, _ = choose(logits_RV, parameters, edges)
        assert set(tokens_R.tolist()) == {1, 2}
        assert logprobs_R.tolist() == pytest.approx([np.log(0.5)] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -0.1}, "temperature must be a finite number"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must lie in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be 0"),
    ],
)
def test_refuses_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingParameters(**{"max_new_tokens": 1} | options)
