"""Importance of each hyper-parameter for each objective: functional ANOVA (Hutter et al., ICML 2014), by Optuna.

A forest is fitted to the trials' values over the unit cube of the space; a parameter's share is the part of the
forest's variance that it explains by itself, normalised over all parameters. What a trial is worth:

    each objective    its value at the trial's step of best hypervolume contribution
    hypervolume       the hypervolume of the trial's own trajectory

A parameter that a trial does not use stands at the middle of its range, as an option of its own for a choice, so a
parameter of one method among several has a share of that method's weight only.
"""

from collections.abc import Sequence

import numpy as np

from tune.history import History, Trial, best_contribution, values_of
from tune.objectives import Goal, hypervolume
from tune.space import Space
from unlearn_core.errors import MissingPackageError

LEAST_TRIALS = 10
UNUSED = "not used"


def importance(
    histories: Sequence[History], space: Space, goal: Goal, seed: int = 0
) -> tuple[dict[str, dict[str, float]], str]:
    """Shares of all parameters.

    Args:
        histories: of searches over this space; their trials are taken together.
        space: what varied.
        goal: names the objectives.
        seed: of the forest.

    Returns:
        Objective, and `hypervolume`, to the label of a varying domain to its share in [0, 1]; shares sum to 1. An
        objective that all trials share the value of is left out. Beside it, why there is nothing, or "".

    Raises:
        MissingPackageError: Optuna or scikit-learn is not installed.
    """
    judged = [
        (trial, values)
        for history in histories
        for trial in history.searched()
        if trial.candidates and (values := _worth(history, trial)) is not None
    ]
    if len(judged) < LEAST_TRIALS:
        return {}, f"{len(judged)} trials have a scored step, and fewer than {LEAST_TRIALS} say little"
    if space.dimension < 2:
        return {}, "one hyper-parameter varies, so its share is all"
    names = [*(objective.name for objective in goal.objectives), "hypervolume"]
    parameters = [_parameters(space, trial) for trial, _ in judged]
    shares = {}
    for n, name in enumerate(names):
        worth_N = np.array([values[n] for _, values in judged])
        if np.ptp(worth_N) > 0:
            shares[name] = _fanova(space, parameters, worth_N, seed)
    return shares, "" if shares else "all trials are worth the same"


def _worth(history: History, trial: Trial) -> tuple[float, ...] | None:
    others = history.points(leave_out=trial.number)
    point = best_contribution(trial, values_of(others) if others else np.zeros((0, 0)))
    return None if point is None else (*point.values, hypervolume(values_of(trial.candidates)))


def _parameters(space: Space, trial: Trial) -> dict[str, float | str]:
    coordinates = dict(zip((d.label for d in space.varying), space.encode(trial.config).tolist(), strict=True))
    chosen = {
        domain.label: str(trial.config[domain.key]) if domain.active(trial.config) else UNUSED
        for domain in space.varying
        if domain.kind == "choice"
    }
    return coordinates | chosen


def _fanova(space: Space, parameters: list[dict], worth_N: np.ndarray, seed: int) -> dict[str, float]:
    try:
        import optuna
        from optuna.importance import FanovaImportanceEvaluator
    except ImportError as error:
        raise MissingPackageError(
            "Importance needs Optuna and scikit-learn: pip install optuna scikit-learn"
        ) from error
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        domain.label: optuna.distributions.CategoricalDistribution((*map(str, domain.values), UNUSED))
        if domain.kind == "choice"
        else optuna.distributions.FloatDistribution(0.0, 1.0)
        for domain in space.varying
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=None, sampler=optuna.samplers.RandomSampler(seed))
    study.add_trials(
        [
            optuna.trial.create_trial(params=params, distributions=distributions, value=float(worth))
            for params, worth in zip(parameters, worth_N, strict=True)
        ]
    )
    found = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return {label: float(found.get(label, 0.0)) for label in distributions}
