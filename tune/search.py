"""Run a search on Ray Tune: hand out trials within a budget, record what they report, stop the hopeless ones.

The archive is the only state. A search that is started again on the same folder takes up the trials that had no end,
each from its own checkpoint, then goes on proposing; nothing is evaluated twice and nothing is lost.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import ray
import ray.tune
from ray.tune.schedulers import FIFOScheduler

from tune.archive import Archive, point_of
from tune.history import History, Origin, Point, Status, Trial
from tune.kept_models import KeptModels
from tune.searcher import TrajectorySearcher
from tune.space import Config
from tune.trainable import Job, TrialRunner, TrialTrainable

if TYPE_CHECKING:
    from tune.stopping import StopRule

RAY_FOLDER = "ray_tune"
"""Ray Tune's own notes below the search's folder; never read again."""
FORCE_SECONDS = 60
"""A trial whose process does not end within so many seconds after it was stopped is killed."""


@dataclass(frozen=True)
class Budget:
    """When a search ends; at least one is given.

    Attributes:
        trials: configurations that the searcher proposes; None for no bound.
        steps: optimizer steps of all their trials; None for no bound.
        hours: wall-clock hours over all calls; None for no bound. Running trials are ended at the bound.
    """

    trials: int | None = None
    steps: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Resources:
    """What a trial asks of the cluster.

    Attributes:
        bundle: of the trial's own process, such as {"CPU": 1}.
        at_once: trials that run at the same time.
    """

    bundle: dict[str, float]
    at_once: int


class Watcher(Protocol):
    """Whoever draws the search while it runs; called in the driver after each change, quickly."""

    def changed(self) -> None:
        """The history has a new trial, point or end."""
        ...


class Search:
    """One search.

    Args:
        archive: of the search's folder, opened.
        searcher: proposes; its history is the archive's.
        rules: asked after each point, in this order.
        budget: when to stop proposing.
        job_runner: what runs a trial.
        keep: K of `KeptModels`.
        seed: of training, for trials the searcher proposes.
        result_seconds: a trial that reports nothing for so long is ended as hung.
        watcher: told of changes; None for none.
    """

    def __init__(
        self,
        archive: Archive,
        searcher: TrajectorySearcher,
        rules: "Sequence[StopRule]",
        budget: Budget,
        job_runner: TrialRunner,
        keep: int = 10,
        seed: int = 0,
        result_seconds: float = 3600.0,
        watcher: Watcher | None = None,
    ):
        assert searcher.history is archive.history, "the searcher must see the archive's own history"
        self.archive, self.searcher, self.rules, self.budget = archive, searcher, tuple(rules), budget
        self.models = KeptModels(archive, keep)
        self.seed, self.watcher = seed, watcher
        self.job = Job(job_runner, archive.folder.resolve(), archive.goal, result_seconds)
        self.waiting = list(archive.history.running)
        self.proposing = True
        self.deadline = None if budget.hours is None else time.time() + 3600 * budget.hours - archive.seconds_used()
        searcher.admit = self._admit
        archive.session()

    @property
    def history(self) -> History:
        """The archive's."""
        return self.archive.history

    def give(self, config: Config, origin: Origin, parent: Point | None = None, seed: int | None = None) -> None:
        """Add a trial that no searcher proposed, unless the archive has that very one."""
        seed = self.seed if seed is None else seed
        key = (origin, parent and parent.trial, parent and parent.step, seed, config)
        if any((t.origin, t.parent, t.parent_step, t.seed, t.config) == key for t in self.history):
            return
        self.waiting.append(self.archive.start(config, seed, origin, parent and parent.trial, parent and parent.step))

    def run(self, resources: Resources, propose: bool = True) -> None:
        """Run the trials that wait, then proposals until the budget is used up. Ray is connected.

        Args:
            resources: of each trial.
            propose: whether the searcher may add trials.

        Raises:
            KeyboardInterrupt: the user stopped it; trials that ran have no end yet and are taken up by the next call.
        """
        self.proposing = propose
        if not self.waiting and (not propose or self._used_up()):
            return
        self._tidy()
        storage = self.archive.folder / RAY_FOLDER
        shutil.rmtree(storage, ignore_errors=True)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(TrialTrainable, job=self.job),
                ray.tune.PlacementGroupFactory([resources.bundle]),
            ),
            tune_config=ray.tune.TuneConfig(
                num_samples=-1,
                search_alg=self.searcher,
                scheduler=_Rules(self),
                max_concurrent_trials=resources.at_once,
                reuse_actors=False,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray.tune.RunConfig(
                name="trials",
                storage_path=str(storage.resolve()),
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=0),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_Endings(self)],
            ),
        )
        with _ray_tune_settings():
            tuner.fit()
        if self.history.running:
            # Ray Tune catches the signal, ends its actors and returns as if all were done.
            raise KeyboardInterrupt
        self._tidy()
        self.archive.write_table()
        shutil.rmtree(storage, ignore_errors=True)

    def _tidy(self) -> None:
        """Drop weights and checkpoints that nobody needs; kills leave some behind."""
        self.models.sweep()
        for trial in self.history:
            if trial.status != "running":
                shutil.rmtree(self.archive.trial_folder(trial.number) / "checkpoints", ignore_errors=True)

    def _admit(self) -> Trial | Literal["wait", "finished"]:
        """The next trial to run."""
        if self.waiting:
            return self.waiting.pop(0)
        if not self.proposing or self._used_up():
            return "finished"
        if self._committed():
            return "wait"
        number = self.history.next_number
        begin = time.perf_counter()
        config = self.searcher.propose(number)
        seconds = time.perf_counter() - begin
        trial = self.archive.start(config, self.seed, note={"propose_seconds": round(seconds, 4)})
        self._changed()
        return trial

    def _used_up(self) -> bool:
        budget, history = self.budget, self.history
        return (
            (budget.trials is not None and len(history.searched()) >= budget.trials)
            or (budget.steps is not None and history.steps_spent >= budget.steps)
            or (self.deadline is not None and time.time() >= self.deadline)
        )

    def _committed(self) -> bool:
        """Whether running trials will use up the steps that are left, if nothing stops them."""
        if self.budget.steps is None:
            return False
        running = [trial for trial in self.history.running if trial.origin == "search"]
        ahead = sum(max(0, self.searcher.total_steps - trial.last_step) for trial in running)
        return bool(running) and self.history.steps_spent + ahead >= self.budget.steps

    def received(self, result: dict[str, Any]) -> str | None:
        """Take in a scored step; the reason to stop its trial, or None."""
        point = point_of(json.loads(result["point"]))
        trial = self.history.trials[point.trial]
        self.history.record(point)
        reason = self._reason(trial) if trial.origin == "search" else None
        if reason is not None:
            status: Status = "budget" if reason.startswith("budget") else "pruned"
            self.archive.end(trial.number, status, reason)
        self.models.sweep()
        self._changed()
        return reason

    def _reason(self, trial: Trial) -> str | None:
        if self.budget.steps is not None and self.history.steps_spent >= self.budget.steps:
            return f"budget of {self.budget.steps} steps used up"
        if self.deadline is not None and time.time() >= self.deadline:
            return f"budget of {self.budget.hours:g} hours used up"
        return next((reason for rule in self.rules if (reason := rule.reason(self.history, trial))), None)

    def ended(self, number: int, status: Status, reason: str, steps: int | None = None) -> None:
        """Take in a trial's end; of two the first counts."""
        self.archive.end(number, status, reason, steps)
        shutil.rmtree(self.archive.trial_folder(number) / "checkpoints", ignore_errors=True)
        self.models.sweep()
        self.archive.write_table()
        self._changed()

    def _changed(self) -> None:
        if self.watcher is not None:
            self.watcher.changed()


class _Rules(FIFOScheduler):
    """Ray Tune asks this first about each result, so the history is filled here."""

    def __init__(self, search: Search):
        super().__init__()
        self.search = search

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles it for a restore of its own, which is never used."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record the step; STOP if a rule says so."""
        del tune_controller, trial
        return self.CONTINUE if self.search.received(result) is None else self.STOP


class _Endings(ray.tune.Callback):
    """Records how trials end: by themselves, by a rule, or with their process."""

    def __init__(self, search: Search):
        self.search = search

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the rules."""
        return {}

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """The last result of a trial that ended by itself says how."""
        if result.get("status"):
            self.search.ended(result["number"], result["status"], result["reason"], result["steps"])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial that a rule stopped has its end already; its files may go now."""
        self.search.ended(trial.config["number"], "failed", "ended without a word")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """The trial's process died."""
        # As Ray Tune wrote it down for this trial: the error's own text is in its last lines.
        path = trial.error_file
        lines = Path(path).read_text(encoding="utf-8").strip().splitlines() if path and Path(path).is_file() else []
        text = next((line.strip() for line in lines if "Error" in line and not line.startswith(" ")), "no word from it")
        # Ray's memory monitor says so. The kernel's kills without a word, like any SIGKILL.
        memory = any("OutOfMemoryError" in line for line in lines)
        killed = " (the system's out-of-memory killer kills so, too)" if "ActorDiedError" in text and not memory else ""
        named = f"its process died{killed}: {text[:300]}"
        self.search.ended(trial.config["number"], "out_of_memory" if memory else "failed", named)


class _ray_tune_settings:
    """For a while: no result files, no snapshots worth waiting for, hung processes killed after `FORCE_SECONDS`."""

    ours: ClassVar = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_FORCE_TRIAL_CLEANUP_S": str(FORCE_SECONDS),
        "TUNE_GLOBAL_CHECKPOINT_S": "600",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }

    def __enter__(self) -> None:
        # What it would print of failed trials and missing result files is in the archive.
        self.logger = logging.getLogger("ray.tune")
        self.level = self.logger.level
        self.logger.setLevel(logging.CRITICAL)
        self.before = {name: os.environ.get(name) for name in self.ours}
        os.environ.update(self.ours)

    def __exit__(self, *error: Any) -> None:
        self.logger.setLevel(self.level)
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
