"""How much each hyper-parameter matters for each objective: functional ANOVA (Hutter et al., ICML 2014) by Optuna.

What a trial counts for. The greatest value of an objective along a trajectory says little: every run starts with full
utility. So a trial counts with the values of one step, its own best compromise, the step with the greatest product of
values, which depends on no other trial; and, in a further column `hypervolume`, with the volume of its whole trajectory
alone. A trial without a feasible step that diverged, ran out of memory or kept no constraint gives a front nothing and
counts 0 in all columns. Running trials, re-runs, edits, and trials that failed, hung or were cut off without a scored
step are left out.

Conditional parameters. Optuna's evaluator takes only parameters that all trials have. A parameter that a configuration
does not use has no effect there, so any value of it gives the same result: each trial enters `COPIES` times, with other
random values for what it does not use. That makes the objective a function on the whole cube that `Space.decode` reads,
and the share of a conditional parameter counts what it does where it is active, weighed by how much of the cube that
is. Shares are of single parameters; what only joint changes explain belongs to none of them.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tune.history import History, Trial, values_of
from tune.objectives import hypervolume
from tune.space import Space
from tune.told import BLAMED

FEWEST = 10
"""Trials below which nothing is said."""
COPIES = 8
"""Of each trial, in a space with conditions."""
HYPERVOLUME = "hypervolume"


@dataclass(frozen=True)
class Importance:
    """Shares of the hyper-parameters.

    Attributes:
        shares: objective, then `hypervolume`, to label of the parameter (`Domain.label`) to its share in [0, 1],
            greatest first; each objective's shares sum to 1. An objective that does not vary is absent.
        trials: how many counted.
        reason: why something is absent, for a reader; empty if nothing is.
    """

    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    trials: int = 0
    reason: str = ""


def importance(history: History, space: Space, objectives: tuple[str, ...], seed: int = 0) -> Importance:
    """Importance of each varying domain for each objective; see the top of this file.

    Args:
        history: of a search over `space`.
        space: what varied.
        objectives: M names, in the order of a point's values.
        seed: of the forest and of the values of unused parameters.
    """
    counted = [(trial, row) for trial in history.searched() if (row := _counts_for(trial, len(objectives))) is not None]
    if len(counted) < FEWEST:
        return Importance(trials=len(counted), reason=f"{len(counted)} trials count so far; {FEWEST} are needed")
    trials = [trial for trial, _ in counted]
    targets_NJ = np.array([row for _, row in counted])
    copies = COPIES if any(domain.when for domain in space.varying) else 1
    units_RD = np.vstack([_filled(trial, space, copies, seed) for trial in trials])
    shares, still = {}, []
    for name, target_N in zip((*objectives, HYPERVOLUME), targets_NJ.T, strict=True):
        found = _shares(space, units_RD, np.repeat(target_N, copies), seed) if np.ptp(target_N) > 0 else {}
        if found:
            shares[name] = found
        else:
            still.append(name)
    reason = f"no parameter moved {', '.join(still)}" if still else ""
    return Importance(shares, len(trials), reason)


def _counts_for(trial: Trial, objectives: int) -> list[float] | None:
    """Values at the best compromise and hypervolume of the trajectory; None for a trial that is left out."""
    if trial.status == "running":
        return None
    if trial.candidates:
        best = max(trial.candidates, key=lambda point: float(np.prod(point.values)))
        return [*best.values, hypervolume(values_of(trial.candidates))]
    if trial.status in BLAMED or any(point.scored for point in trial.points):
        return [0.0] * (objectives + 1)
    return None


def _filled(trial: Trial, space: Space, copies: int, seed: int) -> NDArray[np.float64]:
    """Coordinates of a trial, random where it does not use one; shape (copies, D)."""
    units_CD = np.tile(space.encode(trial.config), (copies, 1))
    unused_D = np.array([not domain.active(trial.config) for domain in space.varying])
    random_CD = np.random.default_rng([seed, trial.number]).random(units_CD.shape)
    return np.where(unused_D, random_CD, units_CD)


def _shares(space: Space, units_RD: NDArray[np.float64], target_R: NDArray[np.float64], seed: int) -> dict[str, float]:
    """Optuna's main effects, divided by their sum; empty if there are none."""
    distributions: dict[str, BaseDistribution] = {
        domain.label: CategoricalDistribution(range(len(domain.values)))
        if domain.kind == "choice"
        else FloatDistribution(0.0, 1.0)
        for domain in space.varying
    }
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
    finally:
        optuna.logging.set_verbosity(before)
    for unit_D, target in zip(units_RD, target_R, strict=True):
        params = {
            domain.label: domain.values.index(domain.at(unit)) if domain.kind == "choice" else float(unit)
            for domain, unit in zip(space.varying, unit_D, strict=True)
        }
        study.add_trial(optuna.trial.create_trial(value=float(target), params=params, distributions=distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.FanovaImportanceEvaluator(seed=seed).evaluate(study)
    total = sum(found.values())
    return {label: share / total for label, share in found.items()} if total > 0 else {}
