"""Gradient combiners: from the Gram matrix of the objectives' gradients to one weight for each gradient.

A combiner never sees a gradient. It gets `gram_KK`, the fp64 matrix of global dot products <g_i, g_j> over all
trainable parameters, and returns `weights_K`; the update direction is d = sum_k weights_k g_k and the step is
theta <- theta - eta d. So every combiner is exact under any sharding: only the Gram matrix crosses ranks.

Gradients are always those of the positive loss. An objective to be *maximised* gets a negative weight.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEGENERATE_NORM = 1e-12
"""A gradient whose norm is at most this times the largest one has no usable direction: its term is dropped."""


def ngdiff(gram_KK: Array) -> Array:
    """Normalised gradient difference: weights of g_R/|g_R| - g_F/|g_F|.

    The norm is one global L2 norm over all trainable parameters, taken after accumulation and reduction. The direction
    bisects g_R and -g_F, so <d, g_R> >= 0 >= <d, g_F>, and |d| <= 2. Source: arXiv 2410.22086, its g_NGDiff.

    Args:
        gram_KK: shape (2, 2), order retain, forget.

    Returns:
        Shape (2,): (1/|g_R|, -1/|g_F|). A zero gradient gets weight 0: the other term alone remains. Both 0: no step.
    """
    norms_K = np.sqrt(np.clip(np.diag(gram_KK), 0.0, None))
    usable_K = norms_K > DEGENERATE_NORM * norms_K.max(initial=0.0)
    inverse_K = np.divide(1.0, norms_K, out=np.zeros_like(norms_K), where=usable_K)
    return inverse_K * np.array([1.0, -1.0])


def weighted_sum(weights_K: Array) -> Array:
    """Constant weights, whatever the gradients: GradDiff, gradient ascent and plain training."""
    return np.asarray(weights_K, dtype=np.float64)


def clip_factor(gram_KK: Array, weights_K: Array, max_norm: float) -> float:
    """Factor in (0, 1] that brings the combined gradient's norm down to `max_norm`.

    |d|^2 = w' G w, so clipping needs no further pass over the gradients.

    Args:
        gram_KK: global dot products.
        weights_K: the combiner's answer.
        max_norm: largest L2 norm allowed; 0 switches clipping off.
    """
    norm = combined_norm(gram_KK, weights_K)
    return 1.0 if max_norm == 0 or norm <= max_norm else max_norm / norm


def combined_norm(gram_KK: Array, weights_K: Array) -> float:
    """L2 norm of d = sum_k weights_k g_k, from the Gram matrix."""
    return float(np.sqrt(max(0.0, float(weights_K @ gram_KK @ weights_K))))


def cosine(gram_KK: Array, i: int, j: int) -> float:
    """Cosine of the angle between gradients i and j, in [-1, 1]; 0 when one of them is zero."""
    scale = float(np.sqrt(gram_KK[i, i] * gram_KK[j, j]))
    return float(np.clip(gram_KK[i, j] / scale, -1.0, 1.0)) if scale > 0 else 0.0
