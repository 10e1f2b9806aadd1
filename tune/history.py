"""What a search has seen, in memory: trials, and the trajectory of each.

A trial is a configuration that was run; a point is a trial at a step. The front is over points, so a trial may have
several members on it or none, and its last point is rarely the one.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tune.objectives import hypervolume
from tune.space import Config
from unlearn_core.frontier import non_dominated

Status = Literal["running", "finished", "pruned", "budget", "diverged", "out_of_memory", "hung", "failed"]
"""pruned: a stop rule ended it. budget: the search's steps or hours were used up. diverged: non-finite loss, weights or
metrics. hung: no result within the time limit. failed: any other error."""
STATUSES: tuple[Status, ...] = get_args(Status)
Origin = Literal["search", "warm_start", "densify", "rerun"]
"""search: a searcher proposed it. warm_start, densify: an edit or interpolation. rerun: a front member with a new
seed; never on the search's own front, or its luck would count twice."""


@dataclass(frozen=True)
class Point:
    """A scored step of a trial.

    Attributes:
        trial: number of its trial.
        step: optimizer steps, from 1; of edits the number of the edit.
        values: M values of the objectives, higher is better (`tune.objectives`).
        slacks: one for each constraint; all 0 or more on a feasible point.
        metrics: every raw metric that has a finite value.
        seconds: wall-clock seconds of training and scoring since the trial's previous point.
        time: Unix time at which it was recorded.
    """

    trial: int
    step: int
    values: tuple[float, ...]
    slacks: tuple[float, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    time: float = 0.0

    @property
    def feasible(self) -> bool:
        """Whether every constraint is kept."""
        return all(slack >= 0 for slack in self.slacks)

    @property
    def scored(self) -> bool:
        """Whether every objective and constraint has a number."""
        return all(math.isfinite(number) for number in (*self.values, *self.slacks))

    @property
    def candidate(self) -> bool:
        """Whether it may be on a front."""
        return self.scored and self.feasible


@dataclass
class Trial:
    """One configuration and what became of it.

    Attributes:
        number: from 0, in the order of proposal.
        config: dotted keys and values that the space decided.
        seed: training seed.
        origin: why it was run.
        parent: trial that an interpolation or re-run starts from; None for none.
        parent_step: the step of it; a re-run goes no further.
        points: in the order of their steps.
        status: how it stands.
        reason: why it ended so, for a reader.
        steps_done: optimizer steps it used, scored or not.
    """

    number: int
    config: Config
    seed: int = 0
    origin: Origin = "search"
    parent: int | None = None
    parent_step: int | None = None
    points: list[Point] = field(default_factory=list)
    status: Status = "running"
    reason: str = ""
    steps_done: int = 0

    @property
    def candidates(self) -> list[Point]:
        """Points that may be on a front."""
        return [point for point in self.points if point.candidate]

    @property
    def last_step(self) -> int:
        """Step of the last point, 0 without one."""
        return self.points[-1].step if self.points else 0


class History:
    """All trials of one search, by number.

    Args:
        trials: those known already.
    """

    def __init__(self, trials: Iterable[Trial] = ()):
        self.trials: dict[int, Trial] = {trial.number: trial for trial in trials}

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials.values())

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def next_number(self) -> int:
        """Number of the next trial."""
        return max(self.trials, default=-1) + 1

    @property
    def running(self) -> list[Trial]:
        """Trials without an end."""
        return [trial for trial in self if trial.status == "running"]

    @property
    def steps_spent(self) -> int:
        """Optimizer steps of all trials a searcher proposed; edits and re-runs are told apart from them."""
        return sum(max(trial.steps_done, trial.last_step) for trial in self if trial.origin == "search")

    def searched(self) -> list[Trial]:
        """Trials that a searcher proposed."""
        return [trial for trial in self if trial.origin == "search"]

    def add(self, trial: Trial) -> None:
        """Take in a new trial.

        Raises:
            ValueError: its number is taken.
        """
        if trial.number in self.trials:
            raise ValueError(f"trial {trial.number} is in the history already")
        self.trials[trial.number] = trial

    def record(self, point: Point) -> bool:
        """Take in a point; False when that step of that trial is there already (told twice)."""
        trial = self.trials[point.trial]
        if any(known.step == point.step for known in trial.points):
            return False
        trial.points.append(point)
        trial.points.sort(key=lambda known: known.step)
        trial.steps_done = max(trial.steps_done, point.step if trial.origin in ("search", "rerun") else 0)
        return True

    def end(self, number: int, status: Status, reason: str = "", steps_done: int | None = None) -> bool:
        """Mark a trial's end; False when it had ended."""
        trial = self.trials[number]
        if trial.status != "running":
            return False
        trial.status, trial.reason = status, reason
        if steps_done is not None:
            trial.steps_done = max(trial.steps_done, steps_done)
        return True

    def points(self, leave_out: int | None = None) -> list[Point]:
        """Every point that may be on the search's front: scored, feasible, not of a re-run.

        Args:
            leave_out: number of a trial whose points are left out.
        """
        return [
            point
            for trial in self
            if trial.origin != "rerun" and trial.number != leave_out
            for point in trial.candidates
        ]

    def front(self) -> list[Point]:
        """Non-dominated points beyond the origin in every objective; of equal ones the first."""
        points = [point for point in self.points() if min(point.values) > 0]
        if not points:
            return []
        values_NM = values_of(points)
        mask_N = non_dominated(values_NM, (True,) * values_NM.shape[1])
        kept: dict[tuple[float, ...], Point] = {}
        for point, on_front in zip(points, mask_N, strict=True):
            if on_front:
                kept.setdefault(point.values, point)
        return list(kept.values())

    def hypervolume(self) -> float:
        """Volume of the front beyond the origin (`tune.objectives`); higher is better."""
        front = self.front()
        return hypervolume(values_of(front)) if front else 0.0


def values_of(points: Iterable[Point]) -> NDArray[np.float64]:
    """Values of points as an array of shape (N, M)."""
    return np.array([point.values for point in points], dtype=np.float64)


def best_contribution(trial: Trial, others_NM: NDArray[np.float64]) -> Point | None:
    """The point of a trial that adds most hypervolume to the others; None without a candidate.

    Where no point adds any, the one with the greatest product of values, so that a searcher still learns how near the
    trial came.

    Args:
        trial: any.
        others_NM: values of points of other trials, shape (N, M); N may be 0.
    """
    candidates = trial.candidates
    if not candidates:
        return None
    base = hypervolume(others_NM)

    def worth(point: Point) -> tuple[float, float]:
        value_1M = np.array([point.values])
        joined = value_1M if others_NM.size == 0 else np.vstack([others_NM, value_1M])
        return max(hypervolume(joined) - base, 0.0), float(np.prod(value_1M))

    return max(candidates, key=worth)
