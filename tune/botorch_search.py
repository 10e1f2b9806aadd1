"""Noisy expected hypervolume improvement on one value per trial: the Bayesian optimisation that knows no trajectories.

    1. an initial Sobol design of max(5, D + 1) told trials, D coordinates of the unit cube
    2. a Gaussian process for each objective and constraint over `Space.features`
    3. qLogNoisyExpectedHypervolumeImprovement (Daulton et al., NeurIPS 2021, arXiv 2105.08195; logarithm: Ament et al.,
       NeurIPS 2023, arXiv 2310.20708), running trials pending, reference point the origin
    4. its best point among a Sobol set and perturbed copies of the front's configurations, the first few refined by
       L-BFGS over the ranges, their choices and conditions held

A trial is told one step (`tune.told`). A proposal is a function of (history, number, seed) on one machine with one
number of threads; the last digits of linear algebra differ between machines.
"""

import logging
import warnings
from collections.abc import Callable

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.exceptions.errors import BotorchError
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.mlls import SumMarginalLogLikelihood
from gpytorch.utils.warnings import GPInputWarning, NumericalWarning
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray
from scipy.optimize import minimize

from tune.history import History
from tune.random_search import sobol_units
from tune.searcher import TrajectorySearcher
from tune.space import Config, Space
from tune.told import How, Told, told_trials
from unlearn_core.frontier import non_dominated

LOG = logging.getLogger(__name__)
SOBOL = 384
"""Sobol candidates of each proposal."""
PERTURBED = 128
"""Perturbed copies of the front's configurations among the candidates."""
STARTS = 4
"""Candidates that are refined."""
REFINEMENTS = 10
"""Iterations of L-BFGS-B on them."""
SAMPLES = 64
"""Draws of the posterior under the acquisition function."""
FIT_FAILURES = (BotorchError, NotPSDError, NanError, torch.linalg.LinAlgError)  # pyright: ignore[reportPrivateImportUsage]
"""What a fit or an acquisition that broke down numerically raises; anything else is a bug and is let through."""


class NoisyHypervolumeSearcher(TrajectorySearcher):
    """Noisy expected hypervolume improvement; see the top of this file.

    Where the models cannot be fitted, the proposal is the Sobol sequence's own for that trial, and a warning says so.

    Args:
        space: what varies.
        history: what has been seen.
        seed: of the draws.
        total_steps: of a whole trial; unused.
        told: which step a trial is told.
        initial: told trials before anything is modelled; None for max(5, D + 1).
    """

    def __init__(
        self,
        space: Space,
        history: History,
        seed: int,
        total_steps: int,
        told: How = "best",
        initial: int | None = None,
    ):
        super().__init__(space, history, seed, total_steps)
        self.told: How = told
        self.initial = max(5, space.dimension + 1) if initial is None else initial

    def propose(self, number: int) -> Config:
        """The configuration of the greatest expected gain that was not run yet."""
        told = told_trials(self.history, self.told)
        if len(told) < self.initial:
            return self._sobol(number)
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                # Jitter on a covariance and a line search that ends early are these models' everyday.
                for category in (NumericalWarning, BotorchWarning, GPInputWarning):
                    warnings.simplefilter("ignore", category)
                torch.manual_seed(seed)
                acquisition = self._acquisition(told, seed)
                return self._best(acquisition, told, seed)
        except FIT_FAILURES as error:
            LOG.warning("trial %d: no model of %d trials (%s); its Sobol point instead", number, len(told), error)
            return self._sobol(number)

    def _sobol(self, number: int) -> Config:
        return self.space.decode(sobol_units(1, self.space.dimension, self.seed, number)[0])

    def _acquisition(self, told: list[Told], seed: int) -> qLogNoisyExpectedHypervolumeImprovement:
        x_NF = self._features([self.space.encode(one.trial.config) for one in told])
        values_NM = np.array([one.values for one in told])
        slacks_NK = np.array([one.slacks for one in told]).reshape(len(told), -1)
        # So that the constraints' smooth step is as wide for each of them, whatever its unit.
        slacks_NK = slacks_NK / np.maximum(np.abs(slacks_NK).max(axis=0, initial=0.0), 1e-12)
        model = _fitted(x_NF, np.hstack([values_NM, slacks_NK]))
        objectives = values_NM.shape[1]
        pending = [self.space.encode(trial.config) for trial in self.history.running if trial.origin == "search"]
        return qLogNoisyExpectedHypervolumeImprovement(
            model=model,
            ref_point=[0.0] * objectives,
            X_baseline=x_NF,
            sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed),
            objective=IdentityMCMultiOutputObjective(outcomes=list(range(objectives))),
            constraints=[_broken(objectives + k) for k in range(slacks_NK.shape[1])] or None,
            X_pending=self._features(pending) if pending else None,
            prune_baseline=True,
        )

    def _features(self, units: list[NDArray[np.float64]]) -> torch.Tensor:
        return torch.from_numpy(self.space.features(np.array(units)))

    def _best(self, acquisition: qLogNoisyExpectedHypervolumeImprovement, told: list[Told], seed: int) -> Config:
        sobol_ND = sobol_units(SOBOL, self.space.dimension, seed)
        units_ND = np.vstack([sobol_ND, self._perturbed(told, np.random.default_rng(seed))])
        x_NF = torch.from_numpy(self.space.features(units_ND))
        with torch.no_grad():
            worth_N = _numbers(acquisition(x_NF[:, None, :]))
        order_N = torch.argsort(worth_N, descending=True, stable=True)
        first = [int(n) for n in order_N[:STARTS]]
        refined_SD = self._refined(acquisition, units_ND[first], x_NF[first])
        with torch.no_grad():
            refined_S = _numbers(acquisition(torch.from_numpy(self.space.features(refined_SD))[:, None, :]))
        everything_ND = np.vstack([refined_SD, units_ND])
        known = [trial.config for trial in self.history.searched()]
        for n in torch.argsort(torch.cat([refined_S, worth_N]), descending=True, stable=True):
            config = self.space.decode(everything_ND[int(n)])
            if config not in known:
                return config
        return self.space.decode(everything_ND[0])  # a small space of which all candidates were run

    def _perturbed(self, told: list[Told], draws: np.random.Generator) -> NDArray[np.float64]:
        """Copies of the front's configurations: in each, some coordinates moved by 0.1 and now and then one redrawn."""
        values_NM = np.array([one.values for one in told])
        front = np.flatnonzero(non_dominated(values_NM, (True,) * values_NM.shape[1]))
        units_ND = np.array([self.space.encode(told[n].trial.config) for n in front])
        parents_PD = units_ND[draws.integers(len(units_ND), size=PERTURBED)]
        moved_PD = draws.random(parents_PD.shape) < max(0.5, 1 / self.space.dimension)
        shifted_PD = np.clip(parents_PD + moved_PD * draws.normal(0.0, 0.1, parents_PD.shape), 0.0, 1.0)
        return np.where(draws.random(parents_PD.shape) < 0.1, draws.random(parents_PD.shape), shifted_PD)

    def _refined(
        self, acquisition: qLogNoisyExpectedHypervolumeImprovement, units_SD: NDArray[np.float64], x_SF: torch.Tensor
    ) -> NDArray[np.float64]:
        """Starts after one L-BFGS-B over the columns of their active ranges, of the sum over starts; shape (S, D)."""
        columns = _columns(self.space)
        free_SF = torch.zeros_like(x_SF, dtype=torch.bool)
        for row, unit_D in enumerate(units_SD):
            config = self.space.decode(unit_D)
            for column, domain in zip(columns, self.space.varying, strict=True):
                if column is not None and domain.active(config):
                    free_SF[row, column] = True
        if not free_SF.any():
            return units_SD

        def loss(free_P: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            moved_P = torch.from_numpy(free_P).requires_grad_()
            total = -acquisition(x_SF.masked_scatter(free_SF, moved_P)[:, None, :]).sum()
            (gradient_P,) = torch.autograd.grad(total, moved_P)
            return float(total.detach()), gradient_P.numpy()

        start_P = x_SF[free_SF].numpy()
        options = {"maxiter": REFINEMENTS}
        found = minimize(
            loss, start_P, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * len(start_P), options=options
        )
        found_SF = x_SF.masked_scatter(free_SF, torch.from_numpy(found.x)).numpy()
        refined_SD = units_SD.copy()
        for d, column in enumerate(columns):
            if column is not None:
                moved_S = free_SF[:, column].numpy()
                refined_SD[moved_S, d] = found_SF[moved_S, column]
        return refined_SD


def _columns(space: Space) -> list[int | None]:
    """For each coordinate its column among the features; None for a choice, which has one for each option."""
    columns, column = [], 0
    for domain in space.varying:
        columns.append(None if domain.kind == "choice" else column)
        column += len(domain.values) if domain.kind == "choice" else 1
    return columns


def _fitted(x_NF: torch.Tensor, y_NO: NDArray[np.float64]) -> ModelListGP:
    """A process for each column with inferred noise, inputs in [0, 1], outputs standardised; BoTorch's own priors."""
    models = [SingleTaskGP(x_NF, torch.from_numpy(y_N)[:, None]) for y_N in y_NO.T]
    model = ModelListGP(*models)
    # SciPy's own tolerance of 2e-9 takes three to five times the iterations for 0.001 of log likelihood.
    options = {"options": {"ftol": 1e-6}}
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs=options)
    return model


def _broken(column: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """BoTorch's constraint, below 0 when kept, from a slack."""
    return lambda outputs: -outputs[..., column]


def _numbers(worth_N: torch.Tensor) -> torch.Tensor:
    """With NaN as the worst: a sort would put it first."""
    return torch.where(worth_N.isnan(), -torch.inf, worth_N)
