import math

import numpy as np
import pytest
import torch

from unlearn_core.combiners.famo import FAMO
from unlearn_core.errors import UserError


def array(*values):
    return np.array(values, dtype=np.float64)


def test_what_it_asks_of_the_loop():
    assert (FAMO.needs_gradients, FAMO.needs_losses_first, FAMO.needs_losses_after) == (False, True, True)


def test_a_step_by_hand():
    combiner = FAMO(2, step_size=0.025)
    # z = (1/2, 1/2), D = (1, 3): (1/2, 1/6) / (2/3).
    assert combiner.weights(None, array(1, 3), 0) == pytest.approx([0.75, 0.25], abs=1e-7)
    # The first loss halves: delta = (log 2, 0), gradient (1, -1) log(2)/4; Adam's first step is its sign times 0.025.
    combiner.after_step(array(2, 3), array(1, 3), 0)
    assert combiner.logits_K == pytest.approx([-0.025, 0.025], abs=1e-8)
    assert combiner.first_moment_K == pytest.approx([0.025 * math.log(2), -0.025 * math.log(2)], rel=1e-6)
    # Equal losses: what is left is z, with odds e^-0.05.
    weights = combiner.weights(None, array(2, 2), 1)
    assert weights == pytest.approx([1 / (1 + math.exp(0.05)), 1 / (1 + math.exp(-0.05))], abs=1e-8)


def test_many_steps_against_torch():
    """Adam of another hand, and the softmax's Jacobian by automatic differentiation."""
    generator = np.random.default_rng(1)
    minimum = [0.1, 0.0, -1.0]
    combiner = FAMO(3, step_size=0.1, weight_decay=0.01, minimum_losses_K=minimum)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1, weight_decay=0.01)
    for step in range(20):
        before, after = generator.uniform(0.2, 5, size=(2, 3))
        gap = before - minimum + 1e-8
        z = torch.softmax(logits, 0).detach().numpy()
        assert combiner.weights(None, before, step) == pytest.approx(z / gap / (z / gap).sum(), rel=1e-9)
        combiner.after_step(before, after, step)
        fall = torch.tensor(np.log(gap) - np.log(after - minimum + 1e-8))
        (logits.grad,) = torch.autograd.grad(torch.softmax(logits, 0), logits, grad_outputs=fall)
        adam.step()
        assert combiner.logits_K == pytest.approx(logits.detach().numpy(), rel=1e-9, abs=1e-12)


def test_the_gradient_it_weights_is_that_of_the_log_losses():
    # c sum_k z_k grad log L_k with c making the weights sum to 1: for losses (2, 4), 1/2 : 1/4.
    assert FAMO().weights(None, array(2, 4), 0) == pytest.approx([2 / 3, 1 / 3], abs=1e-8)


def test_weight_decay_pulls_the_weights_together():
    combiner = FAMO(2, weight_decay=0.1)
    combiner.logits_K = array(1, -1)
    combiner.after_step(array(1, 1), array(1, 1), 0)
    assert combiner.logits_K == pytest.approx([0.975, -0.975], abs=1e-6)


@pytest.mark.parametrize("losses", [(0.0, 1.0), (-0.5, 1.0)])
def test_a_loss_that_is_not_positive(losses):
    with pytest.raises(UserError, match="positive losses"):
        FAMO().weights(None, array(*losses), 0)
    with pytest.raises(UserError, match="objective 0"):
        FAMO().after_step(array(1, 1), array(*losses), 0)
    shifted = FAMO(minimum_losses_K=[-1, 0]).weights(None, array(*losses), 0)
    assert np.all(shifted > 0)


def test_missing_losses():
    with pytest.raises(ValueError, match="not given"):
        FAMO().weights(None, None, 0)
    with pytest.raises(ValueError, match="not given"):
        FAMO().after_step(array(1, 1), None, 0)
    with pytest.raises(ValueError, match="is for 2"):
        FAMO().weights(None, array(1, 1, 1), 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"objectives": 0}, "objectives"),
        ({"step_size": 0}, "step_size"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"minimum_losses_K": [0]}, "minimum_losses"),
        ({"minimum_losses_K": [0, math.nan]}, "minimum_losses"),
    ],
)
def test_invalid_settings(settings, named):
    with pytest.raises(UserError, match=named):
        FAMO(**settings)
