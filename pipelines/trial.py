"""A trial of a search: train with the configuration it is given, score every export, report it, drop what is not kept.

    one worker      the loop runs in the trial's own process, between two reports it waits for the driver's decision
    several         a Ray Train run of its own; this process scores the exports as they appear

An interrupted trial goes on from its own checkpoint. An export that was not scored before the interruption is scored
first, so no step is lost; scored steps are never scored again.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.model_scoring import ModelScorer, ScoringPlan
from pipelines.trial_edits import interpolate_towards, slug_points
from tune.kept_models import drop
from tune.space import Config
from tune.trainable import Assignment, Ending, Report
from unlearn_core.config import RunConfig, build_config
from unlearn_core.local import LocalContext, single_process_group
from unlearn_core.loop import Outcome, model_folder
from unlearn_core.loop import run as run_loop
from unlearn_core.publish import MARKER

POLL_SECONDS = 0.2


def run_config(base: dict[str, Any], config: Config, seed: int, number: int) -> RunConfig:
    """The training run of a trial.

    Args:
        base: the recipe's values, nested.
        config: dotted keys that the search decided.
        seed: of training.
        number: of the trial.

    Raises:
        UserError: the two do not make a valid run.
    """
    values = {**base, "method": {"name": config.get("method.name", base.get("method", {}).get("name")), "settings": {}}}
    if "method.name" not in config or config["method.name"] == base.get("method", {}).get("name"):
        # The recipe's own settings hold for its own method alone.
        values["method"]["settings"] = dict(base.get("method", {}).get("settings", {}))
    overrides = dict(config) | {"seed": seed, "name": f"trial-{number:04d}"}
    return build_config(RunConfig, values, overrides, source=f"trial {number}")


@dataclass
class TrainedTrial:
    """`tune.trainable.TrialRunner` that trains and scores models.

    Attributes:
        base: the recipe's values, nested; every export is a step of the trajectory.
        plan: what is measured of each export.
        target: the model before unlearning, as in `base`.
        started_in: folder that relative paths are meant from.
        slug: options of SLUG for a warm start (`pipelines.trial_edits`).
    """

    base: dict[str, Any]
    plan: ScoringPlan
    target: str
    started_in: str
    slug: dict[str, Any] = field(default_factory=dict)
    _abort: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def run(self, assignment: Assignment, report: Report) -> Ending:
        """Train and score, or edit and score."""
        with suppress(OSError):  # a node that lacks the folder still reads absolute paths
            os.chdir(self.started_in)
        if assignment.config.get("method.name") == "slug":
            return slug_points(self.target, self.base, self.plan, self.slug, assignment, report)
        if assignment.origin == "densify":
            return interpolate_towards(self.target, self.plan, assignment, report)
        config = run_config(self.base, assignment.config, assignment.seed, assignment.number)
        scored = _Exports(config, self.plan, assignment, report)
        scored.catch_up()
        if scored.enough():
            return Ending("finished", "", assignment.parent_step)
        train = _train_here if config.workers.count == 1 else self._train_on_workers
        try:
            outcome = train(config, scored)
        except _EnoughError:
            return Ending("finished", "", assignment.parent_step)
        status = "diverged" if outcome.status == "diverged" else "finished"  # a trial is stopped by its search alone
        return Ending(status, outcome.reason, outcome.step)

    def stop(self) -> None:
        """End the workers of a trial that has any; the loop in this process ends at its next report."""
        if self._abort is not None:
            self._abort()

    def _train_on_workers(self, config: RunConfig, scored: "_Exports") -> Outcome:
        """A Ray Train run beside this process, which scores what it exports."""
        from pipelines.train import Training

        training = Training(config, scored.assignment.folder)
        self._abort = training.abort
        thread = threading.Thread(target=training.run, name="training", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                scored.catch_up()
                if scored.enough():
                    raise _EnoughError
                time.sleep(POLL_SECONDS)
            thread.join()
            scored.catch_up()
        finally:
            training.abort()
            thread.join()
        return training.outcome()


class _EnoughError(Exception):
    """A re-run has reached its step."""


class _Exports:
    """The exports of one trial: which are scored, which are next."""

    def __init__(self, config: RunConfig, plan: ScoringPlan, assignment: Assignment, report: Report):
        self.config, self.assignment, self._report = config, assignment, report
        self._plan, self._scorer = plan, None
        self.done = set(assignment.scored)
        self.only = assignment.parent_step if assignment.origin == "rerun" else None

    def enough(self) -> bool:
        """Whether nothing is left to report."""
        return self.only is not None and self.only in self.done

    def catch_up(self) -> None:
        """Score every whole export that is not scored yet, in order."""
        folder = self.assignment.folder / "models"
        for export in sorted(folder.glob(f"step-*/{MARKER}")):
            self.score(int(export.parent.name.removeprefix("step-")))

    def score(self, step: int) -> None:
        """Score one export, unless it is scored or not asked for, and report it."""
        path = model_folder(self.assignment.folder, step)
        if step in self.done:
            return
        if self.only is not None and step != self.only:
            drop(path)
            return
        self._scorer = self._scorer or ModelScorer(self._plan)
        metrics = self._scorer.score(path)
        self.done.add(step)
        self._report(step, metrics)


def _train_here(config: RunConfig, scored: _Exports) -> Outcome:
    """The training loop in this process, one rank."""
    with single_process_group():
        return run_loop(config, _TrialContext(scored))


class _TrialContext(LocalContext):
    """Scores and reports after each checkpoint; the loop exports before it saves one."""

    def __init__(self, scored: _Exports):
        super().__init__(scored.assignment.folder, retention=scored.config.checkpoints)
        self._scored = scored

    def checkpoint(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        super().checkpoint(metrics, write)
        if (model_folder(self.output, metrics["step"]) / MARKER).is_file():
            self._scored.score(metrics["step"])
        if self._scored.enough():
            raise _EnoughError
