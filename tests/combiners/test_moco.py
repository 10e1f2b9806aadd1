import math

import numpy as np
import pytest
from gradient_draws import draws, gram

from unlearn_core.combiners.combiner import Tracking
from unlearn_core.combiners.min_norm import min_norm_weights
from unlearn_core.combiners.moco import MoCo, project_to_simplex
from unlearn_core.errors import UserError


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.3, 0.5], [0.4, 0.6]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([0.9, 0.7, -5.0], [0.6, 0.4, 0.0]),
        ([-1.0, -1.0, -1.0], [1 / 3] * 3),
        ([1e9, 1e9], [0.5, 0.5]),
        ([7.0], [1.0]),
    ],
)
def test_projection_by_hand(point, expected):
    assert project_to_simplex(np.array(point)) == pytest.approx(expected)


def test_the_projection_is_the_nearest_point():
    generator = np.random.default_rng(0)
    for _ in range(50):
        point = generator.normal(size=4) * 2
        nearest = project_to_simplex(point)
        assert nearest.sum() == pytest.approx(1)
        assert np.all(nearest >= 0)
        # Variational inequality of a projection on a convex set: no vertex lies on the point's side.
        assert np.all((np.eye(4) - nearest) @ (point - nearest) <= 1e-12)


def test_tracking_and_weights_by_hand():
    combiner = MoCo(2, beta=0.5, gamma=0.1)
    assert combiner.tracked == (Tracking(0, replaces=True), Tracking(1, replaces=True))
    gradients = [np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])]
    averages = gradients[0]  # the first step takes the gradient as it is
    # Y'Y = diag(1, 4), lambda - 0.1 (0.5, 2) = (0.45, 0.3), and 0.125 to each brings the sum to 1.
    assert combiner.weights(gram(*averages), None, 0) == pytest.approx([0.575, 0.425])
    for objective in range(2):
        rate = combiner.tracking_rate(objective, 1)
        averages[objective] += rate * (gradients[1][objective] - averages[objective])
    assert averages.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    # Y'Y = [[0.5, 0.5], [0.5, 1]]: slopes 0.5, 0.7125; (0.525, 0.35375) is 0.12125 short of sum 1.
    assert combiner.weights(gram(*averages), None, 1) == pytest.approx([0.585625, 0.414375])


def test_the_ridge_pulls_to_equal_weights():
    combiner = MoCo(2, gamma=0.1, rho=1.0)
    combiner.load_state({"lambda": [0.9, 0.1]})
    # (0.9, 0.1) - 0.1 (0.9, 0.1) = (0.81, 0.09), plus 0.05 each.
    assert combiner.weights(np.zeros((2, 2)), None, 0) == pytest.approx([0.86, 0.14])


def test_a_normalised_gram_forgets_the_loss_scale():
    matrix = gram([1, 0], [1, 2])
    settings = {"gamma": 0.1, "normalize_gram": True}
    small, large = (MoCo(2, **settings).weights(scale * matrix, None, 0) for scale in (1e-6, 1e6))
    assert small == pytest.approx(large)
    # Mean diagonal 3: [[1, 1], [1, 5]]/3, slopes 1/3 and 1: (0.5 - 1/30, 0.4), plus 1/15 each.
    assert small == pytest.approx([0.5 + 1 / 30, 0.5 - 1 / 30])
    assert MoCo(2, **settings).weights(0 * matrix, None, 0).tolist() == [0.5, 0.5]


def test_decay():
    combiner = MoCo(2, beta=0.5, gamma=0.1, decay="sqrt")
    assert combiner.tracking_rate(0, 0) == 0.5
    assert combiner.tracking_rate(1, 3) == 0.25
    # gamma 0.05 at step 3: lambda - 0.05 (0.5, 2) = (0.475, 0.4), plus 0.0625.
    assert combiner.weights(gram([1, 0], [0, 2]), None, 3) == pytest.approx([0.5375, 0.4625])
    assert MoCo(2, beta=0.5).tracking_rate(1, 3) == 0.5


def test_on_one_batch_it_tends_to_the_min_norm_point():
    for vectors in draws(3, count=5, spread=0.3):
        combiner = MoCo(3, gamma=0.1, normalize_gram=True)
        for step in range(20_000):
            weights = combiner.weights(gram(*vectors), None, step)
        assert weights @ vectors == pytest.approx(min_norm_weights(gram(*vectors)) @ vectors, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"objectives": 0}, "objectives"),
        ({"beta": 0}, "beta"),
        ({"beta": 1.1}, "beta"),
        ({"gamma": 0}, "gamma"),
        ({"gamma": math.inf}, "gamma"),
        ({"rho": -1}, "rho"),
        ({"decay": "linear"}, "decay"),
    ],
)
def test_invalid_settings(settings, named):
    with pytest.raises(UserError, match=named):
        MoCo(**settings)


def test_another_number_of_objectives():
    with pytest.raises(ValueError, match="is for 3"):
        MoCo(3).weights(gram([1, 0], [0, 1]), None, 0)
