"""The live table of a search: best trade-offs so far, hypervolume, what runs and what was stopped, time left.

A terminal gets a table that changes in place; a log file gets a line whenever a trial ends, and every half minute.
"""

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipelines.progress import animated, clock
from pipelines.search_config import BudgetConfig
from pipelines.search_summary import front_table
from tune.archive import Archive
from tune.space import Space

LOG_SECONDS = 30.0


class SearchWatcher:
    """Draws a search; `tune.search.Watcher`.

    Args:
        archive: the search's.
        budget: for the share that is done.
        total_steps: of a whole trial.
        console: where to draw; None for silence.
    """

    def __init__(self, archive: Archive, budget: BudgetConfig, total_steps: int, console: Console | None):
        self.archive, self.budget, self.total_steps, self.console = archive, budget, total_steps, console
        self.names = [objective.name for objective in archive.goal.objectives]
        space = Space.from_data(archive.about["space"])
        self.varying = {domain.key for domain in space.varying}
        self.began, self.share_at_start = time.monotonic(), self._share()
        self.used_before = archive.seconds_used()
        self.stage = "searching"
        self._live: Live | None = None
        self._shown, self._due = -1, time.monotonic()

    def __enter__(self) -> Self:
        if self.console is not None and animated(self.console):
            self._live = Live(get_renderable=self._draw, console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self.console is not None:
            self.console.print(self._draw())

    def phase(self, stage: str) -> None:
        """What is going on now, in a few words."""
        self.stage = stage
        self.changed()

    def changed(self) -> None:
        """The history has changed. A terminal redraws by itself; a log file gets a line now and then."""
        if self.console is None or self._live is not None:
            return
        ended = sum(trial.status != "running" for trial in self.archive.history)
        if ended != self._shown or time.monotonic() >= self._due:
            self._shown, self._due = ended, time.monotonic() + LOG_SECONDS
            self.console.print(self._line(), highlight=False, soft_wrap=True)

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self._line())]
        history = self.archive.history
        if history.front():
            parts.append(front_table(history, self.names, self.varying))
        for trial in history.running:
            last = f"step {trial.last_step}/{self.total_steps}" if trial.origin != "densify" else "scoring"
            parts.append(Text(f"  trial {trial.number} ({trial.origin}) {last}", style="dim"))
        for trial in history:
            if trial.status in ("diverged", "out_of_memory", "hung", "failed"):
                parts.append(Text(f"  trial {trial.number} {trial.status}: {trial.reason}"[:200], style="yellow"))
        return Group(*parts)

    def _line(self) -> str:
        history = self.archive.history
        counts = Counter(trial.status for trial in history.searched())
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        return (
            f"{self.archive.about['name']}, {self.stage}: {len(history.searched())} trials ({told or 'none yet'}), "
            f"{history.steps_spent} steps, hypervolume {history.hypervolume():.4f}, {self._left()}"
        )

    def _share(self) -> float:
        """How much of the budget is used, in [0, 1]."""
        budget, history = self.budget, self.archive.history
        done = sum(
            1.0 if trial.status != "running" else min(1.0, trial.last_step / self.total_steps)
            for trial in history.searched()
        )
        shares = [0.0]
        if budget.trials is not None:
            shares.append(done / budget.trials)
        if budget.steps is not None:
            shares.append(history.steps_spent / budget.steps)
        if budget.hours is not None and hasattr(self, "used_before"):
            shares.append((self.used_before + time.monotonic() - self.began) / 3600 / budget.hours)
        return min(1.0, max(shares))

    def _left(self) -> str:
        share, passed = self._share(), time.monotonic() - self.began
        gained = share - self.share_at_start
        if share >= 1.0:
            return f"{clock(passed)} passed"
        if gained <= 0:
            return "time left unknown yet"
        return f"about {clock(passed * (1 - share) / gained)} left"
