"""Random and Sobol search: configurations that do not depend on what was seen.

Trial n is a function of (seed, n) alone, so a restarted search proposes the same ones.
"""

import warnings
from typing import Literal

import numpy as np
from scipy.stats import qmc

from tune.history import History
from tune.searcher import TrajectorySearcher
from tune.space import Config, Space


def uniform_units(count: int, dimension: int, seed: int, first: int = 0) -> np.ndarray:
    """Independent uniform points of the unit cube, shape (count, dimension); row n is that of trial first + n."""
    return np.array([np.random.default_rng([seed, first + n]).random(dimension) for n in range(count)])


def sobol_units(count: int, dimension: int, seed: int, first: int = 0) -> np.ndarray:
    """Scrambled Sobol points, shape (count, dimension); row n is point first + n of the sequence of this seed."""
    engine = qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(seed))
    if first:  # scipy 1.17 cannot go forward by nothing
        engine.fast_forward(first)
    with warnings.catch_warnings():
        # It would have powers of two; a sequence cut anywhere is still more even than random.
        warnings.simplefilter("ignore", UserWarning)
        return engine.random(count)


class RandomSearcher(TrajectorySearcher):
    """Independent draws, or a Sobol sequence.

    Args:
        space: what varies.
        history: unused, but for the base.
        seed: of the draws.
        total_steps: of a whole trial.
        kind: `random` or `sobol`.
    """

    def __init__(
        self, space: Space, history: History, seed: int, total_steps: int, kind: Literal["random", "sobol"] = "random"
    ):
        super().__init__(space, history, seed, total_steps)
        self._units = uniform_units if kind == "random" else sobol_units

    def propose(self, number: int) -> Config:
        """The number-th configuration of the sequence."""
        return self.space.decode(self._units(1, self.space.dimension, self.seed, number)[0])
