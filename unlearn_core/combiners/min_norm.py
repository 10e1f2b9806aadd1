"""The shortest vector of the gradients' convex hull: min over the simplex of |sum_k lambda_k g_k|^2.

At the minimum <d, g_k> >= |d|^2 for every k (with equality where lambda_k > 0): d goes down on all objectives at once,
or it is zero and no direction does. Source: MGDA (Desideri 2012); MOLLM (arXiv 2412.20412) uses it for unlearning.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import Combiner, given, inverse_or_zero, norm_or_zero, norms, require

ENUMERATED = 6
"""Up to this many objectives every face of the simplex is tried (63 of them); beyond it, Frank-Wolfe."""

DUALITY_GAP = 1e-12
"""Frank-Wolfe stops at this gap, relative to the largest squared norm."""


class MinNorm(Combiner):
    """Min-norm point (MGDA), also of normalised gradients and with preferences.

    With two objectives: lambda_0 = (|g_1|^2 - <g_0, g_1>) / |g_0 - g_1|^2 clipped to [0, 1]. As it stands it leans to
    the shorter gradient. With normalize="l2" and two objectives it is half of `Bisector` (see there for what else is).

    Degenerate: a zero gradient is the min-norm point itself, so with normalize="none" there is no step (Pareto
    stationary); with "l2" it has no direction and is dropped. Opposite gradients: no step. Parallel ones: the shorter
    with "none"; any mixture of the two with "l2".

    Args:
        normalize: "l2": g_k <- g_k / |g_k| first. The MOLLM paper's choice is not known to us; both are offered.
        rescale: d <- d * mean_k |g_k| / |d|, since the min-norm point shrinks towards the shortest gradient. The mean
            is over the gradients as they come, zero ones left out. Not where d is zero up to rounding: then no step.
        preferences_K: r_k > 0; g_k <- g_k / r_k after normalising. Objectives with lambda_k > 0 then gain in proportion
            to r_k: <d, g_k> = r_k |d|^2 (with d of the scaled gradients). None: all 1.
    """

    def __init__(
        self,
        normalize: Literal["none", "l2"] = "none",
        rescale: bool = False,
        preferences_K: Sequence[float] | None = None,
    ):
        require(normalize in ("none", "l2"), "normalize", normalize, "'none' or 'l2'")
        self.normalize = normalize
        self.rescale = rescale
        self.preferences_K = None if preferences_K is None else np.array(preferences_K, dtype=np.float64)
        if self.preferences_K is not None:
            positive = bool(np.all((self.preferences_K > 0) & (self.preferences_K < np.inf)))
            valid = self.preferences_K.ndim == 1 and positive
            require(valid, "preferences", preferences_K, "finite numbers > 0, one for each objective")

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """lambda_k, divided by whatever g_k was divided by, times the rescaling factor."""
        preferences_K = self.preferences_K
        gram_KK = given(gram_VV, None if preferences_K is None else len(preferences_K))
        norms_K = norms(gram_KK)
        factors_K = inverse_or_zero(norms_K) if self.normalize == "l2" else np.ones(len(gram_KK))
        if preferences_K is not None:
            factors_K = factors_K / preferences_K
        used = np.flatnonzero(factors_K)
        if len(used) == 0 or (self.normalize == "none" and not norms_K.all()):
            return np.zeros(len(gram_KK))
        weights_K = np.zeros(len(gram_KK))
        scaled_KK = gram_KK * np.outer(factors_K, factors_K)
        weights_K[used] = min_norm_weights(scaled_KK[np.ix_(used, used)])
        weights_K *= factors_K
        length = norm_or_zero(gram_KK, weights_K)
        if length == 0:
            return np.zeros(len(gram_KK))
        return weights_K * (norms_K[norms_K > 0].mean() / length) if self.rescale else weights_K


def min_norm_weights(gram_KK: Array) -> Array:
    """Minimiser of lambda' G lambda over lambda >= 0, sum lambda = 1.

    Exact up to rounding for K <= `ENUMERATED`; beyond that a duality gap of `DUALITY_GAP`.

    Args:
        gram_KK: shape (K, K), K >= 1, positive semi-definite up to rounding.

    Returns:
        Shape (K,), >= 0, sum 1. Not unique where the gradients are affinely dependent; the min-norm point is. Two equal
        gradients: a half each.
    """
    count = len(gram_KK)
    scale = float(np.diag(gram_KK).max())
    if scale <= 0:
        return np.full(count, 1.0 / count)
    gram_KK = gram_KK / scale
    if count == 2:
        return _two(gram_KK)
    return _best_face(gram_KK) if count <= ENUMERATED else _frank_wolfe(gram_KK)


def faces(count: int) -> Iterator[list[int]]:
    """Vertex sets of all faces of the simplex of `count` vertices, small ones first: 2^count - 1 of them."""
    for size in range(1, count + 1):
        yield from (list(face) for face in itertools.combinations(range(count), size))


def _two(gram_KK: Array) -> Array:
    (a, b), (_, c) = gram_KK
    apart = a + c - 2 * b  # |g_0 - g_1|^2
    first = float(np.clip((c - b) / apart, 0.0, 1.0)) if apart > 0 else 0.5
    return np.array([first, 1.0 - first])


def _best_face(gram_KK: Array) -> Array:
    """The shortest of the min-norm points of all faces that lie inside their face.

    The answer lies inside some face whose vertices are affinely independent (Caratheodory), where the bordered system
    below is regular. A nearly singular one can give a poor point, but a point of the simplex, measured as such.
    """
    count = len(gram_KK)
    norms_K = np.sqrt(np.clip(np.diag(gram_KK), 0.0, None))
    if not norms_K.all():
        return np.eye(count)[int(np.argmin(norms_K))]
    # In terms of x_k = lambda_k |g_k| the matrix holds cosines, so lengths of different orders cost no accuracy.
    cosines_KK = gram_KK / np.outer(norms_K, norms_K)
    border_K = norms_K.min() / norms_K
    best, best_square = np.eye(count)[0], np.inf
    for face in faces(count):
        size = len(face)
        system = np.zeros((size + 1, size + 1))
        system[:size, :size] = cosines_KK[np.ix_(face, face)]
        system[:size, size] = system[size, :size] = border_K[face]
        try:
            inside_S = np.linalg.solve(system, np.eye(size + 1)[size])[:size] * border_K[face]
        except np.linalg.LinAlgError:
            continue
        if not np.all(inside_S >= 0) or not 0 < inside_S.sum() < np.inf:
            continue
        candidate = np.zeros(count)
        candidate[face] = inside_S / inside_S.sum()
        square = float(candidate @ gram_KK @ candidate)
        if square < best_square:
            best, best_square = candidate, square
    return best


def _frank_wolfe(gram_KK: Array, most: int = 100_000) -> Array:
    """Pairwise Frank-Wolfe with exact line search: weight moves from the worst used gradient to the best one."""
    weights_K = np.eye(len(gram_KK))[int(np.argmin(np.diag(gram_KK)))]
    for _ in range(most):
        slopes_K = gram_KK @ weights_K
        best = int(np.argmin(slopes_K))
        worst = int(np.argmax(np.where(weights_K > 0, slopes_K, -np.inf)))
        gap = slopes_K[worst] - slopes_K[best]
        if gap <= DUALITY_GAP:
            break
        curvature = gram_KK[best, best] + gram_KK[worst, worst] - 2 * gram_KK[best, worst]
        moved = min(weights_K[worst], gap / curvature) if curvature > 0 else weights_K[worst]
        weights_K[best] += moved
        weights_K[worst] -= moved
    return weights_K / weights_K.sum()
