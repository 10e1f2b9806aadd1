"""Min-norm weights that move slowly, on averaged gradients.

    y_k <- y_k + beta (g_k - y_k),    lambda <- Proj_simplex(lambda - gamma (Y'Y + rho I) lambda),    d = Y lambda

Source: MoCo (arXiv 2210.12624).
"""

import math
from typing import Literal

import numpy as np

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import Combiner, State, Tracking, given, require


class MoCo(Combiner):
    """Multi-objective gradient correction: removes the bias that noisy batches put into min-norm weights.

    One gradient buffer for each objective. lambda starts at 1/K. The averages start at the first gradient: a start at
    zero would make about the first 1/beta steps too short. lambda moves before the step, with this step's
    averages, and is the answer. LibMTL's version also scales every gradient by its loss over its length and takes a
    softmax for the projection; not done here, as a negative loss would turn the gradient round.

    With two objectives, beta = 1, rho = 0 and many steps on one batch lambda tends to `MinNorm()`.

    Degenerate: nothing divides by a gradient (but `normalize_gram`, left out where all are zero), so zero, parallel and
    opposite gradients need no special answer; all zero leaves lambda, up to rho, and d is zero.

    Args:
        objectives: K >= 1.
        beta: weight of the new gradient in the averages, in (0, 1].
        gamma: step size of lambda, > 0.
        rho: ridge >= 0 that pulls lambda to equal weights.
        normalize_gram: divide Y'Y by its mean diagonal first, so that gamma means the same whatever the loss scale.
        decay: "sqrt": beta and gamma over sqrt(step + 1), steps counted from 0. "none": constant.
    """

    def __init__(
        self,
        objectives: int = 2,
        beta: float = 0.5,
        gamma: float = 0.1,
        rho: float = 0.0,
        normalize_gram: bool = False,
        decay: Literal["none", "sqrt"] = "none",
    ):
        require(objectives >= 1, "objectives", objectives, "a whole number >= 1")
        require(0 < beta <= 1, "beta", beta, "a number in (0, 1]")
        require(0 < gamma < np.inf, "gamma", gamma, "a finite number > 0")
        require(0 <= rho < np.inf, "rho", rho, "a finite number >= 0")
        require(decay in ("none", "sqrt"), "decay", decay, "'none' or 'sqrt'")
        self.beta, self.gamma, self.rho = beta, gamma, rho
        self.normalize_gram = normalize_gram
        self.decay = decay
        self.tracked = tuple(Tracking(objective, replaces=True) for objective in range(objectives))
        self.lambda_K = np.full(objectives, 1.0 / objectives)

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """The simplex point lambda after this step's move."""
        gram_KK = given(gram_VV, len(self.lambda_K))
        mean_square = float(np.trace(gram_KK)) / len(gram_KK)
        if self.normalize_gram and mean_square > 0:
            gram_KK = gram_KK / mean_square
        slope_K = gram_KK @ self.lambda_K + self.rho * self.lambda_K
        self.lambda_K = project_to_simplex(self.lambda_K - self.gamma * self._decay(step) * slope_K)
        return self.lambda_K.copy()

    def tracking_rate(self, objective: int, step: int) -> float:
        """beta, decayed, for every objective."""
        return self.beta * self._decay(step)

    def state(self) -> State:
        """The simplex point lambda."""
        return {"lambda": self.lambda_K.tolist()}

    def load_state(self, state: State) -> None:
        """Continue from a saved lambda."""
        super().load_state(state)
        self.lambda_K = np.array(state["lambda"], dtype=np.float64)

    def _decay(self, step: int) -> float:
        return 1.0 / math.sqrt(step + 1) if self.decay == "sqrt" else 1.0


def project_to_simplex(point_K: Array) -> Array:
    """The nearest point, in the L2 norm, with all coordinates >= 0 and sum 1.

    It is max(point - tau, 0) for the one tau that makes the sum 1.

    Args:
        point_K: shape (K,), finite.
    """
    # Shifting by a constant changes nothing, and keeps 1 visible beside large coordinates.
    shifted_K = point_K - point_K.max()
    falling_K = np.sort(shifted_K)[::-1]
    thresholds_K = (np.cumsum(falling_K) - 1.0) / np.arange(1, len(falling_K) + 1)
    kept = np.flatnonzero(falling_K > thresholds_K)[-1]
    return np.maximum(shifted_K - thresholds_K[kept], 0.0)
