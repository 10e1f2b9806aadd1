"""What a search maximises: metrics turned so that 0 is the worst that counts, 1 is the aim, and higher is better.

    higher      value = (raw - worst) / (best - worst)
    lower       the same, with best below worst
    target      value = 1 - |raw - best| / |worst - best|        (two-sided: 1 at the target, 0 at `worst`'s distance)

Values below 0 count as 0: a point that is no better than `worst` in one objective adds no hypervolume. So the reference
point is the origin, whatever the metrics, and it is fixed before the first trial. `worst` and `best` are written into
the archive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unlearn_core.errors import UserError


@dataclass(frozen=True)
class Objective:
    """One objective.

    Attributes:
        name: in tables and pictures, such as utility.
        metrics: columns of the evaluation; several are joined by their harmonic mean, each clipped at 0.
        direction: which way the raw number is better; `target` for the nearer to `best` the better.
        worst: raw number of value 0.
        best: raw number of value 1.
    """

    name: str
    metrics: tuple[str, ...]
    direction: Literal["higher", "lower", "target"]
    worst: float
    best: float

    def __post_init__(self) -> None:
        span = self.best - self.worst
        wrong = {"higher": span <= 0, "lower": span >= 0, "target": span == 0}[self.direction]
        if not self.metrics or wrong or not math.isfinite(span):
            raise UserError(
                f"objective {self.name}: with direction {self.direction}, worst = {self.worst:g} and best = "
                f"{self.best:g} span nothing; expected best "
                + {"higher": "above worst", "lower": "below worst", "target": "different from worst"}[self.direction]
            )

    def raw(self, metrics: Mapping[str, float]) -> float:
        """The raw number; NaN where a metric is missing or not finite."""
        found = [metrics.get(column, math.nan) for column in self.metrics]
        if not all(math.isfinite(number) for number in found):
            return math.nan
        if len(found) == 1:
            return found[0]
        return len(found) / sum(1 / number for number in found) if min(found) > 0 else 0.0

    def value(self, metrics: Mapping[str, float]) -> float:
        """From 0, higher is better, 1 at `best`; above 1 only for a direction that is exceeded. NaN as `raw`."""
        raw = self.raw(metrics)
        if math.isnan(raw):
            return raw
        if self.direction == "target":
            return max(0.0, 1.0 - abs(raw - self.best) / abs(self.worst - self.best))
        return max(0.0, (raw - self.worst) / (self.best - self.worst))


@dataclass(frozen=True)
class Constraint:
    """A bound that a point must keep to be on the front: `low <= metric <= high`, either may be open.

    Attributes:
        metric: column of the evaluation.
        low: least; -inf for none.
        high: greatest; inf for none.
    """

    metric: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise UserError(f"constraint on {self.metric}: [{self.low:g}, {self.high:g}] holds no number")
        if math.isinf(self.low) and math.isinf(self.high):
            raise UserError(f"constraint on {self.metric}: give low, high or both")

    def slack(self, metrics: Mapping[str, float]) -> float:
        """Distance to the nearer bound in the metric's unit: 0 or more is feasible. NaN where the metric is missing."""
        raw = metrics.get(self.metric, math.nan)
        return min(raw - self.low, self.high - raw)


@dataclass(frozen=True)
class Goal:
    """Objectives and constraints together.

    Attributes:
        objectives: at least two.
        constraints: any number.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(f"a search has at least two objectives of different names; got {names}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Every metric that is read, each once."""
        read = [column for objective in self.objectives for column in objective.metrics]
        return tuple(dict.fromkeys([*read, *(constraint.metric for constraint in self.constraints)]))

    def values(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """M values, higher is better; NaN where a metric is missing."""
        return tuple(objective.value(metrics) for objective in self.objectives)

    def slacks(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """A slack for each constraint, 0 or more where it is kept."""
        return tuple(constraint.slack(metrics) for constraint in self.constraints)

    def missing(self, metrics: Mapping[str, float]) -> list[str]:
        """Metrics that are read and have no finite number here."""
        return [column for column in self.columns if not math.isfinite(metrics.get(column, math.nan))]

    def to_data(self) -> dict[str, Any]:
        """Plain data for the archive; open bounds are null."""
        constraints = [
            {key: None if value in (math.inf, -math.inf) else value for key, value in asdict(one).items()}
            for one in self.constraints
        ]
        objectives = [asdict(one) | {"metrics": list(one.metrics)} for one in self.objectives]
        return {"objectives": objectives, "constraints": constraints, "reference_point": [0.0] * len(objectives)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Goal":
        """The inverse of `to_data`."""
        return cls(
            tuple(Objective(**(one | {"metrics": tuple(one["metrics"])})) for one in data["objectives"]),
            tuple(
                Constraint(
                    one["metric"],
                    -math.inf if one["low"] is None else one["low"],
                    math.inf if one["high"] is None else one["high"],
                )
                for one in data["constraints"]
            ),
        )


def hypervolume(values_NM: NDArray[np.float64] | Sequence[Sequence[float]]) -> float:
    """Volume between the origin and the points, higher is better: the staircase for two objectives, moocore beyond.

    Args:
        values_NM: N points of M values, finite; N may be 0.

    Raises:
        ValueError: NaN or infinity among the values.
        MissingPackageError: more than two objectives, and moocore is not installed.
    """
    from unlearn_core.frontier import staircase_hypervolume

    points_NM = np.asarray(values_NM, dtype=np.float64)
    if points_NM.size == 0:
        return 0.0
    if points_NM.shape[1] == 2:
        return staircase_hypervolume(points_NM, (0.0, 0.0), (True, True))
    if not np.isfinite(points_NM).all():
        raise ValueError("a coordinate that is not finite has no hypervolume; leave the point out")
    try:
        import moocore
    except ImportError as error:
        from unlearn_core.errors import MissingPackageError

        raise MissingPackageError(
            "Hypervolume of three or more objectives needs moocore: pip install moocore"
        ) from error
    inside_NM = points_NM[(points_NM > 0).all(axis=1)]
    if len(inside_NM) == 0:
        return 0.0
    return float(moocore.hypervolume(inside_NM, ref=np.zeros(points_NM.shape[1]), maximise=True))
