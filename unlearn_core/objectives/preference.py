"""Preference losses on whole answers; o = log p(y|x) summed over label tokens, o_ref the same under the start model.

    NPO      -(2/beta) log sigmoid(-beta (o - o_ref))
    SimNPO   -(2/beta) log sigmoid(-beta o / |y| - beta delta)
    DPO      -(2/beta) log sigmoid(beta ((o_w - o_w_ref) - (o_l - o_l_ref)))

All are minimised, are positive and are summed over the rows of the batch. The factor 2/beta makes NPO's gradient equal
to gradient ascent's on a row that has not moved, whatever beta; DPO has it so that beta means the same in the three.
"""

import torch
import torch.nn.functional as F

from unlearn_core.errors import UserError


def npo(
    log_prob_B: torch.Tensor,
    count_B: torch.Tensor,
    reference_B: torch.Tensor,
    *,
    beta: float = 0.1,
    length_normalised: bool = False,
) -> torch.Tensor:
    """Negative preference optimisation: (2/beta) log(1 + (p / p_ref)^beta).

    Gradient with respect to o: 2 sigmoid(beta (o - o_ref)), so 1 at the start, as in gradient ascent, and to 0 as the
    row is forgotten. It inherits ascent's vanishing gradient on memorised tokens.

    Source: arXiv 2404.05868. Length-normalised, (o - o_ref) / |y| takes the place of o - o_ref, as in the code of
    arXiv 2504.13388; that code divides by the padded length, this by the row's own label tokens.

    Args:
        log_prob_B: o, in nats.
        count_B: label tokens of each row. A row with 0 adds nothing.
        reference_B: o_ref; gets no gradient.
        beta: above 0, per nat; towards 0 it becomes gradient ascent.
        length_normalised: whether to compare means over label tokens instead of sums.

    Returns:
        Scalar fp32 in [0, inf), (2/beta) log 2 for each row at the start model.

    Raises:
        UserError: beta is not above 0.
    """
    _check(beta)
    ratio_B = log_prob_B.double() - reference_B.detach().double()
    if length_normalised:
        ratio_B = ratio_B / count_B.clamp(min=1)
    return _sum_of_labelled(-2 / beta * F.logsigmoid(-beta * ratio_B), count_B)


def simnpo(
    log_prob_B: torch.Tensor,
    count_B: torch.Tensor,
    reference_B: torch.Tensor | None = None,
    *,
    beta: float = 4.5,
    delta: float = 0.0,
) -> torch.Tensor:
    """NPO without a reference: -(2/beta) log sigmoid(beta (NLL / |y| - delta)), NLL = -o.

    Gradient with respect to o: (2 / |y|) sigmoid(beta (o / |y| + delta)): long rows are pushed no harder than short
    ones.

    Source: arXiv 2410.07163. Its margin gamma is subtracted inside the sigmoid and is beta delta here; delta, as
    unlearning code has it, counts in nats a token.

    Args:
        log_prob_B: o, in nats.
        count_B: |y|, label tokens of each row. A row with 0 adds nothing.
        reference_B: not used; row losses share one signature.
        beta: above 0.
        delta: mean NLL of the row's tokens at which half the largest force is left, in nats; any real number.

    Returns:
        Scalar fp32 in [0, inf).

    Raises:
        UserError: beta is not above 0.
    """
    _check(beta)
    nll_B = -log_prob_B.double() / count_B.clamp(min=1)
    return _sum_of_labelled(-2 / beta * F.logsigmoid(beta * (nll_B - delta)), count_B)


def dpo(
    preferred_B: torch.Tensor,
    rejected_B: torch.Tensor,
    reference_preferred_B: torch.Tensor,
    reference_rejected_B: torch.Tensor,
    *,
    beta: float = 0.1,
) -> torch.Tensor:
    """Direct preference optimisation: refusals or alternates (w) over the answers to forget (l).

    Gradient: with h = 2 sigmoid(-beta margin), -h with respect to o_w and h with respect to o_l, margin =
    (o_w - o_w_ref) - (o_l - o_l_ref).

    Source: arXiv 2305.18290; as an unlearning loss (IdkDPO) arXiv 2401.06121, with alternates (AltPO) arXiv 2409.13474.
    Deviation: times 2/beta, as unlearning code has it.

    Args:
        preferred_B: o_w, in nats.
        rejected_B: o_l.
        reference_preferred_B: o_w_ref; gets no gradient.
        reference_rejected_B: o_l_ref; gets no gradient.
        beta: above 0, per nat.

    Returns:
        Scalar fp32 in [0, inf), (2/beta) log 2 for each pair at the start model.

    Raises:
        UserError: beta is not above 0.
    """
    _check(beta)
    preferred_gain_B = preferred_B.double() - reference_preferred_B.detach().double()
    rejected_gain_B = rejected_B.double() - reference_rejected_B.detach().double()
    return -2 / beta * F.logsigmoid(beta * (preferred_gain_B - rejected_gain_B)).sum().float()


def _check(beta: float) -> None:
    if not beta > 0:
        raise UserError(f"beta is {beta}; expected a number above 0; for its limit at 0, take gradient ascent")


def _sum_of_labelled(loss_B: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    # A row that lost its only label token still has a log-probability of 0, and the losses are not 0 there.
    return torch.where(count_B > 0, loss_B, 0.0).sum().float()
