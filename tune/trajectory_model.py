"""What is known of trajectories, as Gaussian processes: which points enter, and when hyper-parameters are fitted.

One process for each objective and one for each constraint's slack, independent of each other, over the features of a
configuration and the step (`tune.trajectory_gp`). Trials that a searcher proposed count; edits and re-runs do not.

Which points enter (TMOBO's selective augmentation; the order is our reconstruction). Of each trial: every point on the
search's front, its last, its first, then again and again the one whose log step is farthest from those taken, up to
`PER_TRIAL`. That is the step of the greatest posterior variance for a stationary kernel in log(step), given the trial's
own points. If all trials together have more than the cap, each in turn gives its first in that order, then its second,
and so on until the cap.

Trials that diverged or ran out of memory: at three recorded steps after their last scored one (the next, the last, and
between) every objective is taken to be 0, the worst that counts, so that the search turns away from such
configurations. Their slacks are not known there. Trials that hung or failed otherwise count with their scored points.

Slacks s may be of any size, and only their sign counts. They enter as s / (|s| + m), m the median of |s|.

Hyper-parameters are fitted to trials that have ended, the first k of them by number: k grows by one up to 20 and by a
tenth from there on. Running trials are conditioned on, not fitted to. So every number here is a function of the history
alone; what is kept between calls is a cache.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune.history import History, Point, Trial, values_of
from tune.improvement import front_mask
from tune.space import Space
from tune.told import BLAMED
from tune.trajectory_gp import Hyperparameters, TrajectoryProcess, fit

PER_TRIAL = 6
STEPS = 12
"""At most so many steps of a trajectory are looked at ahead."""
CAP = 600
"""Points of all trials that a process is conditioned on."""
FIT_CAP = 200
"""Points that hyper-parameters are fitted to."""
FEWEST_ENDED = 3
"""Trials that must have ended before anything is fitted."""


@dataclass(frozen=True)
class Observations:
    """What the processes learn from: N points of O outputs, the M objectives first, then the slacks.

    Attributes:
        x_NF: features.
        steps_N: optimizer steps.
        y_NO: outputs, NaN where one is not known.
    """

    x_NF: Tensor
    steps_N: Tensor
    y_NO: Tensor

    def joined(self, other: "Observations") -> "Observations":
        """These and more."""
        pairs = ((self.x_NF, other.x_NF), (self.steps_N, other.steps_N), (self.y_NO, other.y_NO))
        return Observations(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class Fitted:
    """What a fit fixes; data come and go.

    Attributes:
        objectives: M; the other outputs are slacks.
        first: least recorded step, where scaled time is 0.
        span: log(total / first), by which log(step / first) is divided.
        hyper_O: of each output; None for one without a known value.
        centre_O: subtracted from outputs.
        spread_O: divides them then; 1 for a constant output.
        slack_O: m of each slack.
    """

    objectives: int
    first: int
    span: float
    hyper_O: tuple[Hyperparameters | None, ...]
    centre_O: tuple[float, ...]
    spread_O: tuple[float, ...]
    slack_O: tuple[float, ...]

    def tau(self, steps_N: Tensor) -> Tensor:
        """Scaled log steps, shape (N,)."""
        return (steps_N.double() / self.first).log() / self.span

    def outputs(self, y_NO: Tensor) -> Tensor:
        """Slacks squashed, objectives as they are; shape (N, O)."""
        slack_NC = y_NO[:, self.objectives :]
        scale_C = torch.tensor(self.slack_O, dtype=torch.float64)
        return torch.cat([y_NO[:, : self.objectives], slack_NC / (slack_NC.abs() + scale_C)], dim=1)


class TrajectoryModel:
    """The processes of all outputs, conditioned on observations.

    Args:
        fitted: hyper-parameters and scales.
        observations: at least one.

    Raises:
        ModelError: a process cannot be conditioned.
    """

    def __init__(self, fitted: Fitted, observations: Observations):
        self.fitted, self.observations = fitted, observations
        self.objectives = fitted.objectives
        y_NO = fitted.outputs(observations.y_NO)
        tau_N = fitted.tau(observations.steps_N)
        self.processes_O: list[TrajectoryProcess | None] = []
        for output, hyper in enumerate(fitted.hyper_O):
            known_N = torch.isfinite(y_NO[:, output])
            if hyper is None or not known_N.any():
                self.processes_O.append(None)
                continue
            data = (observations.x_NF[known_N], tau_N[known_N], y_NO[known_N, output])
            self.processes_O.append(TrajectoryProcess(hyper, *data, fitted.centre_O[output], fitted.spread_O[output]))

    def posterior(self, x_CF: Tensor, steps_T: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Trajectories of C configurations at T steps.

        Returns:
            Means of shape (O, C, T) and covariances over the steps of shape (O, C, T, T). Slacks are squashed; one of
            which nothing is known is 1, so kept.
        """
        tau_T = self.fitted.tau(torch.tensor(list(steps_T)))
        count, steps = len(x_CF), len(tau_T)
        mean_OCT = torch.ones(len(self.processes_O), count, steps, dtype=torch.float64)
        covariance_OCTT = torch.zeros(len(self.processes_O), count, steps, steps, dtype=torch.float64)
        for output, process in enumerate(self.processes_O):
            if process is not None:
                mean_OCT[output], covariance_OCTT[output] = process.posterior(x_CF, tau_T)
        return mean_OCT, covariance_OCTT

    def points(self, outputs_OT: Tensor) -> Tensor:
        """Objectives of points, at 0 where a slack is negative; (O, ..., T) becomes (..., T, M)."""
        kept_T = (outputs_OT[self.objectives :] >= 0).all(dim=0)
        return torch.where(kept_T, outputs_OT[: self.objectives], 0.0).movedim(0, -1)

    def believing(self, x_F: Tensor, steps_T: Sequence[int], mean_OT: Tensor) -> "TrajectoryModel":
        """The same, with the mean trajectory of a configuration taken for seen (the Kriging believer).

        Args:
            x_F: its features.
            steps_T: where.
            mean_OT: what `posterior` says there, shape (O, T).
        """
        slack_CT = mean_OT[self.objectives :]
        scale_C1 = torch.tensor(self.fitted.slack_O, dtype=torch.float64)[:, None]
        # The inverse of the squash, away from its ends at -1 and 1.
        raw_CT = scale_C1 * slack_CT / (1 - slack_CT.abs()).clamp_min(1e-3)
        y_TO = torch.cat([mean_OT[: self.objectives], raw_CT]).T
        more = Observations(x_F.expand(len(steps_T), -1), torch.tensor(list(steps_T)), y_TO)
        return TrajectoryModel(self.fitted, self.observations.joined(more))


class TrajectoryModels:
    """The models of one search, shared by its searcher and stop rule so that each fit is done once.

    What is kept between calls are features by trial number, and the last fit.

    Args:
        space: what varies.
        total_steps: optimizer steps of a trial that is not stopped.
    """

    def __init__(self, space: Space, total_steps: int):
        self.space, self.total_steps = space, total_steps
        self._features: dict[int, NDArray[np.float64]] = {}
        self._fitted: tuple[object, Fitted] | None = None

    def features(self, trial: Trial) -> NDArray[np.float64]:
        """Features of a trial's configuration, shape (F,)."""
        if trial.number not in self._features:
            self._features[trial.number] = self.space.features(self.space.encode(trial.config))[0]
        return self._features[trial.number]

    def fitted(self, history: History) -> Fitted | None:
        """Hyper-parameters of a history; None before `FEWEST_ENDED` trials have ended or any is scored."""
        ended = [trial for trial in history.searched() if trial.status != "running"]
        trials = sorted(ended, key=lambda trial: trial.number)[: milestone(len(ended))]
        if len(trials) < FEWEST_ENDED or not any(point.scored for trial in trials for point in trial.points):
            return None
        key = tuple((trial.number, trial.status, len(trial.points)) for trial in trials)
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = (key, self._fit(trials))
        return self._fitted[1]

    def model(self, history: History, last: Point | None = None) -> TrajectoryModel | None:
        """The model given all trials of a history, running ones included; None as `fitted`.

        Args:
            history: all that is known.
            last: its trial is taken to end here, as if later points were not there yet.

        Raises:
            ModelError: a process cannot be conditioned.
        """
        fitted = self.fitted(history)
        if fitted is None:
            return None
        return TrajectoryModel(fitted, self._observations(history.searched(), CAP, last))

    def _fit(self, trials: list[Trial]) -> Fitted:
        data = self._observations(trials, FIT_CAP)
        scored = next(point for trial in trials for point in trial.points if point.scored)
        objectives, outputs = len(scored.values), data.y_NO.shape[1]
        first = int(data.steps_N.min())
        slacks_NC = data.y_NO[:, objectives:].abs()
        medians = tuple(float(m) if m > 0 else 1.0 for m in slacks_NC.nanmedian(dim=0).values)
        scales = Fitted(objectives, first, math.log(max(self.total_steps / first, 2.0)), (), (), (), medians)
        y_NO, tau_N = scales.outputs(data.y_NO), scales.tau(data.steps_N)
        hyper, centre, spread = [], [], []
        for output in range(outputs):
            known_N = torch.isfinite(y_NO[:, output])
            y_K = y_NO[known_N, output]
            centre.append(float(y_K.mean()) if len(y_K) else 0.0)
            deviation = float(y_K.std(correction=0)) if len(y_K) else 0.0
            spread.append(deviation if deviation > 1e-9 else 1.0)
            z_K = (y_K - centre[-1]) / spread[-1]
            hyper.append(fit(data.x_NF[known_N], tau_N[known_N], z_K) if len(y_K) else None)
        return Fitted(objectives, first, scales.span, tuple(hyper), tuple(centre), tuple(spread), medians)

    def _observations(self, trials: list[Trial], cap: int, last: Point | None = None) -> Observations:
        """Points that enter, see the top of this file."""
        scored = {trial.number: _scored(trial, last) for trial in trials}
        candidates = [point for points in scored.values() for point in points if point.candidate]
        width = next((len(point.values), len(point.slacks)) for points in scored.values() for point in points)
        on_front = set()
        if candidates:
            mask_N = front_mask(values_of(candidates))
            on_front = {(p.trial, p.step) for p, inside in zip(candidates, mask_N, strict=True) if inside}
        grid = sorted({point.step for points in scored.values() for point in points})
        queues = []
        for trial in trials:
            x_F = self.features(trial)
            front = {step for number, step in on_front if number == trial.number}
            rows = [(x_F, p.step, (*p.values, *p.slacks)) for p in chosen(scored[trial.number], front)]
            if trial.status in BLAMED:
                after = scored[trial.number][-1].step if scored[trial.number] else 0
                worst = (0.0,) * width[0] + (math.nan,) * width[1]
                rows += [(x_F, step, worst) for step in _fillers(grid, after)]
            queues.append(rows)
        rounds = range(max(map(len, queues)))
        taken = [rows[place] for place in rounds for rows in queues if place < len(rows)][:cap]
        return Observations(
            torch.tensor(np.array([x_F for x_F, _, _ in taken])),
            torch.tensor([step for _, step, _ in taken]),
            torch.tensor([y_O for _, _, y_O in taken], dtype=torch.float64),
        )


def step_grid(history: History) -> list[int]:
    """Recorded steps of the trials a searcher proposed, at most `STEPS` of them, even in log(step)."""
    return thinned(sorted({point.step for trial in history.searched() for point in trial.points}))


def thinned(steps: list[int]) -> list[int]:
    """First and last, then again and again the one farthest in log(step) from those taken, until there are `STEPS`."""
    if len(steps) <= STEPS:
        return steps
    logs_N = np.log(steps)
    taken = [0, len(steps) - 1]
    away_N = np.minimum(np.abs(logs_N - logs_N[0]), np.abs(logs_N - logs_N[-1]))
    while len(taken) < STEPS:
        taken.append(int(away_N.argmax()))
        away_N = np.minimum(away_N, np.abs(logs_N - logs_N[taken[-1]]))
    return [steps[n] for n in sorted(taken)]


def milestone(ended: int) -> int:
    """How many of the trials that have ended are fitted to: all up to 20, then 20, 22, 24, 26, 28, 30, 33, ..."""
    count = min(ended, 20)
    while count + max(1, count // 10) <= ended:
        count += max(1, count // 10)
    return count


def chosen(points: list[Point], front: set[int]) -> list[Point]:
    """The points of a trial that enter, most important first; `PER_TRIAL`, or more if more are on the front.

    Args:
        points: scored, by step.
        front: steps of those on the search's front.
    """
    taken = [point for point in points if point.step in front]
    for point in points[-1:] + points[:1]:
        if point not in taken:
            taken.append(point)
    logs_N = np.log([point.step for point in points])
    while len(taken) < min(PER_TRIAL, len(points)):
        away_NK = np.abs(logs_N[:, None] - np.log([point.step for point in taken])[None, :])
        taken.append(points[int(away_NK.min(axis=1).argmax())])
    return taken


def _scored(trial: Trial, last: Point | None) -> list[Point]:
    limit = last.step if last is not None and last.trial == trial.number else math.inf
    return [point for point in trial.points if point.scored and point.step <= limit]


def _fillers(grid: list[int], after: int) -> list[int]:
    """Three steps of the grid after one: the next, the last and between; the last of all if there is none after."""
    later = [step for step in grid if step > after]
    return sorted({later[0], later[len(later) // 2], later[-1]}) if later else grid[-1:] if after == 0 else []
