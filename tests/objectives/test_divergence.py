import math

import pytest
import torch
from hand_batch import gradient, random_tokens

from unlearn_core.objectives.divergence import (
    kl_student_first,
    kl_teacher_first,
    kl_to_uniform,
    negative_entropy,
    qkl,
    undial,
)

KLS = [kl_teacher_first, kl_student_first]


def pair(tokens=6, vocabulary=5):
    """Student logits, teacher logits and labels, all unrelated."""
    logits_NV, targets_N = random_tokens(tokens, vocabulary)
    return logits_NV, random_tokens(tokens, vocabulary, seed=1)[0], targets_N


@pytest.mark.parametrize("loss", [*KLS, qkl])
def test_zero_at_the_teacher_and_positive_elsewhere(loss):
    logits_NV, teacher_NV, targets_N = pair()
    assert abs(float(loss(teacher_NV + 3.0, teacher_NV, targets_N))) < 1e-6
    assert gradient(loss, teacher_NV, teacher_NV, targets_N).abs().max() < 1e-6
    for n in range(len(targets_N)):
        assert float(loss(logits_NV[n : n + 1], teacher_NV[n : n + 1], targets_N[n : n + 1])) > 0.01


def test_the_directions_differ():
    # p_v = (1/2, 1/2), p_w = (3/4, 1/4). Teacher first: 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3) = .1438.
    # Student first: 3/4 ln(3/2) + 1/4 ln(1/2) = .1308.
    logits_NV, teacher_NV = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    arguments = logits_NV, teacher_NV, torch.tensor([0])
    assert float(kl_teacher_first(*arguments)) == pytest.approx(math.log(4 / 3) / 2, rel=1e-6)
    assert float(kl_student_first(*arguments)) == pytest.approx(
        3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2), rel=1e-6
    )


def test_qkl_gradient_is_that_of_half_its_value():
    logits_NV, teacher_NV, targets_N = pair()

    def half(z_NV, v_NV):
        q_NV = v_NV.softmax(1)
        fisher_NVV = torch.diag_embed(q_NV) - q_NV.unsqueeze(2) * q_NV.unsqueeze(1)
        d_NV = z_NV - v_NV
        return 0.5 * torch.einsum("nv,nvw,nw->", d_NV, fisher_NVV, d_NV)

    torch.testing.assert_close(
        gradient(qkl, logits_NV, teacher_NV, targets_N).double(),
        gradient(half, logits_NV.double(), teacher_NV.double()),
        rtol=1e-5,
        atol=1e-6,
    )
    value = float(qkl(logits_NV, teacher_NV, targets_N))
    assert value == pytest.approx(2 * float(half(logits_NV.double(), teacher_NV.double())), rel=1e-6)


@pytest.mark.parametrize("kl", KLS)
def test_half_of_qkl_agrees_with_kl_to_second_order(kl):
    """Halving the distance divides the difference of the two by about 8, and both by about 4."""
    direction_NV, teacher_NV, targets_N = pair()
    direction_NV = direction_NV / direction_NV.norm(dim=1, keepdim=True)

    def at(size):
        arguments = teacher_NV + size * direction_NV, teacher_NV, targets_N
        return float(kl(*arguments)), 0.5 * float(qkl(*arguments))

    (far_kl, far), (near_kl, near) = at(0.4), at(0.2)
    assert near == pytest.approx(near_kl, rel=0.1)
    assert far / near == pytest.approx(4, rel=1e-4)
    assert 6.5 < (far_kl - far) / (near_kl - near) < 9.5


def test_qkl_ignores_a_common_shift_of_a_trained_models_size():
    logits_NV, teacher_NV, targets_N = pair()
    expected = gradient(qkl, logits_NV, teacher_NV, targets_N)
    shifted = gradient(qkl, logits_NV + 64.0, teacher_NV, targets_N)
    torch.testing.assert_close(shifted, expected, rtol=1e-4, atol=1e-5)


def test_undial_by_default_takes_the_label_out():
    # Teacher (1/2, 1/2), label 0, beta 10: q_0 = 1 / (1 + e^10). Student (1/4, 3/4).
    logits_NV, teacher_NV, targets_N = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2), torch.tensor([0])
    q = 1 / (1 + math.exp(10))
    expected = q * math.log(4) + (1 - q) * math.log(4 / 3)
    assert float(undial(logits_NV, teacher_NV, targets_N)) == pytest.approx(expected, rel=1e-6)
    assert gradient(undial, logits_NV, teacher_NV, targets_N)[0].tolist() == pytest.approx([1 / 4 - q, q - 1 / 4])


def test_undial_without_a_drop_distils():
    logits_NV, teacher_NV, targets_N = pair()
    torch.testing.assert_close(
        gradient(lambda *a: undial(*a, beta=0.0), logits_NV, teacher_NV, targets_N),
        gradient(kl_teacher_first, logits_NV, teacher_NV, targets_N),
        rtol=1e-5,
        atol=1e-6,
    )


def test_undial_leaves_the_teacher_as_it_was():
    logits_NV, teacher_NV, targets_N = pair()
    kept_NV = teacher_NV.clone()
    undial(logits_NV, teacher_NV, targets_N)
    assert torch.equal(teacher_NV, kept_NV)


@pytest.mark.parametrize(("logits", "entropy"), [([0.0] * 4, math.log(4)), ([90.0, 0, 0, 0], 0.0)])
def test_entropy_ends_of_its_range(logits, entropy):
    arguments = torch.tensor([logits]), torch.tensor([2])
    assert float(negative_entropy(*arguments)) == pytest.approx(-entropy, abs=1e-6)
    assert float(kl_to_uniform(*arguments)) == pytest.approx(math.log(4) - entropy, abs=1e-6)


def test_kl_to_uniform_is_accurate_near_uniform():
    # z = (e, -e): KL = e tanh(e) - ln cosh(e) = e^2 / 2 - e^4 / 4 + ..., 5e-7 for e = .001, where ln 2 - H would keep
    # one digit in fp32.
    value = float(kl_to_uniform(torch.tensor([[1e-3, -1e-3]]), torch.tensor([0])))
    assert value == pytest.approx(5e-7, abs=1e-7)


def test_entropy_does_not_look_at_the_label():
    logits_NV, targets_N = random_tokens()
    for loss in (negative_entropy, kl_to_uniform):
        assert torch.equal(loss(logits_NV, targets_N), loss(logits_NV, (targets_N + 1) % 7))
