"""Projections: what conflicts with another objective's gradient is taken out, h <- h - <h, g>/<g, g> g if <h, g> < 0.

PCGrad treats all objectives alike, GRU puts retaining first, BLUR forgetting. They hold for d itself, not for what an
adaptive optimizer makes of it.
"""

import numpy as np

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import FORGET, RETAIN, Combiner, Tracking, given, norms, require


class PCGrad(Combiner):
    """Gradient surgery: each gradient loses its conflict with every other one, then they are added (arXiv 2001.06782).

    With two objectives d = (1 - min(b, 0)/|g|^2) g + (1 - min(b, 0)/|h|^2) h, b = <g, h>: <d, g> and <d, h> are both
    >= 0, and d is twice UPGrad's. With more, each gradient is projected against the others in cyclic order (objective k
    against k+1, k+2, ...); the paper shuffles that order, but a fixed one makes runs repeatable. No sign is then
    guaranteed.

    Degenerate: nothing is projected on a zero gradient. Parallel gradients are added; opposite ones cancel, d = 0.
    """

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """Sum of the projected gradients, in terms of the given ones."""
        gram_KK = given(gram_VV)
        count = len(gram_KK)
        directed_K = norms(gram_KK) > 0
        total_K = np.zeros(count)
        for own in range(count):
            projected_K = np.eye(count)[own]
            for other in ((own + offset) % count for offset in range(1, count)):
                conflict = float(projected_K @ gram_KK[:, other])
                if conflict < 0 and directed_K[other]:
                    projected_K[other] -= conflict / gram_KK[other, other]
            total_K += projected_K
        return total_K


class GRU(Combiner):
    """Gradient rectified unlearning: retaining comes first (arXiv 2503.09117).

        r <- r + m (g_R - r);   h <- h - <h, r>/<r, r> r  if <h, r> < 0;   d = h + retain_weight g_R

    So <h, r> >= 0 after rectification. Any forget loss will do. With m = 1 and retain_weight = 1 it is PCGrad with only
    the forget gradient projected, and <d, g_R> >= |g_R|^2. Where nothing conflicts d is a plain weighted sum.

    Degenerate: r = 0 leaves h alone; h = 0 leaves retain_weight g_R; h opposite to r is removed altogether.

    Args:
        moving_average: m in (0, 1], the weight of the NEW gradient; the paper's code runs 0.6 to 0.99.
        retain_weight: >= 0; 0 is the paper's plain form.
    """

    tracked = (Tracking(RETAIN, replaces=False),)

    def __init__(self, moving_average: float = 0.8, retain_weight: float = 0.0):
        require(0 < moving_average <= 1, "moving_average", moving_average, "a number in (0, 1]")
        require(0 <= retain_weight < np.inf, "retain_weight", retain_weight, "a finite number >= 0")
        self.moving_average = moving_average
        self.retain_weight = retain_weight

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """Weights of g_R, h and the averaged retain gradient r: shape (3,)."""
        gram_VV = given(gram_VV, 3)
        average = 2
        conflict = min(float(gram_VV[FORGET, average]), 0.0)
        directed = norms(gram_VV)[average] > 0
        return np.array([self.retain_weight, 1.0, -conflict / gram_VV[average, average] if directed else 0.0])

    def tracking_rate(self, objective: int, step: int) -> float:
        """The constant m, for the retain gradient only."""
        return self.moving_average if objective == RETAIN else super().tracking_rate(objective, step)


class BLUR(Combiner):
    """Bi-level unlearning: forgetting, the lower level, comes first (arXiv 2506.08164).

        d = alpha g_R + (gamma - alpha <g_R, h>/<h, h>) h,    so that <d, h> = gamma |h|^2 always

    h is the descent gradient of the forget loss. The retain gradient keeps only what is at right angles to h, and
    nothing is promised for the sign of <d, g_R>: the opposite priority to `GRU`. alpha = 1 is the paper's MUSE form
    (gamma = 1 there), gamma = 1 with alpha free its WMDP form.

    Degenerate: h = 0 leaves alpha g_R; parallel or opposite gradients leave gamma h; g_R = 0 leaves gamma h.

    Args:
        gamma: rate of forgetting, >= 0.
        retain_weight: alpha >= 0.
    """

    def __init__(self, gamma: float = 1.0, retain_weight: float = 1.0):
        require(0 <= gamma < np.inf, "gamma", gamma, "a finite number >= 0")
        require(0 <= retain_weight < np.inf, "retain_weight", retain_weight, "a finite number >= 0")
        self.gamma = gamma
        self.retain_weight = retain_weight

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """Weights of g_R and h."""
        gram_KK = given(gram_VV, 2)
        if norms(gram_KK)[FORGET] == 0:
            return np.array([self.retain_weight, 0.0])
        shadow = float(gram_KK[RETAIN, FORGET] / gram_KK[FORGET, FORGET])
        return np.array([self.retain_weight, self.gamma - self.retain_weight * shadow])
