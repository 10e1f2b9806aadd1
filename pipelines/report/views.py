"""Axes of the page and the hypervolume on each pair of them.

The page finds the front of whatever is shown by itself; areas are moocore's, as everywhere in this project, and so are
computed here for every pair that can be chosen.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from pipelines.report.models import Point, Run, View
from pipelines.report.points import Gathered
from tune.objectives import Goal
from unlearn_core.errors import MissingPackageError
from unlearn_core.frontier import AXES


def views(points: Sequence[Point], goal: Goal | None) -> list[View]:
    """Every axis on which at least one point has a position: a search's objectives, the known axes, then raw columns.

    Args:
        points: all of them.
        goal: of the searches, if any.
    """
    found: list[View] = []
    for objective in goal.objectives if goal else ():
        towards = "nearness to " if objective.direction == "target" else ""
        ends = f"0 at {objective.worst:.3g}, 1 at {objective.best:.3g}"
        named = objective.metrics[0] if len(objective.metrics) == 1 else f"mean of {len(objective.metrics)} metrics"
        label = f"{objective.name} ({towards}{named}; {ends})"
        values = tuple(_number(objective.value(point.metrics)) for point in points)
        found.append(View(f"objective:{objective.name}", label, "objective", values, 0.0))
    for column, side in AXES.items():
        values = tuple(
            _number(side.value(point.metrics[column])) if column in point.metrics else None for point in points
        )
        found.append(View(f"axis:{column}", side.label, side.kind, values, side.reference))
    for column in dict.fromkeys(name for point in points for name in point.metrics):
        values = tuple(_number(point.metrics.get(column, math.nan)) for point in points)
        found.append(View(f"raw:{column}", column, "raw", values, None, wants_log(values)))
    return [view for view in found if any(value is not None for value in view.values)]


def wants_log(values: Sequence[float | None]) -> bool:
    """Whether a logarithmic scale says more: all numbers above 0, and more than a decade between them."""
    known = [value for value in values if value is not None]
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def default_pair(found: Sequence[View], usual: str | None) -> tuple[str, str] | None:
    """Keys of the axes that the page opens with, x then y; None where there is no pair.

    Args:
        found: all views.
        usual: the suite's utility column.
    """
    keys = {view.key for view in found}
    objectives = [view.key for view in found if view.kind == "objective"]
    if len(objectives) > 1:
        forgetting = next((key for key in objectives if "forget" in key), objectives[0])
        return forgetting, next(key for key in objectives if key != forgetting)
    forgetting = _first(keys, ("axis:extraction_strength", *_of_kind(found, "forgetting")))
    utility = _first(keys, (f"axis:{usual}", "axis:model_utility", *_of_kind(found, "utility")))
    return (forgetting, utility) if forgetting and utility else None


def pairs(found: Sequence[View]) -> list[tuple[View, View]]:
    """Pairs of axes that have a front: forgetting against utility, and any two objectives; x first."""
    forgetting = [view for view in found if view.kind == "forgetting"]
    utility = [view for view in found if view.kind == "utility"]
    objectives = [view for view in found if view.kind == "objective"]
    both = [(x, y) for x, y in combinations(objectives, 2)]
    return [(x, y) for x in forgetting for y in utility] + both + [(y, x) for x, y in both]


def hypervolumes(gathered: Gathered, found: Sequence[View]) -> dict[str, dict[str, float]]:
    """`x key|y key` -> method -> area of its checkpoints beyond the reference point; "" for all methods together.

    Raises:
        MissingPackageError: moocore is not installed.
    """
    try:
        import moocore
    except ImportError as error:
        raise MissingPackageError("The report's hypervolumes need moocore: pip install moocore") from error
    areas: dict[str, dict[str, float]] = {}
    for x, y in pairs(found):
        assert x.reference is not None and y.reference is not None
        corner = (x.reference, y.reference)
        by_method: dict[str, list[tuple[float, float]]] = {"": []}
        for n, point in enumerate(gathered.points):
            px, py = x.values[n], y.values[n]
            if is_candidate(point) and px is not None and py is not None:
                for name in ("", gathered.runs[point.run].method):
                    by_method.setdefault(name, []).append((px, py))
        areas[f"{x.key}|{y.key}"] = {
            name: _area(moocore, np.array(places).reshape(-1, 2), corner) for name, places in by_method.items()
        }
    return areas


def is_candidate(point: Point) -> bool:
    """Whether a point may be on a front."""
    return point.role == "checkpoint" and not point.excluded


def methods_of(runs: Sequence[Run]) -> list[str]:
    """Methods that are drawn, each once, in alphabetical order."""
    return sorted({run.method for run in runs})


def _area(moocore: object, points_N2: np.ndarray, corner: tuple[float, float]) -> float:
    inside_N2 = points_N2[(points_N2 > corner).all(axis=1)]
    if not len(inside_N2):
        return 0.0
    return float(moocore.hypervolume(inside_N2, ref=corner, maximise=True))  # type: ignore[attr-defined]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _of_kind(found: Sequence[View], kind: str) -> tuple[str, ...]:
    return tuple(view.key for view in found if view.kind == kind)


def _first(keys: set[str], wished: Sequence[str]) -> str | None:
    return next((key for key in wished if key in keys), None)
