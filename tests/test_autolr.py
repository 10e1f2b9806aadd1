import json
import math

import numpy as np
import pytest

from unlearn_core.autolr import ACCEPTED, CURVATURE, NOISE, NOT_FINITE, SLOPE, AutoRate, Probe, fit, ulp_noise
from unlearn_core.errors import UserError


def parabola(slope, curvature, span, middle=2.0):
    """The probe of L_0 - eta G + eta^2/2 H, whose minimum is at G/H."""
    bend = curvature * span**2 / 2
    return Probe(span, middle + slope * span + bend, middle, middle - slope * span + bend)


def test_fit_by_hand():
    # L(eta) = (eta - 3)^2 around eta = 0, span 1: 16, 9, 4. G = 6, H = 2, minimum at 3.
    assert fit(Probe(1.0, 16.0, 9.0, 4.0)) == (6.0, 2.0)
    # A step backward raises the loss where a step ahead lowers it; exchanged, the slope turns round.
    assert fit(Probe(1.0, 4.0, 9.0, 16.0)) == (-6.0, 2.0)


@pytest.mark.parametrize("span", [1e-3, 0.1, 1.0, 50.0])
def test_exact_on_random_quadratics_from_any_span(span):
    generator = np.random.default_rng(7)
    for _ in range(20):
        root = generator.normal(size=(6, 6))
        hessian, linear, theta = root @ root.T, *generator.normal(size=(2, 6))

        def loss(point, hessian=hessian, linear=linear):
            return float(0.5 * point @ hessian @ point + linear @ point)

        d = hessian @ theta + linear
        slope, curvature = fit(Probe(span, loss(theta + span * d), loss(theta), loss(theta - span * d)))
        assert slope == pytest.approx(d @ d, rel=1e-7)
        assert curvature == pytest.approx(d @ hessian @ d, rel=1e-6)
        optimum = (d @ d) / (d @ hessian @ d)
        assert slope / curvature == pytest.approx(optimum, rel=1e-6)
        # The rate itself, before clipping and smoothing.
        rate = AutoRate(optimum * 37, first_unsmoothed=True, span=span)
        verdict = rate.update(Probe(span, loss(theta + span * d), loss(theta), loss(theta - span * d)), 0.0)
        assert verdict.target == pytest.approx(optimum, rel=1e-6)
        assert rate.rate == verdict.target


@pytest.mark.parametrize("span", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_span(span):
    with pytest.raises(ValueError, match="span"):
        fit(Probe(span, 1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("target", "factor"),
    [(2e-3, 1.1), (1.0, 1.1), (0.5e-3, 0.95), (1e-9, 0.95), (1e-3, 1.0), (1.5e-3, 1.05), (0.8e-3, 0.98)],
)
def test_one_probe_moves_the_rate_by_minus_5_to_plus_10_percent(target, factor):
    rate = AutoRate(1e-3)
    verdict = rate.update(parabola(target, 1.0, 1e-3, middle=0.0), 0.0)
    assert (verdict.outcome, verdict.accepted) == (ACCEPTED, True)
    assert verdict.target == pytest.approx(target, rel=1e-6)
    assert rate.rate == pytest.approx(factor * 1e-3, rel=1e-9)
    assert verdict.rate == rate.rate


def test_clip_and_smoothing_are_settings():
    rate = AutoRate(1.0, smoothing=0.5, clip=4.0)
    rate.update(parabola(100.0, 1.0, 1.0), 0.0)  # 0.5 + 0.5 * 4
    assert rate.rate == pytest.approx(2.5)
    at_once = AutoRate(1.0, smoothing=0.0, clip=4.0)
    at_once.update(parabola(3.0, 1.0, 1.0), 0.0)
    assert at_once.rate == pytest.approx(3.0)


def test_only_the_first_accepted_probe_is_unsmoothed():
    rate = AutoRate(1e-5, first_unsmoothed=True, maximum=0.5)
    rate.update(parabola(-1.0, 1.0, 1e-2), 0.0)  # a refusal is not the first
    assert rate.rate == 1e-5
    rate.update(parabola(0.1, 1.0, 1e-2), 0.0)
    assert rate.rate == pytest.approx(0.1)
    rate.update(parabola(100.0, 1.0, 1e-2), 0.0)
    assert rate.rate == pytest.approx(0.11)
    bounded = AutoRate(1e-5, first_unsmoothed=True, maximum=0.5)
    bounded.update(parabola(100.0, 1.0, 1e-2), 0.0)
    assert bounded.rate == 0.5


def test_the_rate_stays_between_minimum_and_maximum():
    rate = AutoRate(1.0, minimum=0.97, maximum=1.05)
    rate.update(parabola(100.0, 1.0, 1.0), 0.0)
    assert rate.rate == 1.05
    for _ in range(3):
        rate.update(parabola(1e-3, 1.0, 1.0), 0.0)
    assert rate.rate == 0.97


@pytest.mark.parametrize(
    ("probe", "noise", "outcome"),
    [
        (parabola(-1.0, 1.0, 0.1), 0.0, SLOPE),
        (parabola(0.0, 1.0, 0.1), 0.0, SLOPE),
        (parabola(1.0, -1.0, 0.1), 0.0, CURVATURE),
        (Probe(0.1, 2.5, 2.0, 1.5), 0.0, CURVATURE),  # straight: H = 0
        (Probe(0.1, math.nan, 2.0, 1.0), 0.0, NOT_FINITE),
        (Probe(0.1, math.inf, 2.0, 1.0), 0.0, NOT_FINITE),
        (Probe(0.1, 2.0, 1.0, -math.inf), math.inf, NOT_FINITE),
        (Probe(1e-200, 3.0, 1.0, 1.0), 0.0, NOT_FINITE),  # the curvature overflows
        (parabola(1.0, 1.0, 0.1), 2e-3, NOISE),  # second difference 0.01: at most 1e-3
        (parabola(-1.0, -1.0, 0.1), 2e-3, NOISE),
        (Probe(0.1, 2.5, 2.0, 1.5), 1e-9, NOISE),
        (parabola(1.0, 1.0, 0.1), math.nan, NOISE),
    ],
)
def test_a_refused_probe_leaves_the_rate(probe, noise, outcome):
    rate = AutoRate(0.3)
    verdict = rate.update(probe, noise)
    assert (verdict.outcome, verdict.accepted, verdict.rate, verdict.target) == (outcome, False, 0.3, None)
    assert rate.rate == 0.3
    assert rate.counts[outcome] == 1
    assert sum(rate.counts.values()) == 1


def test_noise_at_the_tolerance_is_taken():
    # Second difference exactly 0.25 = H s^2 with H = 1, s = 0.5.
    assert AutoRate(0.3, noise_tolerance=0.25).update(parabola(1.0, 1.0, 0.5), 0.0625).accepted
    assert not AutoRate(0.3, noise_tolerance=0.25).update(parabola(1.0, 1.0, 0.5), 0.0626).accepted


def test_halving_after_refusals_in_a_row():
    rate = AutoRate(1.0, halve_after=2, minimum=0.3)
    bad, good, noisy = parabola(-1.0, 1.0, 0.1), parabola(1.0, 1.0, 0.1), parabola(1.0, 1e-9, 0.1)
    rate.update(bad, 0.0)
    assert rate.rate == 1.0
    rate.update(good, 0.0)  # target 1: the rate stays, the row is broken
    rate.update(bad, 0.0)
    assert rate.rate == pytest.approx(1.0)
    assert rate.update(noisy, 1.0).outcome == NOISE  # neither counts nor interrupts
    assert rate.rate == pytest.approx(1.0)
    assert rate.update(bad, 0.0).rate == pytest.approx(0.5)
    rate.update(bad, 0.0)
    assert rate.rate == pytest.approx(0.5)
    rate.update(bad, 0.0)
    assert rate.rate == 0.3
    assert rate.counts["halved"] == 2


def test_never_halved_by_default():
    rate = AutoRate(1.0)
    for _ in range(50):
        rate.update(parabola(-1.0, 1.0, 0.1), 0.0)
    assert rate.rate == 1.0


def test_when_and_how_far_to_probe():
    rate = AutoRate(1e-4, every=10)
    assert [step for step in range(25) if rate.due(step)] == [0, 10, 20]
    assert rate.span_at() == 1e-4
    rate.update(parabola(1.0, 1.0, 1e-4), 0.0)
    assert rate.span_at() == rate.rate == pytest.approx(1.1e-4)
    assert AutoRate(1e-4, span=0.02).span_at() == 0.02


def test_ulp_noise():
    assert ulp_noise(1.0) == 4 * 2.0**-23
    assert ulp_noise(1.99) == 4 * 2.0**-23
    assert ulp_noise(-2.0) == 8 * 2.0**-23
    assert ulp_noise(0.75) == 2 * 2.0**-23
    assert ulp_noise(3.0, 2.0**-7) == 8 * 2.0**-7
    assert ulp_noise(0.0) == 0.0
    assert ulp_noise(math.nan) == ulp_noise(-math.inf) == math.inf
    for loss in (0.013, 1.7, 12.0):
        assert ulp_noise(loss) == pytest.approx(4 * float(np.spacing(np.float32(loss))))


def test_a_second_difference_of_rounded_losses_stays_within_the_noise():
    generator = np.random.default_rng(2)
    for _ in range(300):
        middle = generator.uniform(0.5, 4.0)
        slope, curvature = generator.uniform(0, 1e-4, size=2)
        exact = Probe(1.0, middle + slope + curvature / 2, middle, middle - slope + curvature / 2)
        rounded = Probe(1.0, *(float(np.float32(x)) for x in (exact.loss_back, exact.loss, exact.loss_ahead)))
        assert abs(rounded.second_difference - exact.second_difference) <= ulp_noise(middle)


def test_a_saved_state_continues_bit_for_bit():
    def probes(first, last):
        for index in range(first, last):
            generator = np.random.default_rng(index)
            yield parabola(generator.normal(), generator.normal(), 0.1)

    def follow(rate, first, last):
        return [rate.update(probe, 0.0) for probe in probes(first, last)]

    settings = {"halve_after": 2, "first_unsmoothed": True}
    whole = AutoRate(0.3, **settings)
    expected = follow(whole, 0, 40)
    assert len({verdict.outcome for verdict in expected}) == 3  # accepted and both refusals occur
    for stop in (1, 7, 20):
        stopped = AutoRate(0.3, **settings)
        follow(stopped, 0, stop)
        resumed = AutoRate(0.3, **settings)
        resumed.load_state(json.loads(json.dumps(stopped.state())))
        assert follow(resumed, stop, 40) == expected[stop:]
        assert resumed.counts == whole.counts
    with pytest.raises(UserError, match="Resume with the settings"):
        whole.load_state({"rate": 1.0})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"rate": 1.0, "maximum": 0.5}, "rate"),
        ({"rate": 1.0, "minimum": 2.0}, "rate"),
        ({"rate": 1.0, "minimum": -1.0}, "minimum"),
        ({"rate": 1.0, "minimum": 2.0, "maximum": 1.5}, "maximum"),
        ({"rate": 1.0, "every": 0}, "every"),
        ({"rate": 1.0, "span": 0.0}, "span"),
        ({"rate": 1.0, "smoothing": 1.0}, "smoothing"),
        ({"rate": 1.0, "smoothing": -0.1}, "smoothing"),
        ({"rate": 1.0, "clip": 0.9}, "clip"),
        ({"rate": 1.0, "noise_tolerance": 0.0}, "noise_tolerance"),
        ({"rate": 1.0, "halve_after": -1}, "halve_after"),
    ],
)
def test_invalid_settings(settings, named):
    with pytest.raises(UserError, match=f"^{named} of"):
        AutoRate(**settings)
