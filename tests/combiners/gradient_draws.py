"""Gradients to combine: their Gram matrix, the combined vector, random ones of very different lengths."""

import numpy as np


def gram(*vectors):
    stacked = np.array(vectors, dtype=np.float64)
    return stacked @ stacked.T


def combined(combiner, *vectors, losses=None, step=0):
    """The vector d that the combiner makes of these gradients."""
    losses_K = None if losses is None else np.array(losses, dtype=np.float64)
    weights = combiner.weights(gram(*vectors), losses_K, step)
    assert weights.dtype == np.float64
    assert weights.shape == (len(vectors),)
    return weights @ np.array(vectors, dtype=np.float64)


def draws(vectors=2, count=40, dimension=7, spread=2.0):
    """Random sets of gradients; every third has two of them nearly parallel or nearly opposite."""
    generator = np.random.default_rng(vectors)
    for index in range(count):
        lengths = 10.0 ** generator.uniform(-spread, spread, size=(vectors, 1))
        drawn = generator.normal(size=(vectors, dimension)) * lengths
        if index % 3 == 0 and vectors > 1:
            sign = 1 if index % 2 else -1
            ratio = np.linalg.norm(drawn[1]) / np.linalg.norm(drawn[0])
            drawn[1] = sign * ratio * drawn[0] + 1e-3 * drawn[1]
        yield drawn


def length(vector):
    return float(np.linalg.norm(vector))


def angle_cosine(a, b):
    return float(a @ b / length(a) / length(b))
