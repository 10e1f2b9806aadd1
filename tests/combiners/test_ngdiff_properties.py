"""P1 to P14 of g = g_R/|g_R| - g_F/|g_F|, with rho the cosine of g_R and g_F (both of the positive loss)."""

import math

import numpy as np
import pytest
from gradient_draws import angle_cosine, combined, draws, gram, length

from unlearn_core.autolr import Probe, fit
from unlearn_core.combiners.bisector import Bisector
from unlearn_core.combiners.weighted import WeightedSum

PAIRS = list(draws())


def ngdiff(retain, forget):
    """The forget loss is maximised, so the combiner is given the opposite of its gradient."""
    return combined(Bisector(), retain, -np.asarray(forget))


def static(c, retain, forget):
    return combined(WeightedSum([c, 1 - c]), retain, -np.asarray(forget))


def quadratics(count=30):
    """(loss, gradient, Hessian, theta) of pairs of random quadratics, some of them not convex."""
    generator = np.random.default_rng(3)
    for index in range(count):
        pair = []
        for _ in range(2):
            root = generator.normal(size=(5, 5))
            hessian = root @ root.T if index % 2 else root + root.T
            pair.append((hessian, generator.normal(size=5)))
        yield pair, generator.normal(size=5)


def value(quadratic, theta):
    hessian, linear = quadratic
    return float(0.5 * theta @ hessian @ theta + linear @ theta)


def slope(quadratic, theta):
    hessian, linear = quadratic
    return hessian @ theta + linear


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p1_the_retain_loss_falls_to_first_order(retain, forget):
    rho = angle_cosine(retain, forget)
    product = ngdiff(retain, forget) @ retain
    assert product == pytest.approx(length(retain) * (1 - rho), rel=1e-6)
    assert product >= 0


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p2_the_forget_loss_rises_to_first_order(retain, forget):
    rho = angle_cosine(retain, forget)
    product = ngdiff(retain, forget) @ forget
    assert product == pytest.approx(-length(forget) * (1 - rho), rel=1e-6)
    assert product <= 0


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p3_the_length_is_at_most_two(retain, forget):
    square = length(ngdiff(retain, forget)) ** 2
    assert square == pytest.approx(2 * (1 - angle_cosine(retain, forget)), rel=1e-6)
    assert square <= 4 * (1 + 1e-12)


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p4_lengths_do_not_matter(retain, forget):
    assert ngdiff(1e3 * retain, 1e-4 * forget) == pytest.approx(ngdiff(retain, forget), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p5_it_bisects(retain, forget):
    expected = math.sqrt((1 - angle_cosine(retain, forget)) / 2)
    d = ngdiff(retain, forget)
    assert angle_cosine(d, retain) == pytest.approx(expected, rel=1e-6)
    assert angle_cosine(d, forget) == pytest.approx(-expected, rel=1e-6)


def test_p6_zero_only_where_the_gradients_point_the_same_way():
    assert ngdiff([1.0, 2.0], [3.0, 6.0]) == pytest.approx([0, 0], abs=1e-15)
    assert length(ngdiff([1.0, 2.0], [3.0, 6.1])) > 1e-3
    assert length(ngdiff([1.0, 2.0], [-3.0, -6.0])) == pytest.approx(2)


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p7_swapping_the_roles_turns_it_round(retain, forget):
    assert ngdiff(forget, retain) == pytest.approx(-ngdiff(retain, forget), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p8_it_is_graddiff_with_a_weight_that_follows_the_norms(retain, forget):
    c = length(forget) / (length(retain) + length(forget))
    scale = length(retain) * length(forget) / (length(retain) + length(forget))
    assert static(c, retain, forget) == pytest.approx(scale * ngdiff(retain, forget), rel=1e-6, abs=1e-9 * scale)


def test_p9_graddiff_can_raise_the_retain_loss_where_ngdiff_cannot():
    retain, forget = np.array([1.0, 0.0]), np.array([1.8, 2.4])
    assert combined(WeightedSum([1, 1]), retain, -forget) @ retain == pytest.approx(-0.8)
    # |g_F| = 3, rho = 0.6: d = [1, 0] - [0.6, 0.8].
    assert ngdiff(retain, forget) @ retain == pytest.approx(0.4)


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_p9_exactly_when_graddiff_keeps_both_signs(c):
    kept = []
    for retain, forget in draws(count=200, spread=0.5, dimension=3):
        rho = angle_cosine(retain, forget)
        ratio = c * length(retain) / ((1 - c) * length(forget))
        d = static(c, retain, forget)
        kept.append(bool(d @ retain >= 0 >= d @ forget))
        assert kept[-1] == (rho <= 0 or rho <= ratio <= 1 / rho)
    assert 20 < sum(kept) < 180  # both answers occur


@pytest.mark.parametrize(("pair", "theta"), list(quadratics()))
def test_p10_the_range_of_rates_that_help(pair, theta):
    retain, forget = pair
    g_retain, g_forget = slope(retain, theta), slope(forget, theta)
    d = ngdiff(g_retain, g_forget)
    rho = angle_cosine(g_retain, g_forget)

    def change(quadratic, rate):
        return value(quadratic, theta - rate * d) - value(quadratic, theta)

    bend = d @ retain[0] @ d
    if bend > 0:
        limit = 2 * (g_retain @ d) / bend
        assert change(retain, 0.999 * limit) < 0 < change(retain, 1.001 * limit)
    else:
        assert all(change(retain, rate) < 0 for rate in (1e-3, 1.0, 100.0))
    bend = d @ forget[0] @ d
    if bend >= 0:
        assert all(change(forget, rate) > 0 for rate in (1e-3, 1.0, 100.0))
    else:
        limit = 2 * length(g_forget) * (1 - rho) / -bend
        assert change(forget, 0.999 * limit) > 0 > change(forget, 1.001 * limit)


@pytest.mark.parametrize(("pair", "theta"), list(quadratics())[1::2])
def test_p11_the_fall_of_the_retain_loss_at_the_fitted_rate(pair, theta):
    retain, forget = pair
    g_retain = slope(retain, theta)
    d = ngdiff(g_retain, slope(forget, theta))
    probe = Probe(0.3, value(retain, theta + 0.3 * d), value(retain, theta), value(retain, theta - 0.3 * d))
    gradient, curvature = fit(probe)
    fall = value(retain, theta) - value(retain, theta - gradient / curvature * d)
    assert fall == pytest.approx((g_retain @ d) ** 2 / (2 * d @ retain[0] @ d), rel=1e-9)


@pytest.mark.parametrize("stretch", [1e-3, 0.5, 40.0])
@pytest.mark.parametrize(("pair", "theta"), list(quadratics(8))[1::2])
def test_p12_the_fitted_step_ignores_the_length_of_the_direction(pair, theta, stretch):
    retain, forget = pair
    d = ngdiff(slope(retain, theta), slope(forget, theta))

    def step(direction):
        span = 0.7 / length(direction)
        ahead, back = value(retain, theta - span * direction), value(retain, theta + span * direction)
        gradient, curvature = fit(Probe(span, back, value(retain, theta), ahead))
        return gradient / curvature * direction

    assert step(stretch * d) == pytest.approx(step(d), rel=1e-9)


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_p13_a_minimiser_of_a_static_sum_is_pareto_optimal(c):
    generator = np.random.default_rng(5)
    losses_N2 = generator.uniform(size=(300, 2)) * [1, -1]  # (L_R, -L_F): both to be small

    def dominated(index):
        better = losses_N2 <= losses_N2[index]
        return bool(np.any(better.all(axis=1) & (losses_N2 < losses_N2[index]).any(axis=1)))

    sums_N = losses_N2 @ WeightedSum([c, 1 - c]).weights(None, None, 0)
    assert not dominated(int(np.argmin(sums_N)))
    assert dominated(int(np.argmax(sums_N)))


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_p14_nash_bargaining_has_the_same_direction(retain, forget):
    rho = angle_cosine(retain, forget)
    vectors = np.array([retain, -forget])
    nash = Bisector().weights(gram(*vectors), None, 0) / math.sqrt(1 - rho)
    assert gram(*vectors) @ nash == pytest.approx(1 / nash, rel=1e-6)  # the bargaining condition G w = 1/w
    assert length(nash @ vectors) == pytest.approx(math.sqrt(2), rel=1e-6)
