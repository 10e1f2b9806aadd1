import numpy as np
import pytest

from unlearn_core.combine import clip_factor, combined_norm, cosine


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
