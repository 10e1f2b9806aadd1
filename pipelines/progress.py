"""Progress of long work, drawn from the file that the work itself writes.

Workers run elsewhere; what they share with the terminal is the run's folder. A terminal gets a bar with losses, rate
and time left; a log file gets a line every ten seconds.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_SECONDS = 0.5
LOG_SECONDS = 10.0


def follow_steps(metrics: Path, steps: int, name: str, console: Console | None, finished: threading.Event) -> None:
    """Draw a run's progress until `finished` is set.

    Args:
        metrics: the run's metrics.jsonl, which may not exist yet.
        steps: optimizer steps in all.
        name: of the run.
        console: where to draw; None for silence.
        finished: set by the caller when the run has ended.
    """
    if console is None:
        return
    if console.is_terminal:
        _draw_bar(metrics, steps, name, console, finished)
    else:
        _print_lines(metrics, steps, name, console, finished)


def _draw_bar(metrics: Path, steps: int, name: str, console: Console, finished: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, numbers="starting workers")
        while True:
            last_round = finished.wait(POLL_SECONDS)
            newest = _newest(metrics)
            if newest is not None:
                progress.update(task, completed=newest["step"], numbers=_numbers(newest))
            if last_round:
                return


def _print_lines(metrics: Path, steps: int, name: str, console: Console, finished: threading.Event) -> None:
    shown, due = -1, time.monotonic()
    while True:
        last_round = finished.wait(POLL_SECONDS)
        newest = _newest(metrics)
        if newest is not None and newest["step"] != shown and (last_round or time.monotonic() >= due):
            shown, due = newest["step"], time.monotonic() + LOG_SECONDS
            console.print(f"{name}: step {shown}/{steps}  {_numbers(newest)}", highlight=False, soft_wrap=True)
        if last_round:
            return


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
