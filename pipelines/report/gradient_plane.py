"""The two gradients of a step as arrows in the plane that they span, and the direction d that the method made of them.

    g_R = (|g_R|, 0)        g_F = |g_F| (cos, sin)        both the gradients that the losses' logs are of

Norms and cosine are logged; d is not, only its length. It follows where the method's combiner needs no more than the
two gradients' dot products: then the combiner itself is asked again, and its answer counts only where |d| agrees with
the logged length. Elsewhere the page says why there is no arrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlearn_core.combine import clip_factor, combined_norm
from unlearn_core.errors import UserError
from unlearn_core.method import Composition, compose

AGREES = 1e-4
"""Largest relative difference of the computed and the logged |d|."""
MOST = 120
"""Steps of a run that can be leafed through."""


@dataclass(frozen=True)
class Plane:
    """Steps of a run as arrows.

    Attributes:
        names: of the two objectives, as in the log.
        ascends: of each, whether the method goes up its loss.
        steps: optimizer steps.
        gradients: (|g_1|, |g_2|, cosine) of each step.
        directions: d in the same plane, per step; None where it does not follow.
        lengths: logged |d| of each step; None where it is missing.
        why_not: why steps have no direction; "" where all have.
    """

    names: tuple[str, str]
    ascends: tuple[bool, bool]
    steps: tuple[int, ...]
    gradients: tuple[tuple[float, float, float], ...]
    directions: tuple[tuple[float, float] | None, ...]
    lengths: tuple[float | None, ...]
    why_not: str


def plane_of(log: Sequence[Mapping[str, Any]], config: Mapping[str, Any] | None) -> Plane | str:
    """The arrows of a run, or why there are none.

    Args:
        log: as `curves.read_log` gives it.
        config: the run's; None where it is not known.
    """
    if not log:
        return "the run's log is not at hand"
    if "cosine" not in log[0]:
        if sum(name.startswith("loss_") for name in log[0]) != 2:
            return "the method does not have two objectives, so there is no plane of two gradients"
        return "the run kept its gradients together, so it has no norms and cosine; set diagnostics: true to log them"
    names = [name.removeprefix("norm_") for name in log[0] if name.startswith("norm_")]
    every = math.ceil(len(log) / MOST)
    kept = [record for n, record in enumerate(log) if n % every == 0 or n == len(log) - 1]
    kept = [record for record in kept if all(_finite(record.get(key)) for key in (*_norms(names), "cosine"))]
    if len(names) != 2 or not kept:
        return "the log lacks the norms of two gradients"
    maker, why_not = _maker(config, names)
    found = [_direction(maker, record, names) if maker else None for record in kept]
    if maker and None in found:
        missing = sum(one is None for one in found)
        why_not = (
            f"at {missing} of {len(found)} steps what the combiner makes of the logged norms and cosine has not the "
            "logged length, so its direction is not drawn there"
        )
    ascends = (False, False) if maker is None else (maker.signs[0] < 0, maker.signs[1] < 0)
    return Plane(
        names=(names[0], names[1]),
        ascends=ascends,
        steps=tuple(record["step"] for record in kept),
        gradients=tuple((*(record[key] for key in _norms(names)), record["cosine"]) for record in kept),
        directions=tuple(found),
        lengths=tuple(record.get("update_norm") if _finite(record.get("update_norm")) else None for record in kept),
        why_not=why_not,
    )


@dataclass(frozen=True)
class _Maker:
    """Makes the weights of a step again from what is logged."""

    composition: Composition
    signs: tuple[float, float]
    clipping: float


def _maker(config: Mapping[str, Any] | None, names: Sequence[str]) -> tuple[_Maker | None, str]:
    if config is None:
        return None, "the run's configuration is not at hand, so how d was made is not known"
    method = config["method"]
    try:
        composition = compose(method["name"], method.get("settings") or {})
    except UserError as error:
        return None, f"this version cannot make the method's combiner again: {error}"
    combiner = composition.combiner
    name = type(combiner).__name__
    if [objective.name for objective in composition.objectives] != list(names):
        return None, "the log's objectives are not those of the method as it is now"
    if combiner.state() or combiner.tracked:
        return None, f"{name} weighs by what it remembers of earlier steps, which is not logged"
    if composition.teacher is not None and composition.teacher.damping:
        return None, "the teacher's damping is part of the step and is not logged"
    first, second = (float(objective.sign) for objective in composition.objectives)
    clipping = float(config.get("optimizer", {}).get("gradient_clipping") or 0.0)
    return _Maker(composition, (first, second), clipping), ""


def _direction(maker: _Maker, record: Mapping[str, Any], names: Sequence[str]) -> tuple[float, float] | None:
    one, other = (float(record[key]) for key in _norms(names))
    cosine, length_logged = float(record["cosine"]), record.get("update_norm")
    if not _finite(length_logged):
        return None
    logged = float(length_logged or 0.0)
    gram_22 = np.array([[one * one, one * other * cosine], [one * other * cosine, other * other]])
    signs_2 = np.array(maker.signs)
    losses = [record.get(f"loss_{name}") for name in names]
    losses_2 = np.array(losses, dtype=float) if all(_finite(loss) for loss in losses) else None
    weights_2 = maker.composition.combiner.weights(gram_22 * np.outer(signs_2, signs_2), losses_2, record["step"] - 1)
    weights_2 = weights_2 * signs_2
    weights_2 = weights_2 * clip_factor(gram_22, weights_2, maker.clipping)
    length = combined_norm(gram_22, weights_2)
    if abs(length - logged) > AGREES * max(length, logged, 1e-12):
        return None
    across = math.sqrt(max(0.0, 1.0 - cosine * cosine))
    x = weights_2[0] * one + weights_2[1] * other * cosine
    return float(x), float(weights_2[1] * other * across)


def _norms(names: Sequence[str]) -> list[str]:
    return [f"norm_{name}" for name in names]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
