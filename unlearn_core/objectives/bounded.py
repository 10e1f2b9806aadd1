"""Forget losses that have a lower bound, token by token; p is the probability of the label, m = log(p / (1 - p)).

    NLUL        -log(1 - p) = softplus(m)
    surrogate   w log p,  w = stopgrad(p / (1 + tol - p))
    UCE         -log(1 - p/k)
    IHL         1 + p - max_{v != y} p_v
    spread      (max_v z_v - mean_v z_v)^2

All are minimised. The gradients of the first three go to 0 with p: a token that is forgotten is left alone, where
gradient ascent on cross-entropy would push for ever. The last two are bounded from below: IHL goes on until one rival
has all the mass, the spread until all logits are equal.

NLUL is written with the log-odds because both other forms fail in fp32: -log(1 - exp(log p)) when p rounds to 1, and
logsumexp(z) - logsumexp(z without y), the same number, when p is near 0 (differences of numbers that agree to p: at
p = 1e-6 its value and its rivals' gradients can be a tenth off).
"""

import math

import torch
import torch.nn.functional as F

from unlearn_core.errors import UserError
from unlearn_core.objectives.likelihood import log_odds, others, wide


def nlul(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Negative log-unlikelihood -log(1 - p), exact.

    Gradient with respect to z: p at the label, -p p_v / (1 - p) elsewhere, that is p / (1 - p) (e_y - softmax(z)). Its
    norm is at most sqrt(2) p: the factor p / (1 - p) cancels the 1 - p by which the gradient of log p vanishes on
    memorised tokens.

    Source: arXiv 2504.13388 (mean-teacher unlearning); the token loss of unlikelihood training, arXiv 1908.04319.

    Returns:
        Scalar fp32 in [0, inf): a sum; ln 2 for p = 1/2.
    """
    return F.softplus(log_odds(logits_NV, targets_N)).sum()


def nlul_surrogate(logits_NV: torch.Tensor, targets_N: torch.Tensor, *, tol: float = 0.02) -> torch.Tensor:
    """The NLUL of the mean-teacher authors' code: sum w log p with w = stopgrad(p / (1 + tol - p)).

    The gradient is that of NLUL times (1 - p) / (1 + tol - p): the label's entry is p (1 - p) / (1 + tol - p), which
    goes to 0 above p = 1 - tol. Label entries for p = .5, .98, .999 and tol .02: .481, .490, .048; exact NLUL has p.
    The value is not NLUL's, not even in sign; compare it with itself only.

    Source: the code published with arXiv 2504.13388, its further threshold on p left out (off in all its runs).

    Args:
        logits_NV: scores.
        targets_N: label ids.
        tol: above 0; the weight is at most 1 / tol. Towards 0 the gradient becomes that of `nlul`.

    Returns:
        Scalar fp32, each token in (-1, 0].

    Raises:
        UserError: tol is not above 0.
    """
    if not tol > 0:
        raise UserError(f"tol is {tol}; expected a number above 0 (the paper has 0.02), or take the exact loss, nlul")
    m_N = log_odds(logits_NV, targets_N)
    held_N = m_N.detach()
    weight_N = held_N.sigmoid() / (tol + (-held_N).sigmoid())
    return (weight_N * F.logsigmoid(m_N)).sum()


def uce(logits_NV: torch.Tensor, targets_N: torch.Tensor, *, k: float = 2.0) -> torch.Tensor:
    """Unlearning cross-entropy -log(1 - p/k).

    Gradient with respect to z: p (1 - p) / (k - p) at the label, and p / (k - p) (e_y - softmax(z)) in all; for k > 1
    it vanishes both on forgotten tokens and on perfectly memorised ones. k = 1 is `nlul`.

    Source: the code of FedOSD (arXiv 2412.20200), by authors of MOLLM (arXiv 2412.20412). That MOLLM has k = 2 as well
    is an inference: its code is not public.

    Args:
        logits_NV: scores.
        targets_N: label ids.
        k: from 1.

    Returns:
        Scalar fp32, each token in [0, log(k / (k - 1))]: at most log 2 for k = 2; unbounded for k = 1.

    Raises:
        UserError: k below 1, where 1 - p/k can be negative.
    """
    if not k >= 1:
        raise UserError(f"k is {k}; expected 1 or more (2 is the paper's), for 1 - p/k must not be negative")
    if k == 1:
        return nlul(logits_NV, targets_N)
    log_prob_N = F.logsigmoid(log_odds(logits_NV, targets_N))
    return -torch.log1p(-torch.exp(log_prob_N - math.log(k))).sum()


def ihl(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Inverted hinge loss 1 + p - max_{v != y} p_v: lower the label, raise its strongest rival r.

    Gradient with respect to z: p (e_y - softmax(z)) - p_r (e_r - softmax(z)); rivals that tie share it. Near p = 1 it
    vanishes like 1 - p.

    Source: LoKU, arXiv 2408.06621.

    Returns:
        Scalar fp32, each token in [0, 2]: 2 when memorised, 1 on a tie, 0 when a rival has all the mass.
    """
    scores_NV = wide(logits_NV)  # cast once: the parts of the gradient below overlap, and add up in fp32
    log_total_N = scores_NV.logsumexp(dim=1)
    label_N = scores_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1)
    rival_N = others(scores_NV, targets_N).amax(dim=1)
    return (1 + torch.exp(label_N - log_total_N) - torch.exp(rival_N - log_total_N)).sum()


def logit_spread(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Squared margin of the largest logit over the mean one, (max_v z_v - mean_v z_v)^2: flatten the distribution.

    Gradient with respect to z: 2 s (e_max - 1/V) with s the margin; logits that tie at the top share it. It does not
    look at the label: `targets_N` is there for the signature only.

    Source: the forget loss of PDU, arXiv 2506.05314.

    Returns:
        Scalar fp32 in [0, inf), in squared logits; 0 exactly for a uniform distribution.
    """
    scores_NV = wide(logits_NV)
    return (scores_NV.amax(dim=1) - scores_NV.mean(dim=1)).square().sum()
