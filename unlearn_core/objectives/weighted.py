"""Gradient ascent on cross-entropy with a weight on each token; p is the probability of the label.

    WGA      w log p,  w = stopgrad(p^beta)
    SatImp   w log p,  w = stopgrad(p^beta1 (1 - p)^beta2)
    CE-U     -sum_v q_v log p_v,  q = stopgrad(softmax(z with z_y = -inf))

All are minimised on forget rows: WGA and SatImp are log-likelihoods (negative), not losses to climb. Their gradient is
w (e_y - softmax(z)). CE-U's is p / (1 - p) (e_y - softmax(z)), so it is of the same family, with NLUL's weight.

The values of WGA and SatImp are not positive: combiners that take logarithms of losses cannot use them. They are not
primitives of their gradients either, the weights being held: a step against the gradient lowers p, and may raise the
value.
"""

import torch
import torch.nn.functional as F

from unlearn_core.errors import UserError
from unlearn_core.objectives.likelihood import log_odds, others


def wga(logits_NV: torch.Tensor, targets_N: torch.Tensor, *, beta: float = 1.0) -> torch.Tensor:
    """Weighted gradient ascent: sum p^beta log p, the weight held constant.

    Gradient with respect to z: p^beta (e_y - softmax(z)).

    Source: arXiv 2502.19301.

    Args:
        logits_NV: scores.
        targets_N: label ids.
        beta: from 0; 0 is plain gradient ascent.

    Returns:
        Scalar fp32, each token in [-1 / (e beta), 0]; unbounded below for beta = 0.

    Raises:
        UserError: beta is negative.
    """
    return satimp(logits_NV, targets_N, beta1=beta, beta2=0.0)


def satimp(logits_NV: torch.Tensor, targets_N: torch.Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> torch.Tensor:
    """Ascent weighted by saturation and importance: sum p^beta1 (1 - p)^beta2 log p, the weight held constant.

    Gradient with respect to z: p^beta1 (1 - p)^beta2 (e_y - softmax(z)). Unlike WGA it leaves tokens with p near 1
    nearly alone: the label's entry goes to 0 like (1 - p)^(1 + beta2).

    Source: arXiv 2505.11953.

    Args:
        logits_NV: scores.
        targets_N: label ids.
        beta1: from 0; the larger, the sooner a token counts as forgotten.
        beta2: from 0; 0 is WGA with beta = beta1.

    Returns:
        Scalar fp32, each token in [-1 / (e beta1), 0]; unbounded below for beta1 = 0.

    Raises:
        UserError: an exponent is negative.
    """
    if not (beta1 >= 0 and beta2 >= 0):
        raise UserError(f"the weights' exponents are {beta1} and {beta2}; expected 0 or more, for weights of at most 1")
    m_N = log_odds(logits_NV, targets_N)
    held_N = m_N.detach()
    weight_N = torch.exp(beta1 * F.logsigmoid(held_N) + beta2 * F.logsigmoid(-held_N))
    return (weight_N * F.logsigmoid(m_N)).sum()


def ce_u(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to the model's own distribution without the label: -sum_v q_v log p_v, q held constant.

    Off the label log p_v = log q_v + log(1 - p), so it is H(q) - log(1 - p): NLUL plus the entropy of q, which has no
    gradient. Its gradient therefore *is* NLUL's, p / (1 - p) (e_y - softmax(z)); the two differ as methods only in what
    surrounds them. It is computed in that form, which keeps small gradients exact.

    Source: arXiv 2503.01224, which leaves out the first answer token; here the caller does, by not labelling it.

    Returns:
        Scalar fp32 in [0, inf).
    """
    with torch.no_grad():
        others_N = torch.special.entr(others(logits_NV, targets_N).softmax(dim=1)).sum(dim=1)
    return (F.softplus(log_odds(logits_NV, targets_N)) + others_N).sum()
