import itertools
import math

import numpy as np
import pytest
from gradient_draws import combined, draws, gram, length

from unlearn_core.combiners import min_norm
from unlearn_core.combiners.min_norm import MinNorm, faces, min_norm_weights
from unlearn_core.errors import UserError


def assert_optimal(vectors, weights, tolerance):
    """KKT: <d, g_k> >= |d|^2 for all k, with equality where the weight is above 0."""
    assert np.all(weights >= 0)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    d = weights @ vectors
    slack = vectors @ d - d @ d
    assert np.all(slack >= -tolerance)
    assert np.all(weights * slack <= tolerance)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        (([1, 0], [0, 2]), [0.8, 0.2]),  # w_0 = (4 - 0)/(1 + 4)
        (([1, 0], [3, 1]), [1, 0]),  # clipped: (10 - 3)/(1 + 10 - 6) = 7/5
        (([3, 1], [1, 0]), [0, 1]),
        (([1, 0], [-3, 0]), [0.75, 0.25]),
        (([1, 1], [1, 1]), [0.5, 0.5]),
        (([5, 5],), [1]),
        (([1, 0, 0], [0, 2, 0], [0, 0, 2]), [2 / 3, 1 / 6, 1 / 6]),  # at right angles: in proportion to 1/|g|^2
        (([1, 0], [0, 1], [3, 3]), [0.5, 0.5, 0]),
        (([1, 0], [-1, 1], [-1, -1]), [0.5, 0.25, 0.25]),  # zero lies inside
        (([1, 0], [0, 0], [0, 1]), [0, 1, 0]),
    ],
)
def test_by_hand(vectors, expected):
    assert min_norm_weights(gram(*vectors)) == pytest.approx(expected, abs=1e-12)


def test_all_zero():
    assert min_norm_weights(np.zeros((3, 3))) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("objectives", [2, 3, 4, 5, 6])
def test_the_optimality_conditions_exactly(objectives):
    for vectors in draws(objectives, count=30, dimension=9):
        weights = min_norm_weights(gram(*vectors))
        d = weights @ vectors
        shortest = min(map(length, vectors))
        assert_optimal(vectors / shortest, weights, 1e-9 * max(map(length, vectors)) / shortest)
        assert length(d) <= shortest * (1 + 1e-12)


@pytest.mark.parametrize("objectives", [3, 5])
def test_more_objectives_than_dimensions(objectives):
    """Affinely dependent gradients, zero often inside their hull."""
    inside = 0
    for vectors in draws(objectives, count=40, dimension=2, spread=0.3):
        weights = min_norm_weights(gram(*vectors))
        assert_optimal(vectors, weights, 1e-8)
        inside += length(weights @ vectors) < 1e-7
    assert 3 < inside < 40


@pytest.mark.parametrize("objectives", [7, 12])
def test_frank_wolfe_beyond_the_enumeration(objectives):
    for vectors in draws(objectives, count=10, dimension=20, spread=0.3):
        vectors = vectors / max(map(length, vectors))
        assert_optimal(vectors, min_norm_weights(gram(*vectors)), 2e-12)


def test_frank_wolfe_agrees_with_the_enumeration(monkeypatch):
    sets = list(draws(5, count=10, spread=0.3))
    exact = [min_norm_weights(gram(*vectors)) for vectors in sets]
    monkeypatch.setattr(min_norm, "ENUMERATED", 2)
    for vectors, weights in zip(sets, exact, strict=True):
        assert min_norm_weights(gram(*vectors)) @ vectors == pytest.approx(weights @ vectors, abs=1e-7)


def test_faces_are_all_subsets_but_the_empty_one():
    assert list(faces(3)) == [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]]


@pytest.mark.parametrize(("retain", "forget"), list(draws()))
def test_it_never_conflicts(retain, forget):
    d = combined(MinNorm(), retain, forget)
    tolerance = 1e-9 * length(retain) * length(forget)
    assert d @ retain >= -tolerance
    assert d @ forget >= -tolerance


def test_normalised_by_hand():
    # Unit gradients [1, 0] and [0, 1]: halves, so [0.5, 0.5].
    assert combined(MinNorm("l2"), [4, 0], [0, 0.1]) == pytest.approx([0.5, 0.5])
    assert combined(MinNorm("l2"), [4, 0], [0, 0.1], [0, 0]) == pytest.approx([0.5, 0.5])
    # Three: [1,0], [0,1], [-1,0] holds zero between first and last.
    assert combined(MinNorm("l2"), [4, 0], [0, 0.1], [-2, 0]) == pytest.approx([0, 0], abs=1e-12)


def test_rescaled_to_the_mean_length():
    for vectors in draws(3, count=9, spread=0.5):
        plain, rescaled = combined(MinNorm(), *vectors), combined(MinNorm(rescale=True), *vectors)
        mean = sum(map(length, vectors)) / 3
        if length(plain) > 1e-6:
            assert rescaled == pytest.approx(plain * mean / length(plain), rel=1e-6)
    # [1, 0] and [0, 2]: w = (0.8, 0.2), d = [0.8, 0.4], |d| = sqrt(0.8), mean length 1.5.
    factor = 1.5 / math.sqrt(0.8)
    assert combined(MinNorm(rescale=True), [1, 0], [0, 2]) == pytest.approx([0.8 * factor, 0.4 * factor])
    assert combined(MinNorm("l2", rescale=True), [1, 0], [0, 3], [0, 0]) == pytest.approx([math.sqrt(2)] * 2)


def test_rescaling_does_not_blow_up_rounding():
    drawn = next(itertools.islice(draws(), 1, None))[0]
    assert combined(MinNorm(rescale=True), drawn, -3.7 * drawn).tolist() == [0] * len(drawn)
    assert combined(MinNorm(rescale=True), [1, 0], [0, 1e-13]).tolist() == [0, 0]


def test_preferences_share_the_progress():
    for normalize in ("none", "l2"):
        # At right angles every weight is above 0, so <d, g_k>, or <d, g_k/|g_k|> with "l2", goes in proportion to r_k.
        d = combined(MinNorm(normalize, preferences_K=[3, 1]), [2, 0], [0, 5])
        progress = d * [2, 5] if normalize == "none" else d
        assert progress[0] / progress[1] == pytest.approx(3)
    # By hand: g/3 = [2/3, 0], h = [0, 5]: lambda_0 = 25/(25 + 4/9), weight_0 = lambda_0/3.
    weights = MinNorm(preferences_K=[3, 1]).weights(gram([2, 0], [0, 5]), None, 0)
    share = 25 / (25 + 4 / 9)
    assert weights == pytest.approx([share / 3, 1 - share])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"normalize": "l1"}, "normalize"),
        ({"preferences_K": [1, 0]}, "preferences"),
        ({"preferences_K": [1, math.nan]}, "preferences"),
        ({"preferences_K": [1, math.inf]}, "preferences"),
    ],
)
def test_invalid_settings(settings, named):
    with pytest.raises(UserError, match=named):
        MinNorm(**settings)


def test_preferences_for_another_number_of_objectives():
    with pytest.raises(ValueError, match="is for 3"):
        MinNorm(preferences_K=[1, 1, 1]).weights(gram([1, 0], [0, 1]), None, 0)
