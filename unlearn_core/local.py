"""The loop in a plain process: no Ray, one rank, or several that were started with torch.distributed already set up.

It is the parity baseline of the cluster path and the way to train on a bare machine.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unlearn_core import storage
from unlearn_core.checkpoints import Checkpoints
from unlearn_core.events import WORKER_EVENTS, note_event
from unlearn_core.layout_config import RetentionConfig
from unlearn_core.loop import CHECKPOINTS, METRICS, StopReason


class LocalContext:
    """`unlearn_core.loop.Context` on a disk that every rank reaches under the same path.

    Args:
        output: the run's folder.
        rank: of this process.
        world_size: number of processes.
        retention: which checkpoints are kept.
    """

    def __init__(self, output: Path, rank: int = 0, world_size: int = 1, retention: RetentionConfig | None = None):
        self.output, self.rank, self.world_size = Path(output), rank, world_size
        self.checkpoints = Checkpoints(self.output / CHECKPOINTS, rank, world_size, retention or RetentionConfig())

    def restore(self) -> Path | None:
        """The newest whole checkpoint; what was passed over is said."""
        folder, passed_over = self.checkpoints.newest_whole()
        for problem in passed_over:
            where = f"from {folder.name}" if folder else "at the beginning"
            self.say("checkpoint_damaged", f"{problem}; going on {where}")
        return folder

    def checkpoint(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Whole or not at all."""
        if self.rank == 0:
            storage.push(self.output / METRICS)  # whoever goes on from the checkpoint finds the log up to it
        self.checkpoints.save(metrics, write)

    def say(self, kind: str, text: str) -> None:
        """Note what the user should know, in OUTPUT/events.jsonl."""
        if self.rank == 0:
            note_event(self.output, kind, text, WORKER_EVENTS)

    def stop_reason(self) -> StopReason:
        """Nobody asks a plain process to stop but by ending it."""
        return ""

    def stalled(self, seconds: float) -> AbstractContextManager[Callable[[], None]]:
        """Nobody watches a plain process either."""
        return nullcontext(lambda: None)


@contextmanager
def single_process_group() -> Iterator[None]:
    """torch.distributed with this process alone; torn down on exit."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
