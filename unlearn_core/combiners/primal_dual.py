"""Forget as much as a bound on the retain loss allows: min L_F subject to L_R <= epsilon.

    d = lambda g_R + forget_weight h,    lambda <- max(0, lambda + step_size (L_R - epsilon)) after each step

Source: primal-dual unlearning, PDU (Entesari et al. 2025).
"""

import numpy as np

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import RETAIN, Combiner, State, given, require


class PrimalDual(Combiner):
    """A retain weight that grows while the retain loss is above its bound and shrinks to 0 below it.

    One epsilon is one point of the trade-off; sweeping it traces the frontier. The retain loss is that of the step's
    batch, so lambda is as noisy as it; a small step_size averages over batches.

    Degenerate: it sees no gradient, so none is degenerate. lambda = 0 is pure forgetting, allowed while L_R < epsilon.

    Args:
        epsilon: bound on the mean retain loss, finite, nats per token; usually slightly above the start model's.
        initial: lambda at the start, >= 0; PDU uses 50 to 100 with its own loss scales.
        step_size: of lambda, >= 0 (0 keeps it constant).
        warmup_steps: lambda stays for this many first steps, >= 0; PDU waits 5 epochs.
        forget_weight: > 0.
    """

    needs_gradients = False

    def __init__(
        self,
        epsilon: float,
        initial: float = 1.0,
        step_size: float = 1.0,
        warmup_steps: int = 0,
        forget_weight: float = 1.0,
    ):
        require(bool(np.isfinite(epsilon)), "epsilon", epsilon, "a finite number")
        require(0 <= initial < np.inf, "initial", initial, "a finite number >= 0")
        require(0 <= step_size < np.inf, "step_size", step_size, "a finite number >= 0")
        require(warmup_steps >= 0, "warmup_steps", warmup_steps, "a whole number >= 0")
        require(0 < forget_weight < np.inf, "forget_weight", forget_weight, "a finite number > 0")
        self.epsilon = epsilon
        self.step_size = step_size
        self.warmup_steps = warmup_steps
        self.forget_weight = forget_weight
        self.multiplier = float(initial)

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """(lambda, forget_weight)."""
        return np.array([self.multiplier, self.forget_weight])

    def after_step(self, losses_K: Array, losses_after_K: Array | None, step: int) -> None:
        """Move lambda by the violation of the bound, unless the step (from 0) belongs to the warm-up."""
        if step >= self.warmup_steps:
            violation = float(given(losses_K, 2)[RETAIN]) - self.epsilon
            self.multiplier = max(0.0, self.multiplier + self.step_size * violation)

    def state(self) -> State:
        """The multiplier lambda."""
        return {"multiplier": self.multiplier}

    def load_state(self, state: State) -> None:
        """Continue from a saved lambda."""
        super().load_state(state)
        self.multiplier = float(state["multiplier"])  # pyright: ignore[reportArgumentType]
