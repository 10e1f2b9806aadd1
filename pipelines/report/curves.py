"""Training curves of a run: every number that its log has of a step, thinned where there are more than can be seen."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError

METRICS = "metrics.jsonl"
MOST = 300
"""Steps of a run that the page draws at most."""
GROUPS = (
    ("losses", "Losses", "loss_"),
    ("norms", "Gradient norms", "norm_"),
    ("cosine", "Cosine of the two gradients", "cosine"),
    ("rate", "Learning rate", "learning_rate"),
    ("gap", "Teacher gap |w \N{MINUS SIGN} v|", "teacher_gap"),
)
"""Panels: name, title, beginning of the log's keys."""


@dataclass(frozen=True)
class Curves:
    """A run's log.

    Attributes:
        steps: optimizer steps that are drawn.
        series: key of the log -> a number a step; None where it is missing.
        probes: steps at which AutoLR took a probe -> `accepted`, or why it was refused.
        every: one of so many steps is drawn; 1 for all.
        seconds: of all steps together.
        logged: steps in the log.
    """

    steps: tuple[int, ...]
    series: dict[str, tuple[float | None, ...]]
    probes: dict[int, str] = field(default_factory=dict)
    every: int = 1
    seconds: float = 0.0
    logged: int = 0

    def panel(self, prefix: str) -> dict[str, tuple[float | None, ...]]:
        """Series of one panel."""
        return {name: values for name, values in self.series.items() if name.startswith(prefix)}


def read_log(folder: Path | None) -> list[dict[str, Any]]:
    """Lines of a run's log by step; none where there is no log. A line that a kill cut off at the end is left out.

    Raises:
        UserError: a damaged line before the last one.
    """
    path = None if folder is None else folder / METRICS
    if path is None or not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is damaged ({error}); restore it, or delete that line") from error
        found.append(record)
    return sorted(found, key=lambda record: record["step"])


def curves_of(log: Sequence[dict[str, Any]], most: int = MOST) -> Curves | None:
    """What is drawn of a log; None of an empty one. First and last step are kept, and every probe is.

    Args:
        log: as `read_log` gives it.
        most: steps at most.
    """
    if not log:
        return None
    every = math.ceil(len(log) / most)
    probes = _probes(log)
    kept = [record for n, record in enumerate(log) if n % every == 0 or n == len(log) - 1 or record["step"] in probes]
    prefixes = (*(prefix for _, _, prefix in GROUPS), "update_norm")
    names = dict.fromkeys(name for record in log for name in record if name.startswith(prefixes))
    return Curves(
        steps=tuple(record["step"] for record in kept),
        series={name: tuple(_number(record.get(name)) for record in kept) for name in names},
        probes=probes,
        every=every,
        seconds=float(sum(record.get("seconds", 0.0) for record in log)),
        logged=len(log),
    )


def _probes(log: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The counts of outcomes grow by one at each probe; which one grew is the outcome."""
    found: dict[int, str] = {}
    before: dict[str, int] = {}
    for n, record in enumerate(log):
        counts = record.get("auto_probes")
        if counts is None:
            continue
        grown = [name for name, count in counts.items() if count > before.get(name, 0) and name != "halved"]
        # A log that begins in the middle of a run starts with counts of probes that it does not show.
        if len(grown) == 1 and (n or sum(counts.values()) == 1):
            found[record["step"]] = grown[0]
        before = counts
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
