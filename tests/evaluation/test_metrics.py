"""Each metric against numbers worked out by hand."""

import math

import numpy as np
import pytest

from unlearn_core.evaluation import metrics


def test_probability_is_the_geometric_mean_of_token_probabilities():
    # Tokens of probability 1/2 and 1/8: geometric mean 1/4.
    loss = (math.log(2) + math.log(8)) / 2
    assert metrics.probability([loss, 0.0]) == pytest.approx([0.25, 1.0])


def test_normalised_probability_with_ragged_alternatives():
    shares = metrics.normalised_probability([0.2, 0.5, 0.0], [[0.1, 0.1], [0.5], [0.0, 0.0]])
    assert shares == pytest.approx([0.5, 0.5, 0.0], rel=1e-9)


def test_truth_ratio_averages_losses_not_probabilities():
    # Wrong answers of probability 1/2 and 1/8: geometric mean 1/4, arithmetic 5/16. Correct 1/2. 1/4 / 1/2 = 1/2.
    ratio = metrics.truth_ratio([math.log(2)], [[math.log(2), math.log(8)]])
    assert ratio == pytest.approx([0.5], rel=1e-9)


def test_truth_ratio_of_the_papers_text_averages_probabilities():
    # Arithmetic mean of 1/2 and 1/8 is 5/16; over 1/2: 5/8. One wrong answer: both means are it.
    ratios = metrics.truth_ratio([math.log(2)] * 2, [[math.log(2), math.log(8)], [math.log(8)]], average="arithmetic")
    assert ratios == pytest.approx([0.625, 0.25], rel=1e-9)


def test_prob_mean_is_the_share_of_the_right_answer():
    # 1/2 beside a geometric mean of 1/4: 2/3. 1/8 beside 1/2: 1/5. All impossible: 0.
    correct, wrong = [math.log(2), math.log(8), 2000.0], [[math.log(2), math.log(8)], [math.log(2)], [2000.0]]
    assert metrics.prob_mean(correct, wrong) == pytest.approx((2 / 3 + 1 / 5 + 0) / 3, rel=1e-9)
    # The 1e-10 of the definition shows where probabilities are of its size.
    assert metrics.prob_mean([math.log(1e10)], [[math.log(1e10)]]) == pytest.approx(1 / 3)


def test_truth_ratio_of_impossible_answers_is_zero_and_bounded():
    assert metrics.truth_ratio([2000.0, 2000.0], [[2000.0], [0.0]]).tolist() == [0.0, 1e10]


def test_closer_to_one_takes_a_ratio_and_its_inverse_alike():
    assert metrics.closer_to_one([0.5, 2.0, 1.0]) == pytest.approx((0.5 + 0.5 + 1.0) / 3, rel=1e-9)
    assert metrics.closer_to_one([0.0]) == 0.0


def test_true_better_gives_nothing_to_a_preference_for_wrong_answers():
    assert metrics.true_better([0.25, 1.0, 7.0]) == pytest.approx(0.75 / 3)


def test_harmonic_mean():
    assert metrics.harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert metrics.harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    assert metrics.harmonic_mean([1e-310, 1.0]) == pytest.approx(2e-310)


def test_model_utility_is_the_harmonic_mean_of_nine():
    utility = metrics.model_utility([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.1])
    assert utility == pytest.approx(9 / (8 + 10))
    with pytest.raises(ValueError, match=r"3 \+ 2 \+ 3"):
        metrics.model_utility([1.0] * 3, [1.0] * 2, [1.0] * 3)


def test_forget_quality_of_separated_samples():
    # All of one sample below the other: of the C(6, 3) = 20 orders two are as extreme. p = 2/20.
    quality = metrics.forget_quality([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert quality.p_value == pytest.approx(0.1)
    assert quality.log10 == pytest.approx(-1.0)
    assert quality.statistic == 1.0


def test_forget_quality_ignores_order_and_increasing_maps():
    a, b = np.array([0.2, 0.9, 1.4, 3.0]), np.array([0.3, 0.5, 0.8, 1.1])
    plain = metrics.forget_quality(a, b)
    assert metrics.forget_quality(a[::-1], b) == plain
    assert metrics.forget_quality(1 / a, 1 / b).p_value == pytest.approx(plain.p_value)
    assert metrics.forget_quality(a, a).p_value == 1.0
    assert metrics.forget_quality(a, a).log10 == 0.0


def test_forget_quality_keeps_its_logarithm_below_the_smallest_double():
    low, high = np.linspace(0, 1, 600), np.linspace(2, 3, 600)
    quality = metrics.forget_quality(low, high)
    assert quality.p_value == 0.0
    assert quality.log10 == pytest.approx(math.log10(2) - _log10_binomial(1200, 600))
    # Just above the border the two ways to the logarithm meet.
    just = metrics.forget_quality(low[:500], high[:500])
    assert just.p_value > 0
    assert just.log10 == pytest.approx(math.log10(2) - _log10_binomial(1000, 500), rel=1e-9)


def _log10_binomial(n: int, k: int) -> float:
    return math.log10(math.comb(n, k) // 10**100) + 100


@pytest.mark.parametrize(
    ("hits", "expected", "compat"),
    [
        ([1, 1, 1, 1], 1.0, 1.0),
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 1, 0, 1], 0.25, 0.25),
        ([1, 1, 1, 0], 0.0, 0.25),
        ([0], 0.0, 1.0),
        ([1], 1.0, 1.0),
    ],
)
def test_extraction_strength(hits, expected, compat):
    assert metrics.extraction_strength(hits) == expected
    assert metrics.extraction_strength(hits, compat=True) == compat


def test_exact_memorization_counts_hits_anywhere():
    assert metrics.exact_memorization([1, 0, 1, 0, 0]) == pytest.approx(0.4)


def test_memorisation_of_no_token_is_an_error():
    with pytest.raises(ValueError, match="no answer token"):
        metrics.extraction_strength([])
    with pytest.raises(ValueError, match="no answer token"):
        metrics.exact_memorization([])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "metric",
    [
        lambda bad: metrics.probability([0.1, bad]),
        lambda bad: metrics.normalised_probability([bad], [[0.1]]),
        lambda bad: metrics.normalised_probability([0.1], [[bad]]),
        lambda bad: metrics.truth_ratio([bad], [[0.1]]),
        lambda bad: metrics.truth_ratio([0.1], [[0.1, bad]]),
        lambda bad: metrics.truth_ratio([0.1], [[bad]], average="arithmetic"),
        lambda bad: metrics.prob_mean([bad], [[0.1]]),
        lambda bad: metrics.prob_mean([0.1], [[0.1, bad]]),
        lambda bad: metrics.closer_to_one([bad]),
        lambda bad: metrics.true_better([bad]),
        lambda bad: metrics.harmonic_mean([1.0, bad]),
        lambda bad: metrics.model_utility([1.0] * 3, [1.0] * 3, [1.0, 1.0, bad]),
        lambda bad: metrics.forget_quality([bad], [1.0]),
        lambda bad: metrics.forget_quality([1.0], [bad]),
        lambda bad: metrics.mean([bad], "x"),
    ],
)
def test_nan_and_infinity_are_errors(metric, bad):
    with pytest.raises(ValueError, match="not finite"):
        metric(bad)


def test_other_inputs_out_of_range_are_errors():
    with pytest.raises(ValueError, match=r"at least 0, got -0\.5"):
        metrics.probability([-0.5])
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        metrics.normalised_probability([1.5], [[0.1]])
    with pytest.raises(ValueError, match="no values"):
        metrics.closer_to_one([])
    with pytest.raises(ValueError, match="2 and 1 items"):
        metrics.truth_ratio([0.1, 0.2], [[0.1]])
    with pytest.raises(ValueError, match="1 and 2 items"):
        metrics.prob_mean([0.1], [[0.1], [0.2]])
    with pytest.raises(ValueError, match="no values"):
        metrics.prob_mean([0.1], [[]])
    with pytest.raises(ValueError, match="expected a list of numbers"):
        metrics.finite(0.5, "x")
    with pytest.raises(ValueError, match="1 and 2 items"):
        metrics.forget_quality([1.0], [1.0, 2.0])
