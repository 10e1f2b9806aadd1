"""Arithmetic on Gram matrices that every step needs: the combined gradient's norm, clipping, angles.

`gram_KK` holds the fp64 dot products <g_i, g_j> over all trainable parameters of all ranks. Weights are chosen in
`unlearn_core/combiners/`; the update direction is d = sum_k weights_k g_k, so |d|^2 = w' G w needs no further pass.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEGENERATE_NORM = 1e-12
"""A gradient whose norm is at most this times the largest one has no usable direction: its term is dropped."""


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
