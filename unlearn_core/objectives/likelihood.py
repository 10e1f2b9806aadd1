"""Cross-entropy of the answer: L = -sum_t log p(y_t | x, y_<t) over label tokens.

Unlearning maximises it on the forget set and minimises it on the retain set; the combiner gives the sign.

Also here is what every other loss starts from: the logits that predict label tokens (`label_rows`), log-probabilities
summed for each row of the batch (`row_log_probs`), and the log-odds of the label

    m = z_y - log sum_{v != y} exp z_v = log(p / (1 - p)),    log p = log sigmoid(m),    log(1 - p) = log sigmoid(-m)

whose two logarithms keep their relative accuracy in fp32 from p = 1e-30 to 1 - p = 1e-30. The usual log p =
z_y - logsumexp(z) rounds to 0 once 1 - p < 6e-8, and memorised tokens, which are what is to be forgotten, are there.
"""

import torch
import torch.nn.functional as F

from unlearn_core.data.tokenization import IGNORE


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least fp32: half-precision logits are cast up, fp32 and fp64 ones are left as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def label_rows(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits that predict label tokens, picked before any cast.

    Prompt and padding rows of the vocabulary-wide matrix are neither copied nor read: they may hold anything, and their
    gradient is zero. Works as well for hidden states (D in place of V).

    Args:
        logits_BTV: scores; position t predicts token t + 1.
        labels_BT: token ids, `IGNORE` where a token is not to be learned. Not shifted.

    Returns:
        logits_NV: shape (N, V) in the dtype given; row n predicts `targets_N[n]`.
        targets_N: label ids, N >= 0 of them, row after row of the batch.
        rows_N: which row of the batch each belongs to, from 0 to B - 1.
    """
    rows_N, positions_N = (labels_BT[:, 1:] != IGNORE).nonzero(as_tuple=True)
    return logits_BTV[rows_N, positions_N], labels_BT[rows_N, positions_N + 1], rows_N


def cross_entropy_sum(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood of the label tokens, in nats, from a whole batch.

    Args:
        logits_BTV: scores; position t predicts token t + 1. Any float dtype; the arithmetic is fp32.
        labels_BT: token ids, `IGNORE` where a token is not to be learned (prompt, padding).

    Returns:
        Scalar fp32 >= 0: a sum, so that a batch of 4 equals four batches of 1 and two ranks of 2.
    """
    logits_NV, targets_N, _ = label_rows(logits_BTV, labels_BT)
    return cross_entropy(logits_NV, targets_N)


def cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood -log p, summed over label tokens, in nats.

    Gradient with respect to z: softmax(z) - e_y. Its label entry, p - 1, vanishes on memorised tokens (p near 1), which
    is where gradient ascent starts, and stays at -1 on forgotten ones, which is why ascent has no end.

    Returns:
        Scalar fp32 in [0, inf).
    """
    return F.cross_entropy(wide(logits_NV), targets_N, reduction="sum")


def row_log_probs(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, rows_N: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each row's whole answer, log p(y|x) = sum_t log p(y_t | x, y_<t).

    Args:
        logits_NV: from `label_rows`.
        targets_N: from `label_rows`.
        rows_N: from `label_rows`.
        rows: B, number of rows of the batch; those without a label token are counted in.

    Returns:
        log_prob_B: fp64 <= 0, in nats, not divided by length. fp64 because losses compare two such sums, of some
            hundred nats each: summed in fp32, DPO's gradient was off by 1e-6.
        count_B: fp64, label tokens of each row; no gradient. A row without any has 0 and a log-probability of 0.
    """
    return sum_by_row(-F.cross_entropy(wide(logits_NV), targets_N, reduction="none").double(), rows_N, rows)


def sum_by_row(log_prob_N: torch.Tensor, rows_N: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Label tokens' log-probabilities, fp64, summed for each row; and how many there are. See `row_log_probs`."""
    log_prob_B = log_prob_N.new_zeros(rows).index_add(0, rows_N, log_prob_N)
    count_B = log_prob_B.new_zeros(rows).index_add(0, rows_N, torch.ones_like(log_prob_N))
    return log_prob_B, count_B


def log_odds(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Log-odds of each label, m = z_y - log sum_{v != y} exp z_v = log(p / (1 - p)).

    Gradient with respect to z: 1 at the label, -p_v / (1 - p) elsewhere; it does not vanish anywhere.

    Args:
        logits_NV: shape (N, V), V >= 2.
        targets_N: label ids.

    Returns:
        Shape (N,) fp32, any real number.
    """
    label_N = wide(logits_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1))
    return label_N - others(logits_NV, targets_N).logsumexp(dim=1)


def others(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The logits in fp32 with the label's set to -inf: softmax of it is p(v | v is not the label)."""
    return wide(logits_NV.scatter(1, targets_N.unsqueeze(1), -torch.inf))
