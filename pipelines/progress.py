"""Progress of long work, drawn from the file that the work itself writes.

Workers run elsewhere; what they share with the terminal is the run's folder. A terminal gets a bar with losses, rate
and time left; a log file, CI or a job's log gets a plain line at most every ten seconds.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unlearn_core.events import read_events
from unlearn_core.loop import METRICS

POLL_SECONDS = 0.5
LOG_SECONDS = 10.0


def animated(console: Console) -> bool:
    """Whether bars can move there: a terminal that understands cursor movements, and not a log file."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def follow_run(output: Path, steps: int, name: str, console: Console | None) -> Iterator[None]:
    """Draw a run's progress, and print what happens to it, while entered.

    Args:
        output: the run's folder.
        steps: optimizer steps in all.
        name: of the run.
        console: where to draw; None for silence.
    """
    if console is None:
        yield
        return
    finished = threading.Event()
    draw = _draw_bar if animated(console) else _print_lines
    follower = threading.Thread(target=draw, args=(_Run(output, steps, name, console), finished), daemon=True)
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()


class _Run:
    """What has been shown of a run."""

    def __init__(self, output: Path, steps: int, name: str, console: Console):
        self.output, self.steps, self.name, self.console = output, steps, name, console
        self._events_shown = len(read_events(output))

    def newest(self) -> dict[str, Any] | None:
        """The last whole line of metrics.jsonl; on the way, events that are new are printed."""
        events = read_events(self.output)
        for event in events[self._events_shown :]:
            self.console.print(
                f"{self.name}: {event['text']}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )
        self._events_shown = len(events)
        return _newest(self.output / METRICS)


def _draw_bar(run: _Run, finished: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=run.console) as progress:
        task = progress.add_task(run.name, total=run.steps, numbers="starting workers")
        while True:
            last_round = finished.wait(POLL_SECONDS)
            newest = run.newest()
            if newest is not None:
                progress.update(task, completed=newest["step"], numbers=_numbers(newest))
            if last_round:
                return


def _print_lines(run: _Run, finished: threading.Event) -> None:
    shown, due = -1, time.monotonic()
    while True:
        last_round = finished.wait(POLL_SECONDS)
        newest = run.newest()
        if newest is not None and newest["step"] != shown and (last_round or time.monotonic() >= due):
            shown, due = newest["step"], time.monotonic() + LOG_SECONDS
            left = clock((run.steps - shown) * newest["seconds"])
            line = f"{run.name}: step {shown}/{run.steps}  {_numbers(newest)}  {left} left"
            run.console.print(line, highlight=False, soft_wrap=True)
        if last_round:
            return


def clock(seconds: float) -> str:
    """Seconds as 0:05, or 1:02:03 from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _newest(metrics: Path) -> dict[str, Any] | None:
    """The last whole line, or None."""
    if not metrics.is_file():
        return None
    for line in reversed(metrics.read_text(encoding="utf-8").splitlines()):
        try:
            return json.loads(line)
        except json.JSONDecodeError:  # being written right now
            continue
    return None


def _numbers(metrics: dict[str, Any]) -> str:
    parts = [f"{key.removeprefix('loss_')} loss {metrics[key]:.3f}" for key in metrics if key.startswith("loss_")]
    parts.append(f"rate {metrics['learning_rate']:.2g}")
    parts.append(f"{metrics['seconds']:.2f} s/step")
    return "  ".join(parts)
