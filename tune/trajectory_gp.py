"""An exact Gaussian process over (configuration, step), for trajectories whose pace depends on the configuration.

    f(x, t) ~ GP(0, k),    y = f + noise,    in standardised units

    k((x,t), (x',t')) = s M( sqrt( sum_i (x_i - x'_i)^2 / l_i^2 + (u - u')^2 / l_u^2 ) )
    u(x, t)           = tau + w.x          tau = log t, scaled to [0, 1] over the search's steps
    M(r)              = (1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r)            Matern 5/2

- x are the features of a configuration (`Space.features`), with a length scale each (ARD).
- `w` sets the pace. A step of gradient descent moves by rate times gradient, so twice the rate is there in half the
  steps: f depends on log(rate) + log(t). A range over log(rate) is a feature that is linear in log(rate), so w can
  learn this; the same for any other feature that scales the time, without naming one. w = 0 is the usual kernel.

Hyper-parameters are at the maximum of their posterior density, by L-BFGS from a fixed start, so they are a function of
the data alone. Priors:

    l_i ~ LogNormal(log(F) / 2 - 1, 0.5)   scaled with the number of features (Hvarfner, Hellsten and Nardi,
                                           arXiv 2402.02229, and BoTorch >= 0.12), but shorter and tighter than theirs
    w_i ~ Cauchy(0, 0.1)                   most features have no pace, a few have much of it
    l_u ~ LogNormal(log 0.5, 0.5), at least 0.15
    s ~ LogNormal(0, 0.4)    noise variance ~ LogNormal(-6, 1.5)

Form and priors were chosen by the log density of whole trajectories of new configurations after 12 to 40 random ones,
on toys, on the closed forms of benchmarks/search_problems.py and on the recorded table there, all with random
configurations that no benchmark's seed has. Longer or looser length scales, a shared trajectory as an additive term, a
product of kernels, and BoTorch's priors were surer of themselves than they were right after 12 to 25 configurations:
they explained trajectories by pace alone. No pace at all had about twice the error after 25 on the closed forms.

If a Cholesky factorisation fails, the diagonal grows by 1e-8, 1e-6, 1e-4 and 1e-2 in turn; if L-BFGS breaks down, the
best point it had visited is taken, else its start. Both are logged as warnings, and both are functions of the data.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOG = logging.getLogger(__name__)
JITTERS = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)
FIT_ITERATIONS = 60
"""Of L-BFGS; each is a Cholesky factorisation, so about 5 ms at 250 points."""
PACE_SCALE = 0.1
LEAST_TIME_LENGTH = 0.15
SQRT5 = math.sqrt(5.0)


class ModelError(RuntimeError):
    """A Gaussian process could not be conditioned, whatever the jitter."""


@dataclass(frozen=True)
class Hyperparameters:
    """What a fit finds, unconstrained, as one vector: log l (F), w (F), log l_u, log s, log noise.

    Attributes:
        theta_P: shape (2F + 3,), fp64.
        features: F.
    """

    theta_P: Tensor
    features: int

    @property
    def lengths_F(self) -> Tensor:
        """Length scales of the features."""
        return self.theta_P[: self.features].exp()

    @property
    def pace_F(self) -> Tensor:
        """w: by how much of the (scaled log) time each feature moves a trajectory forward."""
        return self.theta_P[self.features : 2 * self.features]

    @property
    def time_length(self) -> Tensor:
        """l_u."""
        return self.theta_P[-3].exp()

    @property
    def scale(self) -> Tensor:
        """s: variance of f."""
        return self.theta_P[-2].exp()

    @property
    def noise(self) -> Tensor:
        """Variance of the noise; the standardised outputs have variance 1."""
        return self.theta_P[-1].exp()


def priors(features: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the normal priors of `Hyperparameters.theta_P`, each of shape (2F + 3,).

    Those of w are for the bounds alone; w has its own prior.
    """
    mean_P = [0.5 * math.log(features) - 1.0] * features + [0.0] * features + [math.log(0.5), 0.0, -6.0]
    sd_P = [0.5] * features + [1.0] * features + [0.5, 0.4, 1.5]
    return torch.tensor(mean_P, dtype=torch.float64), torch.tensor(sd_P, dtype=torch.float64)


def negative_log_prior(theta_P: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """Without the constant, shape (), and its gradient, shape (P,); normal but for w, which is Cauchy."""
    mean_P, sd_P = priors(features)
    scaled_P = (theta_P - mean_P) / sd_P
    gradient_P = scaled_P / sd_P
    pace, pace_F = slice(features, 2 * features), theta_P[features : 2 * features] / PACE_SCALE
    gradient_P[pace] = 2.0 * pace_F / PACE_SCALE / (1.0 + pace_F**2)
    scaled_P[pace] = 0.0
    return 0.5 * (scaled_P**2).sum() + torch.log1p(pace_F**2).sum(), gradient_P


def start(features: int) -> Hyperparameters:
    """Where every fit starts, and what is used without one: length scales sqrt(F) / 2, no pace, noise 1e-3."""
    theta_P, _ = priors(features)
    theta_P[:features] = math.log(0.5 * math.sqrt(features))
    theta_P[-1] = math.log(1e-3)
    return Hyperparameters(theta_P, features)


def matern(squared: Tensor) -> Tensor:
    """M of the squared distance, any shape."""
    r = squared.sqrt().mul_(SQRT5)
    return (1.0 + r + r * r / 3.0).mul_(r.neg_().exp_())


def matern_slope(squared: Tensor) -> Tensor:
    """Derivative of M by the squared distance, any shape."""
    r = SQRT5 * squared.sqrt()
    return (-5.0 / 6.0) * (1.0 + r) * torch.exp(-r)


def _squared_distance(a_NF: Tensor, b_KF: Tensor) -> Tensor:
    cross_NK = a_NF @ b_KF.T
    squared_NK = (a_NF * a_NF).sum(1)[:, None] + (b_KF * b_KF).sum(1)[None, :] - 2.0 * cross_NK
    return squared_NK.clamp_min(0.0)


def kernel(hyper: Hyperparameters, x_NF: Tensor, tau_N: Tensor, x_KF: Tensor, tau_K: Tensor) -> Tensor:
    """The covariance between N and K inputs, shape (N, K)."""
    apart_NK = _squared_distance(x_NF / hyper.lengths_F, x_KF / hyper.lengths_F)
    u_N, u_K = (tau_N + x_NF @ hyper.pace_F), (tau_K + x_KF @ hyper.pace_F)
    return hyper.scale * matern(apart_NK + ((u_N[:, None] - u_K[None, :]) / hyper.time_length) ** 2)


def kernel_grid(hyper: Hyperparameters, x_NF: Tensor, tau_N: Tensor, x_CF: Tensor, tau_T: Tensor) -> Tensor:
    """The same between N inputs and C configurations at T steps each, shape (N, C, T)."""
    apart_NC = _squared_distance(x_NF / hyper.lengths_F, x_CF / hyper.lengths_F)
    shift_NC = ((tau_N + x_NF @ hyper.pace_F)[:, None] - (x_CF @ hyper.pace_F)[None, :]) / hyper.time_length
    later_NCT = shift_NC[:, :, None] - tau_T / hyper.time_length
    return matern(later_NCT.square_().add_(apart_NC[:, :, None])).mul_(hyper.scale)


def cholesky(matrix_NN: Tensor, scale: float, what: str) -> Tensor:
    """Lower factor of a covariance matrix, or of a batch of them, with as little jitter as will do.

    Args:
        matrix_NN: symmetric, shape (..., N, N).
        scale: its typical variance; jitter is relative to it.
        what: for the log.

    Raises:
        ModelError: not positive definite even with a jitter of 1e-2.
    """
    eye_NN = torch.eye(matrix_NN.shape[-1], dtype=matrix_NN.dtype)
    for jitter in JITTERS:
        factor_NN, failed = torch.linalg.cholesky_ex(matrix_NN + jitter * scale * eye_NN if jitter else matrix_NN)
        if not failed.any() and bool(torch.isfinite(factor_NN).all()):
            if jitter >= 1e-4:
                LOG.warning("%s: not positive definite; factorised with a jitter of %g", what, jitter)
            return factor_NN
    raise ModelError(f"{what}: not positive definite, even with a jitter of {JITTERS[-1]:g}")


def negative_log_posterior(
    theta_P: NDArray[np.float64], x_NF: Tensor, tau_N: Tensor, z_N: Tensor
) -> tuple[float, NDArray[np.float64]]:
    """-(log likelihood + log prior) / N and its gradient of shape (P,), at `Hyperparameters.theta_P`.

    The gradient with respect to the kernel matrix is G = (K^-1 - a a^T) / 2 with a = K^-1 z (Rasmussen and Williams
    2006, equation 5.9). What follows from it is written out, which is four times as fast as autograd.

    Args:
        theta_P: where.
        x_NF: features.
        tau_N: scaled log steps.
        z_N: standardised outputs.

    Raises:
        ModelError: the kernel matrix is not positive definite.
    """
    count, features = x_NF.shape
    theta = torch.from_numpy(np.array(theta_P))
    hyper = Hyperparameters(theta, features)
    u_N = tau_N + x_NF @ hyper.pace_F
    scaled_NF = x_NF / hyper.lengths_F
    later_NN = ((u_N[:, None] - u_N[None, :]) / hyper.time_length) ** 2
    squared_NN = _squared_distance(scaled_NF, scaled_NF) + later_NN
    signal_NN = hyper.scale * matern(squared_NN)
    factor_NN = cholesky(signal_NN + hyper.noise * torch.eye(count, dtype=torch.float64), 1.0, "fit")
    inverse_NN = torch.cholesky_inverse(factor_NN)
    alpha_N = inverse_NN @ z_N
    loss = 0.5 * z_N @ alpha_N + factor_NN.diagonal().log().sum() + 0.5 * count * math.log(2.0 * math.pi)
    g_NN = 0.5 * (inverse_NN - alpha_N[:, None] * alpha_N[None, :])

    by_squared_NN = hyper.scale * g_NN * matern_slope(squared_NN)
    # The sum of A_ij (x_i - x_j)^2 of a symmetric A is twice that of x_i (A_i. x_i - A x).
    lengths_F = -4.0 * (scaled_NF * _centred(by_squared_NN, scaled_NF)).sum(0)
    by_u_N = 4.0 / hyper.time_length**2 * _centred(by_squared_NN, u_N[:, None])[:, 0]
    time_length = -2.0 * (by_squared_NN * later_NN).sum()
    rest_3 = torch.stack([time_length, (g_NN * signal_NN).sum(), hyper.noise * g_NN.diagonal().sum()])
    prior, by_prior_P = negative_log_prior(theta, features)
    gradient_P = torch.cat([lengths_F, x_NF.T @ by_u_N, rest_3]) + by_prior_P
    return float(loss + prior) / count, (gradient_P / count).numpy()


def _centred(weights_NN: Tensor, x_NF: Tensor) -> Tensor:
    """The sum over j of A_ij (x_i - x_j), shape (N, F)."""
    return weights_NN.sum(1)[:, None] * x_NF - weights_NN @ x_NF


def fit(x_NF: Tensor, tau_N: Tensor, z_N: Tensor) -> Hyperparameters:
    """Hyper-parameters at the maximum of their posterior density; a function of the data alone.

    Args:
        x_NF: features of N points.
        tau_N: their scaled log steps.
        z_N: standardised outputs.
    """
    from scipy.optimize import minimize

    features = x_NF.shape[1]
    mean_P, sd_P = priors(features)
    first = start(features)
    best: tuple[float, NDArray[np.float64]] = (math.inf, first.theta_P.numpy())

    def objective(theta_P: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        value, gradient_P = negative_log_posterior(theta_P, x_NF, tau_N, z_N)
        if value < best[0] and np.isfinite(gradient_P).all():
            best = (value, theta_P.copy())
        return value, gradient_P

    # Four standard deviations of the prior, where exp() and K stay harmless.
    bounds = list(zip((mean_P - 4 * sd_P).tolist(), (mean_P + 4 * sd_P).tolist(), strict=True))
    bounds[-1] = (math.log(1e-6), math.log(1.0))
    bounds[-3] = (math.log(LEAST_TIME_LENGTH), bounds[-3][1])
    try:
        options = {"maxiter": FIT_ITERATIONS, "ftol": 1e-6, "gtol": 1e-4}
        minimize(objective, first.theta_P.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    except ModelError as error:
        LOG.warning(
            "fit of %d points broke down (%s); going on with %s", len(z_N), error,
            "the best hyper-parameters before that" if math.isfinite(best[0]) else "those it started from",
        )  # fmt: skip
    return Hyperparameters(torch.tensor(best[1], dtype=torch.float64), features)


class TrajectoryProcess:
    """A Gaussian process with its data: one output, in that output's own unit.

    Args:
        hyper: of the kernel.
        x_NF: features of N points, N at least 1.
        tau_N: their scaled log steps.
        y_N: outputs.
        centre: subtracted from the outputs.
        spread: the outputs are then divided by this.

    Raises:
        ModelError: the kernel matrix cannot be factorised.
    """

    def __init__(self, hyper: Hyperparameters, x_NF: Tensor, tau_N: Tensor, y_N: Tensor, centre: float, spread: float):
        self.hyper, self.x_NF, self.tau_N = hyper, x_NF, tau_N
        self.centre, self.spread = centre, spread
        self.scale = float(hyper.scale)
        eye_NN = torch.eye(len(y_N), dtype=torch.float64)
        matrix_NN = kernel(hyper, x_NF, tau_N, x_NF, tau_N) + hyper.noise * eye_NN
        self.factor_NN = cholesky(matrix_NN, self.scale, f"{len(y_N)} points")
        whitened_N1 = torch.linalg.solve_triangular(self.factor_NN, (y_N - centre)[:, None] / spread, upper=False)
        self.whitened_N = whitened_N1[:, 0]

    def posterior(self, x_CF: Tensor, tau_T: Tensor) -> tuple[Tensor, Tensor]:
        """The noise-free trajectories of C configurations, each with its own joint distribution over T steps.

        Args:
            x_CF: features.
            tau_T: scaled log steps.

        Returns:
            Mean of shape (C, T) and covariance of shape (C, T, T), in the output's unit.
        """
        count, steps = len(x_CF), len(tau_T)
        cross_NCT = kernel_grid(self.hyper, self.x_NF, self.tau_N, x_CF, tau_T)
        solved_NK = torch.linalg.solve_triangular(self.factor_NN, cross_NCT.reshape(-1, count * steps), upper=False)
        mean_CT = (self.whitened_N @ solved_NK).reshape(count, steps)
        solved_CNT = solved_NK.reshape(-1, count, steps).transpose(0, 1)
        zero_1F = torch.zeros(1, x_CF.shape[1], dtype=torch.float64)
        prior_TT = kernel_grid(self.hyper, zero_1F.expand(steps, -1), tau_T, zero_1F, tau_T)[:, 0, :]
        covariance_CTT = prior_TT - solved_CNT.transpose(1, 2) @ solved_CNT
        return self.centre + self.spread * mean_CT, self.spread**2 * covariance_CTT
