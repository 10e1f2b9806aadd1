import math

import numpy as np
import pytest

from unlearn_core.combiners.primal_dual import PrimalDual
from unlearn_core.errors import UserError


def test_by_hand():
    combiner = PrimalDual(epsilon=2.0, initial=1.0, step_size=0.5, forget_weight=3.0)
    assert not combiner.needs_gradients
    assert combiner.weights(None, None, 0).tolist() == [1.0, 3.0]
    combiner.after_step(np.array([3.0, 9.0]), None, 0)  # 1 over the bound: + 0.5
    assert combiner.weights(None, None, 1).tolist() == [1.5, 3.0]
    combiner.after_step(np.array([1.0, 9.0]), None, 1)  # 1 below: - 0.5
    assert combiner.weights(None, None, 2).tolist() == [1.0, 3.0]
    combiner.after_step(np.array([-5.0, 9.0]), None, 2)  # never below 0
    assert combiner.weights(None, None, 3).tolist() == [0.0, 3.0]
    combiner.after_step(np.array([2.5, 9.0]), None, 3)
    assert combiner.weights(None, None, 4).tolist() == [0.25, 3.0]


def test_warm_up_keeps_the_multiplier():
    combiner = PrimalDual(epsilon=0.0, initial=5.0, warmup_steps=2)
    seen = []
    for step in range(4):
        combiner.after_step(np.array([1.0, 1.0]), None, step)
        seen.append(combiner.multiplier)
    assert seen == [5, 5, 6, 7]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": 1, "initial": -1}, "initial"),
        ({"epsilon": 1, "step_size": -1}, "step_size"),
        ({"epsilon": 1, "warmup_steps": -1}, "warmup_steps"),
        ({"epsilon": 1, "forget_weight": 0}, "forget_weight"),
    ],
)
def test_invalid_settings(settings, named):
    with pytest.raises(UserError, match=named):
        PrimalDual(**settings)
