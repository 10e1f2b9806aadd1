"""What every loss on label tokens has to satisfy, with and without a teacher."""

import math
from functools import partial

import hand_batch
import pytest
import torch
from hand_batch import EXAMPLES, STUDENT, TEACHER, gradient, random_tokens

from unlearn_core.objectives import bounded, divergence, likelihood, weighted
from unlearn_core.objectives.likelihood import label_rows

LN2, LN3, LN6 = math.log(2), math.log(3), math.log(6)


def total(half, third, ninths):
    """Sum over the hand-worked batch: three tokens with p = 1/2, two with 1/3, one with 2/9 (others 6/9 and 1/9)."""
    return 3 * half + 2 * third + ninths


HALF, THIRD, NINTHS = -LN2, -LN3, math.log(2 / 9)  # log p of each kind
ENTROPIES = (1.5 * LN2, LN3, -(6 / 9 * math.log(6 / 9) + 2 / 9 * math.log(2 / 9) + 1 / 9 * math.log(1 / 9)))

TOKEN = {
    "cross_entropy": (likelihood.cross_entropy, total(LN2, LN3, math.log(9 / 2))),
    # 1 - p is 1/2, 2/3, 7/9
    "nlul": (bounded.nlul, total(LN2, math.log(3 / 2), math.log(9 / 7))),
    # weights .5 / .52, (1/3) / (1.02 - 1/3), (2/9) / (1.02 - 2/9)
    "nlul_surrogate": (bounded.nlul_surrogate, total(HALF * 25 / 26, THIRD / 2.06, NINTHS * 2 / 7.18)),
    # 1 - p/2 is 3/4, 5/6, 8/9
    "uce": (bounded.uce, total(math.log(4 / 3), math.log(6 / 5), math.log(9 / 8))),
    # 1 - p/4 is 7/8, 11/12, 17/18
    "uce_k4": (partial(bounded.uce, k=4.0), total(math.log(8 / 7), math.log(12 / 11), math.log(18 / 17))),
    # 1 + 1/2 - 1/4, 1 + 1/3 - 1/3, 1 + 2/9 - 6/9
    "ihl": (bounded.ihl, total(5 / 4, 1, 5 / 9)),
    # margins over the mean: ln2 - ln2 / 3, 0, ln6 - (ln6 + ln2) / 3
    "logit_spread": (bounded.logit_spread, total((2 / 3 * LN2) ** 2, 0, ((2 * LN6 - LN2) / 3) ** 2)),
    "wga": (weighted.wga, total(HALF / 2, THIRD / 3, NINTHS * 2 / 9)),
    "wga_beta2": (partial(weighted.wga, beta=2.0), total(HALF / 4, THIRD / 9, NINTHS * 4 / 81)),
    "satimp": (
        weighted.satimp,
        total(HALF / 2**5 / 2, THIRD / 3**5 * 2 / 3, NINTHS * (2 / 9) ** 5 * 7 / 9),
    ),
    # q without the label: (1/2, 1/2) on p = 1/4; (1/2, 1/2) on p = 1/3; (6/7, 1/7) on p = 6/9, 1/9
    "ce_u": (weighted.ce_u, total(math.log(4), LN3, 6 / 7 * math.log(9 / 6) + 1 / 7 * math.log(9))),
    "negative_entropy": (divergence.negative_entropy, -total(*ENTROPIES)),
    "kl_to_uniform": (divergence.kl_to_uniform, 6 * LN3 - total(*ENTROPIES)),
}
TEACHER_LOSSES = {
    # uniform to (1/2, 1/4, 1/4): 1/3 ln(2/3) + 2/3 ln(4/3); back: 1/2 ln(3/2) + 1/2 ln(3/4);
    # (1/4, 1/2, 1/4) to (6, 2, 1) / 9: 1/4 ln(9/24) + 1/2 ln(9/4) + 1/4 ln(9/4)
    "kl_teacher_first": (
        divergence.kl_teacher_first,
        total(math.log(32 / 27) / 3, math.log(9 / 8) / 2, math.log(3 / 8) / 4 + 3 / 4 * math.log(9 / 4)),
    ),
    # the first two change places; (6, 2, 1) / 9 to (1/4, 1/2, 1/4): 6/9 ln(24/9) + 2/9 ln(4/9) + 1/9 ln(4/9)
    "kl_student_first": (
        divergence.kl_student_first,
        total(math.log(9 / 8) / 2, math.log(32 / 27) / 3, 2 / 3 * math.log(8 / 3) + 1 / 3 * math.log(4 / 9)),
    ),
    # D is ln2, -ln2, ln6 on one token and 0 on the others, of teacher probability 1/3, 1/2, 1/4: variance P (1 - P) D^2
    "qkl": (divergence.qkl, total(2 / 9 * LN2**2, 1 / 4 * LN2**2, 3 / 16 * LN6**2)),
    # beta = ln2 halves the label's mass: HALF q = (1, 2, 2) / 5 on p = 1/2, 1/4, 1/4; THIRD any q on p = 1/3;
    # NINTHS q = (1, 1, 1) / 3 on (6, 2, 1) / 9
    "undial": (
        partial(divergence.undial, beta=LN2),
        total(1 / 5 * LN2 + 4 / 5 * 2 * LN2, LN3, (math.log(9 / 6) + math.log(9 / 2) + math.log(9)) / 3),
    ),
}
ALL = {**TOKEN, **TEACHER_LOSSES}


def label_inputs(name, examples=EXAMPLES, dtype=torch.float32):
    """Arguments of the loss on the hand-worked batch, or a part of it."""
    logits_NV, targets_N, _ = label_rows(*hand_batch.batch(STUDENT, examples))
    if name in TOKEN:
        return logits_NV.to(dtype), targets_N
    return logits_NV.to(dtype), label_rows(*hand_batch.batch(TEACHER, examples))[0].to(dtype), targets_N


def random_inputs(name, tokens=8, dtype=torch.float32, scale=2.0):
    logits_NV, targets_N = random_tokens(tokens, scale=scale)
    teacher = () if name in TOKEN else (random_tokens(tokens, seed=1, scale=scale)[0].to(dtype),)
    return logits_NV.to(dtype), *teacher, targets_N


def closed_form(name, logits_NV, *others):
    """Gradient as the docstrings state it, in fp64."""
    z_NV, targets_N = logits_NV.double(), others[-1]
    p_NV = z_NV.softmax(1)
    label_NV = torch.nn.functional.one_hot(targets_N, z_NV.shape[1]).double()
    p_N1 = (p_NV * label_NV).sum(1, keepdim=True)
    up_NV = label_NV - p_NV  # gradient of log p
    if name in TEACHER_LOSSES:
        v_NV = others[0].double()
        q_NV = v_NV.softmax(1)
        ratio_NV = p_NV.log() - q_NV.log()
        fisher_NVV = torch.diag_embed(q_NV) - q_NV.unsqueeze(2) * q_NV.unsqueeze(1)
        return {
            "kl_teacher_first": p_NV - q_NV,
            "kl_student_first": p_NV * (ratio_NV - (p_NV * ratio_NV).sum(1, keepdim=True)),
            "qkl": (fisher_NVV @ (z_NV - v_NV).unsqueeze(2)).squeeze(2),
            "undial": p_NV - (v_NV - LN2 * label_NV).softmax(1),
        }[name]
    rivals_NV = p_NV.masked_fill(label_NV.bool(), -1)
    rival_NV = torch.nn.functional.one_hot(rivals_NV.argmax(1), z_NV.shape[1]).double()
    top_NV = torch.nn.functional.one_hot(z_NV.argmax(1), z_NV.shape[1]).double()
    rival_p_N1 = (p_NV * rival_NV).sum(1, keepdim=True)
    margin_N1 = z_NV.amax(1, keepdim=True) - z_NV.mean(1, keepdim=True)
    entropy_N1 = -(p_NV * p_NV.log()).sum(1, keepdim=True)
    weights = {
        "cross_entropy": -torch.ones_like(p_N1),
        "nlul": p_N1 / (1 - p_N1),
        "nlul_surrogate": p_N1 / (1.02 - p_N1),
        "uce": p_N1 / (2 - p_N1),
        "uce_k4": p_N1 / (4 - p_N1),
        "wga": p_N1,
        "wga_beta2": p_N1**2,
        "satimp": p_N1**5 * (1 - p_N1),
        "ce_u": p_N1 / (1 - p_N1),
    }
    if name in weights:
        return weights[name] * up_NV
    return {
        "ihl": p_N1 * up_NV - rival_p_N1 * (rival_NV - p_NV),
        "logit_spread": 2 * margin_N1 * (top_NV - 1 / z_NV.shape[1]),
        "negative_entropy": p_NV * (p_NV.log() + entropy_N1),
        "kl_to_uniform": p_NV * (p_NV.log() + entropy_N1),
    }[name]


@pytest.mark.parametrize("name", ALL)
def test_by_hand(name):
    loss, expected = ALL[name]
    assert float(loss(*label_inputs(name))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_documented_one(name):
    inputs = random_inputs(name)
    torch.testing.assert_close(
        gradient(ALL[name][0], *inputs).double(), closed_form(name, *inputs), rtol=2e-5, atol=2e-7
    )


@pytest.mark.parametrize("name", [name for name in TOKEN if name != "cross_entropy"])
def test_descent_forgets_a_memorised_token(name):
    """With the label likeliest, a small step against the gradient lowers its log-probability."""
    logits_NV, targets_N = torch.tensor([[2.0, 0.5, -1.0, 0.0]]), torch.tensor([0])
    stepped_NV = logits_NV - 0.1 * gradient(TOKEN[name][0], logits_NV, targets_N)
    before, after = (-float(likelihood.cross_entropy(z_NV, targets_N)) for z_NV in (logits_NV, stepped_NV))
    assert after < before - 1e-4


@pytest.mark.parametrize("name", TEACHER_LOSSES)
def test_descent_approaches_the_teacher(name):
    logits_NV, teacher_NV, targets_N = random_inputs(name)
    if name == "undial":  # what it approaches is the teacher without the label
        teacher_NV = teacher_NV - LN2 * torch.nn.functional.one_hot(targets_N, teacher_NV.shape[1])
    given_NV = random_inputs(name)[1]
    stepped_NV = logits_NV - 0.1 * gradient(TEACHER_LOSSES[name][0], logits_NV, given_NV, targets_N)
    before, after = (
        float((z_NV.softmax(1).log() - teacher_NV.log_softmax(1)).square().mean()) for z_NV in (logits_NV, stepped_NV)
    )
    assert after < before


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_the_sum_of_its_singles(name):
    loss = ALL[name][0]
    singles = [float(loss(*label_inputs(name, [example]))) for example in EXAMPLES]
    assert all(singles)
    assert float(loss(*label_inputs(name))) == pytest.approx(sum(singles), rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_prompt_padding_and_last_position_get_no_gradient(name):
    """They hold NaN, which would spread if anything read them."""
    logits_BTV, labels_BT = hand_batch.batch()
    logits_BTV.requires_grad_()
    logits_NV, targets_N, _ = label_rows(logits_BTV, labels_BT)
    # away from ties and zero gradients, which some of the hand-worked tokens are at
    shifted_NV = logits_NV + torch.tensor([0.1, 0.7, -0.4]) * torch.arange(1, 7).unsqueeze(1)
    ALL[name][0](shifted_NV, *label_inputs(name)[1:-1], targets_N).backward()
    touched_BT = (logits_BTV.grad != 0).any(-1)
    for b, example in enumerate(EXAMPLES):
        predicting = range(example.prompt_length - 1, len(example.input_ids) - 1)
        assert touched_BT[b].nonzero().flatten().tolist() == list(predicting)
    assert not logits_BTV.grad.isnan().any()


@pytest.mark.parametrize("name", ALL)
def test_no_label_is_zero_with_zero_gradient(name):
    logits_NV, *others = random_inputs(name, tokens=0)
    model_output = torch.randn(4, 7, requires_grad=True)
    loss = ALL[name][0](model_output[:0] + logits_NV, *others)
    loss.backward()
    assert loss.shape == () and loss.item() == 0.0
    assert model_output.grad is not None and not model_output.grad.any()


@pytest.mark.parametrize("name", ALL)
def test_bf16_is_cast_before_the_arithmetic(name):
    loss, expected = ALL[name]
    low_NV, *others = random_inputs(name, dtype=torch.bfloat16)
    raised = [tensor.float() if tensor.is_floating_point() else tensor for tensor in (low_NV, *others)]
    value = loss(low_NV, *others)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(*raised))
    gradient_NV = gradient(loss, low_NV, *others)
    assert gradient_NV.dtype == torch.bfloat16
    assert torch.equal(gradient_NV, gradient(loss, *raised).bfloat16())
    assert float(loss(*label_inputs(name, dtype=torch.bfloat16))) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [0.0, 30.0, 1e4])
def test_extreme_logits_give_finite_numbers(name, scale):
    """All equal, nearly one-hot and one-hot beyond what fp32 can tell, with the label at the top and at the bottom."""
    inputs = random_inputs(name, scale=scale)
    assert math.isfinite(ALL[name][0](*inputs))
    assert gradient(ALL[name][0], *inputs).isfinite().all()


@pytest.mark.parametrize("name", TEACHER_LOSSES)
def test_the_teacher_gets_no_gradient(name):
    logits_NV, teacher_NV, targets_N = random_inputs(name)
    logits_NV.requires_grad_()
    teacher_NV.requires_grad_()
    TEACHER_LOSSES[name][0](logits_NV, teacher_NV, targets_N).backward()
    assert logits_NV.grad.any()
    assert teacher_NV.grad is None


@pytest.mark.parametrize("name", ALL)
def test_a_constant_added_to_the_logits_changes_nothing(name):
    inputs = random_inputs(name)
    shifted = (inputs[0] + 8.0, *inputs[1:])
    assert float(ALL[name][0](*shifted)) == pytest.approx(float(ALL[name][0](*inputs)), rel=1e-5)
