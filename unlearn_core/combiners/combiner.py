"""What a gradient combiner is: d = sum_v weights_v g_v and theta <- theta - eta d.

A combiner never sees a gradient. It sees the Gram matrix of global dot products <g_u, g_v> over all trainable
parameters, and the loss values, so it is exact under any sharding. All gradients are descent gradients: where an
objective is to be maximised, its rows and columns of the Gram matrix come with the sign already turned.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unlearn_core.combine import DEGENERATE_NORM, Array
from unlearn_core.errors import UserError

State = dict[str, float | list[float]]
"""A combiner's memory between steps: JSON keeps it bit for bit."""

RETAIN, FORGET = 0, 1
"""Places of the two objectives of a pair in Gram matrices, losses and weights."""

RELATIVE_ROUNDING = 1e-14
"""A combination whose |d|^2 is at most this times sum_k (w_k |g_k|)^2 counts as zero.

The Gram matrix is fp64, so |d|^2 = w' G w carries an error of about 1e-16 times that sum: below it, d is rounding.
"""


@dataclass(frozen=True)
class Tracking:
    """A moving average y <- y + rate (g - y) of one objective's gradient that the training loop keeps and saves.

    The first step sets y = g. The rate of each step is `Combiner.tracking_rate`.
    """

    objective: int
    """Which gradient is averaged, counted from 0 in Gram order."""
    replaces: bool
    """True: y stands in the Gram matrix in place of g. False: y comes after all gradients, as one more vector."""


class Combiner(abc.ABC):
    """Chooses the weights of the gradients, once a step. One object lives for one run.

    The Gram matrix covers V vectors: the K gradients in order, each replaced by its average where a `Tracking` says so,
    then the averages that replace nothing. V = K unless there are such.
    """

    needs_gradients: bool = True
    """False: the weights do not depend on gradients, so one backward pass of the weighted loss is enough."""
    needs_losses_first: bool = False
    """True: `weights` needs the losses before the backward pass, at the cost of one more forward pass."""
    needs_losses_after: bool = False
    """True: `after_step` needs the losses of the same batches after the optimizer step: one more forward pass."""
    tracked: tuple[Tracking, ...] = ()
    """Averages that the loop keeps for this combiner."""

    @abc.abstractmethod
    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """Weights of this step's vectors. To be called once a step, since it may move the state.

        Args:
            gram_VV: shape (V, V), fp64, finite: dot products of descent gradients. None where `needs_gradients` is off.
            losses_K: shape (K,): mean losses of this step's batches. None where nothing needs them before the backward
                pass.
            step: counted from 0.

        Returns:
            Shape (V,), fp64, finite. All zero means that no direction was found and no step is to be made.

        Raises:
            ValueError: an array is missing or is for another number of objectives.
        """

    def after_step(self, losses_K: Array, losses_after_K: Array | None, step: int) -> None:  # noqa: B027
        """Learn from the step just made; most combiners have nothing to learn.

        Args:
            losses_K: mean losses of the step's batches before it.
            losses_after_K: the same batches after it; None unless `needs_losses_after`.
            step: counted from 0.
        """

    def tracking_rate(self, objective: int, step: int) -> float:
        """Weight in (0, 1] of the new gradient in the average of this objective's gradient, at this step (from 0)."""
        raise ValueError(f"{type(self).__name__} does not track the gradient of objective {objective}.")

    def state(self) -> State:
        """All that the next step depends on."""
        return {}

    def load_state(self, state: State) -> None:
        """Continue from a saved `state()`, exactly.

        Raises:
            UserError: the state is of another combiner or another number of objectives.
        """
        check_layout(type(self).__name__, self.state(), state)


def check_layout(owner: str, own: Mapping[str, object], saved: Mapping[str, object]) -> None:
    """`UserError` unless `saved` has the same keys, and lists of the same lengths, as `own`."""

    def layout(state: Mapping[str, object]) -> dict[str, int | None]:
        return {key: len(value) if isinstance(value, list) else None for key, value in sorted(state.items())}

    if layout(saved) != layout(own):
        raise UserError(
            f"The saved state of {owner} has {layout(saved)} (name: length), but this run needs {layout(own)}. "
            "Resume with the settings that the checkpoint was made with, or start a new run."
        )


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """`UserError` naming the setting, its value and what was expected, unless `holds`."""
    if not holds:
        raise UserError(f"{name} is {value!r}; expected {expected}. Change this setting of the combiner.")


def given(array: Array | None, size: int | None = None) -> Array:
    """The array as fp64; `ValueError` if it is None, or has another length than `size`."""
    if array is None:
        raise ValueError("This combiner needs an array that it was not given.")
    if size is not None and len(array) != size:
        raise ValueError(f"This combiner is for {size} vectors or losses; it was given {len(array)}.")
    return np.asarray(array, dtype=np.float64)


def norms(gram_KK: Array) -> Array:
    """L2 norms of the gradients, shape (K,); 0 for one that has no usable direction beside the longest."""
    norms_K = np.sqrt(np.clip(np.diag(gram_KK), 0.0, None))
    return np.where(norms_K > DEGENERATE_NORM * norms_K.max(initial=0.0), norms_K, 0.0)


def inverse_or_zero(values_K: Array) -> Array:
    """1/x where x is not 0, else 0."""
    return np.divide(1.0, values_K, out=np.zeros_like(values_K), where=values_K != 0)


def norm_or_zero(gram_KK: Array, weights_K: Array) -> float:
    """L2 norm of sum_k w_k g_k; 0 where it is nothing but rounding of the Gram matrix (`RELATIVE_ROUNDING`)."""
    square = float(weights_K @ gram_KK @ weights_K)
    return float(np.sqrt(square)) if square > RELATIVE_ROUNDING * float(weights_K**2 @ np.diag(gram_KK)) else 0.0
