"""Bring a mirror to its store again and again while a command works in it."""

import logging
import random
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from unlearn_core.errors import UserError
from unlearn_core.storage import push, refresh
from unlearn_core.storage_places import find_mirror, uri_of

_LOG = logging.getLogger(__name__)


class Syncing:
    """Push a mirror every so often in a thread, and a last time at the end, also after an error.

    A push that fails is tried again, after longer and longer waits. Only the last one's failure is an error.

    Args:
        path: a path in a mirror; one outside mirrors is left alone.
        following: also bring what others write there, but for large files.
        every: seconds between pushes.
        attempts: how often the last push is tried.
        wait: seconds before its second attempt; twice as long before each one after.

    Attributes:
        uri: what the path stands for; None outside mirrors.
        moved: how many files were uploaded or deleted so far.
    """

    def __init__(
        self,
        path: str | Path,
        following: bool = False,
        every: float = 5.0,
        attempts: int = 4,
        wait: float = 1.0,
    ) -> None:
        self.uri = uri_of(path)
        self.moved = 0
        self._path = Path(path)
        self._following = following
        self._every = every
        self._attempts = attempts
        self._wait = wait
        self._held = ExitStack()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage-push", daemon=True)

    def __enter__(self) -> Self:
        found = find_mirror(self._path)
        if found is not None:
            self._held.enter_context(found[0].at_work())
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Push a last time.

        Raises:
            UserError: it failed; names the folder that holds everything.
        """
        if self.uri is None:
            return
        with self._held:
            self._stop.set()
            self._thread.join()
            for attempt in range(1, self._attempts + 1):
                try:
                    self.moved += push(self._path)
                    return
                except UserError as problem:
                    if attempt == self._attempts:
                        raise UserError(
                            f"the results could not be brought to '{self.uri}' ({problem}). Everything is in "
                            f"{self._path}; the same command, or a copy of that folder, brings it there"
                        ) from problem
                # Waits grow, and differ between processes that lost the same store together.
                threading.Event().wait(self._wait * 2 ** (attempt - 1) * (1 + 0.1 * random.random()))

    def _run(self) -> None:
        delay = self._every
        while not self._stop.wait(delay):
            try:
                self.moved += push(self._path)
                if self._following and self.uri is not None:
                    refresh(self._path, small_only=True)
                delay = self._every
            except Exception as problem:
                # Tried again, so it must not end the command; a store that is away says so at the end.
                delay = min(60.0, max(delay, 1.0) * 2)
                _LOG.warning("not brought to the store yet, next try in %.0f s: %s", delay, problem)
