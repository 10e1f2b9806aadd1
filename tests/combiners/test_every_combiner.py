"""What holds for all: an answer to degenerate gradients, worked by hand, and exact resumption."""

import json

import numpy as np
import pytest
from gradient_draws import gram

from unlearn_core.combiners.bisector import Bisector
from unlearn_core.combiners.cagrad import CAGrad
from unlearn_core.combiners.famo import FAMO
from unlearn_core.combiners.min_norm import MinNorm
from unlearn_core.combiners.moco import MoCo
from unlearn_core.combiners.primal_dual import PrimalDual
from unlearn_core.combiners.projection import BLUR, GRU, PCGrad
from unlearn_core.combiners.weighted import LossNorm, WeightedSum
from unlearn_core.errors import UserError

DEGENERATE = {
    "zero": ([2, 0], [0, 0]),
    "both zero": ([0, 0], [0, 0]),
    "parallel": ([2, 0], [4, 0]),
    "opposite": ([2, 0], [-4, 0]),
}
"""(retain, forget) on one axis; losses are 2 and 4."""

ANSWERS = [
    # combiner, and d's coordinate on that axis for each case in order
    (lambda: WeightedSum([1, 2]), (2, 0, 10, -6)),
    (LossNorm, (1, 0, 2, 0)),  # weights 1/2, 1/4
    (Bisector, (1, 0, 2, 0)),
    (MinNorm, (0, 0, 2, 0)),
    (lambda: MinNorm("l2"), (1, 0, 1, 0)),
    (lambda: MinNorm(rescale=True), (0, 0, 3, 0)),  # mean length 3
    (lambda: MoCo(gamma=0.1), (0.8, 0, 2.4, 0.8)),  # lambda (.4, .6), (.5, .5), (.8, .2), (.8, .2)
    (PCGrad, (2, 0, 6, 0)),
    (lambda: GRU(1.0, 0.0), (0, 0, 4, 0)),
    (lambda: GRU(1.0, 1.0), (2, 0, 6, 2)),
    (BLUR, (2, 0, 4, -4)),
    (lambda: CAGrad(0.5), (1, 0, 4.5, -0.5)),  # opposite: g_0 = -1, z all on the retain gradient, + 0.5
    (lambda: CAGrad(1.0), (1, 0, 6, 0)),
    (lambda: CAGrad(2.0), (1, 0, 9, 0)),
    (FAMO, (4 / 3, 0, 8 / 3, 0)),  # weights 2/3, 1/3
    (lambda: PrimalDual(1.0), (2, 0, 6, -2)),
]


@pytest.mark.parametrize(("make", "answers"), ANSWERS)
def test_degenerate_gradients(make, answers):
    for (name, (retain, forget)), answer in zip(DEGENERATE.items(), answers, strict=True):
        combiner = make()
        vectors = [retain, forget] + [(retain, forget)[t.objective] for t in combiner.tracked if not t.replaces]
        weights = combiner.weights(gram(*vectors) if combiner.needs_gradients else None, np.array([2.0, 4.0]), 0)
        assert np.isfinite(weights).all(), name
        assert weights @ np.array(vectors, dtype=float) == pytest.approx([answer, 0], abs=1e-7), name


@pytest.mark.parametrize("combiner", [Bisector(), MinNorm(), MoCo(), PCGrad(), GRU(), BLUR(), CAGrad()])
def test_a_missing_gram_matrix(combiner):
    with pytest.raises(ValueError, match="not given"):
        combiner.weights(None, np.array([1.0, 1.0]), 0)


def run(combiner, first, last):
    """Weights of steps first to last, whose numbers depend on the step alone."""
    weights = []
    for step in range(first, last):
        generator = np.random.default_rng(step)
        extra = sum(not tracked.replaces for tracked in combiner.tracked)
        drawn = generator.normal(size=(2 + extra, 6))
        before, after = generator.uniform(0.5, 3, size=(2, 2))
        weights.append(combiner.weights(drawn @ drawn.T, before, step).tolist())
        combiner.after_step(before, after, step)
    return weights


@pytest.mark.parametrize("make", [make for make, _ in ANSWERS])
def test_a_saved_state_continues_bit_for_bit(make):
    whole = run(make(), 0, 9)
    stopped = make()
    start = run(stopped, 0, 4)
    resumed = make()
    resumed.load_state(json.loads(json.dumps(stopped.state())))
    assert start + run(resumed, 4, 9) == whole


@pytest.mark.parametrize("make", [MoCo, FAMO, lambda: PrimalDual(1.0)])
def test_the_state_is_what_makes_the_difference(make):
    stopped = make()
    run(stopped, 0, 4)
    assert run(make(), 4, 5) != run(stopped, 4, 5)


@pytest.mark.parametrize(
    ("combiner", "state"),
    [
        (MoCo(3), MoCo(2).state()),
        (FAMO(2), MoCo(2).state()),
        (FAMO(3), FAMO(2).state()),
        (Bisector(), {"lambda": [0.5, 0.5]}),
        (PrimalDual(1.0), {}),
    ],
)
def test_a_state_of_another_kind(combiner, state):
    with pytest.raises(UserError, match="Resume with the settings"):
        combiner.load_state(state)


def test_what_is_not_tracked_has_no_rate():
    with pytest.raises(ValueError, match="Bisector does not track"):
        Bisector().tracking_rate(0, 0)
