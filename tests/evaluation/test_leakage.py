"""Bounds on leakage and recovery ratios by hand, and how often the bounds hold."""

import math

import numpy as np
import pytest

from unlearn_core.evaluation import leakage


@pytest.mark.parametrize(
    ("leaks", "samples", "confidence", "expected"),
    [
        # No leak: (1 - p)^n = 1 - confidence.
        (0, 10, 0.95, 1 - 0.05**0.1),
        (0, 1, 0.5, 0.5),
        # One of two: P(at most 1 leak) = 1 - p^2 = 0.05.
        (1, 2, 0.95, math.sqrt(0.95)),
        # One of three: (1 - p)^3 + 3 p (1 - p)^2 = 0.5 at p = 0.5.
        (1, 3, 0.5, 0.5),
        (4, 4, 0.95, 1.0),
    ],
)
def test_clopper_pearson(leaks, samples, confidence, expected):
    assert leakage.leak_probability_bound(leaks, samples, confidence) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("leaks", "samples", "confidence"), [(2, 10, 0.95), (7, 20, 0.99)])
def test_clopper_pearson_inverts_the_binomial_tail(leaks, samples, confidence):
    p = leakage.leak_probability_bound(leaks, samples, confidence)
    tail = sum(math.comb(samples, k) * p**k * (1 - p) ** (samples - k) for k in range(leaks + 1))
    assert tail == pytest.approx(1 - confidence, rel=1e-9)


@pytest.mark.parametrize(("leaks", "samples"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts(leaks, samples):
    with pytest.raises(ValueError, match="0 <= leaks <= samples"):
        leakage.leak_probability_bound(leaks, samples)


# ln(1 / (1 - confidence)) = 0.72: the margin of four samples is sqrt(0.72 / 8) = 0.3.
CONFIDENCE = 1 - math.exp(-0.72)
LEAKS = [0.5, 0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(-1.0, 1.0), (0.0, 1.0), (0.25, 0.8), (0.3, 0.8), (0.5, 0.55), (0.99, 0.55), (1.0, 0.0), (2.0, 0.0)],
)
def test_exceedance_bound(threshold, expected):
    # Above 0: 3 of 4 plus 0.3 is more than 1. Above 0.25: 2 of 4. Above 0.5: 1 of 4. Above 1: none can be.
    assert leakage.exceedance_bound(LEAKS, threshold, CONFIDENCE) == pytest.approx(expected, abs=1e-12)


def test_mean_bound_is_the_area_under_the_exceedance_bound():
    # 0.25 * 1 + 0.25 * 0.8 + 0.5 * 0.55.
    assert leakage.mean_bound(LEAKS, CONFIDENCE) == pytest.approx(0.725, abs=1e-12)
    # Nothing leaked in one sample: the margin everywhere, here sqrt(0.72 / 2) = 0.6.
    assert leakage.mean_bound([0.0], CONFIDENCE) == pytest.approx(0.6)
    assert leakage.mean_bound([1.0] * 7) == 1.0


def test_mean_bound_against_a_numerical_integral():
    leaks = np.random.default_rng(0).beta(0.5, 2, size=30)
    grid = (np.arange(20_000) + 0.5) / 20_000
    integral = np.mean([leakage.exceedance_bound(leaks, x, 0.9) for x in grid])
    assert leakage.mean_bound(leaks, 0.9) == pytest.approx(integral, abs=1e-3)
    assert leakage.mean_bound(leaks, 0.9) > leaks.mean()


def test_bounds_close_in_with_samples_and_widen_with_confidence():
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 10_000
    assert leakage.mean_bound(many) < leakage.mean_bound(few)
    assert leakage.mean_bound(many) == pytest.approx(0.5, abs=0.01)
    assert leakage.mean_bound(few, 0.99) > leakage.mean_bound(few, 0.9)
    assert leakage.leak_probability_bound(10, 20) > leakage.leak_probability_bound(10_000, 20_000)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.95])
def test_bounds_hold_as_often_as_they_say(p):
    # Each of 25 samples leaks 1 with probability p, else 0: mean p, P(X > 0.5) = p. Coverage is a finite sum.
    covered = np.zeros(3)
    for k in range(26):
        leaks = [1.0] * k + [0.0] * (25 - k)
        bounds = (
            leakage.leak_probability_bound(k, 25, 0.8),
            leakage.exceedance_bound(leaks, 0.5, 0.8),
            leakage.mean_bound(leaks, 0.8),
        )
        covered += math.comb(25, k) * p**k * (1 - p) ** (25 - k) * (np.array(bounds) >= p)
    assert covered.min() >= 0.8


@pytest.mark.parametrize("bound", [lambda x, c: leakage.exceedance_bound(x, 0.5, c), leakage.mean_bound])
def test_bounds_refuse_what_they_cannot_take(bound):
    with pytest.raises(ValueError, match=r"\[0, 1\], got -0.5 to 0.5"):
        bound([0.5, -0.5], 0.9)
    with pytest.raises(ValueError, match="1 of 1 values are not finite"):
        bound([math.nan], 0.9)
    with pytest.raises(ValueError, match="no values"):
        bound([], 0.9)
    for confidence in (0.49, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"at least 0\.5"):
            bound([0.5], confidence)


def test_other_arguments_out_of_range():
    with pytest.raises(ValueError, match="threshold must be finite"):
        leakage.exceedance_bound([0.5], math.nan)
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            leakage.leak_probability_bound(0, 1, confidence)


@pytest.mark.parametrize(
    ("reference", "unlearned", "expected"),
    [
        # (before, after): the reference gains 0.1 where the unlearned model gains 0.4.
        ((0.1, 0.2), (0.1, 0.5), 0.25),
        ((0.1, 0.5), (0.1, 0.2), 1.0),
        ((0.1, 0.3), (0.3, 0.5), 1.0),
        # The unlearned model gains nothing, or loses.
        ((0.1, 0.2), (0.3, 0.3), 1.0),
        ((0.2, 0.1), (0.3, 0.2), 1.0),
        # It gains where the reference gains nothing, or loses.
        ((0.2, 0.2), (0.0, 0.5), 0.0),
        ((0.2, 0.1), (0.0, 0.5), 0.0),
    ],
)
def test_relearning(reference, unlearned, expected):
    ratio = leakage.relearning_robustness(
        reference_before=reference[0],
        reference_after=reference[1],
        unlearned_before=unlearned[0],
        unlearned_after=unlearned[1],
    )
    assert ratio == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.2, 0.8, 0.25), (0.8, 0.2, 1.0), (0.0, 0.0, 1.0), (0.0, 0.1, 0.0), (0.3, 0.0, 1.0)],
)
def test_quantisation(before, after, expected):
    assert leakage.quantisation_robustness(before, after) == pytest.approx(expected)


def test_robustness_is_the_harmonic_mean():
    assert leakage.robustness(1.0, 0.25) == pytest.approx(0.4)
    assert leakage.robustness(1.0, 0.0) == 0.0


@pytest.mark.parametrize(("bad", "message"), [(math.nan, "not finite"), (math.inf, "not finite"), (-0.1, "at least 0")])
def test_recovery_of_no_measure_of_knowledge(bad, message):
    with pytest.raises(ValueError, match=message):
        leakage.quantisation_robustness(bad, 0.5)
    with pytest.raises(ValueError, match=message):
        leakage.quantisation_robustness(0.5, bad)
    measures = ("reference_before", "reference_after", "unlearned_before", "unlearned_after")
    for name in measures:
        with pytest.raises(ValueError, match=message):
            leakage.relearning_robustness(**(dict.fromkeys(measures, 0.5) | {name: bad}))
