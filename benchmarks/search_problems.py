"""Problems for searchers in which the step is a decision variable: trajectories in closed form.

Each closed-form problem is a caricature of unlearning. From a configuration come a pace, a share phi of the forget set
that is forgotten by step t, and a damage D; s = t / total_steps:

    utility       exp(-D) or 1 / (1 + D): falls as damage is done, and where D heals it recovers
    forgetting    1 - |phi - phi*| / phi*, 0 at the least: two-sided closeness to a retrained model, which has forgotten
                  phi*; a run goes through under-forgotten, right and over-forgotten

The learning rate spans four or five decades, so that most configurations are too slow or too fast, and the best step of
a fast one comes early. No constant was chosen by how a searcher does: they were fixed before any model of the
objectives was tried, by two things alone: most configurations are best before their last step, and 40 random trials do
not solve a problem already. `python -m benchmarks.search_ideal` prints both, and the ideal hypervolumes.

    two_sided    2 dimensions. Damage heals; a high retain weight forgets too little, a low one overshoots.
    methods      a choice of three methods with keys of their own: one that is good anywhere and excellent nowhere, one
                 that needs three settings right, a slow one that lags.
    irrelevant   6 dimensions, 4 that matter and of those two pairs that must fit together; 2 do nothing.
    patience     3 dimensions. Utility dips first and heals, forgetting starts late, and the best configurations are
                 the slow ones, whose early steps look bad: to stop by them is wrong.

A fifth, recorded from real runs, is in benchmarks/search_recorded.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tune.space import Config, Space

TOTAL_STEPS, EVERY = 100, 5
Curve = Callable[[Mapping[str, Any], NDArray[np.float64]], NDArray[np.float64]]
"""Config and shares of the steps, shape (T,), to values (T, 2). Numbers of the config may be arrays (N, 1) for
(N, T, 2); choices may not."""


class Problem(Protocol):
    """What the driver of `benchmarks.search` plays."""

    @property
    def name(self) -> str:
        """On the command line and in tables."""
        ...

    @property
    def space(self) -> Space:
        """What varies."""
        ...

    @property
    def total_steps(self) -> int:
        """Optimizer steps of a whole trajectory."""
        ...

    @property
    def every(self) -> int:
        """Steps between points."""
        ...

    @property
    def ideal(self) -> float:
        """Hypervolume beyond the origin of every point that the problem has."""
        ...

    def settled(self, config: Config, run: Sequence[Config]) -> Config:
        """The configuration that a proposal is run as, given those that the search has run."""
        ...

    def trajectory(self, config: Config) -> NDArray[np.float64]:
        """Values (utility, forgetting) at each `every` steps, shape (T, 2), higher is better; NaN once it broke."""
        ...


def steps_of(problem: Problem) -> list[int]:
    """The steps at which a trajectory has points."""
    return list(range(problem.every, problem.total_steps + 1, problem.every))


@dataclass(frozen=True)
class ClosedForm:
    """A problem with an equation.

    Attributes:
        name: of the problem.
        space: what varies.
        curve: the equation.
        ideal: hypervolume of all points over the whole space at the steps that have one. Numerically: a dense grid over
            what matters, its front then moved by small steps until it grows no more (benchmarks/search_ideal.py). Grids
            of 50,000 and 500,000 configurations and fronts of 2,000 to 16,000 points agree to 6e-5; held is the largest
            of them plus up to 1.3e-4, so that no search covers more.
        irrelevant: keys that do nothing.
        total_steps: of a whole trajectory.
        every: steps between points.
    """

    name: str
    space: Space
    curve: Curve
    ideal: float
    irrelevant: tuple[str, ...] = ()
    total_steps: int = TOTAL_STEPS
    every: int = EVERY

    def settled(self, config: Config, run: Sequence[Config]) -> Config:
        """Itself."""
        return config

    def trajectory(self, config: Config) -> NDArray[np.float64]:
        """See `Problem`.

        Raises:
            UserError: the config is not of the space.
        """
        self.space.encode(config)
        return self.curve(config, self.shares)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Steps with a point as shares of the total, shape (T,)."""
        return np.array(steps_of(self)) / self.total_steps


def closeness(forgotten: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """1 where as much is forgotten as by the retrained model, 0 at none and at twice as much or more; any shape."""
    return np.maximum(1 - np.abs(forgotten - target) / target, 0.0)


def _pair(utility: Any, forgetting: Any) -> NDArray[np.float64]:
    return np.stack(np.broadcast_arrays(utility, forgetting), axis=-1)


def two_sided(config: Mapping[str, Any], share_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Forgetting feeds damage, retain training heals it: two compartments in a row, at rates f and h.

    z = 1e5 lr s,   f = 1 / (1 + w),   h = 0.6 w / (1 + w),   phi = (1 - e^(-f z)) / (1 + (w / 4)^2),   phi* = 0.5
    D = 3 f (e^(-f z) - e^(-h z)) / (h - f) + 0.2 sqrt(lr / 1e-4)
    """
    lr, weight = config["optimizer.learning_rate"], config["method.settings.retain_weight"]
    travelled = 1e5 * lr * share_T
    forget, heal = 1 / (1 + weight), 0.6 * weight / (1 + weight)
    # (e^-fz - e^-hz) / (h - f) = e^-fz z (1 - e^-x) / x with x = (h - f) z, which is z e^-fz at h = f.
    x = (heal - forget) * travelled
    small = np.abs(x) < 1e-8
    safe = np.where(small, 1.0, x)
    # Each term keeps a negative exponent, so that nothing overflows at 1e4 times the best rate.
    gap = np.where(small, np.exp(-forget * travelled), (np.exp(-forget * travelled) - np.exp(-heal * travelled)) / safe)
    damage = 3 * forget * travelled * gap + 0.2 * np.sqrt(lr / 1e-4)
    forgotten = (1 - np.exp(-forget * travelled)) / (1 + (weight / 4) ** 2)
    return _pair(np.exp(-damage), closeness(forgotten, 0.5))


def methods(config: Mapping[str, Any], share_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three methods, phi* = 0.6. The names say what kind of method; none is a claim about a real one.

    bisector    k = lr / 1e-5;   constant: z = k s, q = sqrt(k) / 4;   auto: z = 6 k / (1 + k) s, q = 0.3
                phi = 1 - e^-z,   D = 0.4 phi^2 + 0.05 z + q
    weighted    z = 4e5 lr s / (1 + w),   m = log10(beta) + 0.7
                phi = (1 - e^-z) / (1 + beta w / 2)
                D = 3 phi^2 / (1 + 0.6 w) + 0.03 z (1 + 5 m^2) + 0.4 m^2
    teacher     n = 100 delta s,   lag = 1 - (1 + n) e^-n,   phi = 1 - e^(-3 c lag lr / (lr + 0.003))
                D = 0.6 sqrt(c) phi + 0.3 max(log10(lr) + 2, 0)^2 + 0.15 log10(damping / 2)^2 lag + 2 delta c
    """
    lr = config["optimizer.learning_rate"]
    if config["method.name"] == "bisector":
        pace = lr / 1e-5
        if config["optimizer.schedule"] == "auto":
            travelled, rough = 6 * pace / (1 + pace) * share_T, 0.3
        else:
            travelled, rough = pace * share_T, np.sqrt(pace) / 4
        forgotten = 1 - np.exp(-travelled)
        damage = 0.4 * forgotten**2 + 0.05 * travelled + rough
    elif config["method.name"] == "weighted":
        beta, weight = config["method.settings.beta"], config["method.settings.retain_weight"]
        travelled = 4e5 * lr * share_T / (1 + weight)
        misfit = (np.log10(beta) + 0.7) ** 2
        forgotten = (1 - np.exp(-travelled)) / (1 + beta * weight / 2)
        damage = 3 * forgotten**2 / (1 + 0.6 * weight) + 0.03 * travelled * (1 + 5 * misfit) + 0.4 * misfit
    else:
        delta, weight = config["method.settings.teacher_rate"], config["method.settings.forget_weight"]
        moved = 100 * delta * share_T
        lag = 1 - (1 + moved) * np.exp(-moved)
        forgotten = 1 - np.exp(-3 * weight * lag * lr / (lr + 3e-3))
        hot = np.maximum(np.log10(lr) + 2, 0.0) ** 2
        unfit = np.log10(config["method.settings.damping"] / 2) ** 2
        damage = 0.6 * np.sqrt(weight) * forgotten + 0.3 * hot + 0.15 * unfit * lag + 2 * delta * weight
    return _pair(np.exp(-damage), closeness(forgotten, 0.6))


def irrelevant(config: Mapping[str, Any], share_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Beta must fit the retain weight w, delta the rate; weight decay and beta2 do nothing. phi* = 0.6.

    z = 6e4 lr s / (1 + w / 3),   phi = 1 - (1 + 8 beta z)^(-1 / (8 beta))
    c = 0.15 + 1.5 (log10(beta) + 1 + log10(w) / 2)^2 + (delta - 0.6 - 0.4 log10(lr / 1e-4))^2
    D = 3 c phi^1.5 / (1 + 0.3 w) + 0.05 c z + 0.08 sqrt(lr / 1e-5)
    """
    lr, weight = config["optimizer.learning_rate"], config["method.settings.retain_weight"]
    beta, delta = config["method.settings.beta"], config["method.settings.delta"]
    travelled = 6e4 * lr * share_T / (1 + weight / 3)
    forgotten = 1 - (1 + 8 * beta * travelled) ** (-1 / (8 * beta))
    misfits = 1.5 * (np.log10(beta) + 1 + np.log10(weight) / 2) ** 2 + (delta - 0.6 - 0.4 * np.log10(lr / 1e-4)) ** 2
    cost = 0.15 + misfits
    damage = 3 * cost * forgotten**1.5 / (1 + 0.3 * weight) + 0.05 * cost * travelled + 0.08 * np.sqrt(lr / 1e-5)
    return _pair(1 / (1 + damage), closeness(forgotten, 0.6))


def patience(config: Mapping[str, Any], share_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """A dip that heals by itself, forgetting that starts late, and damage that grows with the rate. phi* = 0.5.

    z = 2e5 lr s / (1 + w / 2),   phi = 1 - e^(-z^2)
    D = 1.5 e^(-s (2 + 4 w / (1 + w))) + 0.25 (lr / 1e-5)^0.4 + (temperature - 1.2)^2 + 0.8 phi / (1 + w)
    """
    lr, weight = config["optimizer.learning_rate"], config["method.settings.retain_weight"]
    travelled = 2e5 * lr * share_T / (1 + weight / 2)
    forgotten = 1 - np.exp(-(travelled**2))
    dip = 1.5 * np.exp(-share_T * (2 + 4 * weight / (1 + weight)))
    rough = 0.25 * (lr / 1e-5) ** 0.4 + (config["method.settings.temperature"] - 1.2) ** 2
    return _pair(np.exp(-(dip + rough + 0.8 * forgotten / (1 + weight))), closeness(forgotten, 0.5))


_RATE = {"log_uniform": [1e-6, 1e-1]}
_WEIGHT = {"log_uniform": [0.1, 10.0]}
_METHODS = {
    "method.name": {"choice": ["bisector", "weighted", "teacher"]},
    "optimizer.learning_rate": [
        {"log_uniform": [1e-6, 1e-2], "when": {"method.name": ["bisector", "weighted"]}},
        {"log_uniform": [1e-5, 1e-1], "when": {"method.name": ["teacher"]}},
    ],
    "optimizer.schedule": {"choice": ["constant", "auto"], "when": {"method.name": ["bisector"]}},
    "method.settings.beta": {"log_uniform": [0.01, 1.0], "when": {"method.name": ["weighted"]}},
    "method.settings.retain_weight": {"uniform": [0.5, 5.0], "when": {"method.name": ["weighted"]}},
    "method.settings.teacher_rate": {"log_uniform": [1e-3, 0.5], "when": {"method.name": ["teacher"]}},
    "method.settings.forget_weight": {"log_uniform": [1e-2, 1.0], "when": {"method.name": ["teacher"]}},
    "method.settings.damping": {"log_uniform": [0.1, 20.0], "when": {"method.name": ["teacher"]}},
}
_IRRELEVANT = {
    "optimizer.learning_rate": _RATE,
    "method.settings.retain_weight": _WEIGHT,
    "method.settings.beta": {"log_uniform": [0.01, 1.0]},
    "method.settings.delta": {"uniform": [0.0, 2.0]},
    "optimizer.weight_decay": {"log_uniform": [1e-4, 1e-1]},
    "optimizer.beta2": {"uniform": [0.9, 0.999]},
}
_TWO_SIDED = {"optimizer.learning_rate": _RATE, "method.settings.retain_weight": _WEIGHT}
_PATIENCE = _TWO_SIDED | {"method.settings.temperature": {"uniform": [0.5, 2.0]}}

CLOSED_FORMS: dict[str, ClosedForm] = {
    problem.name: problem
    for problem in (
        ClosedForm("two_sided", Space.from_data(_TWO_SIDED), two_sided, 0.7606),
        ClosedForm("methods", Space.from_data(_METHODS), methods, 0.9081),
        ClosedForm(
            "irrelevant",
            Space.from_data(_IRRELEVANT),
            irrelevant,
            0.8848,
            irrelevant=("optimizer.weight_decay", "optimizer.beta2"),
        ),
        ClosedForm("patience", Space.from_data(_PATIENCE), patience, 0.7704),
    )
}
