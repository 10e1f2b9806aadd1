"""A group of Ray Train workers: torch.distributed's, whose workers note SIGTERM.

Ray's controller, a process beside the workers, imports what it hands on to them. This module is light, so the training
itself (transformers, DeepSpeed: seconds) is imported by the workers alone.
"""

import signal
import threading
from dataclasses import dataclass
from typing import Any

import ray.train.torch
from ray.train.torch.config import _TorchBackend

TERMINATED = threading.Event()
"""Set in a worker that got SIGTERM: its machine is about to go."""


def start_work(arguments: dict[str, Any]) -> None:
    """What each worker is given to do: `pipelines.train_worker.work`, with the same arguments."""
    from pipelines.train_worker import work

    work(arguments)


def _note_sigterm() -> None:
    """Runs in a worker's main thread, as Python wants of whoever sets a handler."""
    signal.signal(signal.SIGTERM, lambda *_: TERMINATED.set())


class _Backend(_TorchBackend):
    """Ray's process group, and a note of SIGTERM in each worker."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_note_sigterm)
        super().on_start(worker_group, backend_config)


@dataclass
class GroupConfig(ray.train.torch.TorchConfig):
    """Ray's torch.distributed group, whose workers note SIGTERM."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:  # noqa: D102
        return _Backend
