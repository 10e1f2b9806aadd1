import numpy as np
import pytest
from gradient_draws import angle_cosine, combined, draws, gram, length

from unlearn_core.combiners.bisector import Bisector
from unlearn_core.combiners.min_norm import MinNorm


def test_by_hand():
    # |[3, 4]| = 5, |[-1, 0]| = 1.
    assert Bisector().weights(gram([3, 4], [-1, 0]), None, 0) == pytest.approx([0.2, 1.0])
    assert combined(Bisector(), [3, 4], [-1, 0]) == pytest.approx([-0.4, 0.8])
    assert combined(Bisector(), [3, 4], [-1, 0], [0, 2]) == pytest.approx([-0.4, 1.8])


def test_a_zero_gradient_is_dropped_and_a_small_one_is_not():
    weights = Bisector().weights
    assert weights(gram([1, 0], [0, 0], [0, 5]), None, 0).tolist() == [1.0, 0.0, 0.2]
    assert weights(gram([1, 0], [0, 1e-13]), None, 0).tolist() == [1.0, 0.0]
    assert weights(gram([1, 0], [0, 1e-11]), None, 0) == pytest.approx([1.0, 1e11])
    assert weights(gram([1e-30, 0], [0, 1e-30]), None, 0) == pytest.approx([1e30, 1e30])


@pytest.mark.parametrize(("retain", "forget"), list(draws()))
def test_it_never_conflicts_with_two_objectives(retain, forget):
    d = combined(Bisector(), retain, forget)
    assert d @ retain >= 0
    assert d @ forget >= 0


def test_it_can_conflict_with_one_of_three():
    assert combined(Bisector(), [1, 0], [1, 0], [-1, 0.1]) @ np.array([-1, 0.1]) < 0


@pytest.mark.parametrize(("retain", "forget"), list(draws(spread=1.0)))
def test_what_coincides_with_it_for_two_objectives(retain, forget):
    d = combined(Bisector(), retain, forget)
    a, c = retain @ retain, forget @ forget
    # IMTL-G: equal projections on both unit gradients, weights summing to 1.
    share = np.sqrt(c) / (np.sqrt(a) + np.sqrt(c))
    imtl = share * retain + (1 - share) * forget
    assert imtl @ retain / np.sqrt(a) == pytest.approx(imtl @ forget / np.sqrt(c), rel=1e-6)
    assert imtl == pytest.approx(np.sqrt(a * c) / (np.sqrt(a) + np.sqrt(c)) * d, rel=1e-6, abs=1e-9 * length(imtl))
    # Min-norm of unit gradients: half of it.
    normalised = combined(MinNorm(normalize="l2"), retain, forget)
    assert angle_cosine(normalised, d) == pytest.approx(1, abs=1e-9)
    assert length(normalised) == pytest.approx(length(d) / 2, rel=1e-6)
