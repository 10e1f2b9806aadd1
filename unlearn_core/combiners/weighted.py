"""Weights that look at no gradient: d = sum_k c_k g_k with c constant, or c_k = 1/L_k."""

from collections.abc import Sequence

import numpy as np

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import Combiner, given, require


class WeightedSum(Combiner):
    """Fixed scalarisation, d = sum_k c_k g_k: gradient difference, gradient ascent, plain training.

    Two objectives (c, 1 - c) are the GDiff family that NGDiff (arXiv 2410.22086) compares with. Nothing holds it back
    where the gradients conflict: <d, g_k> can be negative for every choice of c. Zero gradients simply add nothing.

    Args:
        weights_K: at least one; each finite and >= 0, not all 0. An objective to be maximised is marked as such where
            it is defined, not by a negative weight here.
    """

    needs_gradients = False

    def __init__(self, weights_K: Sequence[float]):
        self.weights_K = np.array(weights_K, dtype=np.float64)
        valid = self.weights_K.ndim == 1 and bool(np.all((self.weights_K >= 0) & (self.weights_K < np.inf)))
        require(
            valid and bool(np.any(self.weights_K > 0)),
            "weights",
            list(weights_K),
            "finite numbers >= 0, at least one above 0",
        )

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """The constants."""
        return self.weights_K.copy()


class LossNorm(Combiner):
    """Losses brought to one size, d = sum_k g_k / L_k: the LossNorm baseline of NGDiff (arXiv 2410.22086).

    It is the gradient of sum_k log L_k. It balances loss values, not slopes, so it can conflict like any fixed sum.

    Args:
        minimum_loss: L_k is taken as at least this, > 0. So a weight is at most 1/minimum_loss, and a loss that is zero
            or negative, for which 1/L has no meaning, gets just that weight.
    """

    def __init__(self, minimum_loss: float = 1e-3):
        require(0 < minimum_loss < np.inf, "minimum_loss", minimum_loss, "a finite number > 0")
        self.minimum_loss = minimum_loss

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """1 / max(L_k, minimum_loss)."""
        return 1.0 / np.maximum(given(losses_K), self.minimum_loss)
