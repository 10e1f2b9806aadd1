"""What all searchers share: Ray Tune asks, the archive remembers, `propose` thinks.

A searcher keeps nothing that the history does not hold, or rebuilds it from there, so a search that is started again
goes on as if it had not stopped. A proposal may depend on (history, number, seed) alone.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import ray.tune.search

from tune.history import History, Trial
from tune.space import Config, Space


class TrajectorySearcher(ray.tune.search.Searcher):
    """Base of all searchers.

    Args:
        space: what varies.
        history: what has been seen; the caller keeps it up to date, running trials included.
        seed: of the searcher's own draws.
        total_steps: optimizer steps of a trial that is not stopped.
    """

    def __init__(self, space: Space, history: History, seed: int, total_steps: int):
        super().__init__()
        self.space, self.history, self.seed, self.total_steps = space, history, seed, total_steps

    @abstractmethod
    def propose(self, number: int) -> Config:
        """The configuration of trial `number`, given the history as it is now."""

    # Ray Tune's side. What a trial reports reaches the history through the stop rules (tune/stopping.py), which Tune
    # asks first, so that nothing is left to do here but to hand out configurations.

    admit: Callable[[], Trial | Literal["wait", "finished"]] | None = None
    """Set by the search: the next trial to run, whether proposed, resumed or given; see tune/search.py."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Ray Tune's call for the next trial: what its `Assignment` is made of."""
        assert self.admit is not None, "the search has not been started"
        trial = self.admit()
        if trial == "wait":
            return None
        if trial == "finished":
            return ray.tune.search.Searcher.FINISHED
        return {
            "number": trial.number,
            "config": trial.config,
            "seed": trial.seed,
            "origin": trial.origin,
            "parent": trial.parent,
            "parent_step": trial.parent_step,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the archive has it."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the archive is the state, and Ray Tune's own restore is never used."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the archive is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the archive is the state."""
