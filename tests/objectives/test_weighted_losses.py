import math

import pytest
import torch
from hand_batch import gradient, random_tokens

from unlearn_core.errors import UserError
from unlearn_core.objectives.bounded import nlul
from unlearn_core.objectives.likelihood import cross_entropy
from unlearn_core.objectives.weighted import ce_u, satimp, wga


def with_settings(loss, **settings):
    return lambda logits_NV, targets_N: loss(logits_NV, targets_N, **settings)


@pytest.mark.parametrize("loss", [with_settings(wga, beta=0.0), with_settings(satimp, beta1=0.0, beta2=0.0)])
def test_without_weights_it_is_gradient_ascent(loss):
    logits_NV, targets_N = random_tokens()
    assert float(loss(logits_NV, targets_N)) == pytest.approx(-float(cross_entropy(logits_NV, targets_N)), rel=1e-6)
    torch.testing.assert_close(
        gradient(loss, logits_NV, targets_N), -gradient(cross_entropy, logits_NV, targets_N), rtol=1e-5, atol=1e-7
    )


def test_wga_is_satimp_without_saturation():
    logits_NV, targets_N = random_tokens()
    assert torch.equal(wga(logits_NV, targets_N, beta=1.7), satimp(logits_NV, targets_N, beta1=1.7, beta2=0.0))


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9])
def test_memorised_tokens_keep_an_accurate_gradient(distance):
    # 1 - p = distance. WGA's label entry is p (1 - p); SatImp's p^5 (1 - p)^2.
    logits_NV, targets_N = torch.tensor([[math.log(1 / distance - 1), 0.0]]), torch.tensor([0])
    assert float(gradient(wga, logits_NV, targets_N)[0, 0]) == pytest.approx(distance * (1 - distance), rel=1e-5)
    expected = (1 - distance) ** 5 * distance**2
    assert float(gradient(satimp, logits_NV, targets_N)[0, 0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_the_smallest_value_is_where_the_docstring_says(beta):
    # p^b log p is least where log p = -1/b, with -1 / (e b).
    p = math.exp(-1 / beta)
    logits_NV, targets_N = torch.tensor([[math.log(p / (1 - p)), 0.0]]), torch.tensor([0])
    assert float(wga(logits_NV, targets_N, beta=beta)) == pytest.approx(-1 / (math.e * beta), rel=1e-5)
    around_NV = torch.linspace(-8, 8, 101).unsqueeze(1) * torch.tensor([1.0, 0.0])
    values = [float(wga(row_V.unsqueeze(0), targets_N, beta=beta)) for row_V in around_NV]
    assert -1 / (math.e * beta) * (1 + 1e-6) <= min(values) and max(values) <= 0


def test_ce_u_is_the_cross_entropy_to_the_held_distribution_without_the_label():
    logits_NV, targets_N = random_tokens()
    without_NV = logits_NV.double().scatter(1, targets_N.unsqueeze(1), -torch.inf)

    def literal(z_NV, y_N):
        return torch.nn.functional.cross_entropy(z_NV, without_NV.softmax(1), reduction="sum")

    assert float(ce_u(logits_NV, targets_N)) == pytest.approx(float(literal(logits_NV.double(), targets_N)), rel=1e-6)
    torch.testing.assert_close(
        gradient(ce_u, logits_NV, targets_N).double(),
        gradient(literal, logits_NV.double(), targets_N),
        rtol=1e-5,
        atol=1e-7,
    )


def test_ce_u_has_the_gradient_of_nlul():
    logits_NV, targets_N = random_tokens()
    assert torch.equal(gradient(ce_u, logits_NV, targets_N), gradient(nlul, logits_NV, targets_N))


@pytest.mark.parametrize("settings", [{"beta1": -1.0}, {"beta2": -0.5}, {"beta1": math.nan}])
def test_negative_exponents_are_refused(settings):
    with pytest.raises(UserError, match="expected 0 or more"):
        satimp(*random_tokens(), **settings)
    with pytest.raises(UserError, match=r"-1\.0"):
        wga(*random_tokens(), beta=-1.0)
