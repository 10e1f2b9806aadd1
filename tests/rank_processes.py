"""Processes of one torch.distributed group that stay up for a whole test session and run what tests hand them.

Importing torch and DeepSpeed takes longer than any case here, so the processes are started once for all of them.
"""

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

SECONDS = 120
"""A job or collective that takes longer hangs."""


class RankFailure(AssertionError):
    """A job raised on some rank, or hung."""


class Ranks:
    """`world_size` processes on gloo; `run` calls one function on all of them at once."""

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.processes: list[Any] = []
        self.pipes: list[Any] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(rank, world_size, *arguments)` returned on each rank; the function must be importable."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, arguments))
        failures, answers = [], []
        for rank, pipe in enumerate(self.pipes):
            try:
                worked, answer = pipe.recv() if pipe.poll(SECONDS if not failures else 1) else (False, "no answer")
            except EOFError:
                worked, answer = False, "the process died"
            answers.append(answer)
            if not worked:
                failures.append(f"rank {rank} of {self.world_size}: {answer}")
        if failures:
            self.close()  # the other ranks may wait in a collective
            raise RankFailure("\n".join(failures))
        return answers

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []

    def _start(self) -> None:
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn = multiprocessing.get_context("spawn")
        for rank in range(self.world_size):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(there, rank, self.world_size, port), daemon=True)
            process.start()
            there.close()
            self.processes.append(process)
            self.pipes.append(here)


def _serve(pipe: Any, rank: int, world_size: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:  # the test session is over
            return
        try:
            pipe.send((True, function(rank, world_size, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
