import math

import numpy as np
import pytest
from gradient_draws import angle_cosine, combined, draws, gram, length
from scipy.optimize import minimize_scalar

from unlearn_core.combiners.cagrad import CAGrad, cagrad_weights
from unlearn_core.errors import UserError


def test_by_hand():
    # Equal lengths: z = (1/2, 1/2), g_z = g_0 = [1, 1], d = 1.5 g_0.
    assert combined(CAGrad(0.5), [2, 0], [0, 2]) == pytest.approx([1.5, 1.5])
    # g_0 = [0.5, 1.5]; the long gradient pulls z to the short one: d = g_0 + 0.5 sqrt(2.5) [1, 0].
    assert combined(CAGrad(0.5), [1, 0], [0, 3]) == pytest.approx([0.5 + 0.5 * math.sqrt(2.5), 1.5])
    assert combined(CAGrad(0.5, rescale=True), [2, 0], [0, 2]) == pytest.approx([1.2, 1.2])


def test_c_0_is_the_mean():
    for vectors in draws(3, count=5):
        assert combined(CAGrad(0), *vectors) == pytest.approx(vectors.mean(axis=0))
    assert combined(CAGrad(0), [2, 0], [-2, 0]).tolist() == [0, 0]


def test_a_large_c_turns_to_the_min_norm_direction():
    assert angle_cosine(combined(CAGrad(1e6), [1, 0], [0, 2]), np.array([0.8, 0.4])) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9, 2.0])
def test_two_objectives_against_a_search_in_one_dimension(c):
    for retain, forget in draws(count=30, spread=0.5):
        mean = (retain + forget) / 2

        def height(z, retain=retain, forget=forget, mean=mean):
            mixed = z * retain + (1 - z) * forget
            return mixed @ mean + c * length(mean) * length(mixed)

        found = minimize_scalar(height, bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
        best = min(found.fun, height(0.0), height(1.0))
        weights = cagrad_weights(gram(retain, forget), c)
        assert height(weights[0]) <= best + 1e-9 * abs(best)


@pytest.mark.parametrize("objectives", [2, 3, 4, 6])
@pytest.mark.parametrize("c", [0.3, 0.7, 1.5])
def test_duality_proves_the_optimum(objectives, c):
    """The worst progress of d equals the dual's height, so neither can be improved; d lies on the ball."""
    checked = 0
    for vectors in draws(objectives, count=20, spread=0.4):
        mean = vectors.mean(axis=0)
        z = cagrad_weights(gram(*vectors), c)
        mixed = z @ vectors
        height = mixed @ mean + c * length(mean) * length(mixed)
        d = combined(CAGrad(c), *vectors)
        scale = max(map(length, vectors)) ** 2
        assert (vectors @ d).min() == pytest.approx(height, abs=1e-7 * scale)
        if length(mixed) > 1e-3:
            assert length(d - mean) == pytest.approx(c * length(mean), rel=1e-6)
            checked += 1
    assert checked > 10


def test_zero_inside_the_hull_still_avoids_every_conflict():
    # The first two are opposite, so only the third can gain: g_0 = [0.1, 0.5] loses its x, within the ball c = 0.5.
    d = combined(CAGrad(0.5), [1.3, 0], [-1, 0], [0, 1.5])
    assert d == pytest.approx([0, 0.5])
    # All round: nothing can be done without conflict.
    assert combined(CAGrad(1.0), [1, 0], [-1, 1], [-1, -1.1]) == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("c", [-0.1, math.inf, math.nan])
def test_invalid_c(c):
    with pytest.raises(UserError, match="c is"):
        CAGrad(c)


def test_too_many_objectives():
    assert len(CAGrad().weights(np.eye(10), None, 0)) == 10
    with pytest.raises(UserError, match="11 objectives"):
        CAGrad().weights(np.eye(11), None, 0)
