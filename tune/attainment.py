"""What several searches of one goal attained, and how far a front's members hold up when run again.

All numbers here are moocore's; they are what reports print. The reference point is the origin (`tune.objectives`).
Two kinds of noise are told apart: between searches of different seeds (attainment surfaces, interval of the mean
hypervolume), and between trainings of one configuration (`rerun_spread`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tune.history import History, Point, values_of
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.frontier import non_dominated

PERCENTILES = (25, 50, 75)
RESAMPLES = 10_000
"""Of the bootstrap."""


def attainment_surfaces(
    histories: Sequence[History], percentiles: Sequence[int] = PERCENTILES
) -> dict[int, NDArray[np.float64]]:
    """Empirical attainment surfaces (Fonseca et al., EMO 2011) of searches of the same goal.

    Args:
        histories: one a search, of the same M objectives, 2 or 3. A search without a front attains nothing, and counts.
        percentiles: each P asks for the surface that at least P % of the searches attained: 25 is the best quarter's
            work, 75 what three of four can do.

    Returns:
        For each percentile its non-dominated corners, shape (K, M), by the first objective, falling; higher is better.
        K is 0 where fewer searches have any front.

    Raises:
        UserError: no search has a front, or the objectives are not 2 or 3.
        MissingPackageError: moocore is not installed.
    """
    fronts = [values_of(history.front()) for history in histories]
    sizes = {front_NM.shape[1] for front_NM in fronts if front_NM.size}
    if len(sizes) != 1 or not sizes <= {2, 3}:
        raise UserError(
            f"Attainment surfaces need searches of the same 2 or 3 objectives with a front; got {len(histories)} "
            f"searches with {sorted(sizes) or 'no'} objectives on their fronts."
        )
    objectives = sizes.pop()
    # moocore minimises, and takes no empty set: a search without a front stands at a point below everything.
    lowest = min(float(front_NM.min()) for front_NM in fronts if front_NM.size) - 1.0
    sets = [front_NM if front_NM.size else np.full((1, objectives), lowest) for front_NM in fronts]
    owners_N = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    found = _moocore().eaf(-np.vstack(sets), owners_N, percentiles=list(percentiles))
    surfaces = {}
    for percentile in percentiles:
        corners_KM = -found[found[:, -1] == percentile, :-1]
        corners_KM = corners_KM[(corners_KM > lowest).all(axis=1)]
        surfaces[percentile] = corners_KM[np.argsort(-corners_KM[:, 0], kind="stable")]
    return surfaces


@dataclass(frozen=True)
class HypervolumeSummary:
    """Hypervolume over searches of one goal.

    Attributes:
        each: of each search, in the order given; higher is better.
        mean: of them.
        low: lower end of the interval of the mean; None for a single search.
        high: its upper end.
        level: probability that the interval is made for.
    """

    each: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    level: float


def hypervolume_summary(histories: Sequence[History], level: float = 0.95, seed: int = 0) -> HypervolumeSummary:
    """Hypervolume of each search, its mean and the percentile-bootstrap interval of the mean over searches.

    With S searches the bootstrap draws S of them with replacement, `RESAMPLES` times. Below about 10 searches the
    interval is too narrow, by a factor of about sqrt((S - 1) / S) and more; it is no test.

    Args:
        histories: at least one.
        level: of the interval, in (0, 1).
        seed: of the bootstrap.

    Raises:
        UserError: no search.
        MissingPackageError: moocore is not installed.
    """
    if not histories:
        raise UserError("No search to summarise; give at least one.")
    each_S = np.array([reported_hypervolume(values_of(history.front())) for history in histories])
    low = high = None
    if len(each_S) > 1:
        draws = np.random.default_rng(seed).integers(len(each_S), size=(RESAMPLES, len(each_S)))
        tail = 100 * (1 - level) / 2
        low, high = (float(end) for end in np.percentile(each_S[draws].mean(axis=1), [tail, 100 - tail]))
    return HypervolumeSummary(tuple(map(float, each_S)), float(each_S.mean()), low, high, level)


def reported_hypervolume(values_NM: NDArray[np.float64]) -> float:
    """Hypervolume by moocore beyond the origin; 0 without points; points not above 0 in all objectives add nothing.

    Args:
        values_NM: N points of M values, finite, higher is better.

    Raises:
        MissingPackageError: moocore is not installed.
    """
    inside_NM = values_NM[(values_NM > 0).all(axis=1)] if values_NM.size else values_NM
    if inside_NM.size == 0:
        return 0.0
    return float(_moocore().hypervolume(inside_NM, ref=np.zeros(inside_NM.shape[1]), maximise=True))


def hypervolume_curve(history: History) -> NDArray[np.float64]:
    """Hypervolume of a search against the optimizer steps it has spent.

    Points count in the order of the time at which they were recorded, then by trial and step. A point costs the steps
    since its trial's previous one; edits cost none, and re-runs are left out. The last row is the search as it stands,
    with steps that led to no point, such as those of trials that diverged.

    Returns:
        Rows (steps spent, hypervolume), both rising, shape (R, 2); one row (0, 0) first.

    Raises:
        MissingPackageError: moocore is not installed.
    """
    points = [point for trial in history if trial.origin != "rerun" for point in trial.points]
    points.sort(key=lambda point: (point.time, point.trial, point.step))
    spent, volume, rows = 0, 0.0, [(0.0, 0.0)]
    done: dict[int, int] = {}
    front_NM = np.zeros((0, 0))
    for point in points:
        if history.trials[point.trial].origin == "search":
            spent += max(0, point.step - done.get(point.trial, 0))
            done[point.trial] = max(point.step, done.get(point.trial, 0))
        value_M = np.array(point.values)
        if point.candidate and not (front_NM.size and (front_NM >= value_M).all(axis=1).any()):
            front_NM = np.vstack([front_NM, value_M]) if front_NM.size else value_M[None, :]
            front_NM = front_NM[non_dominated(front_NM, (True,) * len(value_M))]
            volume = reported_hypervolume(front_NM)
        rows.append((float(spent), volume))
    rows.append((float(max(spent, history.steps_spent)), volume))
    return np.array(rows)


@dataclass(frozen=True)
class MemberSpread:
    """A front member and its re-runs with other seeds.

    Attributes:
        point: the member as the search saw it. It was chosen for being good, so it is not part of the mean.
        values: of the R re-runs, shape (R, M); higher is better.
        mean: per objective; None without a scored re-run.
        deviation: sample standard deviation per objective; None below two re-runs.
        without: re-runs that ended without a scored point at that step.
        infeasible: re-runs among `values` that break a constraint.
    """

    point: Point
    values: NDArray[np.float64]
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    without: int
    infeasible: int


@dataclass(frozen=True)
class RerunSpread:
    """How a front holds up.

    Attributes:
        members: front members with at least one re-run, by trial and step.
        hypervolume: of their mean points, moocore's; those without a mean add nothing.
        hypervolume_seen: of the same members as the search saw them, its luck included.
    """

    members: tuple[MemberSpread, ...]
    hypervolume: float
    hypervolume_seen: float


def rerun_spread(history: History) -> RerunSpread:
    """Mean and spread of the re-runs of each front member: trials of origin `rerun` with its trial and step as parent.

    Raises:
        MissingPackageError: moocore is not installed.
    """
    members = []
    for point in sorted(history.front(), key=lambda one: (one.trial, one.step)):
        runs = [trial for trial in history if trial.origin == "rerun" and trial.parent == point.trial]
        runs = [run for run in runs if run.parent_step in (None, point.step)]
        found = [one for run in runs for one in run.points if one.step == point.step and one.scored]
        ended = sum(run.status != "running" for run in runs)
        with_point = {one.trial for one in found}
        without = ended - sum(run.status != "running" and run.number in with_point for run in runs)
        if not found and not without:
            continue
        values_RM = values_of(found).reshape(len(found), len(point.values))
        mean = tuple(map(float, values_RM.mean(axis=0))) if len(found) else None
        deviation = tuple(map(float, values_RM.std(axis=0, ddof=1))) if len(found) > 1 else None
        infeasible = sum(not one.feasible for one in found)
        members.append(MemberSpread(point, values_RM, mean, deviation, without, infeasible))
    means_NM = np.array([member.mean for member in members if member.mean is not None])
    seen_NM = values_of(member.point for member in members)
    return RerunSpread(tuple(members), reported_hypervolume(means_NM), reported_hypervolume(seen_NM))


def _moocore() -> ModuleType:
    try:
        import moocore
    except ImportError as error:
        raise MissingPackageError("Attainment and reported hypervolumes need moocore: pip install moocore") from error
    return moocore
