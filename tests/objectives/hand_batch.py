"""A batch of 3 rows of unequal length over a vocabulary of 3 whose probabilities are small fractions.

Six label tokens of three kinds, so that a token loss f sums to 3 f(HALF) + 2 f(THIRD) + f(NINTHS):

    kind     label's p   the other two    rows a, b, c
    HALF       1/2       1/4, 1/4         a c c
    THIRD      1/3       1/3, 1/3         a c
    NINTHS     2/9       6/9, 1/9         b

Row a is HALF THIRD, row b NINTHS, row c HALF THIRD HALF: p(a) = 1/6, p(b) = 2/9, p(c) = 1/12.
"""

import math

import torch

from unlearn_core.data.tokenization import Example, collate

LN2, LN6 = math.log(2), math.log(6)
EXAMPLES = [  # a prompt, then the labels
    Example("a", (2, 0, 1), 1),
    Example("b", (0, 2, 1, 1), 3),
    Example("c", (2, 1, 1, 2, 0), 2),
]
STUDENT = {  # the logits that predict each row's labels
    "a": [[LN2, 0, 0], [0, 0, 0]],
    "b": [[LN6, LN2, 0]],
    "c": [[0, LN2, 0], [0, 0, 0], [LN2, 0, 0]],
}
TEACHER = {  # uniform where the student is HALF; half on token 0 where it is THIRD; 1/4, 1/2, 1/4 where it is NINTHS
    "a": [[0, 0, 0], [LN2, 0, 0]],
    "b": [[0, LN2, 0]],
    "c": [[0, 0, 0], [LN2, 0, 0], [0, 0, 0]],
}
LABELS = [0, 1, 1, 1, 2, 0]
ROWS = [0, 0, 1, 2, 2, 2]


def batch(logits=STUDENT, examples=EXAMPLES, fill=math.nan):
    """`(logits_BTV, labels_BT)`; prompt, padding and last positions hold `fill`."""
    collated = collate(examples, pad_id=0)
    logits_BTV = torch.full((*collated.labels_BT.shape, 3), fill)
    for b, example in enumerate(examples):
        first = example.prompt_length - 1
        logits_BTV[b, first : first + example.label_count] = torch.tensor(logits[example.item_id], dtype=torch.float32)
    return logits_BTV, collated.labels_BT


def random_tokens(tokens=8, vocabulary=7, seed=0, scale=2.0):
    """`(logits_NV, targets_N)` without ties; the first label is the likeliest token, the second the unlikeliest."""
    generator = torch.Generator().manual_seed(seed)
    logits_NV = scale * torch.randn(tokens, vocabulary, generator=generator)
    targets_N = torch.randint(vocabulary, (tokens,), generator=generator)
    if tokens:
        targets_N[0], targets_N[1] = logits_NV[0].argmax(), logits_NV[1].argmin()
    return logits_NV, targets_N


def gradient(loss, logits_NV, *others):
    """Gradient of `loss(logits_NV, *others)` with respect to the logits."""
    leaf_NV = logits_NV.detach().clone().requires_grad_()
    loss(leaf_NV, *others).backward()
    return leaf_NV.grad
