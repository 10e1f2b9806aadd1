"""Progress over rows that arrive in pieces: a bar on a terminal, a line every ten seconds in a log file."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.progress import LOG_SECONDS, animated, clock


class RowProgress:
    """Rows done, rows per second and time left; use as a context manager.

    Args:
        name: what is being done.
        total: rows in all, at least 1.
        console: where to draw; None for silence.
    """

    def __init__(self, name: str, total: int, console: Console | None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self._console = console
        self._bar: Progress | None = None
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self._console is not None and animated(self._console):
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(self.name, total=self.total, note="starting actors")
            self._bar.start()
        elif self._console is not None:
            self._console.print(f"{self.name}: {self.total} rows", highlight=False, soft_wrap=True)
        return self

    def advance(self, rows: int, note: str) -> None:
        """Count rows that arrived.

        Args:
            rows: how many.
            note: where they belong, shown beside the rate.
        """
        self.done += rows
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        text = f"{rate:.1f} rows/s  {note}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=text)
        elif self._console is not None and (self.done >= self.total or now - self._shown >= LOG_SECONDS):
            self._shown = now
            left = clock((self.total - self.done) / rate)
            line = f"{self.name}: {self.done}/{self.total}  {text}  {left} left"
            self._console.print(line, highlight=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
