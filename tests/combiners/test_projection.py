import math

import numpy as np
import pytest
from gradient_draws import combined, draws, gram, length

from unlearn_core.combiners.combiner import Tracking
from unlearn_core.combiners.projection import BLUR, GRU, PCGrad
from unlearn_core.errors import UserError

PAIRS = list(draws())
G, H = np.array([2.0, 0.0]), np.array([-1.0, 1.0])  # <g, h> = -2, |g|^2 = 4, |h|^2 = 2


def tolerance(*vectors):
    return 1e-9 * max(map(length, vectors)) ** 2


def test_pcgrad_by_hand():
    # g + h|g = [2, 0] + [1, 1]; h + g|h = [-1, 1] + [1, 0]: weights 1 + 2/4 and 1 + 2/2.
    assert PCGrad().weights(gram(G, H), None, 0) == pytest.approx([1.5, 2.0])
    assert combined(PCGrad(), G, H) == pytest.approx([1, 2])
    assert combined(PCGrad(), [2, 0], [1, 1]) == pytest.approx([3, 1])  # no conflict: the sum


def test_pcgrad_of_three_in_cyclic_order():
    vectors = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -2.0]])
    # 0: against 1: [1,0] + [-1,1]/2 = [.5,.5]; against 2: <[.5,.5], [0,-2]> = -1, + [0,-2]/4 = [.5, 0].
    # 1: against 2: [-1,1] + 2/4 [0,-2] = [-1,0]; against 0: + [1,0] = [0,0].
    # 2: against 0: 0; against 1: [0,-2] + 2/2 [-1,1] = [-1,-1].
    assert combined(PCGrad(), *vectors) == pytest.approx([-0.5, -1.0])


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_pcgrad_never_conflicts_with_two(retain, forget):
    d = combined(PCGrad(), retain, forget)
    assert d @ retain >= -tolerance(retain, forget)
    assert d @ forget >= -tolerance(retain, forget)


def test_pcgrad_is_twice_upgrad():
    # UPGrad is the mean of both projections, [1, 1] and [0, 1].
    upgrad = (np.array([1.0, 1.0]) + np.array([0.0, 1.0])) / 2
    assert combined(PCGrad(), G, H) == pytest.approx(2 * upgrad)


def test_gru_by_hand():
    assert GRU.tracked == (Tracking(0, replaces=False),)
    average = np.array([0.0, -2.0])  # <h, r> = -2, |r|^2 = 4: h + r/2 = [-1, 0]
    assert combined(GRU(), G, H, average) == pytest.approx([-1, 0])
    assert combined(GRU(retain_weight=0.25), G, H, average) == pytest.approx([-0.5, 0])
    assert GRU(retain_weight=0.25).weights(gram(G, H, average), None, 0) == pytest.approx([0.25, 1, 0.5])
    assert combined(GRU(retain_weight=1), G, H, -average) == pytest.approx([1, 1])  # no conflict with r: the sum


def test_gru_tracks_the_retain_gradient_alone():
    assert GRU(0.6).tracking_rate(0, 7) == 0.6
    with pytest.raises(ValueError, match="objective 1"):
        GRU(0.6).tracking_rate(1, 7)


@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_gru_never_goes_against_the_average(retain, forget):
    average = 0.6 * retain + 0.4 * retain[::-1]
    rectified = combined(GRU(), retain, forget, average)
    assert rectified @ average >= -tolerance(average, forget)
    if forget @ average >= 0:
        assert rectified == pytest.approx(forget)
    # Without averaging, and with a retain step, it never goes against the retain gradient.
    assert combined(GRU(1, 1), retain, forget, retain) @ retain >= retain @ retain - tolerance(retain, forget)


def test_gru_with_a_zero_average():
    assert combined(GRU(), G, H, [0, 0]).tolist() == H.tolist()


def test_blur_by_hand():
    # <g, h>/<h, h> = -1: d = g + (gamma + 1) h.
    assert BLUR(2.0).weights(gram(G, H), None, 0) == pytest.approx([1, 3])
    assert combined(BLUR(2.0), G, H) == pytest.approx([-1, 3])
    # The other scaling: alpha g + (1 - alpha b/c) h.
    assert BLUR(1.0, 0.5).weights(gram(G, H), None, 0) == pytest.approx([0.5, 1.5])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
@pytest.mark.parametrize(("retain", "forget"), PAIRS)
def test_blur_always_forgets_at_its_rate(retain, forget, gamma):
    d = combined(BLUR(gamma), retain, forget)
    assert d @ forget == pytest.approx(gamma * forget @ forget, rel=1e-9, abs=1e-9 * length(retain) * length(forget))


def test_blur_may_raise_the_retain_loss():
    assert combined(BLUR(5.0), G, H) @ G < 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GRU(0), "moving_average"),
        (lambda: GRU(1.01), "moving_average"),
        (lambda: GRU(0.5, -1), "retain_weight"),
        (lambda: GRU(0.5, math.inf), "retain_weight"),
        (lambda: BLUR(-1), "gamma"),
        (lambda: BLUR(math.nan), "gamma"),
        (lambda: BLUR(1, -1), "retain_weight"),
    ],
)
def test_invalid_settings(make, named):
    with pytest.raises(UserError, match=named):
        make()


@pytest.mark.parametrize(("combiner", "vectors"), [(GRU(), 2), (BLUR(), 3)])
def test_another_number_of_vectors(combiner, vectors):
    with pytest.raises(ValueError, match="given"):
        combiner.weights(np.eye(vectors), None, 0)
