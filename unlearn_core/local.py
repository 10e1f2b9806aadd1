"""The loop in a plain process: no Ray, one rank, or several that were started with torch.distributed already set up.

It is the parity baseline of the cluster path and the way to train on a bare machine.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unlearn_core.publish import write_json


class LocalContext:
    """`unlearn_core.loop.Context` on a local disk; keeps the newest checkpoint.

    Args:
        output: the run's folder.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, output: Path, rank: int = 0, world_size: int = 1):
        self.output, self.rank, self.world_size = Path(output), rank, world_size
        self.folder = self.output / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def restore(self) -> Iterator[Path | None]:
        """The newest checkpoint that all ranks finished, or None."""
        whole = sorted(marker.parent for marker in self.folder.glob("*/whole.json"))
        yield whole[-1] if whole else None

    def checkpoint(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        """All ranks write into one folder; rank 0 marks it whole after the last of them, then drops older ones."""
        folder = self.folder / f"step-{metrics['step']:05d}"
        folder.mkdir(exist_ok=True)
        write(folder)
        dist.barrier()
        if self.rank == 0:
            write_json(folder / "whole.json", metrics)
            for older in self.folder.iterdir():
                if older != folder:
                    shutil.rmtree(older)
        dist.barrier()


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
