import math

import hand_batch
import pytest
import torch

from unlearn_core.data.tokenization import IGNORE, Example, collate
from unlearn_core.objectives.likelihood import cross_entropy_sum, label_rows, log_odds, others, row_log_probs

VOCABULARY = 11
EXAMPLES = [  # unequal lengths, prompts and answers
    Example("a", (1, 2, 3, 4, 5, 6, 7), 3),
    Example("b", (1, 9, 8), 1),
    Example("c", (4, 4, 4, 0, 10), 4),
]


def logits_of(example, dtype=torch.float32):
    """Random logits that depend on the example alone, so that a batch and singles see the same numbers."""
    generator = torch.Generator().manual_seed(sum(example.input_ids))
    return 3 * torch.randn(len(example.input_ids), VOCABULARY, generator=generator).to(dtype)


def padded(examples, fill=0.0, dtype=torch.float32):
    batch = collate(examples, pad_id=0)
    logits_BTV = torch.full((*batch.labels_BT.shape, VOCABULARY), fill, dtype=dtype)
    for b, example in enumerate(examples):
        logits_BTV[b, : len(example.input_ids)] = logits_of(example, dtype)
    return logits_BTV, batch.labels_BT


def test_by_hand():
    # Vocabulary of 2, prompt [0], answer [1, 0]. Position 0 predicts token 1 with logits [0, ln 3]: p = 3/4.
    # Position 1 predicts token 0 with logits [0, 0]: p = 1/2. Position 2 predicts nothing.
    logits_BTV = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [50.0, -50.0]]])
    labels_BT = torch.tensor([[IGNORE, 1, 0]])
    assert float(cross_entropy_sum(logits_BTV, labels_BT)) == pytest.approx(math.log(4 / 3) + math.log(2))


def test_a_batch_of_unequal_lengths_is_the_sum_of_its_singles():
    singles = [float(cross_entropy_sum(*padded([example]))) for example in EXAMPLES]
    assert min(singles) > 0
    assert float(cross_entropy_sum(*padded(EXAMPLES))) == pytest.approx(sum(singles), rel=1e-6)


def test_padding_changes_nothing():
    plain = cross_entropy_sum(*padded(EXAMPLES))
    for fill in (7.0, -1e9, math.nan):
        assert torch.equal(cross_entropy_sum(*padded(EXAMPLES, fill)), plain)


def test_prompt_padding_and_last_position_get_no_gradient():
    logits_BTV, labels_BT = padded(EXAMPLES)
    logits_BTV.requires_grad_()
    cross_entropy_sum(logits_BTV, labels_BT).backward()
    touched_BT = logits_BTV.grad.abs().sum(-1) > 0
    for b, example in enumerate(EXAMPLES):
        predicting = range(example.prompt_length - 1, len(example.input_ids) - 1)
        assert touched_BT[b].nonzero().flatten().tolist() == list(predicting)


def test_gradient_sign():
    """It is the positive loss: descent raises the label's logit. The sign of unlearning belongs to the combiner."""
    logits_BTV, labels_BT = padded(EXAMPLES[:1])
    logits_BTV.requires_grad_()
    cross_entropy_sum(logits_BTV, labels_BT).backward()
    for position in range(2, 6):
        label = EXAMPLES[0].input_ids[position + 1]
        gradient_V = logits_BTV.grad[0, position]
        probability = float(logits_BTV[0, position].detach().softmax(0)[label])
        assert float(gradient_V[label]) == pytest.approx(probability - 1, rel=1e-5)
        assert (gradient_V > 0).sum() == VOCABULARY - 1


def test_bf16_logits_are_summed_in_fp32():
    logits_BTV, labels_BT = padded(EXAMPLES, dtype=torch.bfloat16)
    low = cross_entropy_sum(logits_BTV, labels_BT)
    assert low.dtype == torch.float32
    assert torch.equal(low, cross_entropy_sum(logits_BTV.float(), labels_BT))
    assert float(low) == pytest.approx(float(cross_entropy_sum(*padded(EXAMPLES))), rel=1e-2)


def test_no_label_is_zero_with_zero_gradient():
    logits_BTV = torch.randn(1, 4, VOCABULARY, requires_grad=True)
    loss = cross_entropy_sum(logits_BTV, torch.full((1, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits_BTV.grad.any()


def test_label_rows_of_the_hand_worked_batch():
    logits_NV, targets_N, rows_N = label_rows(*hand_batch.batch())
    assert targets_N.tolist() == hand_batch.LABELS
    assert rows_N.tolist() == hand_batch.ROWS
    assert torch.equal(logits_NV, torch.tensor([row_V for row in hand_batch.STUDENT.values() for row_V in row]))


def test_label_rows_keep_their_dtype_and_may_be_none():
    logits_BTV, labels_BT = hand_batch.batch()
    assert label_rows(logits_BTV.bfloat16(), labels_BT)[0].dtype == torch.bfloat16
    logits_NV, targets_N, rows_N = label_rows(logits_BTV, torch.full_like(labels_BT, IGNORE))
    assert (logits_NV.shape, targets_N.shape, rows_N.shape) == ((0, 3), (0,), (0,))


def test_a_label_at_position_0_is_not_read():
    """Nothing precedes it that could predict it."""
    assert label_rows(torch.zeros(1, 2, 3), torch.tensor([[1, 2]]))[1].tolist() == [2]


def test_row_log_probs_by_hand():
    # row a: 1/2 * 1/3; row b: 2/9; row c: 1/2 * 1/3 * 1/2
    log_prob_B, count_B = row_log_probs(*label_rows(*hand_batch.batch()), rows=3)
    assert log_prob_B.tolist() == pytest.approx([-math.log(6), math.log(2 / 9), -math.log(12)], rel=1e-6)
    assert count_B.tolist() == [2.0, 1.0, 3.0]


def test_row_log_probs_of_a_row_without_labels():
    logits_BTV, labels_BT = hand_batch.batch()
    labels_BT[1] = IGNORE
    log_prob_B, count_B = row_log_probs(*label_rows(logits_BTV, labels_BT), rows=3)
    assert log_prob_B.tolist() == pytest.approx([-math.log(6), 0, -math.log(12)], rel=1e-6)
    assert count_B.tolist() == [2.0, 0.0, 3.0]


def test_row_log_probs_gradient_stays_in_its_row():
    logits_BTV, labels_BT = hand_batch.batch()
    logits_BTV.requires_grad_()
    log_prob_B, count_B = row_log_probs(*label_rows(logits_BTV, labels_BT), rows=3)
    assert not count_B.requires_grad
    log_prob_B[2].backward()
    assert logits_BTV.grad[:2].abs().sum() == 0
    # row c predicts 1, 2, 0 with p = 1/2, 1/3, 1/2 from positions 1, 2, 3: e_y - p
    expected = [[-1 / 4, 1 / 2, -1 / 4], [-1 / 3, -1 / 3, 2 / 3], [1 / 2, -1 / 4, -1 / 4]]
    torch.testing.assert_close(logits_BTV.grad[2, 1:4], torch.tensor(expected))


def test_row_log_probs_of_bf16_are_fp64():
    logits_NV, targets_N, rows_N = label_rows(*padded(EXAMPLES, dtype=torch.bfloat16))
    low = row_log_probs(logits_NV, targets_N, rows_N, rows=3)
    high = row_log_probs(logits_NV.float(), targets_N, rows_N, rows=3)
    assert low[0].dtype == low[1].dtype == torch.float64
    assert torch.equal(low[0], high[0]) and torch.equal(low[1], high[1])


@pytest.mark.parametrize("m", [-60.0, -1.0, 0.0, 2.5, 60.0])
def test_log_odds(m):
    # Rivals of mass 2 + 1 + 1 = 4: the label's logit is m + ln 4.
    logits_NV = torch.tensor([[math.log(2), m + math.log(4), 0.0, 0.0]])
    targets_N = torch.tensor([1])
    assert float(log_odds(logits_NV, targets_N)) == pytest.approx(m, rel=1e-6, abs=1e-6)
    gradient_V = hand_batch.gradient(lambda *a: log_odds(*a).sum(), logits_NV, targets_N)[0]
    assert gradient_V.tolist() == pytest.approx([-1 / 2, 1, -1 / 4, -1 / 4], rel=1e-6)


def test_others_leave_the_label_out():
    logits_NV = torch.tensor([[1.0, 2.0, 3.0]])
    assert others(logits_NV, torch.tensor([1]))[0].tolist() == [1.0, -math.inf, 3.0]
    assert logits_NV.tolist() == [[1.0, 2.0, 3.0]]
