"""What searchers that know nothing of trajectories are told of a trial: one step of it.

    best    the step that adds most hypervolume to all other trials' points (`tune.history.best_contribution`)
    final   the last step: the usual practice, which is misled by trials that trained too long

It is worked out anew from the whole history, so a value told once changes when others make it worthless.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tune.history import History, Point, Status, Trial, best_contribution, values_of
from unlearn_core.frontier import non_dominated

How = Literal["best", "final"]
BLAMED: tuple[Status, ...] = ("diverged", "out_of_memory")
"""Ends that the configuration brought about: such a trial is told as the worst, so that a searcher leaves that region.
A hung or failed trial without a scored step says nothing of its configuration and is left out."""


@dataclass(frozen=True)
class Told:
    """What a searcher is told of an ended trial.

    Attributes:
        trial: the trial.
        values: M values, higher is better, finite.
        slacks: one for each constraint, finite, 0 or more where it is kept.
        further: other steps of it on the front of all points, in their order; only with `best`.
    """

    trial: Trial
    values: tuple[float, ...]
    slacks: tuple[float, ...]
    further: tuple[Point, ...] = ()


def told_trials(history: History, how: How) -> list[Told]:
    """All that is told of the trials that a searcher proposed and that have ended, by number.

    A trial without a feasible point is told its least infeasible one. One of `BLAMED` without a usable point, and with
    `final` each of `BLAMED` (its last step is the one that broke), is told 0 in every objective and, for each
    constraint, a slack as bad as the worst seen, at least -1. Any other trial without a usable point is not told.

    Args:
        history: running trials count among the points that others are measured against.
        how: see the top of this file.
    """
    shape = next(((len(p.values), len(p.slacks)) for trial in history for p in trial.points), None)
    if shape is None:
        return []
    ended = sorted((trial for trial in history.searched() if trial.status != "running"), key=lambda one: one.number)
    steps = _best(history, ended) if how == "best" else _final(ended)
    slacks_NK = np.array([point.slacks for point, _ in steps.values()]).reshape(len(steps), shape[1])
    worst = tuple(float(slack) for slack in np.vstack([slacks_NK, -np.ones((1, shape[1]))]).min(axis=0))
    told = []
    for trial in ended:
        if trial.number in steps:
            point, further = steps[trial.number]
            told.append(Told(trial, point.values, point.slacks, further))
        elif trial.status in BLAMED:
            told.append(Told(trial, (0.0,) * shape[0], worst))
    return told


def objectives_known(history: History) -> int | None:
    """M, the number of objectives, from the first recorded point; None before it."""
    return next((len(point.values) for trial in history for point in trial.points), None)


def _final(ended: list[Trial]) -> dict[int, tuple[Point, tuple[Point, ...]]]:
    last = {trial.number: trial.points[-1] for trial in ended if trial.points and trial.status not in BLAMED}
    return {number: (point, ()) for number, point in last.items() if point.scored}


def _best(history: History, ended: list[Trial]) -> dict[int, tuple[Point, tuple[Point, ...]]]:
    own = {trial.number: own_front(trial) for trial in history if trial.origin != "rerun"}
    everything = [point for front in own.values() for point in front]
    on_front = non_dominated_points(everything)
    owners = {point.trial for point in on_front}
    steps = {}
    for trial in ended:
        # Points that their own trial dominates change no hypervolume; without them this is fast for 200 trials.
        others = (
            non_dominated_points([p for p in everything if p.trial != trial.number])
            if trial.number in owners
            else on_front
        )
        others_NM = values_of(others) if others else np.zeros((0, 0))
        best = best_contribution(replace(trial, points=own[trial.number]), others_NM)
        if best is not None:
            mine = [p for p in on_front if p.trial == trial.number and min(p.values) > 0]
            steps[trial.number] = (best, tuple(p for p in mine if p.values != best.values))
        elif scored := [point for point in trial.points if point.scored]:
            steps[trial.number] = (min(scored, key=violation), ())
    return steps


def violation(point: Point) -> float:
    """Sum of a scored point's broken constraints, in the constraints' units; 0 for a feasible one."""
    return -sum(min(slack, 0.0) for slack in point.slacks)


def own_front(trial: Trial) -> list[Point]:
    """A trial's candidates that none of its own points dominates, by step."""
    return sorted(non_dominated_points(trial.candidates), key=lambda point: point.step)


def non_dominated_points(points: list[Point]) -> list[Point]:
    """Non-dominated points; of equal ones the first."""
    if not points:
        return []
    values_NM = values_of(points)
    if values_NM.shape[1] == 2:
        return [points[n] for n in _staircase(values_NM)]
    mask_N = non_dominated(values_NM, (True,) * values_NM.shape[1])
    kept: dict[tuple[float, ...], Point] = {}
    for point, inside in zip(points, mask_N, strict=True):
        if inside:
            kept.setdefault(point.values, point)
    return list(kept.values())


def _staircase(values_N2: NDArray[np.float64]) -> list[int]:
    """Rows of the front in their order: by a sort, for it is asked thousands of times a search."""
    order_N = np.lexsort((np.arange(len(values_N2)), -values_N2[:, 1], -values_N2[:, 0]))
    second_N = values_N2[order_N, 1]
    before_N = np.concatenate([[-np.inf], np.maximum.accumulate(second_N)[:-1]])
    return sorted(int(n) for n in order_N[second_N > before_N])
