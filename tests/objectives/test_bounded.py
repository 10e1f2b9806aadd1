import math

import pytest
import torch
from hand_batch import gradient, random_tokens

from unlearn_core.errors import UserError
from unlearn_core.objectives.bounded import ihl, logit_spread, nlul, nlul_surrogate, uce

FAR = [1e-30, 1e-12, 1e-6, 1e-3, 0.5, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12]


def logits_with(p, rivals=(2.0, 1.0)):
    """One token, label 0 of probability p, the rest shared as `rivals`; and p, 1 - p as fp32 logits have them."""
    odds = p / (1 - p)
    rest = sum(rivals)
    logits_NV = torch.tensor([[math.log(odds * rest), *map(math.log, rivals)]])
    label, *others = logits_NV[0].double().exp().tolist()
    return logits_NV, torch.tensor([0]), label / (label + sum(others)), sum(others) / (label + sum(others)), others


@pytest.mark.parametrize("p", FAR)
def test_nlul_is_exact_for_forgotten_and_memorised_tokens(p):
    # g_y = p, g_j = -p p_j / (1 - p), where p_j / (1 - p) is the rival's share of the rest. fp32 has no number between
    # 1 - 6e-8 and 1, yet 1 - p = 1e-12 comes out right.
    logits_NV, targets_N, p, rest, others = logits_with(p)
    expected_V = [p, *(-p * other / sum(others) for other in others)]
    assert gradient(nlul, logits_NV, targets_N)[0].tolist() == pytest.approx(expected_V, rel=1e-5)
    value = -math.log(rest) if p > 0.5 else -math.log1p(-p)
    assert float(nlul(logits_NV, targets_N)) == pytest.approx(value, rel=1e-5)


def test_nlul_gradient_is_at_most_root_two_p():
    logits_NV, targets_N = random_tokens(tokens=200, scale=5.0)
    norm_N = gradient(nlul, logits_NV, targets_N).norm(dim=1)
    p_N = logits_NV.softmax(1).gather(1, targets_N.unsqueeze(1)).squeeze(1)
    assert (norm_N <= math.sqrt(2) * p_N * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("p", "expected"), [(0.01, 0.0098), (0.5, 0.481), (0.9, 0.750), (0.98, 0.490), (0.99, 0.330), (0.999, 0.048)]
)
def test_the_surrogates_gradient_fades_on_memorised_tokens(p, expected):
    logits_NV, targets_N, *_ = logits_with(p)
    assert float(gradient(nlul_surrogate, logits_NV, targets_N)[0, 0]) == pytest.approx(expected, abs=5e-4)
    assert float(gradient(nlul_surrogate, logits_NV, targets_N)[0, 0]) == pytest.approx(
        p * (1 - p) / (1.02 - p), rel=1e-4
    )


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9])
def test_the_surrogate_without_tolerance_has_the_exact_gradient(p):
    logits_NV, targets_N, *_ = logits_with(p)
    bare = gradient(lambda z_NV, y_N: nlul_surrogate(z_NV, y_N, tol=1e-9), logits_NV, targets_N)
    torch.testing.assert_close(bare, gradient(nlul, logits_NV, targets_N), rtol=1e-5, atol=0)


@pytest.mark.parametrize("p", FAR)
def test_the_surrogates_values_are_within_minus_one_and_zero(p):
    logits_NV, targets_N, *_ = logits_with(p)
    assert -1 < float(nlul_surrogate(logits_NV, targets_N)) <= 0


@pytest.mark.parametrize("p", FAR)
@pytest.mark.parametrize("k", [1.5, 2.0, 10.0])
def test_uce_is_exact_and_bounded(p, k):
    logits_NV, targets_N, p, rest, _ = logits_with(p)
    value = float(uce(logits_NV, targets_N, k=k))
    assert value == pytest.approx(-math.log1p(-p / k), rel=1e-5)
    assert 0 < value <= math.log(k / (k - 1)) * (1 + 1e-6)
    label = float(gradient(lambda z_NV, y_N: uce(z_NV, y_N, k=k), logits_NV, targets_N)[0, 0])
    assert label == pytest.approx(p * rest / (k - p), rel=1e-5)


def test_uce_with_k_one_is_nlul():
    logits_NV, targets_N = random_tokens(scale=8.0)
    assert torch.equal(uce(logits_NV, targets_N, k=1.0), nlul(logits_NV, targets_N))
    assert torch.equal(
        gradient(lambda z_NV, y_N: uce(z_NV, y_N, k=1.0), logits_NV, targets_N), gradient(nlul, logits_NV, targets_N)
    )


@pytest.mark.parametrize(("logits", "expected"), [([60.0, 0, 0], 2.0), ([0.0, 0, -60], 1.0), ([0.0, 60, 0], 0.0)])
def test_ihl_ends_of_its_range(logits, expected):
    assert float(ihl(torch.tensor([logits]), torch.tensor([0]))) == pytest.approx(expected, abs=1e-6)


def test_ihl_raises_the_strongest_rival_alone():
    # p = (6, 2, 1) / 9, label 0, rival 1. p_y (e_y - p) - p_r (e_r - p), each times 81:
    # entry 0: 6 (9 - 6) + 2 * 6 = 30; entry 1: -6 * 2 - 2 (9 - 2) = -26; entry 2: -6 * 1 + 2 * 1 = -4.
    logits_NV = torch.tensor([[6.0, 2.0, 1.0]]).log()
    assert gradient(ihl, logits_NV, torch.tensor([0]))[0].tolist() == pytest.approx([30 / 81, -26 / 81, -4 / 81])


def test_the_spread_does_not_look_at_the_label():
    logits_NV, targets_N = random_tokens()
    assert torch.equal(logit_spread(logits_NV, targets_N), logit_spread(logits_NV, (targets_N + 1) % 7))


@pytest.mark.parametrize("tol", [0.0, -0.1, math.nan])
def test_a_tolerance_that_is_not_positive_is_refused(tol):
    with pytest.raises(UserError, match=f"tol is {tol}"):
        nlul_surrogate(*random_tokens(), tol=tol)


@pytest.mark.parametrize("k", [0.99, 0.0, math.nan])
def test_a_k_below_one_is_refused(k):
    with pytest.raises(UserError, match=f"k is {k}"):
        uce(*random_tokens(), k=k)
