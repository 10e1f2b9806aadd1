"""TMOBO-style search: Bayesian optimisation of configurations by what their whole trajectories would add to the front.

After "A Trajectory-Based Bayesian Approach to Multi-Objective Hyper-Parameter Optimization with Epoch-Aware Trade-Offs"
(TMOBO, arXiv 2405.15303, UAI 2025). A configuration x trained for t = 1..T steps leaves T points f(x, t), each of which
may be kept, so x is worth

    TEHVI(x) = E[ HV(P u {f(x, t_1), ..., f(x, t_T)}) - HV(P) ],     next x = argmax TEHVI(x),

with P all points seen and f given the data distributed as independent Gaussian processes over (x, t)
(`tune.trajectory_model`).

No code of the authors is known to us and we have not followed the paper line by line: the following is reconstructed or
differs, and "TMOBO-style" is all it claims to be.

- The kernel, its learned pace and its priors (`tune.trajectory_gp`); which points enter (`tune.trajectory_model`).
- The expectation is a mean over `SAMPLES` joint posterior samples of the trajectory, with the same base samples
  (scrambled Sobol, turned normal) for every x. Each sample's hypervolume is exact (`tune.improvement`).
- t_1..t_T are steps at which points are really recorded, at most `STEPS`, thinned to be even in log(step).
- TEHVI is maximised without gradients, since spaces have choices and conditions: a Sobol set and neighbours of the
  front's and the best trials' configurations, then `ROUNDS` rounds around the best, each nearer. A configuration that
  has been run is proposed again only when nothing else is left.
- A sampled point with a negative slack adds nothing (constraints).
- Parallel trials: a running trial is conditioned on for its points so far. The mean of the rest of its trajectory
  counts as seen, both by the processes (Kriging believer) and in P. So two workers do not get the same configuration.
- Every trial costs the same number of steps unless a stop rule ends it, so nothing is divided by a cost.
- The first D + 2 configurations are Sobol points, at least 5 and at most `MOST_INITIAL`; so are later ones while fewer
  than 3 trials have ended. That is half of the usual 2 (D + 1): a trajectory says more than a single value, and in 8
  dimensions the usual design would be half of a search of 30 trials.
- If no candidate improves P in any sample, the one whose mean + 3 standard deviations adds most is taken, and if none
  of these adds anything, the one with the greatest sum of variances.

If a process cannot be conditioned (`ModelError`), the proposal is the next Sobol point and the log has a warning.

A proposal is a function of (history, number, seed): a search that is started again proposes the same, bit for bit, on
the same machine and libraries.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import qmc
from torch import Tensor

from tune.history import History, Trial, values_of
from tune.improvement import Front, front_mask
from tune.random_search import sobol_units
from tune.searcher import TrajectorySearcher
from tune.space import Config, Space
from tune.trajectory_gp import ModelError, cholesky
from tune.trajectory_model import TrajectoryModel, TrajectoryModels, step_grid

LOG = logging.getLogger(__name__)
SAMPLES = 64
SAMPLES_MANY = 16
"""With three or more objectives, where each sample is a call of moocore."""
CANDIDATES = 512
CANDIDATES_MANY = 96
NEIGHBOURS = 256
ROUNDS = ((0.10, 8), (0.04, 4), (0.015, 2))
"""Of refinement: standard deviation of the moves in the unit cube, and how many of the best are moved from."""
MOST_INITIAL = 10
CHUNK = 256
"""Candidates that are scored at once; bounds the memory."""


class TrajectoryBayesSearcher(TrajectorySearcher):
    """See the top of this file.

    Args:
        space: what varies.
        history: all trials; kept up to date by the caller.
        seed: of Sobol points, base samples and moves.
        total_steps: of a whole trial.
        models: shared with a stop rule; its own if None.
    """

    def __init__(
        self, space: Space, history: History, seed: int, total_steps: int, models: TrajectoryModels | None = None
    ):
        super().__init__(space, history, seed, total_steps)
        self.models = TrajectoryModels(space, total_steps) if models is None else models

    @property
    def initial(self) -> int:
        """How many configurations are Sobol points before any model is asked."""
        return min(max(5, self.space.dimension + 2), MOST_INITIAL)

    def propose(self, number: int) -> Config:
        """The configuration of greatest TEHVI, or of the initial design."""
        count = len(self.history.searched())
        if count >= self.initial:
            try:
                model = self.models.model(self.history)
                if model is not None:
                    return self.space.decode(self._best(model, number))
            except ModelError as error:
                LOG.warning("trial %d: no model (%s); proposing a Sobol point", number, error)
        return self.space.decode(sobol_units(1, self.space.dimension, self.seed, count)[0])

    def _best(self, model: TrajectoryModel, number: int) -> NDArray[np.float64]:
        """The unit-cube point of greatest TEHVI, shape (D,)."""
        rng = np.random.default_rng([self.seed, number])
        steps_T = step_grid(self.history)
        points = self.history.points()
        front = Front(values_of(points) if points else np.zeros((0, model.objectives)))
        for trial in self.history.running:
            if trial.origin == "search":
                model, front = self._with_pending(model, front, trial, steps_T)
        judge = Judge(model, front, steps_T, rng)
        many = model.objectives > 2
        units_CD = self._candidates(rng, CANDIDATES_MANY if many else CANDIDATES, NEIGHBOURS // (4 if many else 1))
        known = {self.models.features(trial).tobytes() for trial in self.history.searched()}
        x_CF = self.space.features(units_CD)
        score_C, new_C = judge.scores(x_CF), unknown(x_CF, known)
        for spread, starts in ROUNDS:
            best_K = np.argsort(-np.where(new_C, score_C, -1.0), kind="stable")[:starts]
            around = NEIGHBOURS // (8 if many else 2) // starts
            moved_CD = np.concatenate([moves(units_CD[k], around, spread, self.space, rng) for k in best_K])
            moved_CF = self.space.features(moved_CD)
            units_CD, x_CF = np.concatenate([units_CD, moved_CD]), np.concatenate([x_CF, moved_CF])
            score_C = np.concatenate([score_C, judge.scores(moved_CF)])
            new_C = np.concatenate([new_C, unknown(moved_CF, known)])
        if new_C.any():
            units_CD, x_CF, score_C = units_CD[new_C], x_CF[new_C], score_C[new_C]
        if score_C.max() <= 0:
            score_C = judge.hopes(x_CF)
        return units_CD[int(score_C.argmax())]

    def _with_pending(
        self, model: TrajectoryModel, front: Front, trial: Trial, steps_T: Sequence[int]
    ) -> tuple[TrajectoryModel, Front]:
        """Model and front as if a running trial went on along the mean of its trajectory."""
        rest_T = [step for step in steps_T if step > trial.last_step]
        if not rest_T:
            return model, front
        x_F = torch.tensor(self.models.features(trial))
        mean_OT = model.posterior(x_F[None], rest_T)[0][:, 0]
        return model.believing(x_F, rest_T, mean_OT), front.joined(model.points(mean_OT).numpy())

    def _candidates(self, rng: np.random.Generator, count: int, around: int) -> NDArray[np.float64]:
        """Sobol points, and neighbours of configurations on the front and of the next best; shape (C, D)."""
        spread_CD = sobol_units(count, self.space.dimension, int(rng.integers(2**31)))
        bases = [self.space.encode(trial.config) for trial in self._best_trials(8)]
        if not bases:
            return spread_CD
        each = max(1, around // (2 * len(bases)))
        near = [moves(unit_D, each, size, self.space, rng) for unit_D in bases for size in (0.2, 0.05)]
        return np.concatenate([spread_CD, *near])

    def _best_trials(self, least: int) -> list[Trial]:
        """Proposed trials with a point on the front, up to 16, then others by their best product of values."""
        points = self.history.points()
        if not points:
            return []
        values_NM = values_of(points)
        on_front = {points[n].trial for n in np.flatnonzero(front_mask(values_NM))}
        best: dict[int, float] = {}
        for point, product in zip(points, values_NM.prod(axis=1).tolist(), strict=True):
            best[point.trial] = max(product, best.get(point.trial, 0.0))
        trials = [trial for trial in self.history.searched() if trial.number in best]
        ranked = sorted(trials, key=lambda trial: (trial.number in on_front, best[trial.number]), reverse=True)
        front = sum(trial.number in on_front for trial in trials)
        return ranked[: min(max(least, front), 16)]


class Judge:
    """TEHVI of configurations, all on the same base samples.

    Args:
        model: of trajectories.
        front: P.
        steps_T: where trajectories are recorded.
        rng: for the base samples.
    """

    def __init__(self, model: TrajectoryModel, front: Front, steps_T: Sequence[int], rng: np.random.Generator):
        self.model, self.front, self.steps_T = model, front, steps_T
        outputs = len(model.processes_O)
        samples = SAMPLES if model.objectives == 2 else SAMPLES_MANY
        engine = qmc.MultivariateNormalQMC(np.zeros(outputs * len(steps_T)), rng=rng)
        self.base_OST = torch.tensor(engine.random(samples)).reshape(samples, outputs, -1).transpose(0, 1)

    def scores(self, x_CF: NDArray[np.float64]) -> NDArray[np.float64]:
        """TEHVI at features, shape (C,), 0 or more."""
        return torch.cat([self._tehvi(chunk_CF) for chunk_CF in torch.split(torch.tensor(x_CF), CHUNK)]).numpy()

    def _tehvi(self, x_CF: Tensor) -> Tensor:
        mean_OCT, covariance_OCTT = self.model.posterior(x_CF, self.steps_T)
        return tehvi(self.model, self.front, mean_OCT, covariance_OCTT, self.base_OST)

    def hopes(self, x_CF: NDArray[np.float64]) -> NDArray[np.float64]:
        """What mean + 3 standard deviations would add; where nothing adds, the summed variance. Shape (C,)."""
        mean_OCT, covariance_OCTT = self.model.posterior(torch.tensor(x_CF), self.steps_T)
        variance_OCT = covariance_OCTT.diagonal(dim1=-2, dim2=-1).clamp_min(0.0)
        gain_C = self.front.improvement(self.model.points(mean_OCT + 3.0 * variance_OCT.sqrt()))
        return (gain_C if float(gain_C.max()) > 0 else variance_OCT.sum(dim=(0, 2))).numpy()


def tehvi(model: TrajectoryModel, front: Front, mean_OCT: Tensor, covariance_OCTT: Tensor, base_OST: Tensor) -> Tensor:
    """Mean improvement over S joint samples of each of C trajectories.

    Args:
        model: says which outputs are objectives and which are slacks.
        front: P.
        mean_OCT: of the outputs.
        covariance_OCTT: over the steps.
        base_OST: S standard normal samples.

    Returns:
        Shape (C,), 0 or more.

    Raises:
        ModelError: a covariance that no jitter makes positive definite.
    """
    variance_OC = covariance_OCTT.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
    samples = []
    for mean_CT, covariance_CTT, variance_C, base_ST in zip(
        mean_OCT, covariance_OCTT, variance_OC, base_OST, strict=True
    ):
        scale = float(variance_C.max())
        if scale <= 0:
            samples.append(mean_CT[:, None, :].expand(-1, len(base_ST), -1))
            continue
        # Near data the covariance is a difference of nearly equal numbers; 1e-6 of the greatest variance is above its
        # rounding and below anything that matters.
        eye_TT = torch.eye(mean_CT.shape[1], dtype=torch.float64)
        factor_CTT = cholesky(covariance_CTT + 1e-6 * scale * eye_TT, scale, "trajectories")
        samples.append(mean_CT[:, None, :] + base_ST @ factor_CTT.transpose(1, 2))
    return front.improvement(model.points(torch.stack(samples))).mean(dim=-1)


def unknown(x_CF: NDArray[np.float64], known: set[bytes]) -> NDArray[np.bool_]:
    """Which features are none of those known, byte for byte; shape (C,)."""
    return np.array([x_F.tobytes() not in known for x_F in x_CF])


def moves(
    unit_D: NDArray[np.float64], count: int, size: float, space: Space, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Neighbours in the unit cube: some coordinates moved by a normal step, and some choices drawn anew.

    Args:
        unit_D: from where.
        count: how many.
        size: standard deviation of a step.
        space: says which coordinates are choices.
        rng: source of the draws.

    Returns:
        Shape (count, D). Each coordinate moves with a chance of 2 / D, or 1 of D <= 2; at least one does.
    """
    dimension = len(unit_D)
    moved_CD = rng.random((count, dimension)) < min(1.0, 2.0 / dimension)
    moved_CD[np.arange(count), rng.integers(dimension, size=count)] = True
    stepped_CD = unit_D + size * rng.standard_normal((count, dimension))
    stepped_CD = np.clip(stepped_CD, 0.0, 1.0)
    choice_D = np.array([domain.kind == "choice" for domain in space.varying])
    stepped_CD = np.where(choice_D, rng.random((count, dimension)), stepped_CD)
    return np.where(moved_CD, stepped_CD, unit_D)
