"""Numbers, tables and the picture of `benchmarks.search`, from its result lines."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.search_runs import CONTESTANTS

Line = dict[str, Any]
RESAMPLES = 10_000
JOINT = "all problems"


@dataclass(frozen=True)
class Estimate:
    """A number with its percentile-bootstrap 95 % interval over seeds; NaN ends where there is one seed."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} (one seed)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(
    strata: Sequence[NDArray[np.float64]], statistic: Callable[..., NDArray[np.float64]], seed: int = 0
) -> Estimate:
    """Resample within each stratum with replacement.

    Args:
        strata: values of each group; a group stands for a problem, its values for seeds.
        statistic: of an array along its last axis, taking `axis`.
        seed: of the resampling.
    """
    value = float(statistic(np.concatenate(strata), axis=0))
    if max(map(len, strata)) < 2:
        return Estimate(value, math.nan, math.nan)
    draws = np.random.default_rng(seed)
    parts = [stratum[draws.integers(len(stratum), size=(RESAMPLES, len(stratum)))] for stratum in strata]
    found = statistic(np.concatenate(parts, axis=1), axis=1)
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def geometric_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Of positive numbers."""
    return np.exp(np.log(values).mean(axis=axis))


def ratio(line: Line, strict: bool) -> float | None:
    """Steps to what random search of that seed ends with, over random's own steps to it (strict) or its whole budget.

    A search that has not reached it at its bound counts as if it reached it there, so with such searches the mean is
    a lower bound. None where random search covers nothing, so that there is nothing to reach.
    """
    if not line["random_reached"]:
        return None
    steps = line["bound"] if line["reached"] is None else line["reached"]
    return steps / (line["random_reached"] if strict else line["budget"])


@dataclass(frozen=True)
class Outcome:
    """One searcher on one problem, or on all of them.

    Attributes:
        searcher: name.
        problem: name, or `JOINT`.
        strict: geometric mean of the strict ratios.
        loose: of those to the whole budget.
        median: of the strict ratios.
        share: median share of the ideal hypervolume at the budget.
        seeds: searches counted.
        censored: of these, searches that never reached it within their bound.
        left_out: searches whose random one covers nothing.
        early: share of trials that a rule ended.
    """

    searcher: str
    problem: str
    strict: Estimate
    loose: Estimate
    median: float
    share: Estimate
    seeds: int
    censored: int
    left_out: int
    early: float


def outcome(lines: Sequence[Line], searcher: str, problem: str) -> Outcome | None:
    """Of a searcher's lines; None if none of them can be counted."""
    mine = [line for line in lines if line["searcher"] == searcher and problem in (JOINT, line["problem"])]
    counted = [line for line in mine if ratio(line, True) is not None]
    if not counted:
        return None
    groups = [
        [line for line in counted if line["problem"] == name]
        for name in dict.fromkeys(line["problem"] for line in counted)
    ]
    strict = [np.array([ratio(line, True) for line in group], dtype=np.float64) for group in groups]
    loose = [np.array([ratio(line, False) for line in group], dtype=np.float64) for group in groups]
    share = [np.array([line["at_budget"] / line["ideal"] for line in group]) for group in groups]
    return Outcome(
        searcher,
        problem,
        bootstrap(strict, geometric_mean),
        bootstrap(loose, geometric_mean),
        float(np.median(np.concatenate(strict))),
        bootstrap(share, np.median),
        len(counted),
        sum(line["reached"] is None for line in counted),
        len(mine) - len(counted),
        sum(line["stopped"] for line in counted) / sum(line["trials"] for line in counted),
    )


def ratio_table(outcomes: Sequence[Outcome], bound: float) -> Table:
    """A row for each problem and searcher."""
    table = Table(title="steps to what random search ends with, over random's own steps to it; 95 % bootstrap interval")
    for name in ("problem", "searcher", "geometric mean", "median", "over the whole budget", "never", "ended early"):
        table.add_column(name, overflow="fold")
    table.add_column("share of the ideal at the budget, median", overflow="fold")
    before = ""
    for one in outcomes:
        if one.problem != before:
            table.add_section()
        head = one.problem if one.problem != before else ""
        before = one.problem
        mark = "at least " if one.censored else ""
        verdict = "" if one.searcher != "tmobo" else f" [{'within' if one.strict.value <= bound else 'over'} {bound:g}]"
        table.add_row(
            head,
            CONTESTANTS[one.searcher].label,
            f"{mark}{one.strict}{verdict}".replace("[", r"\["),
            f"{one.median:.3f}",
            f"{mark}{one.loose}",
            f"{one.censored} of {one.seeds}" + (f", {one.left_out} left out" if one.left_out else ""),
            f"{one.early:.0%}",
            str(one.share),
        )
    return table


def overhead_table(found: Sequence[Line], bound: float) -> Table:
    """A row for each searcher."""
    points = ", ".join(sorted({f"{one['points']} points a trial ({one['problem']})" for one in found}))
    table = Table(title=f"seconds a proposal, one thread; {points}")
    for name in (
        "searcher",
        "median",
        "largest",
        "of",
        "bound",
        "processor time, largest",
        "stop rules over a whole trial, median",
    ):
        table.add_column(name)
    for one in found:
        seconds = one["proposing"]
        table.add_row(
            CONTESTANTS[one["searcher"]].label,
            f"{np.median(seconds):.3f}",
            f"{max(seconds):.3f}",
            str(len(seconds)),
            f"below {bound:g}: {'ok' if max(seconds) < bound else 'over'}",
            f"{max(one['processor']):.3f}",
            f"{np.median(one['ruling']):.3f}" if max(one["ruling"]) > 1e-3 else "none",
        )
    return table


def curve_on(line: Line, grid_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the ideal hypervolume after each of S numbers of steps, shape (S,); a staircase."""
    curve_N2 = np.array([[0.0, 0.0], *line["curve"]])
    return curve_N2[np.searchsorted(curve_N2[:, 0], grid_S, side="right") - 1, 1] / line["ideal"]


def draw(lines: Sequence[Line], path: Path) -> None:
    """Share of the ideal hypervolume against steps spent: median and quartile band over seeds, a panel a problem."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pipelines.frontier_plot import COLOURS, RC

    problems = list(dict.fromkeys(line["problem"] for line in lines))
    present = {line["searcher"] for line in lines}
    names = [name for name in CONTESTANTS if name in present]
    dashes: list[Any] = ["-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 1))]
    columns = min(3, len(problems))
    rows = math.ceil(len(problems) / columns)
    with rc_context(RC):
        figure = Figure(figsize=(0.6 + 2.5 * columns, 0.5 + 2.2 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, problem in zip(axes, problems, strict=False):
            for n, name in enumerate(names):
                mine = [line for line in lines if (line["problem"], line["searcher"]) == (problem, name)]
                if not mine:
                    continue
                grid_S = np.linspace(0, mine[0]["budget"], 401)
                low_S, middle_S, high_S = np.percentile([curve_on(line, grid_S) for line in mine], [25, 50, 75], axis=0)
                colour, dash = COLOURS[n % len(COLOURS)], dashes[n % len(dashes)]
                ax.fill_between(grid_S, low_S, high_S, color=colour, alpha=0.13, lw=0, step="post")
                label = CONTESTANTS[name].label
                ax.step(grid_S, middle_S, where="post", color=colour, ls=dash, lw=1.4, label=label)
            seeds = len({line["seed"] for line in lines if line["problem"] == problem})
            ax.set_title(f"{problem}, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=8.5)
            ax.set_xlabel("steps spent")
            ax.set_ylim(0, 1.02)
            ax.spines[["top", "right"]].set_visible(False)
        for ax in axes[len(problems) :]:
            ax.remove()
        axes[0].set_ylabel("hypervolume / ideal")
        found = {
            label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)
