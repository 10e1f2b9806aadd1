"""What the panels of the page are told: runs, points of the frontier and the ways to look at them, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Role = Literal["checkpoint", "target", "reference", "rerun"]


@dataclass(frozen=True, eq=False)
class Run:
    """A training run, or a trial of a search.

    Attributes:
        key: unique on the page.
        label: for people.
        method: name of the method.
        family: the same for runs that differ by their seed alone; "" where the configuration is not known.
        seed: of training; None where it is not known.
        settings: dotted key -> what it was set to, for hover and tables: those that tell runs apart.
        config: the whole configuration, where it is known.
        folder: where its log lies; None where there is none.
        status: how it ended, for people.
        source: `evaluation`, `search` or `run`.
    """

    key: str
    label: str
    method: str
    family: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    folder: Path | None = None
    status: str = ""
    source: str = "evaluation"


@dataclass(frozen=True, eq=False)
class Point:
    """A model with its metrics: a checkpoint, a scored step of a trial, or a star.

    Attributes:
        run: key of its run.
        step: optimizer steps.
        role: what it counts as; only a checkpoint can be on a front.
        metrics: raw numbers by column, finite ones alone.
        model: id within its evaluation; "" for a search's points.
        folder: the evaluation or search it was read from.
        excluded: why it may not be on a front though it is a checkpoint; "" where it may.
        parent: of a re-run, (run, step) that was run again.
    """

    run: str
    step: int
    role: Role
    metrics: Mapping[str, float]
    model: str = ""
    folder: str = ""
    excluded: str = ""
    parent: tuple[str, int] | None = None


@dataclass(frozen=True, eq=False)
class View:
    """One axis that the page offers; higher is better on all but raw columns.

    Attributes:
        key: unique on the page.
        label: of the axis.
        kind: `forgetting`, `utility`, `objective` of a search, or `raw` for a column as it was measured.
        values: a number a point, None where it has none.
        reference: coordinate that hypervolume counts from; None for raw columns, which have no front.
        log: whether a logarithmic scale says more: positive numbers over more than a decade.
    """

    key: str
    label: str
    kind: str
    values: tuple[float | None, ...]
    reference: float | None = None
    log: bool = False
