"""The Ray Tune side of one trial: run it in a thread, hand on each scored step, free everything when it is stopped.

    driver                         trial's process (one Ray actor a trial)
    searcher proposes       ->     setup: assignment
    stop rules decide       <-     step: the next scored step, on disk already
    ...                            run(...) waits in `report` until the driver has decided

A trial is any object with `run` and `stop`; what it does is its own affair (pipelines/trial.py trains a model). Nothing
here knows of models.
"""

import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray.tune

from tune.archive import TrialLog, point_record, trial_folder
from tune.history import Origin, Point, Status
from tune.objectives import Goal
from tune.space import Config
from unlearn_core.errors import DivergedError, UserError

JOIN_SECONDS = 20.0
"""How long a stopped trial's thread may take to unwind before its process is ended under it."""


class TrialStopped(Exception):
    """Raised out of `report` in a trial that is to end; a trial lets it pass."""


@dataclass(frozen=True)
class Assignment:
    """What a trial is given.

    Attributes:
        number: of the trial.
        config: dotted keys and values that the search decided.
        seed: of training.
        origin: why it is run.
        parent: number of the trial that it starts from, or None.
        parent_step: the step of it. A re-run goes no further and reports this step alone.
        folder: its own, kept between a kill and the restart.
        scored: steps that are recorded already; they are not reported again.
    """

    number: int
    config: Config
    seed: int
    origin: Origin
    parent: int | None
    parent_step: int | None
    folder: Path
    scored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ending:
    """How a trial ended by itself."""

    status: Status = "finished"
    reason: str = ""
    steps: int | None = None
    """Optimizer steps it took; None for that of its last report."""


Report = Callable[[int, dict[str, float]], None]
"""report(step, metrics): a scored step. Returns when the driver wants more, raises `TrialStopped` when not."""


class TrialRunner(Protocol):
    """What a search runs; it travels to the trial's process by pickle."""

    def run(self, assignment: Assignment, report: Report) -> Ending:
        """Run a trial, reporting each scored step in order; every objective's metric is in each report."""
        ...

    def stop(self) -> None:
        """Free what `run` holds outside its own process; called from another thread, also after `run` has ended."""
        ...


@dataclass(frozen=True)
class Job:
    """What all trials of a search share."""

    runner: TrialRunner
    folder: Path
    """The search's."""
    goal: Goal
    result_seconds: float
    """A trial that reports nothing for so long is ended as hung."""


class TrialTrainable(ray.tune.Trainable):
    """One trial in one actor; see the top of this file."""

    def setup(self, config: dict[str, Any], job: Job) -> None:
        """Ray Tune's: called in the trial's process."""
        self._job = job
        self._log = TrialLog(job.folder, config["number"])
        points = self._log.points()
        self._assignment = Assignment(
            number=config["number"],
            config=config["config"],
            seed=config["seed"],
            origin=config["origin"],
            parent=config["parent"],
            parent_step=config["parent_step"],
            folder=trial_folder(job.folder, config["number"]),
            scored=tuple(point.step for point in points),
        )
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._go, self._stopped = threading.Semaphore(0), threading.Event()
        self._clock = time.monotonic()
        self._thread: threading.Thread | None = None

    def step(self) -> dict[str, Any]:
        """Ray Tune's: the next scored step, or how the trial ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        try:
            return self._results.get(timeout=self._job.result_seconds)
        except queue.Empty:
            return self._ended(Ending("hung", f"no result for {self._job.result_seconds:g} s"))

    def cleanup(self) -> None:
        """Ray Tune's, once a trial is over, however: end the thread and free what the trial holds elsewhere."""
        self._stopped.set()
        self._go.release()
        self._job.runner.stop()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        try:
            ending = self._job.runner.run(self._assignment, self._report)
        except TrialStopped:
            return
        except DivergedError as error:
            ending = Ending("diverged", str(error))
        except Exception as error:  # whatever a trial does wrong is a row of the archive, named, never a lost trial
            ending = Ending(*_failure(error))
        self._results.put(self._ended(ending))

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        goal = self._job.goal
        absent = [column for column in goal.columns if column not in metrics]
        if absent:
            raise UserError(f"the evaluation gives no {', '.join(absent)}, which the search's goal reads")
        now = time.monotonic()
        values, slacks = goal.values(metrics), goal.slacks(metrics)
        point = Point(self._assignment.number, step, values, slacks, metrics, now - self._clock, time.time())
        self._log.add(point)
        bad = goal.missing(metrics)
        if bad:
            raise DivergedError(f"{', '.join(bad)} not finite at step {step}")
        self._results.put({"number": self._assignment.number, "point": json.dumps(point_record(point)), "done": False})
        self._go.acquire()
        if self._stopped.is_set():
            raise TrialStopped
        self._clock = time.monotonic()

    def _ended(self, ending: Ending) -> dict[str, Any]:
        number = self._assignment.number
        return {
            "number": number, "status": ending.status, "reason": ending.reason, "steps": ending.steps, "done": True
        }  # fmt: skip


def _failure(error: Exception) -> tuple[Status, str]:
    """Status and reason of an error: running out of memory is told apart."""
    text = f"{type(error).__name__}: {error}"
    short = text.splitlines()[0][:300]
    memory = ("out of memory", "not enough memory", "cannot allocate memory", "can't allocate memory")
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in memory):
        return "out_of_memory", short
    return "failed", short
