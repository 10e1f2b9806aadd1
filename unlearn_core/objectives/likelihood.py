"""Cross-entropy of the answer: L = -sum_t log p(y_t | x, y_<t) over label tokens.

Unlearning maximises it on the forget set and minimises it on the retain set; the combiner gives the sign.
"""

import torch
import torch.nn.functional as F

from unlearn_core.data.tokenization import IGNORE


def cross_entropy_sum(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood of the label tokens, in nats.

    Args:
        logits_BTV: scores; position t predicts token t + 1. Any float dtype; the arithmetic is fp32.
        labels_BT: token ids, `IGNORE` where a token is not to be learned (prompt, padding).

    Returns:
        Scalar fp32 >= 0: a sum, so that a batch of 4 equals four batches of 1 and two ranks of 2.
    """
    targets_N = labels_BT[:, 1:].reshape(-1)
    keep_N = targets_N != IGNORE
    # Select before the fp32 cast: prompt and padding rows of the vocabulary-wide matrix are never copied.
    logits_NV = logits_BTV[:, :-1].reshape(-1, logits_BTV.shape[-1])[keep_N].float()
    return F.cross_entropy(logits_NV, targets_N[keep_N], reduction="sum")
