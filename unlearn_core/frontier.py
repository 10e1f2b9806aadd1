"""Fronts of checkpoints: what is non-dominated, how much it covers, and which numbers may be an axis.

The maths is plain numpy so that a search can call it thousands of times. What reports print is moocore's number
(`pipelines/frontier.py`); the tests hold the two together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlearn_core.errors import UserError

LOG10_FLOOR = -20.0
"""Lowest drawn log10 of a forget-quality p-value. TOFU models reach 1e-239, where one outlier would be the whole axis.
Hypervolumes of different floors cannot be compared."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One aggregate as an objective. After `value` every axis reads the same way: higher is better.

    Attributes:
        column: name of the aggregate in metrics.csv.
        kind: whether it measures forgetting (on the forget set) or utility (everything else).
        label: axis label of figures; names the transform.
        direction: which way the raw column is better: "higher", "lower", or "zero" for the closer to 0 the better.
        transform: what `value` does to the raw number.
        raw_limits: range of the raw column.
        limits: range after the transform.
        reference: default coordinate of the hypervolume's reference point, after the transform.
    """

    column: str
    kind: Literal["forgetting", "utility"]
    label: str
    direction: Literal["higher", "lower", "zero"]
    transform: Literal["identity", "one_minus", "log10", "closeness"]
    raw_limits: tuple[float, float] = (0.0, 1.0)
    limits: tuple[float, float] = (0.0, 1.0)
    reference: float = 0.0

    def value(self, raw: float) -> float:
        """The objective of a raw aggregate.

        Args:
            raw: number in `raw_limits`; 1e-9 beyond them is taken as rounding.

        Returns:
            Number in `limits`, higher is better. log10 stops at `LOG10_FLOOR`, also for 0.

        Raises:
            ValueError: NaN, infinity, or a number outside `raw_limits`.
        """
        low, high = self.raw_limits
        if not math.isfinite(raw) or not low - 1e-9 <= raw <= high + 1e-9:
            raise ValueError(f"{self.column} = {raw} is not a number in [{low:g}, {high:g}]")
        raw = min(max(raw, low), high)
        if self.transform == "one_minus":
            return 1.0 - raw
        if self.transform == "closeness":
            return 1.0 - min(abs(raw), 100.0) / 100.0
        if self.transform == "log10":
            return max(math.log10(raw), LOG10_FLOOR) if raw > 0 else LOG10_FLOOR
        return raw


def _memorised(column: str, label: str) -> Axis:
    return Axis(column, "forgetting", f"1 \N{MINUS SIGN} {label}", "lower", "one_minus")


AXES: dict[str, Axis] = {
    axis.column: axis
    for axis in (
        _memorised("extraction_strength", "extraction strength"),
        _memorised("exact_memorization", "exact memorization"),
        _memorised("forget_Q_A_Prob", "forget answer probability"),
        _memorised("forget_Q_A_ROUGE", "forget ROUGE-L recall"),
        Axis("forget_truth_ratio", "forgetting", "Forget truth ratio", "higher", "identity"),
        Axis(
            "forget_quality",
            "forgetting",
            "log₁₀ forget quality (KS p-value)",
            "higher",
            "log10",
            limits=(LOG10_FLOOR, 0.0),
            reference=LOG10_FLOOR,
        ),
        _memorised("forget_verbmem_ROUGE", "verbatim memorisation (ROUGE-L F1)"),
        _memorised("forget_knowmem_ROUGE", "knowledge of the forget set (ROUGE-L F1)"),
        Axis(
            "privleak",
            "forgetting",
            "1 \N{MINUS SIGN} |PrivLeak| / 100",
            "zero",
            "closeness",
            raw_limits=(-100.0, math.inf),
        ),
        Axis("model_utility", "utility", "Model utility", "higher", "identity"),
        Axis("retain_Q_A_Prob", "utility", "Retain answer probability", "higher", "identity"),
        Axis("retain_Q_A_ROUGE", "utility", "Retain ROUGE-L recall", "higher", "identity"),
        Axis("retain_Truth_Ratio", "utility", "Retain truth ratio", "higher", "identity"),
        Axis("retain_knowmem_ROUGE", "utility", "Knowledge of the retain set (ROUGE-L F1)", "higher", "identity"),
        Axis("retain_utility", "utility", "Retain utility (probability and ROUGE)", "higher", "identity"),
    )
}
"""Every column that can be an axis, by its name in metrics.csv."""


def axis(column: str, kind: Literal["forgetting", "utility"]) -> Axis:
    """The axis of a metrics.csv column.

    Raises:
        UserError: no axis of that kind has this column; the message lists those that do.
    """
    valid = {name: known for name, known in AXES.items() if known.kind == kind}
    if column in valid:
        return valid[column]
    near = get_close_matches(column, valid, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{column!r} is not a {kind} axis. Choose one of: {', '.join(sorted(valid))}.{hint}")


def _as_maximised(points_NM: ArrayLike, maximise: Sequence[bool]) -> NDArray[np.float64]:
    """Float copy in which every column is to be maximised; checks the shape and refuses NaN."""
    values_NM = np.array(points_NM, dtype=np.float64)
    if values_NM.ndim == 1 and values_NM.size == 0:
        values_NM = values_NM.reshape(0, len(maximise))
    if values_NM.ndim != 2 or values_NM.shape[1] != len(maximise):
        raise ValueError(f"points of shape {values_NM.shape} do not fit {len(maximise)} directions; give (N, M) and M")
    if np.isnan(values_NM).any():
        rows = np.flatnonzero(np.isnan(values_NM).any(axis=1)).tolist()
        raise ValueError(f"points {rows} hold NaN, which is neither better nor worse than a number; leave them out")
    return np.where(np.asarray(maximise, dtype=bool), values_NM, -values_NM)


def non_dominated(points_NM: ArrayLike, maximise: Sequence[bool]) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    Point a dominates b when a is at least as good in every objective and better in one. Equal points do not dominate
    each other, so every copy of a non-dominated point is kept.

    Args:
        points_NM: N points of M objectives, any finite or infinite numbers; N may be 0.
        maximise: M flags, True where higher is better.

    Returns:
        Mask of shape (N,), True on the front.

    Raises:
        ValueError: NaN among the points, or a shape that does not fit `maximise`.
    """
    values_NM = _as_maximised(points_NM, maximise)
    mask_N = np.ones(len(values_NM), dtype=bool)
    for n, point_M in enumerate(values_NM):
        mask_N[n] = not ((values_NM >= point_M).all(axis=1) & (values_NM > point_M).any(axis=1)).any()
    return mask_N


def staircase_hypervolume(points_N2: ArrayLike, reference_2: ArrayLike, maximise: Sequence[bool]) -> float:
    """Exact area that two-objective points cover beyond a reference point.

    A sweep in O(N log N): with the first objective falling, each step of width x_i - x_{i+1} is as high as the best
    second objective so far. This is the two-dimensional case of Fonseca, Paquete and López-Ibáñez (CEC 2006).

    Args:
        points_N2: N points, finite; N may be 0.
        reference_2: the corner from which area counts. A point that is not better than it in both objectives adds
            nothing.
        maximise: two flags, True where higher is better.

    Returns:
        Area, 0 or more, in the product of the two units; higher is better. Without points it is 0.

    Raises:
        ValueError: NaN or infinity, or a shape other than (N, 2) and (2,).
    """
    values_N2 = _as_maximised(points_N2, maximise)
    corner_12 = _as_maximised(np.atleast_2d(np.asarray(reference_2, dtype=np.float64)), maximise)
    if values_N2.shape[1] != 2 or corner_12.shape != (1, 2):
        raise ValueError(f"the staircase has two objectives; got points {values_N2.shape}, reference {corner_12.shape}")
    if not (np.isfinite(values_N2).all() and np.isfinite(corner_12).all()):
        raise ValueError("an infinite coordinate has no finite hypervolume; leave the point out")
    gain_N2 = values_N2 - corner_12
    gain_N2 = gain_N2[(gain_N2 > 0).all(axis=1)]
    gain_N2 = gain_N2[np.argsort(-gain_N2[:, 0], kind="stable")]
    width_N = -np.diff(gain_N2[:, 0], append=0.0)
    return float(width_N @ np.maximum.accumulate(gain_N2[:, 1]))


def contributions(points_N2: ArrayLike, reference_2: ArrayLike, maximise: Sequence[bool]) -> NDArray[np.float64]:
    """Exclusive hypervolume contributions: what the area loses when one point is taken out of the whole set.

    Points that the removed one dominated count again, so this is the worth of a checkpoint given all the others.
    A dominated point and every copy of a repeated point contribute 0.

    Args:
        points_N2: N points, finite.
        reference_2: as in `staircase_hypervolume`.
        maximise: two flags, True where higher is better.

    Returns:
        Shape (N,), each 0 or more; higher is better.

    Raises:
        ValueError: as in `staircase_hypervolume`.
    """
    whole = staircase_hypervolume(points_N2, reference_2, maximise)
    values_N2 = np.asarray(points_N2, dtype=np.float64).reshape(-1, 2)
    losses_N = np.zeros(len(values_N2))
    for n in np.flatnonzero(non_dominated(values_N2, maximise)):
        losses_N[n] = whole - staircase_hypervolume(np.delete(values_N2, n, axis=0), reference_2, maximise)
    return np.maximum(losses_N, 0.0)
