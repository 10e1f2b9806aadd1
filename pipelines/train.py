"""The Ray Train stage: run the training loop on a cluster, survive killed workers, leave a run's folder.

    OUTPUT/run.json        config, fingerprint, status: running, finished or diverged
    OUTPUT/metrics.jsonl   a line for each step
    OUTPUT/models/         exported Hugging Face folders, one a point of the frontier, each with its marker
    OUTPUT/checkpoints/    what a restart needs (Ray Train's storage); removed when the run has finished

OUTPUT must be reachable under the same path from every node. The only importer of `ray.train`.
"""

import json
import os
import shutil
import tempfile
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
from ray.train.v2._internal.execution.controller.controller import TrainController
from rich.console import Console

from pipelines.progress import follow_steps
from pipelines.ray_session import start_ray
from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.loop import METRICS, Outcome, model_folder, run
from unlearn_core.preflight import preflight
from unlearn_core.publish import write_json

RUN = "run.json"
OUTCOME = "outcome.json"
CHECKPOINTS = "checkpoints"
ABORT_SECONDS = 60.0
"""How long an aborted run's controller may take to free its workers."""


def train(
    config: RunConfig,
    output: Path,
    console: Console | None = None,
    hold: Callable[["AbortableTrainer"], None] | None = None,
) -> Outcome:
    """Run `config` on the connected cluster, or on a local one started for it.

    The same call on the same output continues where it stopped; a finished run is not run again.

    Args:
        config: the run.
        output: its folder.
        console: where progress is drawn; none for silence.
        hold: given the trainer before it starts, by a caller that may have to abort it (`Training`).

    Returns:
        How it ended. Diverging is an outcome, not an error.

    Raises:
        UserError: a mistake in the config, another run's folder as output, a cluster too small.
        MissingPackageError: the workers lack a package that the config asks for.
    """
    output = Path(output).resolve()
    earlier = _earlier_run(config, output)
    if earlier is not None:
        return earlier
    preflight(config)
    start_ray()
    _check_resources(config)
    output.mkdir(parents=True, exist_ok=True)
    for leftover in (output / "models").glob(".*.part"):  # exports that a kill cut off, a whole model's size each
        shutil.rmtree(leftover)
    write_json(output / RUN, _record(config, "running"))
    finished = threading.Event()
    follower = threading.Thread(
        target=follow_steps, args=(output / METRICS, config.total_steps, config.name, console, finished), daemon=True
    )
    follower.start()
    try:
        trainer = _trainer(config, output)
        if hold is not None:
            hold(trainer)
        trainer.fit()
    except ray.train.WorkerGroupError as error:  # type: ignore[attr-defined]
        for cause in error.worker_failures.values():
            if isinstance(cause, (UserError, MissingPackageError)):
                raise cause from error
        raise
    finally:
        finished.set()
        follower.join()
    outcome = Outcome(**json.loads((output / OUTCOME).read_text(encoding="utf-8")))
    write_json(output / RUN, _record(config, outcome.status) | _ending(config, output, outcome))
    if outcome.status == "finished":
        shutil.rmtree(output / CHECKPOINTS)  # 12 bytes a parameter that nobody needs any more
    return outcome


def _worker(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker does."""
    # Ray Train moves workers to a folder of their own; relative paths are meant from where the run was started.
    with suppress(OSError):  # a node that lacks the folder still reads absolute paths
        os.chdir(arguments["started_in"])
    config = build_config(RunConfig, arguments["config"])
    context = RayContext(Path(arguments["output"]))
    outcome = run(config, context)
    if context.rank == 0:
        write_json(context.output / OUTCOME, outcome.__dict__)


class RayContext:
    """`unlearn_core.loop.Context` inside a Ray Train worker.

    Args:
        output: the run's folder.
    """

    def __init__(self, output: Path):
        context = ray.train.get_context()
        self.output, self.rank, self.world_size = output, context.get_world_rank(), context.get_world_size()

    @contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The last checkpoint that Ray Train committed, as a local folder."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def checkpoint(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Each rank writes aside; Ray merges the ranks' files and commits when all have reported."""
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


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
    resources = {"CPU": workers.cpus_per_worker} | ({"GPU": 1} if workers.gpu else {})
    return AbortableTrainer(
        _worker,
        train_loop_config={"config": config.model_dump(mode="json"), "output": str(output), "started_in": os.getcwd()},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=str(output),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_restarts),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )


def _check_resources(config: RunConfig) -> None:
    """A request that the cluster can never meet would wait for ever."""
    workers = config.workers
    have = ray.cluster_resources()
    need = {"CPU": workers.count * workers.cpus_per_worker, "GPU": float(workers.count if workers.gpu else 0)}
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0):
            raise UserError(
                f"The run asks for {amount:g} {kind}s ({workers.count} workers), the Ray cluster has "
                f"{have.get(kind, 0.0):g}. Lower workers.count"
                + (", workers.cpus_per_worker" if kind == "CPU" else " or set workers.gpu=false")
                + ", or connect to a larger cluster (RAY_ADDRESS)."
            )


def _earlier_run(config: RunConfig, output: Path) -> Outcome | None:
    """The outcome of this very run if the folder holds it whole; `UserError` if it holds another run."""
    path = output / RUN
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("fingerprint") != config.fingerprint():
        raise UserError(
            f"{output} holds the run '{record.get('run')}' of another config (fingerprint {record.get('fingerprint')}, "
            f"now {config.fingerprint()}). Choose another --output, or delete that folder."
        )
    if record["status"] == "running":
        workers = record["config"]["workers"]["count"]
        if workers != config.workers.count and any((output / CHECKPOINTS).rglob("state.json")):
            raise UserError(
                f"{output} holds checkpoints of {workers} workers, this run has {config.workers.count}. Resume with "
                f"workers.count={workers}, or choose another --output."
            )
        return None
    return Outcome(record["status"], record["step"], record["reason"])


def _record(config: RunConfig, status: str) -> dict[str, Any]:
    return {
        "run": config.name,
        "method": config.method.name,
        "status": status,
        "steps": config.total_steps,
        "fingerprint": config.fingerprint(),
        "config": config.model_dump(mode="json"),
    }


def _ending(config: RunConfig, output: Path, outcome: Outcome) -> dict[str, Any]:
    exported = [step for step in range(1, outcome.step + 1) if config.exports_at(step)]
    whole = [step for step in exported if (model_folder(output, step) / "complete.json").is_file()]
    last = str(model_folder(output, whole[-1]).relative_to(output)) if whole else None
    return {"step": outcome.step, "reason": outcome.reason, "last_model": last}
