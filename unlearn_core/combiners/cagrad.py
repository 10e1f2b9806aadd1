"""The best worst case near the mean gradient: max over |d - g_0| <= c |g_0| of min_k <d, g_k>, g_0 = mean_k g_k.

Its dual is a problem on the simplex: min over z of <g_z, g_0> + c |g_0| |g_z| with g_z = sum_k z_k g_k, and then
d = g_0 + c |g_0| g_z / |g_z|. Source: CAGrad (arXiv 2110.14048).
"""

import numpy as np

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import Combiner, given, norm_or_zero, require
from unlearn_core.combiners.min_norm import faces, min_norm_weights
from unlearn_core.errors import UserError

MOST_OBJECTIVES = 10
"""Every face of the simplex is tried: 1023 of them at 10 objectives."""

WORST_CONDITION = 1e12
"""A face whose matrix of cosines is conditioned worse than this is left to its smaller faces."""


class CAGrad(Combiner):
    """Conflict-averse gradient, from the plain mean (c = 0) towards the min-norm direction (c large).

    The dual is solved exactly, face by face, for any number of objectives up to `MOST_OBJECTIVES`; no iteration. With
    two objectives of equal length z = (1/2, 1/2) and d is (1 + c) g_0, the direction of `Bisector`; with unequal ones
    it is none of the others, but tends to the direction of `MinNorm` as c grows.

    Degenerate: where the best g_z is zero, no direction goes down on all objectives and the formula is 0/0. Every d in
    the ball with all <d, g_k> >= 0 is then optimal, and the answer is the one nearest to g_0. So opposite gradients
    with c >= 1 give no step, and with a zero gradient d is g_0 less its conflicts. Where g_0 itself is zero (equal
    opposite gradients) there is no step. Parallel gradients: g_0 lengthened along itself, (1 + c) g_0.

    Args:
        c: radius of the ball relative to |g_0|, >= 0; 0.5 is usual. From 1 on the mean loss may rise.
        rescale: d / (1 + c^2), as public code does, so that c changes the length less.
    """

    def __init__(self, c: float = 0.5, rescale: bool = False):
        require(0 <= c < np.inf, "c", c, "a finite number >= 0")
        self.c = c
        self.rescale = rescale

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """1/K + c |g_0|/|g_z| z_k."""
        gram_KK = given(gram_VV)
        count = len(gram_KK)
        if count > MOST_OBJECTIVES:
            raise UserError(
                f"CAGrad was given {count} objectives; it is solved exactly for at most {MOST_OBJECTIVES}. "
                "Use fewer objectives or another combiner."
            )
        scale = float(np.diag(gram_KK).max())
        if scale <= 0:
            return np.zeros(count)
        gram_KK = gram_KK / scale
        mean_K = np.full(count, 1.0 / count)
        radius = self.c * norm_or_zero(gram_KK, mean_K)
        if radius == 0:
            weights_K = mean_K if norm_or_zero(gram_KK, mean_K) > 0 else np.zeros(count)
        else:
            best_K = cagrad_weights(gram_KK, self.c)
            length = norm_or_zero(gram_KK, best_K)
            weights_K = mean_K + radius / length * best_K if length > 0 else _without_conflict(gram_KK, mean_K)
        return weights_K / (1.0 + self.c**2) if self.rescale else weights_K


def cagrad_weights(gram_KK: Array, c: float) -> Array:
    """Minimiser over the simplex of z' G 1/K + c |g_0| sqrt(z' G z): the dual of CAGrad.

    On the plane of a face the stationary point is in closed form. With p = G 1/K, R = c |g_0| and M = G^-1 on the face:
    M (mu - p) scaled to sum 1, where mu is the larger root of (mu 1 - p)' M (mu 1 - p) = R^2. Where G is singular the
    objective has degree one along the face, so its minimum is at g_z = 0 or on a smaller face.

    Args:
        gram_KK: shape (K, K), positive semi-definite up to rounding, not zero.
        c: >= 0.

    Returns:
        Shape (K,), >= 0, sum 1.
    """
    count = len(gram_KK)
    pull_K = gram_KK.mean(axis=1)
    radius = c * np.sqrt(max(0.0, float(pull_K.mean())))
    candidates = [min_norm_weights(gram_KK)]
    for face in faces(count):
        inverse_SS = _inverse(gram_KK, face)
        if inverse_SS is None:
            continue
        ones_S = inverse_SS.sum(axis=1)
        pulled_S = inverse_SS @ pull_K[face]
        a, b, constant = ones_S.sum(), pulled_S.sum(), pull_K[face] @ pulled_S
        # a mu^2 - 2 b mu + constant - R^2 = 0; a mu - b, what z is divided by, is the square root.
        discriminant = b * b - a * (constant - radius**2)
        if a <= 0 or discriminant <= 0:
            continue
        divisor = np.sqrt(discriminant)
        inside_S = ((b + divisor) / a * ones_S - pulled_S) / divisor
        if np.all(inside_S >= 0) and np.isfinite(inside_S).all():
            candidate = np.zeros(count)
            candidate[face] = inside_S / inside_S.sum()
            candidates.append(candidate)
    candidates.extend(np.eye(count))

    def height(z_K: Array) -> float:
        return float(z_K @ pull_K) + radius * np.sqrt(max(0.0, float(z_K @ gram_KK @ z_K)))

    return min(candidates, key=height)


def _without_conflict(gram_KK: Array, start_K: Array) -> Array:
    """Weights of the vector nearest to sum_k start_k g_k that has no negative product with any gradient.

    It is start + v with v >= 0 minimising its norm; the optimum has linearly independent gradients in its support.
    """
    count = len(gram_KK)
    best, best_square = start_K, float(start_K @ gram_KK @ start_K)
    for face in faces(count):
        inverse_SS = _inverse(gram_KK, face)
        if inverse_SS is None:
            continue
        added_S = -inverse_SS @ (gram_KK @ start_K)[face]
        if np.all(added_S >= 0):
            candidate = start_K.copy()
            candidate[face] += added_S
            square = float(candidate @ gram_KK @ candidate)
            if square < best_square:
                best, best_square = candidate, square
    return best if norm_or_zero(gram_KK, best) > 0 else np.zeros(count)


def _inverse(gram_KK: Array, face: list[int]) -> Array | None:
    """Inverse of the Gram matrix of a face's gradients; None where they are linearly dependent up to rounding."""
    gram_SS = gram_KK[np.ix_(face, face)]
    norms_S = np.sqrt(np.clip(np.diag(gram_SS), 0.0, None))
    if not norms_S.all():
        return None
    scale_SS = np.outer(norms_S, norms_S)
    cosines_SS = gram_SS / scale_SS
    if np.linalg.cond(cosines_SS) > WORST_CONDITION:
        return None
    return np.linalg.inv(cosines_SS) / scale_SS
