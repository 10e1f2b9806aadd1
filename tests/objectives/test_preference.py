import math
from functools import partial

import hand_batch
import pytest
import torch

from unlearn_core.errors import UserError
from unlearn_core.objectives.likelihood import label_rows, row_log_probs
from unlearn_core.objectives.preference import dpo, npo, simnpo

LN2 = math.log(2)


def hand_rows():
    """Rows of the hand-worked batch: log-probabilities -ln 6, ln 2/9, -ln 12 of 2, 1 and 3 label tokens."""
    return row_log_probs(*label_rows(*hand_batch.batch()), rows=3)


def logs(*probabilities):
    return torch.tensor(probabilities).log()


# (loss, reference probabilities, value)
BY_HAND = {
    # p / p_ref = 4, 1, 1/4; to the power of 1/2: 2, 1, 1/2. (2 / (1/2)) (ln 3 + ln 2 + ln 3/2)
    "npo": (partial(npo, beta=0.5), (1 / 24, 2 / 9, 1 / 3), 4 * math.log(3 * 2 * 3 / 2)),
    # p / p_ref = 4, 1, 1/8, to the power of 1 / |y| = 1/2, 1, 1/3: 2, 1, 1/2. (2 / 1) (ln 3 + ln 2 + ln 3/2)
    "npo by length": (
        partial(npo, beta=1.0, length_normalised=True),
        (1 / 24, 2 / 9, 2 / 3),
        2 * math.log(3 * 2 * 3 / 2),
    ),
    # p^(beta / |y|) with beta = 2: (1/6)^1, (2/9)^2, (1/12)^(2/3)
    "simnpo": (
        partial(simnpo, beta=2.0),
        None,
        math.log(1 + 1 / 6) + math.log(1 + 4 / 81) + math.log(1 + 12 ** (-2 / 3)),
    ),
    # beta delta = ln 2 doubles each of them
    "simnpo with a margin": (
        partial(simnpo, beta=2.0, delta=LN2 / 2),
        None,
        math.log(1 + 2 / 6) + math.log(1 + 8 / 81) + math.log(1 + 2 * 12 ** (-2 / 3)),
    ),
}


def reference_of(name):
    probabilities = BY_HAND[name][1]
    return None if probabilities is None else logs(*probabilities)


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    loss, _, expected = BY_HAND[name]
    assert float(loss(*hand_rows(), reference_of(name))) == pytest.approx(expected, rel=1e-6)


def test_dpo_by_hand():
    # margins (gain of preferred - gain of rejected): ln 4 - 0, ln 2 - ln 2, 0 - ln 4. With beta = 1/2,
    # 4 log(1 + exp(-margin / 2)): 1 + 1/2, 1 + 1, 1 + 2.
    preferred_B, rejected_B = logs(1 / 2, 1 / 4, 1 / 8), logs(1 / 3, 1 / 5, 1 / 2)
    loss = dpo(preferred_B, rejected_B, logs(1 / 8, 1 / 8, 1 / 8), logs(1 / 3, 1 / 10, 1 / 8), beta=0.5)
    assert float(loss) == pytest.approx(4 * math.log(3 / 2 * 2 * 3), rel=1e-6)


def test_defaults_are_the_papers():
    # One row of 2 label tokens with o = -2, o_ref = -12: beta (o - o_ref) = 1. SimNPO: 4.5 * 2 / 2 = 4.5.
    row = torch.tensor([-2.0]), torch.tensor([2.0])
    assert float(npo(*row, torch.tensor([-12.0]))) == pytest.approx(20 * math.log(1 + math.e), rel=1e-6)
    assert float(simnpo(*row)) == pytest.approx(2 / 4.5 * math.log(1 + math.exp(-4.5)), rel=1e-5)
    answers = torch.tensor([-2.0]), torch.tensor([-12.0]), torch.tensor([-7.0]), torch.tensor([-7.0])
    assert float(dpo(*answers)) == pytest.approx(20 * math.log(1 + math.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_npo_starts_as_gradient_ascent(beta):
    log_prob_B, count_B = torch.tensor([-3.0, -40.0, -7.0], requires_grad=True), torch.tensor([2.0, 9.0, 1.0])
    npo(log_prob_B, count_B, log_prob_B, beta=beta).backward()
    assert log_prob_B.grad.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_npo_gradient():
    # 2 sigmoid(beta (o - o_ref)); by length, 2 sigmoid(beta (o - o_ref) / |y|) / |y|.
    log_prob_B, count_B, reference_B = (
        torch.tensor([-3.0, -40.0, -7.0], requires_grad=True),
        torch.tensor([2.0, 9.0, 1.0]),
        torch.tensor([-9.0, -13.0, -7.0]),
    )
    npo(log_prob_B, count_B, reference_B, beta=0.5).backward()
    expected = [2 / (1 + math.exp(-x)) for x in (3.0, -13.5, 0.0)]
    assert log_prob_B.grad.tolist() == pytest.approx(expected, rel=1e-5)
    log_prob_B.grad = None
    npo(log_prob_B, count_B, reference_B, beta=0.5, length_normalised=True).backward()
    expected = [2 / (1 + math.exp(-x)) / n for x, n in ((1.5, 2), (-1.5, 9), (0.0, 1))]
    assert log_prob_B.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_simnpo_gradient():
    # (2 / |y|) sigmoid(beta (o / |y| + delta)): o / |y| = -1, -4; delta 1.
    log_prob_B = torch.tensor([-2.0, -12.0], requires_grad=True)
    simnpo(log_prob_B, torch.tensor([2.0, 3.0]), beta=2.0, delta=1.0).backward()
    assert log_prob_B.grad.tolist() == pytest.approx([2 / 2 / 2, 2 / 3 / (1 + math.exp(6))], rel=1e-5)


def test_dpo_gradient():
    # h = 2 sigmoid(-beta margin), margin = (-4 - -5) - (-1 - -2.5) = -1/2.
    answers = [torch.tensor([x], requires_grad=True) for x in (-4.0, -1.0, -5.0, -2.5)]
    dpo(*answers, beta=2.0).backward()
    force = 2 / (1 + math.exp(-1))
    assert [float(answer.grad) for answer in answers[:2]] == pytest.approx([-force, force], rel=1e-6)


def test_references_get_no_gradient():
    o_B, n_B = torch.tensor([-3.0], requires_grad=True), torch.tensor([2.0])
    reference_B = torch.tensor([-4.0], requires_grad=True)
    (npo(o_B, n_B, reference_B) + dpo(o_B, 2 * o_B, reference_B, reference_B)).backward()
    assert o_B.grad is not None and reference_B.grad is None


@pytest.mark.parametrize("name", BY_HAND)
def test_a_batch_is_the_sum_of_its_rows(name):
    loss = BY_HAND[name][0]
    log_prob_B, count_B = hand_rows()
    reference_B = reference_of(name)
    singles = []
    for b, example in enumerate(hand_batch.EXAMPLES):
        row = row_log_probs(*label_rows(*hand_batch.batch(examples=[example])), rows=1)
        singles.append(float(loss(*row, None if reference_B is None else reference_B[b : b + 1])))
    assert min(singles) > 0
    assert float(loss(log_prob_B, count_B, reference_B)) == pytest.approx(sum(singles), rel=1e-6)


@pytest.mark.parametrize("name", BY_HAND)
def test_gradient_reaches_label_positions_only(name):
    logits_BTV, labels_BT = hand_batch.batch()
    logits_BTV.requires_grad_()
    row = row_log_probs(*label_rows(logits_BTV, labels_BT), rows=3)
    BY_HAND[name][0](*row, reference_of(name)).backward()
    assert not logits_BTV.grad.isnan().any()
    for b, example in enumerate(hand_batch.EXAMPLES):
        predicting = range(example.prompt_length - 1, len(example.input_ids) - 1)
        assert (logits_BTV.grad[b] != 0).any(-1).nonzero().flatten().tolist() == list(predicting)
        for t in predicting:  # minimising it lowers the label
            assert logits_BTV.grad[b, t, example.input_ids[t + 1]] > 0


@pytest.mark.parametrize("name", BY_HAND)
def test_a_row_without_labels_adds_nothing(name):
    loss = BY_HAND[name][0]
    log_prob_B, count_B = hand_rows()
    reference_B = reference_of(name)
    longer_B = torch.cat([log_prob_B.detach(), torch.zeros(1)]).requires_grad_()
    longer_reference_B = None if reference_B is None else torch.cat([reference_B, torch.zeros(1)])
    value = loss(longer_B, torch.cat([count_B, torch.zeros(1)]), longer_reference_B)
    value.backward()
    assert value.item() == pytest.approx(float(loss(log_prob_B, count_B, reference_B)), rel=1e-6)
    assert longer_B.grad[:3].all() and longer_B.grad[3] == 0


def test_no_row_is_zero_with_zero_gradient():
    o_B = torch.zeros(0, requires_grad=True)
    nothing_B = torch.zeros(0)
    for loss in (npo(o_B, nothing_B, nothing_B), simnpo(o_B, nothing_B), dpo(o_B, o_B, nothing_B, nothing_B)):
        loss.backward()
        assert loss.shape == () and loss.item() == 0.0


def test_bf16_is_cast_before_the_arithmetic():
    o_B, n_B, reference_B = torch.tensor([-300.0, -2.0]), torch.tensor([70.0, 1.0]), torch.tensor([-290.0, -3.0])
    for loss in (npo, simnpo):
        low = loss(o_B.bfloat16(), n_B, reference_B.bfloat16())
        assert low.dtype == torch.float32 and torch.equal(low, loss(o_B, n_B, reference_B))
    low = dpo(o_B.bfloat16(), reference_B.bfloat16(), reference_B.bfloat16(), o_B.bfloat16())
    assert low.dtype == torch.float32 and torch.equal(low, dpo(o_B, reference_B, reference_B, o_B))


@pytest.mark.parametrize("far", [-1e6, 1e6])
def test_far_rows_stay_finite(far):
    o_B, n_B, reference_B = torch.tensor([far - 1e6], requires_grad=True), torch.tensor([5.0]), torch.tensor([-1e6])
    for loss in (npo(o_B, n_B, reference_B), simnpo(o_B, n_B), dpo(o_B, reference_B, reference_B, reference_B)):
        loss.backward()
        assert loss.isfinite() and o_B.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    o_B = torch.tensor([-1.0])
    for loss in (npo, simnpo, partial(dpo, reference_rejected_B=o_B)):
        with pytest.raises(UserError, match=f"beta is {beta}"):
            loss(o_B, o_B, o_B, beta=beta)
