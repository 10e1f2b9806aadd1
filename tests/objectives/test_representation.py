import math

import hand_batch
import pytest
import torch
from hand_batch import gradient

from unlearn_core.objectives.likelihood import label_rows
from unlearn_core.objectives.representation import control_vector, rmu_forget, rmu_retain

# A hidden state of size 2 for each label token of the 3 rows; u = (3/5, 4/5), c = 5, so c u = (3, 4).
HIDDEN = {"a": [[3, 4], [0, 0]], "b": [[4, 2]], "c": [[3, 5], [0, 4], [6, 8]]}
REFERENCE = {"a": [[3, 4], [1, 0]], "b": [[2, 2]], "c": [[3, 5], [0, 0], [5, 9]]}
CONTROL_D = torch.tensor([0.6, 0.8])


def hidden(rows=HIDDEN, examples=hand_batch.EXAMPLES):
    """Hidden states `(B, T, 2)`, NaN off the label tokens, and labels."""
    _, labels_BT = hand_batch.batch(examples=examples)
    hidden_BTD = torch.full((*labels_BT.shape, 2), math.nan)
    for b, example in enumerate(examples):
        states = torch.tensor(rows[example.item_id], dtype=torch.float32)
        hidden_BTD[b, example.prompt_length - 1 : example.prompt_length - 1 + len(states)] = states
    return hidden_BTD, labels_BT


def losses(examples=hand_batch.EXAMPLES, dtype=torch.float32):
    hidden_ND = label_rows(*hidden(HIDDEN, examples))[0].to(dtype)
    reference_ND = label_rows(*hidden(REFERENCE, examples))[0].to(dtype)
    return float(rmu_forget(hidden_ND, CONTROL_D, coefficient=5.0)), float(rmu_retain(hidden_ND, reference_ND))


def test_by_hand():
    # to (3, 4): a 0 and 9 + 16; b 1 + 4; c 0 + 1, 9 + 0 and 9 + 16: 65, halved for D = 2.
    # to the reference: a 0 and 1; b 4; c 0, 16 and 1 + 1: 23, halved.
    assert losses() == pytest.approx((65 / 2, 23 / 2), rel=1e-6)


def test_a_batch_is_the_sum_of_its_singles():
    singles = [losses([example]) for example in hand_batch.EXAMPLES]
    assert [sum(column) for column in zip(*singles, strict=True)] == pytest.approx(losses(), rel=1e-6)


def test_gradients():
    # 2 (h - c u) / D and 2 (h - h_ref) / D with D = 2
    hidden_ND, reference_ND = torch.tensor([[4.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 2.5], [3.0, 4.0]])
    forget = gradient(lambda h_ND: rmu_forget(h_ND, CONTROL_D, coefficient=5.0), hidden_ND)
    torch.testing.assert_close(forget, torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    torch.testing.assert_close(gradient(rmu_retain, hidden_ND, reference_ND), torch.tensor([[2.0, -0.5], [0.0, 0.0]]))


def test_targets_get_no_gradient():
    hidden_ND = torch.ones(2, 2, requires_grad=True)
    target_ND, target_D = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    (rmu_forget(hidden_ND, target_D, coefficient=1.0) + rmu_retain(hidden_ND, target_ND)).backward()
    assert hidden_ND.grad.all() and target_ND.grad is None and target_D.grad is None


def test_prompt_and_padding_get_no_gradient():
    hidden_BTD, labels_BT = hidden()
    hidden_BTD.requires_grad_()
    rmu_forget(label_rows(hidden_BTD, labels_BT)[0], CONTROL_D, coefficient=9.0).backward()
    for b, example in enumerate(hand_batch.EXAMPLES):
        predicting = range(example.prompt_length - 1, len(example.input_ids) - 1)
        assert (hidden_BTD.grad[b] != 0).any(-1).nonzero().flatten().tolist() == list(predicting)


def test_no_label_is_zero_with_zero_gradient():
    hidden_ND = torch.randn(3, 2, requires_grad=True)
    loss = rmu_forget(hidden_ND[:0], CONTROL_D, coefficient=1.0) + rmu_retain(hidden_ND[:0], torch.zeros(0, 2))
    loss.backward()
    assert loss.shape == () and loss.item() == 0.0
    assert not hidden_ND.grad.any()


def test_bf16_is_cast_before_the_arithmetic():
    generator = torch.Generator().manual_seed(0)
    low_ND = torch.randn(3, 8, generator=generator).bfloat16()
    reference_ND = torch.randn(3, 8, generator=generator).bfloat16()
    control_D = control_vector(8, seed=0)
    forget, retain = rmu_forget(low_ND, control_D, coefficient=2.0), rmu_retain(low_ND, reference_ND)
    assert forget.dtype == retain.dtype == torch.float32
    assert torch.equal(forget, rmu_forget(low_ND.float(), control_D, coefficient=2.0))
    assert torch.equal(retain, rmu_retain(low_ND.float(), reference_ND.float()))
    assert losses(dtype=torch.bfloat16) == pytest.approx(losses(), rel=1e-6)  # small whole numbers are exact


def test_the_control_vector_is_a_unit_vector_of_positive_entries():
    control_D = control_vector(4096, seed=3)
    assert control_D.shape == (4096,) and control_D.dtype == torch.float32
    assert float(control_D.norm()) == pytest.approx(1, rel=1e-6)
    assert control_D.min() >= 0
    # Entries uniform on [0, 1) have mean 1/2 and mean square 1/3, so the mean of u is sqrt(3) / 2 / sqrt(D).
    assert float(control_D.mean()) * 64 == pytest.approx(math.sqrt(3) / 2, rel=0.02)
    assert float(control_D @ control_vector(4096, seed=4)) == pytest.approx(3 / 4, rel=0.03)


def test_the_control_vector_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first_D = control_vector(16, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(control_vector(16, seed=7), first_D)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(control_vector(16, seed=8), first_D)
