"""What is reported of searches: hypervolume, how it grew, attainment over seeds, spread of re-runs. Numbers by moocore.

attainment surface of p %    border of what at least p % of the searches attained (Grunert da Fonseca and Fonseca)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.history import History, Point, values_of
from tune.objectives import hypervolume
from unlearn_core.errors import MissingPackageError

PERCENTAGES = (25, 50, 75)


def _moocore() -> Any:
    try:
        import moocore
    except ImportError as error:
        raise MissingPackageError("Reported hypervolumes and attainment need moocore: pip install moocore") from error
    return moocore


def reported_hypervolume(points: Sequence[Point]) -> float:
    """Hypervolume beyond the origin by moocore; higher is better, 0 without points."""
    inside = [point.values for point in points if point.candidate and min(point.values) > 0]
    if not inside:
        return 0.0
    values_NM = np.array(inside)
    return float(_moocore().hypervolume(values_NM, ref=np.zeros(values_NM.shape[1]), maximise=True))


def hypervolume_curve(history: History) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How the hypervolume grew with the optimizer steps that proposed trials took.

    Args:
        history: points are taken in the order in which they were recorded; edits and re-runs are left out.

    Returns:
        Steps spent, rising, and hypervolume after them, each of shape (K,): a place for each point. The curve ends at
        `history.steps_spent`, which counts steps after the last scored one, too.
    """
    points = [point for trial in history.searched() for point in trial.points]
    last: dict[int, int] = {}
    spent, steps, volumes = 0, [], []
    front_NM = np.zeros((0, 0))
    volume = 0.0
    for point in sorted(points, key=lambda one: (one.time, one.trial, one.step)):
        spent += point.step - last.get(point.trial, 0)
        last[point.trial] = point.step
        if point.candidate and min(point.values) > 0:
            value_1M = np.array([point.values])
            joined_NM = value_1M if front_NM.size == 0 else np.vstack([front_NM, value_1M])
            grown = hypervolume(joined_NM)
            if grown > volume:
                # A point that adds nothing now never will, so it need not be carried along.
                front_NM, volume = joined_NM, grown
        steps.append(spent)
        volumes.append(volume)
    if not steps or steps[-1] < history.steps_spent:
        steps.append(history.steps_spent)
        volumes.append(volume)
    return np.array(steps, dtype=float), np.array(volumes)


def attainment_surfaces(
    searches: Sequence[NDArray[np.float64]], percentages: Sequence[int] = PERCENTAGES
) -> dict[int, NDArray[np.float64]]:
    """Attainment surfaces of two objectives, both better when higher.

    Args:
        searches: for each search the values of its points, shape (N, 2), N at least 1.
        percentages: of the searches.

    Returns:
        Percentage to the surface's corners, shape (V, 2), by rising first objective. Of 4 searches the surface of 50 %
        is what at least 2 attained.
    """
    rows = [np.column_stack([-points_N2, np.full(len(points_N2), n)]) for n, points_N2 in enumerate(searches, start=1)]
    stacked = np.vstack(rows)
    found = np.asarray(_moocore().eaf(stacked[:, :2], stacked[:, 2].astype(int), percentiles=list(percentages)))
    surfaces = {}
    for percentage in percentages:
        corners_V2 = -found[found[:, -1] == percentage][:, :2]
        surfaces[percentage] = corners_V2[np.argsort(corners_V2[:, 0])]
    return surfaces


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, with a fixed seed.

    Args:
        values: one for each search, at least one; with one the interval is that value.
        confidence: such as 0.95.
        draws: resamples.
    """
    values_N = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(0, len(values_N), (draws, len(values_N)))
    low, high = np.quantile(values_N[picks].mean(axis=1), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def rerun_spread(history: History, member: Point) -> dict[str, Any] | None:
    """Mean and spread of a front member over training seeds: its re-runs at its step, without itself.

    The member was chosen for being good, so its own values are biased upwards; they are left out.

    Args:
        history: re-runs are trials of that origin with the member as parent.
        member: a point of the front.

    Returns:
        `seeds`, `mean` and `deviation` (sample standard deviation; null for one seed) of each objective, in order, and
        how many re-runs `failed` to get there; None without a re-run.
    """
    trials = [
        trial
        for trial in history
        if trial.origin == "rerun" and (trial.parent, trial.parent_step) == (member.trial, member.step)
    ]
    points = [point for trial in trials for point in trial.points if point.step == member.step and point.scored]
    if not points:
        return None
    values_NM = values_of(points)
    deviation = values_NM.std(axis=0, ddof=1).tolist() if len(points) > 1 else None
    return {
        "seeds": len(points),
        "mean": values_NM.mean(axis=0).tolist(),
        "deviation": deviation,
        "failed": sum(trial.status != "running" for trial in trials) - len(points),
    }
