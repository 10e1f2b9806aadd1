import math

import numpy as np
import pytest
from gradient_draws import combined

from unlearn_core.combiners.weighted import LossNorm, WeightedSum
from unlearn_core.errors import UserError


def test_a_weighted_sum_is_constant_and_needs_nothing():
    combiner = WeightedSum([0.25, 2])
    assert not combiner.needs_gradients
    first = combiner.weights(None, None, 0)
    first[:] = 9  # a caller that clips in place must not change the next step
    assert combiner.weights(None, None, 1).tolist() == [0.25, 2.0]
    assert combined(combiner, [4, 0], [0, 1]).tolist() == [1, 2]


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [math.nan, 1], [math.inf, 1], [[1, 1]]])
def test_invalid_weights(weights):
    with pytest.raises(UserError, match="at least one above 0"):
        WeightedSum(weights)


def test_loss_norm_by_hand():
    # Not of the loss alone: it must see the losses of this step.
    assert combined(LossNorm(), [4, 0], [0, 1], losses=[2.0, 0.5]).tolist() == [2, 2]


def test_loss_norm_clamps_a_loss_that_is_small_zero_or_negative():
    weights = LossNorm(0.01).weights(None, np.array([0.02, 0.001, 0.0, -3.0]), 0)
    assert weights == pytest.approx([50, 100, 100, 100])


def test_loss_norm_without_losses():
    with pytest.raises(ValueError, match="not given"):
        LossNorm().weights(None, None, 0)


@pytest.mark.parametrize("minimum", [0, -1, math.inf, math.nan])
def test_loss_norm_invalid_minimum(minimum):
    with pytest.raises(UserError, match="minimum_loss"):
        LossNorm(minimum)
