"""Pictures of searches: the frontier with attainment bands, hypervolume against steps, configurations, importance.

Objectives are on the search's own scale: 0 is the worst that counts, 1 the aim, higher is better (tune/objectives.py).
Colours are Okabe and Ito's, lines differ by dash as well, so that nothing rests on colour alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.frontier_plot import COLOURS, GOLD, GREY, INK, RC
from unlearn_core.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Series:
    """Searches of one searcher, over search seeds.

    Attributes:
        label: in the legend.
        points: one array of shape (N, 2) a search: values of the two objectives that are drawn, x first.
        curves: one (steps, hypervolume) a search, both of shape (K,), steps rising.
        bands: percentage of searches that attain it -> vertices of the surface, shape (V, 2), by rising x.
    """

    label: str
    points: Sequence[NDArray[np.float64]]
    curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
    bands: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """An evaluated run beside the searches; values of shape (N, 2) by step."""

    label: str
    points_N2: NDArray[np.float64]


@dataclass(frozen=True)
class Rerun:
    """A front member trained again with new seeds: mean and standard deviation of its values, each of shape (2,)."""

    first_2: NDArray[np.float64]
    mean_2: NDArray[np.float64]
    deviation_2: NDArray[np.float64]


@dataclass(frozen=True)
class FrontierPicture:
    """What `draw_frontier` draws.

    Attributes:
        axes: labels of x and y.
        series: the searches, grouped.
        runs: evaluated runs.
        members_N3: front of everything: x, y and the trial's step.
        reruns: of its members.
        reference_2: where the retrained reference is; None when it is not known.
        hypervolume: of everything, over all objectives.
    """

    axes: tuple[str, str]
    series: Sequence[Series]
    runs: Sequence[Run]
    members_N3: NDArray[np.float64]
    reruns: Sequence[Rerun]
    reference_2: tuple[float, float] | None
    hypervolume: float


def draw_frontier(picture: FrontierPicture) -> "Figure":
    """Points, staircases, bands over search seeds, re-runs with two-dimensional error bars, the reference's star."""
    with _style() as figure_of:
        figure = figure_of(4.6, 4.2)
        ax = figure.subplots()
        _plain(ax, *picture.axes)
        for n, series in enumerate(picture.series):
            _one_series(ax, series, COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)])
        for n, run in enumerate(picture.runs):
            k = n + len(picture.series)
            style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
            ax.plot(*run.points_N2.T, lw=0.6, ms=4, alpha=0.9, label=run.label, **style)
        _members(ax, picture.members_N3)
        for rerun in picture.reruns:
            ax.plot(*np.stack([rerun.first_2, rerun.mean_2]).T, color=GREY, lw=0.5, zorder=4)
            ax.errorbar(
                *rerun.mean_2, xerr=rerun.deviation_2[0], yerr=rerun.deviation_2[1], color=INK, fmt="x", ms=4, lw=0.7,
                capsize=1.5, zorder=5,
            )  # fmt: skip
        if picture.reruns:
            ax.errorbar([], [], xerr=[], yerr=[], color=INK, fmt="x", ms=4, lw=0.7, label="re-runs: mean, deviation")
        if picture.reference_2 is not None:
            ax.plot(
                *picture.reference_2, "*", ms=14, mfc=GOLD, mec=INK, mew=0.6, zorder=6, clip_on=False, ls="none",
                label="retrained reference",
            )  # fmt: skip
        ax.set_title(f"hypervolume {picture.hypervolume:.4f} beyond (0, 0)", loc="left", fontsize=8, color=GREY)
        _zoom(ax, picture)
        ax.legend(frameon=False, fontsize=7, loc="lower left")
    return figure


def draw_hypervolume(series: Sequence[Series]) -> "Figure":
    """Hypervolume so far against optimizer steps spent: median over seeds, and the band between the quartiles."""
    with _style() as figure_of:
        figure = figure_of(4.6, 3.3)
        ax = figure.subplots()
        _plain(ax, "optimizer steps spent", "hypervolume")
        for n, one in enumerate(series):
            colour, dash = COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)]
            # Beyond the end of the shortest search there would be fewer seeds to take the median of.
            grid_K = np.unique(np.concatenate([steps for steps, _ in one.curves]))
            grid_K = grid_K[grid_K <= min(steps[-1] for steps, _ in one.curves)]
            rows_SK = np.array([_held(steps, volume, grid_K) for steps, volume in one.curves])
            name = one.label + (f" ({len(one.curves)} seeds)" if len(one.curves) > 1 else "")
            ax.step(grid_K, np.median(rows_SK, axis=0), where="post", color=colour, ls=dash, lw=1.4, label=name)
            if len(one.curves) > 1:
                low_K, high_K = np.quantile(rows_SK, (0.25, 0.75), axis=0)
                ax.fill_between(grid_K, low_K, high_K, step="post", color=colour, alpha=0.18, lw=0)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=7, loc="lower right")
    return figure


@dataclass(frozen=True)
class ParallelGroup:
    """Trials that use the same hyper-parameters, such as those of one method.

    Attributes:
        title: such as the method's name.
        columns: axes: hyper-parameters, then objectives.
        rows_NC: coordinate of each trial on each axis, in [0, 1].
        ticks: for each axis, what stands at its bottom and top; of choices, at each option.
        worth_N: colour of a line: the product of its objectives' values, higher is better.
        front_N: whether the trial has a point on the front.
    """

    title: str
    columns: Sequence[str]
    rows_NC: NDArray[np.float64]
    ticks: Sequence[Mapping[float, str]]
    worth_N: NDArray[np.float64]
    front_N: NDArray[np.bool_]


def draw_parallel(groups: Sequence[ParallelGroup]) -> "Figure":
    """Parallel coordinates: a line a trial (its step of best contribution), a panel a group, front members thick."""
    with _style() as figure_of:
        widest = max(len(group.columns) for group in groups)
        figure = figure_of(max(4.6, 1.15 * widest + 1.0), 2.3 * len(groups) + 0.3)
        axes = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
        best = max(float(group.worth_N.max(initial=0.0)) for group in groups) or 1.0
        for ax, group in zip(axes, groups, strict=True):
            _parallel_panel(ax, group, best)
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        bar = figure.colorbar(ScalarMappable(Normalize(0, best), "viridis"), ax=list(axes), pad=0.02, aspect=30)
        bar.set_label("product of the objectives' values", fontsize=7)
        bar.ax.tick_params(labelsize=6)
    return figure


def draw_importance(shares: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Share of the variation of each objective that a hyper-parameter explains: a group of bars a parameter."""
    labels = sorted({label for one in shares.values() for label in one}, key=lambda label: _most(shares, label))
    with _style() as figure_of:
        figure = figure_of(4.8, 0.6 + 0.17 * len(labels) * max(1, len(shares)) + 0.35)
        ax = figure.subplots()
        _plain(ax, "importance (share of explained variation)", "")
        height = 0.8 / len(shares)
        for n, (objective, found) in enumerate(shares.items()):
            places = np.arange(len(labels)) + 0.4 - height * (n + 0.5)
            values = [found.get(label, 0.0) for label in labels]
            hatch = ("", "///", "...", "xx")[n % 4]
            ax.barh(places, values, height, color=COLOURS[n], hatch=hatch, ec="white", lw=0.3, label=objective)
        ax.set_yticks(range(len(labels)), [_short(label) for label in labels])
        ax.set_xlim(0, 1)
        ax.legend(frameon=False, fontsize=7, loc="lower right")
    return figure


class _style:
    """The house style, and a maker of figures inside it."""

    def __enter__(self) -> Any:
        try:
            from matplotlib import rc_context
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingPackageError("Pictures of a search need matplotlib: pip install matplotlib") from error
        self._context = rc_context(RC)
        self._context.__enter__()

        def figure_of(width: float, height: float) -> Figure:
            figure = Figure(figsize=(width, height), layout="constrained")
            FigureCanvasAgg(figure)
            return figure

        return figure_of

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _plain(ax: "Axes", x: str, y: str) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _one_series(ax: "Axes", series: Series, colour: str, dash: Any) -> None:
    for points_N2 in series.points:
        ax.plot(*points_N2.T, ".", color=colour, ms=3, alpha=0.25, mew=0, zorder=1)
    label = series.label + (f" ({len(series.points)} seeds)" if len(series.points) > 1 else "")
    if not series.bands:
        stairs_V2 = _staircase(series.points[0])
        ax.plot(*stairs_V2.T, color=colour, ls=dash, lw=1.2, label=label, zorder=3)
        return
    low, middle, high = (_as_steps(series.bands[q]) for q in sorted(series.bands, reverse=True))
    ax.plot(*middle.T, color=colour, ls=dash, lw=1.3, label=label, zorder=3)
    grid = np.unique(np.concatenate([low[:, 0], high[:, 0]]))
    ax.fill_between(grid, _height(low, grid), _height(high, grid), step="pre", color=colour, alpha=0.18, lw=0)


def _members(ax: "Axes", members_N3: NDArray[np.float64]) -> None:
    ax.plot(*members_N3[:, :2].T, "o", mfc="none", mec=INK, ms=5, mew=0.8, zorder=4, ls="none")


def _staircase(points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of the attained region's border, from the y axis to the x axis."""
    points_N2 = points_N2[(points_N2 > 0).all(axis=1)]
    points_N2 = points_N2[np.argsort(points_N2[:, 0])]
    heights_N = np.maximum.accumulate(points_N2[::-1, 1])[::-1]
    return _as_steps(np.column_stack([points_N2[:, 0], heights_N]))


def _as_steps(corners_V2: NDArray[np.float64]) -> NDArray[np.float64]:
    """A falling staircase through corners sorted by x: level up to each corner, then down."""
    if len(corners_V2) == 0:
        return np.zeros((0, 2))
    corners_V2 = corners_V2[np.argsort(corners_V2[:, 0])]
    path = [(0.0, corners_V2[0, 1])]
    for n, (x, y) in enumerate(corners_V2):
        path.append((x, y))
        path.append((x, corners_V2[n + 1, 1] if n + 1 < len(corners_V2) else 0.0))
    return np.array(path)


def _height(stairs_V2: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Greatest y that is attained together with at least x."""
    return np.array([stairs_V2[stairs_V2[:, 0] >= x - 1e-12, 1].max(initial=0.0) for x in grid])


def _zoom(ax: "Axes", picture: FrontierPicture) -> None:
    """From the worst that counts; closer where the front of everything lies in a corner."""
    if len(picture.members_N3):
        low_2 = picture.members_N3[:, :2].min(axis=0)
        high_2 = picture.members_N3[:, :2].max(axis=0)
        if picture.reference_2 is not None:
            high_2 = np.maximum(high_2, picture.reference_2)
        corner_2 = np.maximum(0.0, low_2 - 0.5 * (1.02 * high_2 - low_2))
        span_2 = 1.03 * (high_2 - corner_2)
        ax.set_xlim(corner_2[0], corner_2[0] + span_2[0])
        ax.set_ylim(corner_2[1], corner_2[1] + span_2[1])


def _held(steps: NDArray[np.float64], volume: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve's last value at or before each place of the grid; 0 before its first."""
    at = np.searchsorted(steps, grid, side="right") - 1
    return np.where(at >= 0, volume[np.maximum(at, 0)], 0.0)


def _parallel_panel(ax: "Axes", group: ParallelGroup, best: float) -> None:
    from matplotlib import colormaps

    count = len(group.columns)
    for n in np.argsort(group.worth_N):
        colour = colormaps["viridis"](group.worth_N[n] / best)
        thick = bool(group.front_N[n])
        ax.plot(range(count), group.rows_NC[n], color=colour, lw=1.8 if thick else 0.6, alpha=1 if thick else 0.5)
    for k, ticks in enumerate(group.ticks):
        ax.axvline(k, color=GREY, lw=0.5, zorder=0)
        for place, text in ticks.items():
            ax.annotate(text, (k, place), (2, 0), textcoords="offset points", fontsize=5.5, va="center", color=INK)
    ax.set_xticks(range(count), [_short(name) for name in group.columns], rotation=12, ha="right", fontsize=6.5)
    ax.set_yticks([])
    ax.set_ylim(-0.05, 1.05)
    ax.set_xlim(-0.15, count - 0.6)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.set_title(group.title, loc="left", fontsize=8)


def _short(label: str) -> str:
    """The last part of a dotted key, with its condition if any."""
    key, bracket, condition = label.partition(" [")
    words = "method" if key == "method.name" else key.rpartition(".")[2].replace("_", " ")
    return words + bracket + condition


def _most(shares: Mapping[str, Mapping[str, float]], label: str) -> float:
    return max(one.get(label, 0.0) for one in shares.values())
