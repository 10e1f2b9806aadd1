"""The Ray Train stage: run the training loop on a cluster, survive what happens to it, leave a run's folder.

    OUTPUT/run.json        config, fingerprint, status: running, finished or diverged
    OUTPUT/metrics.jsonl   a line for each step
    OUTPUT/events.jsonl    a line for each restart, pre-emption, damaged checkpoint
    OUTPUT/logging.json    what `logging` has logged where, if anything
    OUTPUT/models/         exported Hugging Face folders, one a point of the frontier, each with its marker
    OUTPUT/checkpoints/    what a restart needs; removed when the run has finished, but for `checkpoints.best`

OUTPUT must be reachable under the same path from every node, or lie in an object store. Here, in `train_group.py` and
in `train_worker.py` alone is `ray.train` imported.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller.controller import TrainController
from rich.console import Console

from pipelines.claim import claimed
from pipelines.disk_need import check_disk
from pipelines.progress import follow_run
from pipelines.ray_session import start_ray
from pipelines.run_logging import check_logging, log_the_rest, logged
from pipelines.run_record import RUN, earlier_outcome, ending_of, record_of
from pipelines.train_group import GroupConfig, start_work
from pipelines.train_worker import OUTCOME, STALLED, STOP
from unlearn_core import storage
from unlearn_core.checkpoints import Checkpoints
from unlearn_core.config import RunConfig
from unlearn_core.errors import MissingPackageError, StoppedError, UserError
from unlearn_core.events import note_event
from unlearn_core.loop import CHECKPOINTS, Outcome
from unlearn_core.preflight import preflight
from unlearn_core.publish import write_json

RAY_FILES = ".ray"
"""Folder of Ray Train's own bookkeeping."""
ABORT_SECONDS = 60.0
"""How long an aborted run's controller may take to free its workers."""


def train(
    config: RunConfig,
    output: Path,
    console: Console | None = None,
    hold: Callable[["AbortableTrainer"], None] | None = None,
) -> Outcome:
    """Run `config` on the connected cluster, or on a local one started for it.

    The same call on the same output continues where it stopped, on any number of workers and at any ZeRO stage; a
    finished run is not run again. Workers that are lost are started again `workers.max_restarts` times, pre-empted ones
    as often as it takes.

    Args:
        config: the run.
        output: its folder.
        console: where progress is drawn; none for silence.
        hold: given each trainer before it starts, by a caller that may have to abort it (`Training`).

    Returns:
        How it ended: finished or diverged, which is an outcome, not an error.

    Raises:
        UserError: a mistake in the config, another run's folder as output, a cluster too small, a disk that is full.
        MissingPackageError: the workers lack a package that the config asks for.
        StoppedError: this process got SIGTERM; the workers left a checkpoint.
    """
    output = Path(output).resolve()
    earlier = earlier_outcome(config, output)
    if earlier is not None:
        log_the_rest(config, output, earlier.status)
        return earlier
    preflight(config)
    check_logging(config.logging)
    check_disk(config, output)
    start_ray()
    _check_resources(config)
    with claimed(output, f"unlearn train {config.name}"):
        for leftover in (output / "models").glob(".*.part"):  # exports that a kill cut off, a whole model's size each
            shutil.rmtree(leftover)
        write_json(output / RUN, record_of(config, "running"))
        drawn = follow_run(output, config.total_steps, config.name, console)
        with drawn, logged(config, output) as log, _stop_on_sigterm(output):
            outcome = _until_it_ends(config, output, hold)
            log.status = "running" if outcome.status == "stopped" else outcome.status
        if outcome.status == "stopped":
            raise StoppedError(f"{config.name}: {outcome.reason}. The same command goes on from there.")
        write_json(output / RUN, record_of(config, outcome.status) | ending_of(config, output, outcome))
        if outcome.status == "finished":
            Checkpoints(output / CHECKPOINTS, retention=config.checkpoints).keep_only_best()
            shutil.rmtree(output / RAY_FILES, ignore_errors=True)
            with suppress(OSError):
                (output / CHECKPOINTS).rmdir()  # 12 bytes a parameter that nobody needs any more
    return outcome


def _until_it_ends(config: RunConfig, output: Path, hold: Callable[["AbortableTrainer"], None] | None) -> Outcome:
    """Start workers until one group of them comes to an end.

    Ray Train could start them again by itself, but it would do so after a mistake of the user's too, and it counts
    pre-emption as a failure.
    """
    failures = 0
    while True:
        for name in (OUTCOME, STALLED):
            (output / name).unlink(missing_ok=True)
        storage.push(output)  # workers on other nodes read it there
        trainer = _trainer(config, output)
        if hold is not None:
            hold(trainer)
        try:
            trainer.fit()
            storage.refresh(output, small_only=True)
        except ray.train.WorkerGroupError as error:  # type: ignore[attr-defined]
            for cause in error.worker_failures.values():
                if isinstance(cause, (UserError, MissingPackageError)):
                    raise cause from error
            failures += 1
            reason = _what_happened(error, output)
            if failures > config.workers.max_restarts:
                note_event(output, "workers_lost", f"{reason}; not started again: workers.max_restarts is reached")
                raise
            again = f"starting again from the last checkpoint ({failures} of {config.workers.max_restarts})"
            note_event(output, "workers_lost", f"{reason}; {again}")
            continue
        outcome = Outcome(**json.loads((output / OUTCOME).read_text(encoding="utf-8")))
        if outcome.status != "preempted":
            return outcome
        note_event(output, "preempted", f"workers are to be taken away: {outcome.reason}; starting again elsewhere")


def _what_happened(error: Any, output: Path) -> str:
    """Which workers failed and how, in a line."""
    storage.refresh(output / STALLED)
    with suppress(OSError):
        return (output / STALLED).read_text(encoding="utf-8")
    # Those that lost their peer in a collective say so; the one that went first has another error.
    failures = sorted(error.worker_failures.items(), key=lambda item: ("connection" in str(item[1]).lower(), item[0]))
    rank, first = failures[0] if failures else ("?", error)
    if isinstance(first, WorkerHealthCheckFailedError):
        return f"rank {rank} does not answer: its process or node is gone"
    if "connection" in str(first).lower():
        return f"rank {rank} lost another rank: that one's process or node is gone"
    said = str(first).strip().splitlines()
    return f"rank {rank} failed: {type(first).__name__}: {said[0] if said else ''}"


@contextmanager
def _stop_on_sigterm(output: Path) -> Iterator[None]:
    """SIGTERM to this process asks the workers for a checkpoint and their end. A second one ends it at once."""
    asked = output / STOP
    asked.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's; whoever started this one has its own way to end it
        return

    def ask(*_: Any) -> None:
        if asked.exists():
            raise KeyboardInterrupt
        asked.touch()

    previous = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        asked.unlink(missing_ok=True)


class AbortableTrainer(ray.train.torch.TorchTrainer):
    """A trainer whose run another thread can end, with its workers and their placement group.

    Ray's own `fit` keeps the controller to itself; a caller that dies or moves on leaves the workers' placement group
    behind (Ray 2.60). The overridden method is private: pyproject.toml holds ray to this minor version, and a test
    counts the cluster's free CPUs after an abort.
    """

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._controller: Any = None
        self._aborted, self._lock = False, threading.Lock()

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        here = ray.get_runtime_context().get_node_id()
        actor = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": here})(TrainController)
        with self._lock:
            if self._aborted:
                raise AbortedError("aborted before it started")
            self._controller = actor.options(runtime_env={"env_vars": get_env_vars_to_propagate()}).remote(**arguments)
        if threading.current_thread() is threading.main_thread():
            self._register_sigint_handler(self._controller)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    def abort(self) -> None:
        """End the run; returns when workers and placement group are gone. Does nothing after its end."""
        with self._lock:
            self._aborted = True
        if self._controller is None:
            return
        with suppress(RayActorError):  # it has ended by itself, or ends as it answers
            ray.get(self._controller.abort.remote(), timeout=ABORT_SECONDS)


class AbortedError(RuntimeError):
    """A training was ended from outside."""


class Training:
    """A run in a thread of its own that can be aborted.

    Args:
        config: the run.
        output: its folder.
    """

    def __init__(self, config: RunConfig, output: Path):
        self._config, self._output = config, output
        self._trainer: AbortableTrainer | None = None
        self._outcome: Outcome | None = None
        self._error: Exception | None = None
        self._aborted = False

    def run(self) -> None:
        """As `train`; how it ended is `outcome`'s to tell."""
        try:
            self._outcome = train(self._config, self._output, hold=self._hold)
        except Exception as error:  # told by `outcome`, in the thread that asks
            self._error = error

    def _hold(self, trainer: AbortableTrainer) -> None:
        self._trainer = trainer
        if self._aborted:
            raise AbortedError("aborted before it started")

    def abort(self) -> None:
        """End it, with all that it holds on the cluster; from any thread, at any time, more than once."""
        self._aborted = True
        if self._trainer is not None:
            self._trainer.abort()

    def outcome(self) -> Outcome:
        """How it ended, once `run` has returned; raises what `train` raised."""
        if self._error is not None:
            raise self._error
        assert self._outcome is not None, "the training has not ended"
        return self._outcome


def _trainer(config: RunConfig, output: Path) -> AbortableTrainer:
    workers = config.workers
    values = config.model_dump(mode="json")
    if storage.uri_of(config.model.path):
        values["model"]["path"] = storage.shared(config.model.path)
    resources = {"CPU": workers.cpus_per_worker} | ({"GPU": 1} if workers.gpu else {})
    # Longer than the stall watch takes to name the rank that the others wait for.
    timeout = int(1.5 * workers.stall_seconds) + 10 if workers.stall_seconds else 10**6
    return AbortableTrainer(
        start_work,
        train_loop_config={"config": values, "output": storage.shared(output), "started_in": os.getcwd()},
        torch_config=GroupConfig(backend="nccl" if workers.gpu else "gloo", timeout_s=timeout),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count if workers.minimum is None else (workers.minimum, workers.count),
            use_gpu=workers.gpu,
            resources_per_worker=resources,
        ),
        # Checkpoints are ours (unlearn_core/checkpoints.py): checked by hash, readable by any number of workers.
        run_config=ray.train.RunConfig(
            name=RAY_FILES, storage_path=str(output), failure_config=ray.train.FailureConfig(max_failures=0)
        ),
    )


def _check_resources(config: RunConfig) -> None:
    """A request that the cluster can never meet would wait for ever."""
    workers = config.workers
    have = ray.cluster_resources()
    count = workers.minimum or workers.count
    need = {"CPU": count * workers.cpus_per_worker, "GPU": float(count if workers.gpu else 0)}
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0):
            raise UserError(
                f"The run asks for {amount:g} {kind}s ({count} workers), the Ray cluster has "
                f"{have.get(kind, 0.0):g}. Lower workers.count"
                + (", workers.cpus_per_worker" if kind == "CPU" else " or set workers.gpu=false")
                + ", or connect to a larger cluster (RAY_ADDRESS)."
            )
