"""Progress of work in stages: a bar for each on a terminal, a line every ten seconds in a log file."""

import math
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.progress import LOG_SECONDS, animated


class StageProgress:
    """Called with (stage, done, total) while entered.

    Args:
        console: where to draw; None for silence.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._shown = -math.inf

    def __enter__(self) -> Self:
        if self._console is not None and animated(self._console):
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
            self._bars.start()
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A stage has come so far.

        Args:
            stage: its name.
            done: units of it that are done.
            total: units of it in all, at least 1.
        """
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done)
        elif self._console is not None and (done >= total or time.monotonic() - self._shown >= LOG_SECONDS):
            self._shown = time.monotonic()
            self._console.print(f"{stage}: {100 * done / total:.0f} %", highlight=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
