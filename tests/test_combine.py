import math

import numpy as np
import pytest

from unlearn_core.combine import clip_factor, combined_norm, cosine, ngdiff, weighted_sum

RETAIN, FORGET = 0, 1


def gram(*vectors):
    stacked = np.array(vectors, dtype=np.float64)
    return stacked @ stacked.T


def direction(weights, *vectors):
    return weights @ np.array(vectors, dtype=np.float64)


def draws(count=50):
    """Random gradient pairs of very different lengths, some nearly parallel."""
    generator = np.random.default_rng(0)
    for index in range(count):
        retain, forget = generator.normal(size=(2, 7)) * 10.0 ** generator.uniform(-2, 2, size=(2, 1))
        if index % 3 == 0:
            forget = retain * generator.uniform(0.1, 10) + 1e-3 * forget * np.linalg.norm(retain) / np.linalg.norm(
                forget
            )
        yield retain, forget


def test_by_hand():
    # g_R = [3, 4] has norm 5, g_F = [1, 0] norm 1: d = [0.6, 0.8] - [1, 0].
    weights = ngdiff(gram([3, 4], [1, 0]))
    assert weights == pytest.approx([0.2, -1.0])
    assert direction(weights, [3, 4], [1, 0]) == pytest.approx([-0.4, 0.8])
    # g_R = [0, 2], g_F = [0, -4]: opposite, so d = [0, 2], the longest possible.
    assert direction(ngdiff(gram([0, 2], [0, -4])), [0, 2], [0, -4]) == pytest.approx([0, 2])


def test_a_zero_gradient_drops_its_term():
    assert ngdiff(gram([0, 0], [0, 5])).tolist() == [0.0, -0.2]
    assert ngdiff(gram([0, 5], [0, 0])).tolist() == [0.2, 0.0]
    assert ngdiff(gram([0, 0], [0, 0])).tolist() == [0.0, 0.0]


def test_a_gradient_of_mere_rounding_drops_too_but_a_small_one_does_not():
    assert ngdiff(gram([1, 0], [0, 1e-13])).tolist() == [1.0, 0.0]
    assert ngdiff(gram([1, 0], [0, 1e-11])) == pytest.approx([1.0, -1e11])
    assert ngdiff(gram([1e-30, 0], [0, 1e-30])) == pytest.approx([1e30, -1e30])  # both small: what counts is the ratio


@pytest.mark.parametrize(("retain", "forget"), list(draws()))
def test_properties_p1_to_p5(retain, forget):
    rho = retain @ forget / np.linalg.norm(retain) / np.linalg.norm(forget)
    d = direction(ngdiff(gram(retain, forget)), retain, forget)
    length = np.linalg.norm(d)
    # P1, P2: to first order the retain loss falls and the forget loss rises, equally in units of their own slopes.
    assert d @ retain == pytest.approx(np.linalg.norm(retain) * (1 - rho), rel=1e-6)
    assert d @ forget == pytest.approx(-np.linalg.norm(forget) * (1 - rho), rel=1e-6)
    assert d @ retain >= 0 >= d @ forget
    # P3
    assert length**2 == pytest.approx(2 * (1 - rho), rel=1e-6)
    assert 0 <= length <= 2
    # P4
    again = direction(ngdiff(gram(1e3 * retain, 1e-4 * forget)), 1e3 * retain, 1e-4 * forget)
    assert again == pytest.approx(d, rel=1e-6, abs=1e-9)
    # P5: it bisects g_R and -g_F.
    assert d @ retain / np.linalg.norm(retain) / length == pytest.approx(math.sqrt((1 - rho) / 2), rel=1e-6)
    assert d @ forget / np.linalg.norm(forget) / length == pytest.approx(-math.sqrt((1 - rho) / 2), rel=1e-6)
    # P7: swapping the roles turns it round.
    assert direction(ngdiff(gram(forget, retain)), forget, retain) == pytest.approx(-d, rel=1e-6, abs=1e-9)


def test_p6_no_step_where_both_gradients_agree():
    parallel = ([1.0, 2.0], [3.0, 6.0])
    assert direction(ngdiff(gram(*parallel)), *parallel) == pytest.approx([0, 0], abs=1e-15)
    nearly = ([1.0, 2.0], [3.0, 6.1])
    assert np.linalg.norm(direction(ngdiff(gram(*nearly)), *nearly)) > 1e-3


def test_p9_graddiff_can_raise_the_retain_loss_where_ngdiff_cannot():
    retain, forget = np.array([1.0, 0.0]), np.array([1.8, 2.4])
    graddiff = direction(weighted_sum(np.array([1.0, -1.0])), retain, forget)
    assert graddiff @ retain == pytest.approx(-0.8)
    # |g_F| = 3, rho = 0.6: d = [1, 0] - [0.6, 0.8], and <d, g_R> = 1 - rho = 0.4.
    assert direction(ngdiff(gram(retain, forget)), retain, forget) @ retain == pytest.approx(0.4)


def test_clip_factor_by_hand():
    weights = np.array([1.0, -1.0])
    matrix = gram([3, 4], [0, 0])  # |d| = 5
    assert clip_factor(matrix, weights, 1.0) == pytest.approx(0.2)
    assert clip_factor(matrix, weights, 2.5) == pytest.approx(0.5)
    assert clip_factor(matrix, weights, 5.0) == 1.0
    assert clip_factor(matrix, weights, 7.0) == 1.0
    assert clip_factor(matrix, weights, 0.0) == 1.0  # off
    assert clip_factor(gram([0, 0], [0, 0]), weights, 1.0) == 1.0


def test_combined_norm_is_the_norm_of_the_combined_vector():
    for retain, forget in draws(9):
        weights = np.array([2.0, -0.5])
        expected = np.linalg.norm(direction(weights, retain, forget))
        assert combined_norm(gram(retain, forget), weights) == pytest.approx(expected, rel=1e-6)
    # Rounding can leave w'Gw a little below zero.
    assert combined_norm(np.array([[1.0, 1 + 1e-16], [1 + 1e-16, 1.0 - 1e-15]]), np.array([1.0, -1.0])) == 0.0


def test_cosine():
    matrix = gram([3, 4], [1, 0], [0, 0], [-6, -8])
    assert cosine(matrix, 0, 1) == pytest.approx(0.6)
    assert cosine(matrix, 0, 3) == -1.0
    assert cosine(matrix, 0, 2) == 0.0
