"""A Ray Train worker: the training loop on its rank, signs that it should stop, the run's folder on its node."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray.train
from ray.train.v2._internal.execution.context import get_train_context

from pipelines.train_group import TERMINATED
from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import StorageError, UserError, storage_problem
from unlearn_core.local import LocalContext
from unlearn_core.loop import StopReason, run
from unlearn_core.memory_check import check_memory
from unlearn_core.publish import write_json, write_text
from unlearn_core.stall import StallWatch
from unlearn_core.storage import is_uri, pull, push
from unlearn_core.storage_sync import Syncing

OUTCOME = "outcome.json"
"""How the loop ended, from rank 0."""
STOP = "stop-requested"
"""File by which the driver asks the workers to end."""
STALLED = "stalled.txt"
"""Which rank held the others up."""


def _check_memory(config: RunConfig, context: "RayContext") -> None:
    check_memory(config, context.world_size, ray.train.get_context().get_local_world_size())


def work(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker does.

    Args:
        arguments: `config` (the run, as plain values), `output` (its folder, or the URI of one in an object store) and
            `started_in` (what relative paths are meant from).
    """
    os.umask(0o077)  # as the driver's
    # Ray Train moves workers to a folder of their own; relative paths are meant from where the run was started.
    with suppress(OSError):  # a node that lacks the folder still reads absolute paths
        os.chdir(arguments["started_in"])
    config = build_config(RunConfig, arguments["config"])
    place = arguments["output"]
    context = RayContext(pull(place, small_only=True) if is_uri(place) else Path(place), config)
    try:
        with _taken_to_the_store(context):
            _check_memory(config, context)
            outcome = run(config, context)
            if context.rank == 0:
                write_json(context.output / OUTCOME, outcome.__dict__)
                push(context.output)
    except Exception as error:
        problem = "" if isinstance(error, UserError) else storage_problem(error, context.output, full_only=True)
        if problem:
            raise StorageError(problem) from error
        raise


def _taken_to_the_store(context: "RayContext") -> AbstractContextManager[Any]:
    """On each node one rank brings the mirror to the store, and what the driver writes there here."""
    if ray.train.get_context().get_local_rank() != 0:
        return nullcontext()
    return Syncing(context.output, following=True)


class RayContext(LocalContext):
    """`unlearn_core.loop.Context` inside a Ray Train worker.

    Args:
        output: the run's folder.
        config: the run.
    """

    def __init__(self, output: Path, config: RunConfig):
        context = ray.train.get_context()
        super().__init__(output, context.get_world_rank(), context.get_world_size(), config.checkpoints)

    def stop_reason(self) -> StopReason:
        """The driver's wish, SIGTERM to this process, or Ray's word that this node is being drained."""
        if self.rank == 0 and (self.output / STOP).exists():
            return "stopped"
        if TERMINATED.is_set():
            return "preempted"
        # Not ray.train.get_preemption_info(): that waits for all ranks, and costs a call to an actor at each step.
        info = get_train_context().preemption_context.preemption_info
        return "preempted" if info is not None and self.rank in info.preempted_ranks else ""

    def stalled(self, seconds: float) -> AbstractContextManager[Callable[[], None]]:
        """A rank that holds the others up is named in OUTPUT/stalled.txt."""
        if not seconds:
            return super().stalled(seconds)
        return StallWatch(
            self.rank, self.world_size, seconds, lambda finding: write_text(self.output / STALLED, finding)
        )
