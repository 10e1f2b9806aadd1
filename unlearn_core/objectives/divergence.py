"""Distances between distributions over the vocabulary: w the student, v the teacher (fixed), p = softmax(z).

    teacher first   KL(p_v || p_w) = sum p_v (log p_v - log p_w)
    student first   KL(p_w || p_v) = sum p_w (log p_w - log p_v)
    quadratic       D' F_v D,  D = z_w - z_v,  F_v = diag(p_v) - p_v p_v'      (about 2 KL; gradient F_v D, about KL's)
    UNDIAL          -sum q log p_w,  q = softmax(z_v - beta e_y)
    entropy         sum p log p = -H(p), and KL(p || uniform) = log V - H(p)

All are minimised: the first three on retain or generic text (stay near the teacher), the others on forget rows. No
gradient reaches a teacher.
"""

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from unlearn_core.objectives.likelihood import wide


def kl_teacher_first(logits_NV: torch.Tensor, teacher_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """KL(p_v || p_w), the distillation loss: the student must cover everything that the teacher says.

    Gradient with respect to z_w: p_w - p_v.

    Source: the penalty `kl` of arXiv 2504.13388; KL on retain rows in many others.

    Args:
        logits_NV: z_w.
        teacher_NV: z_v, raw logits; gets no gradient.
        targets_N: not used; teacher losses share one signature.

    Returns:
        Scalar fp32 in [0, inf) up to rounding (about 1e-7 a token), in nats; 0 for equal distributions.
    """
    found: Any = _TeacherFirst.apply(wide(logits_NV), wide(teacher_NV.detach()))
    return found


class _TeacherFirst(torch.autograd.Function):
    """sum_n c_n - mean_n,  c = log sum p_v e^D,  D = z_w - z_v,  mean = sum p_v D;  gradient p_v (e^(D - c) - 1).

    p_w - p_v as a difference of two rounded probabilities is noise of 1e-8 where student and teacher agree; this form
    keeps its digits there and is exactly zero where they are equal. (A mean teacher stays close to its student.)
    """

    @staticmethod
    def forward(ctx: Any, student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
        log_p_NV = teacher_NV.log_softmax(dim=1)
        p_NV = log_p_NV.exp()
        gap_NV = student_NV - teacher_NV
        gap_NV -= (p_NV * gap_NV).sum(dim=1, keepdim=True)
        rest_N1 = (p_NV * gap_NV).sum(dim=1, keepdim=True)  # of the mean: its rounding
        near_N1 = (p_NV * gap_NV.expm1()).sum(dim=1, keepdim=True).log1p()
        far_N1 = (log_p_NV + gap_NV).logsumexp(dim=1, keepdim=True)
        c_N1 = torch.where(gap_NV.amax(dim=1, keepdim=True) < 1, near_N1, far_N1)
        value = (c_N1 - rest_N1).sum()
        if ctx.needs_input_grad[0]:
            gap_NV -= c_N1
            apart_NV = (log_p_NV + gap_NV).exp_().sub_(p_NV)
            ctx.save_for_backward(torch.where(gap_NV.abs() < 1, p_NV.mul_(gap_NV.expm1()), apart_NV))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Any) -> Any:
        return ctx.saved_tensors[0] * outputs[0], None


def kl_student_first(logits_NV: torch.Tensor, teacher_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """KL(p_w || p_v): the student must not say what the teacher would not; it may drop modes.

    Gradient with respect to z_w: p_w (log p_w - log p_v - KL), entry by entry.

    Args:
        logits_NV: z_w.
        teacher_NV: z_v, raw logits; gets no gradient.
        targets_N: not used.

    Returns:
        Scalar fp32 in [0, inf) up to rounding, in nats; 0 for equal distributions.
    """
    student_NV = wide(logits_NV).log_softmax(dim=1)
    return (student_NV.exp() * (student_NV - _log_probs(teacher_NV))).sum()


def qkl(logits_NV: torch.Tensor, teacher_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Quadratic KL: value D' F_v D, the variance of D = z_w - z_v under p_v; gradient F_v D.

    The gradient is that of *half* the value: of D' F_v D / 2, which agrees with both KLs to second order in D. So the
    value is about 2 KL, and one step of descent is about one of KL. With it the Hessian at the teacher is exactly the
    Fisher matrix, which makes mean-teacher training follow natural gradient descent.

    Source: the penalty `qkl` of arXiv 2504.13388.

    Args:
        logits_NV: z_w.
        teacher_NV: z_v, raw logits; gets no gradient.
        targets_N: not used.

    Returns:
        Scalar fp32 in [0, inf), in squared logits; 0 when D is constant over the vocabulary.
    """
    difference_NV = wide(logits_NV) - wide(teacher_NV.detach())
    teacher_p_NV = _log_probs(teacher_NV).exp()
    with torch.no_grad():
        mean_N1 = (teacher_p_NV * difference_NV).sum(dim=1, keepdim=True)
        fisher_times_difference_NV = teacher_p_NV * (difference_NV - mean_N1)
    # The held mean changes nothing but rounding: F_v D sums to 0. A held F_v D halves the gradient of the product.
    return ((difference_NV - mean_N1) * fisher_times_difference_NV).sum()


def undial(
    logits_NV: torch.Tensor, teacher_NV: torch.Tensor, targets_N: torch.Tensor, *, beta: float = 10.0
) -> torch.Tensor:
    """Cross-entropy to the start model with the label's logit lowered: -sum q log p_w, q = softmax(z_v - beta e_y).

    Gradient with respect to z_w: p_w - q.

    Source: UNDIAL, arXiv 2402.10052. Only label tokens count; a public implementation averages over prompt and padding
    as well.

    Args:
        logits_NV: z_w.
        teacher_NV: z_v of the start model, raw logits; gets no gradient.
        targets_N: label ids.
        beta: how far the label's logit is lowered; 0 distils the start model unchanged.

    Returns:
        Scalar fp32 in [0, inf), at least the entropy of q.
    """
    lowered_NV = wide(teacher_NV.detach())
    drop_N1 = lowered_NV.new_full((lowered_NV.shape[0], 1), -beta)
    q_NV = lowered_NV.scatter_add(1, targets_N.unsqueeze(1), drop_N1).softmax(dim=1)
    return -(q_NV * wide(logits_NV).log_softmax(dim=1)).sum()


def negative_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """sum_v p_v log p_v = -H(p); minimised on forget rows, it maximises entropy.

    Gradient with respect to z: p (log p + H), entry by entry; it vanishes at one-hot distributions as well as at the
    uniform one. It does not look at the label.

    Source: the entropy term of projected-gradient unlearning, arXiv 2312.04095.

    Returns:
        Scalar fp32, each token in [-log V, 0]: 0 when one-hot, -log V when uniform. Never positive: combiners that take
        logarithms need `kl_to_uniform`.
    """
    log_p_NV = wide(logits_NV).log_softmax(dim=1)
    return (log_p_NV.exp() * log_p_NV).sum()


def kl_to_uniform(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """KL(p || uniform) = log V - H(p), the student first: `negative_entropy` plus log V for each token.

    Gradient with respect to z: p (log p + H), that of `negative_entropy`.

    Source: the objective "maximise entropy" of arXiv 2410.08109 up to a constant. It is not the `mismatch` loss in the
    code of arXiv 2504.13388 (after arXiv 2310.10683): what that computes is KL(uniform || p), unbounded, of gradient
    p - 1/V, which does not vanish on memorised tokens.

    Returns:
        Scalar fp32, each token in [0, log V] up to rounding: log V when one-hot, 0 when uniform.
    """
    log_p_NV = wide(logits_NV).log_softmax(dim=1)
    # log V is added before the sum over the vocabulary, so that a nearly uniform p does not cancel.
    return (log_p_NV.exp() * (log_p_NV + math.log(logits_NV.shape[1]))).sum()


def _log_probs(teacher_NV: torch.Tensor) -> torch.Tensor:
    return wide(teacher_NV.detach()).log_softmax(dim=1)
