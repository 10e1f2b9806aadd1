"""Weights learned from how fast each loss falls, without any objective's own gradient.

    z = softmax(w),  D_k = L_k - min_k + 1e-8,  weights_k = (z_k/D_k) / sum_j (z_j/D_j)
    after the step, on the same batches:  delta_k = log D_k(before) - log D_k(after),  w <- Adam(w, J_softmax(w)' delta)

Source: FAMO (arXiv 2306.03792).
"""

from collections.abc import Sequence

import numpy as np

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import Combiner, State, given, require
from unlearn_core.errors import UserError

OFFSET = 1e-8
"""Added to L - min, as in the authors' code."""

BETA_1, BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8
"""Adam's usual constants."""


class FAMO(Combiner):
    """Fast adaptive multitask optimisation: the objective that falls fastest, in log, loses weight.

    One summed backward pass, no stored gradient; instead two forward passes more a step, so that the weights are known
    before the backward pass and the fall is measured on the same batches. Weights are > 0 and sum to 1. For positive
    losses only: gradient ascent and other losses without a lower bound are out.

    Degenerate: it sees no gradient, so none is degenerate; a loss that did not move has delta 0.

    Args:
        objectives: K >= 1.
        step_size: of Adam on w, > 0.
        weight_decay: >= 0, added to w's gradient as weight_decay * w; it pulls the weights together.
        minimum_losses_K: lower bound of each loss, finite; None: all 0.
    """

    needs_gradients = False
    needs_losses_first = True
    needs_losses_after = True

    def __init__(
        self,
        objectives: int = 2,
        step_size: float = 0.025,
        weight_decay: float = 1e-3,
        minimum_losses_K: Sequence[float] | None = None,
    ):
        require(objectives >= 1, "objectives", objectives, "a whole number >= 1")
        require(0 < step_size < np.inf, "step_size", step_size, "a finite number > 0")
        require(0 <= weight_decay < np.inf, "weight_decay", weight_decay, "a finite number >= 0")
        self.step_size = step_size
        self.weight_decay = weight_decay
        self.minimum_K = np.zeros(objectives) if minimum_losses_K is None else np.array(minimum_losses_K, dtype=float)
        require(
            self.minimum_K.shape == (objectives,) and bool(np.isfinite(self.minimum_K).all()),
            "minimum_losses",
            minimum_losses_K,
            f"{objectives} finite numbers, one for each objective",
        )
        self.logits_K = np.zeros(objectives)
        self.first_moment_K = np.zeros(objectives)
        self.second_moment_K = np.zeros(objectives)
        self.updates = 0

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """(z_k/D_k) / sum_j (z_j/D_j).

        Raises:
            UserError: a loss is at or below its minimum.
        """
        shares_K = softmax(self.logits_K) / self._above_minimum(losses_K)
        return shares_K / shares_K.sum()

    def after_step(self, losses_K: Array, losses_after_K: Array | None, step: int) -> None:
        """One Adam step on w. Raises `UserError` as `weights` does."""
        fall_K = np.log(self._above_minimum(losses_K)) - np.log(self._above_minimum(losses_after_K))
        z_K = softmax(self.logits_K)
        gradient_K = z_K * (fall_K - z_K @ fall_K) + self.weight_decay * self.logits_K
        self.updates += 1
        self.first_moment_K = BETA_1 * self.first_moment_K + (1 - BETA_1) * gradient_K
        self.second_moment_K = BETA_2 * self.second_moment_K + (1 - BETA_2) * gradient_K**2
        first_K = self.first_moment_K / (1 - BETA_1**self.updates)
        second_K = self.second_moment_K / (1 - BETA_2**self.updates)
        self.logits_K = self.logits_K - self.step_size * first_K / (np.sqrt(second_K) + ADAM_EPSILON)

    def state(self) -> State:
        """The logits w and Adam's memory of them."""
        return {
            "logits": self.logits_K.tolist(),
            "first_moment": self.first_moment_K.tolist(),
            "second_moment": self.second_moment_K.tolist(),
            "updates": float(self.updates),
        }

    def load_state(self, state: State) -> None:
        """Continue from a saved state."""
        super().load_state(state)
        self.logits_K = np.array(state["logits"], dtype=np.float64)
        self.first_moment_K = np.array(state["first_moment"], dtype=np.float64)
        self.second_moment_K = np.array(state["second_moment"], dtype=np.float64)
        self.updates = int(state["updates"])  # pyright: ignore[reportArgumentType]

    def _above_minimum(self, losses_K: Array | None) -> Array:
        losses_K = given(losses_K, len(self.minimum_K))
        for objective, (loss, minimum) in enumerate(zip(losses_K.tolist(), self.minimum_K.tolist(), strict=True)):
            if not loss > minimum:
                raise UserError(
                    f"The loss of objective {objective} is {loss}, not above its minimum {minimum}. FAMO takes the "
                    "logarithm of L - minimum, so it needs positive losses: use a forget loss that is bounded below "
                    "(such as NPO), give its bound in minimum_losses, or choose another combiner."
                )
        return losses_K - self.minimum_K + OFFSET


def softmax(logits_K: Array) -> Array:
    """exp(w_k) / sum_j exp(w_j), shape (K,)."""
    powers_K = np.exp(logits_K - logits_K.max())
    return powers_K / powers_K.sum()
