"""Optuna's multi-objective TPE and NSGA-II as searchers over the archive.

At each proposal the study is made anew, in memory, from the history: the trials that have ended are told
(`tune.told`), the running ones are known as running, and a sampler seeded from (seed, number) draws. So a proposal is a
function of (history, number, seed), a restarted search goes on as if it had not stopped, and a trial's told values are
those that are right now, not those that were right when it ended.

    TPE        each further step of a trial on the front joins as a trial of its own; running trials count as bad
               (constant liar), so that trials side by side do not repeat each other
    NSGA-II    generations are filled by trial number: a failed trial makes room, a running one does not count yet

What a trial without a usable step is told: see `told_trials`. Optuna is never told None or NaN, which would leave the
trial running for ever; a trial of which nothing is known is told as failed.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tune.history import History, Trial
from tune.searcher import TrajectorySearcher
from tune.space import Config, Domain, Space
from tune.told import How, Told, objectives_known, told_trials

STARTUP = 10
"""Told trials before TPE models anything, Optuna's own number; further steps of a trial do not count."""
POPULATION = 10
"""Of a generation of NSGA-II. Optuna's own 50 would make most searches here a random one; on closed-form trajectories
8, 12 and 20 were within each other's error at 60 trials."""
ATTEMPTS = 20
"""A configuration that was run already is drawn anew so many times: a second run of it would tell nothing."""


class OptunaSearcher(TrajectorySearcher):
    """TPE or NSGA-II of Optuna; see the top of this file.

    Only active domains are suggested. TPE models each group of parameters that occur together jointly (`multivariate`
    and `group`), which finds more in a space with conditions than Optuna's default, each parameter by itself. NSGA-II
    crosses and mutates what all trials have and draws a conditional parameter at random, as Optuna's does.

    Args:
        space: what varies.
        history: what has been seen.
        seed: of the draws.
        total_steps: of a whole trial; unused.
        sampler: `tpe` or `nsga2`.
        told: which step a trial is told.
        population: NSGA-II's.
    """

    def __init__(
        self,
        space: Space,
        history: History,
        seed: int,
        total_steps: int,
        sampler: Literal["tpe", "nsga2"] = "tpe",
        told: How = "best",
        population: int = POPULATION,
    ):
        super().__init__(space, history, seed, total_steps)
        self.sampler, self.population = sampler, population
        self.told: How = told

    def propose(self, number: int) -> Config:
        """What the sampler draws for trial `number`; a known configuration only if `ATTEMPTS` draws gave no new one."""
        known = [trial.config for trial in self.history.searched()]
        with _quiet():
            study = self._study()
            config: Config = {}
            for attempt in range(ATTEMPTS):
                study.sampler = self._sampler(study, number, attempt)
                asked = study.ask()
                config = self._suggest(asked)
                if config not in known:
                    break
                study.tell(asked, state=TrialState.FAIL)
        return config

    def _study(self) -> optuna.Study:
        """The history as a study."""
        # Before the first point nobody knows how many objectives there are, and every draw is random.
        directions = [optuna.study.StudyDirection.MAXIMIZE] * (objectives_known(self.history) or 2)
        study = optuna.create_study(directions=directions, sampler=self._sampler(None, 0, 0))
        told = {one.trial.number: one for one in told_trials(self.history, self.told)}
        for trial in sorted(self.history.searched(), key=lambda one: one.number):
            if self.sampler == "tpe":
                study.add_trials(self._frozen(trial, told.get(trial.number)))
            else:
                self._replay(study, trial, told.get(trial.number))
        return study

    def _sampler(self, study: optuna.Study | None, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, number, attempt]).generate_state(1)[0])
        if self.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if study else []
        further = sum("further" in trial.user_attrs for trial in complete)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
            return optuna.samplers.TPESampler(
                n_startup_trials=STARTUP + further, multivariate=True, group=True, constant_liar=True, seed=seed
            )

    def _frozen(self, trial: Trial, told: Told | None) -> list[optuna.trial.FrozenTrial]:
        """A trial and its further steps as TPE gets them."""
        params, distributions = self._params(trial)
        about: dict[str, Any] = {"params": params, "distributions": distributions}
        if told is None:
            state = TrialState.RUNNING if trial.status == "running" else TrialState.FAIL
            return [optuna.trial.create_trial(state=state, **about)]
        frozen = [optuna.trial.create_trial(values=told.values, constraints=_constraints(told.slacks), **about)]
        for point in told.further:
            about["user_attrs"] = {"further": point.step}
            constraints = _constraints(point.slacks)
            frozen.append(optuna.trial.create_trial(values=point.values, constraints=constraints, **about))
        return frozen

    def _replay(self, study: optuna.Study, trial: Trial, told: Told | None) -> None:
        """Ask and tell as it happened."""
        params, distributions = self._params(trial)
        study.enqueue_trial(params)
        asked = study.ask(fixed_distributions=distributions)
        # Optuna gives a trial its generation when it samples, so one with given parameters would never have any, and
        # no trial a parent.
        assert isinstance(study.sampler, optuna.samplers.NSGAIISampler)
        study.sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[-1])
        if told is not None:
            for name, value in _constraints(told.slacks).items():
                asked.set_constraint(name, value)
            study.tell(asked, told.values)
        elif trial.status != "running":
            study.tell(asked, state=TrialState.FAIL)

    def _params(self, trial: Trial) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        active = [domain for domain in self.space.varying if domain.active(trial.config)]
        params = {domain.label: _given(domain, trial.config[domain.key]) for domain in active}
        return params, {domain.label: _distribution(domain) for domain in active}

    def _suggest(self, asked: optuna.Trial) -> Config:
        config: Config = {}
        for domain in self.space.domains:
            if domain.active(config):
                config[domain.key] = _ask(asked, domain) if domain.varies else domain.values[0]
        return config


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.kind == "choice":
        # By index: Optuna's categories are primitives, ours may be lists.
        return CategoricalDistribution(range(len(domain.values)))
    low, high = domain.values
    if domain.kind == "int_uniform":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "log_uniform")


def _given(domain: Domain, value: Any) -> Any:
    """The value as Optuna holds it."""
    return domain.values.index(value) if domain.kind == "choice" else value


def _ask(asked: optuna.Trial, domain: Domain) -> Any:
    """The value as a config holds it."""
    if domain.kind == "choice":
        return domain.values[asked.suggest_categorical(domain.label, range(len(domain.values)))]
    low, high = domain.values
    if domain.kind == "int_uniform":
        return asked.suggest_int(domain.label, low, high)
    return asked.suggest_float(domain.label, low, high, log=domain.kind == "log_uniform")


def _constraints(slacks: tuple[float, ...]) -> dict[str, float]:
    """Optuna keeps a constraint at 0 or less, we at 0 or more."""
    return {str(k): -slack for k, slack in enumerate(slacks)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines about each study and trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
