"""Which rank holds the others up: a thread on each rank tells the rest how far it is, through the group's store.

Each rank says, all the time, how many passes it has begun (`tick`), and a beat that shows that its process is alive. A
rank without a new pass for so many seconds reads the others: one without a new beat is frozen, one with fewer passes
holds the rest up.

A rank that waits in a collective has begun the same pass as all others, so the one that is behind is the one that did
not come. The finding is told once; a process that still stands after half that time again is ended, so that a run on
one worker, or one whose collectives have no timeout, does not hang either.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

STALLED_EXIT_CODE = 75
"""EX_TEMPFAIL: try again."""


class StallWatch:
    """Watches this rank's progress from a thread; use as a context manager.

    Args:
        rank: of this process.
        world_size: number of ranks.
        seconds: without progress until it is told.
        tell: given the finding, in words; called on every rank that still runs.
        end: ends the process.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        seconds: float,
        tell: Callable[[str], None],
        end: Callable[[int], Any] = os._exit,
    ):
        self.rank, self.world_size, self.seconds = rank, world_size, seconds
        self._tell, self._end = tell, end
        self._count, self._since, self._beat = 0, time.monotonic(), 0
        self._period = min(5.0, max(0.05, seconds / 10))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()  # a connection of its own: the group's may be waiting for an answer
        self._store.set_timeout(timedelta(seconds=max(1.0, min(10.0, seconds))))

    def tick(self) -> None:
        """Progress: a pass begins."""
        self._count += 1
        self._since = time.monotonic()

    def __enter__(self) -> Callable[[], None]:
        self.tick()
        self._thread.start()
        return self.tick

    def __exit__(self, *_: Any) -> None:
        self._done.set()

    def _watch(self) -> None:
        told = False
        while not self._done.wait(self._period):
            idle = time.monotonic() - self._since
            self._say_where_i_am()
            if idle < self.seconds:
                told = False
            elif not told:
                told = True
                finding = self._finding()
                if not self._done.is_set():
                    self._tell(finding)
            elif idle > 1.5 * self.seconds:
                self._end(STALLED_EXIT_CODE)

    def _say_where_i_am(self) -> None:
        self._beat += 1
        try:
            self._store.set(f"stall/{self.rank}", f"{self._count} {self._beat} {socket.gethostname()} {os.getpid()}")
        except RuntimeError:  # rank 0's process holds the store; that it is gone or frozen is found when reading
            return

    def _finding(self) -> str:
        before = self._places()
        self._done.wait(3 * self._period)
        self._say_where_i_am()
        after = self._places()
        said = f"no progress for {self.seconds:g} s: "
        if before is None or after is None:
            return said + "rank 0, which holds the group's store, does not answer"
        frozen = [r for r in after if r != self.rank and after[r][1] == before.get(r, after[r])[1]]
        silent = [r for r in range(self.world_size) if r not in after]
        if frozen or silent:
            return said + "; ".join(f"{self._who(r, after)} does not answer: frozen or dead" for r in frozen + silent)
        counts = {r: place[0] for r, place in after.items()}
        behind = [r for r, count in counts.items() if count < max(counts.values())]
        if behind:
            return said + f"{', '.join(self._who(r, after) for r in behind)} holds the others up"
        if self.world_size == 1:
            return said + f"{self._who(self.rank, after)} stands still"
        return said + f"all {self.world_size} ranks stand at the same place"

    def _places(self) -> dict[int, tuple[int, int, str]] | None:
        """Rank -> passes begun, beat, where it runs; None when the store does not answer."""
        found = {}
        try:
            for rank in range(self.world_size):
                if self._store.check([f"stall/{rank}"]):
                    count, beat, *where = self._store.get(f"stall/{rank}").decode().split()
                    found[rank] = (int(count), int(beat), "pid {1} on {0}".format(*where))
        except RuntimeError:
            return None
        return found

    @staticmethod
    def _who(rank: int, places: dict[int, tuple[int, int, str]]) -> str:
        return f"rank {rank} ({places[rank][2]})" if rank in places else f"rank {rank}"
