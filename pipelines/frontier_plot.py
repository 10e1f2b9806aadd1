"""The frontier's figure: trajectories, stars and the staircase, sized for a paper's column or page width.

One colour and one marker a method (Okabe and Ito's palette, so that no pair rests on red against green), a run's
points joined in the order of their steps, later steps darker and larger. The frontier is a staircase: between two
checkpoints nothing is attained but what the worse of both gives, so no slanted line is drawn.
"""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.frontier_labels import LabelPlacer
from unlearn_core.errors import MissingPackageError
from unlearn_core.frontier import Axis
from unlearn_core.method import methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008) without black (target, staircase) and yellow (too light for a line on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#777777")
# The area factor makes the shapes look equally large.
MARKERS = {"o": 1.0, "s": 0.85, "^": 1.1, "D": 0.7, "v": 1.1, "P": 1.1, "X": 1.1}
LEADING = ("ngdiff", "grad_diff", "mean_teacher", "npo", "simnpo", "rmu")
"""Methods that share a figure most often: the first colours, so that none of them look alike."""
INK = "#222222"
GREY = "#666666"
GOLD = "#FFC20A"
RC: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "pdf.fonttype": 42,  # TrueType: text can be searched and edited, and publishers take it
    "svg.fonttype": "none",  # words stay words: searchable, editable, in the reader's font
    "svg.hashsalt": "unlearn frontier",  # without it the ids, and so the file, differ between two equal runs
}


METADATA: Any = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Kinds of files that a figure is written as, and what is left out of each, so that equal runs give equal files."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One run's candidates by rising step. `points_N2` holds (forgetting, utility)."""

    run: str
    method: str
    steps: tuple[int, ...]
    points_N2: np.ndarray
    front_N: np.ndarray
    contributions_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes; coordinates are (forgetting, utility), both better when higher."""

    forgetting: Axis
    utility: Axis
    trajectories: tuple[Trajectory, ...]
    targets_N2: np.ndarray
    references_N2: np.ndarray
    reference_2: tuple[float, float]
    hypervolume: float
    not_drawn: int


def draw(panels: Sequence[Panel]) -> "Figure":
    """A figure of one panel (a column wide) or several side by side (a page wide).

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("The frontier's figure needs matplotlib: pip install matplotlib") from error
    styles = method_styles({run.method for panel in panels for run in panel.trajectories})
    with rc_context(RC):
        figure = Figure(figsize=(4.3, 3.9) if len(panels) == 1 else (3.6 * len(panels), 3.7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for n, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            _frame(ax, panel, letter="abcdef"[n] if len(panels) > 1 else None)
            _staircase(ax, panel)
            for run in panel.trajectories:
                _trajectory(ax, run, *styles[run.method])
            _stars(ax, panel)
        axes[0].set_ylabel(panels[0].utility.label)
        _view(axes, panels)
        _legend(figure, styles)
        figure.draw_without_rendering()  # labels are placed against final positions
        for ax, panel in zip(axes, panels, strict=True):
            _labels(ax, panel)
    return figure


def method_styles(drawn: set[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each method drawn.

    No two of one figure share a colour while there are as many colours as methods, nor a marker. A method of this
    package has the same ones in every figure, but where another of the figure, earlier in the list, has them already.
    """
    rest = [name for name in methods() if name not in LEADING and name != "finetune"]
    order = [*LEADING, *rest, *sorted(drawn - {*LEADING, *rest})]
    place = {name: n for n, name in enumerate(order)}
    colours = _distinct(COLOURS, [place[name] for name in order if name in drawn])
    shapes = _distinct(tuple(MARKERS), [place[name] // len(COLOURS) + place[name] for name in order if name in drawn])
    chosen = [name for name in order if name in drawn]
    return dict(zip(chosen, zip(colours, shapes, strict=True), strict=True))


def _distinct(palette: Sequence[str], wishes: Sequence[int]) -> list[str]:
    """The wished entries of a palette, the next free one where it is taken; a full palette begins anew."""
    given: list[str] = []
    free: list[str] = []
    for wish in wishes:
        free = free or list(palette)
        turned = [palette[(wish + n) % len(palette)] for n in range(len(palette))]
        chosen = next(entry for entry in turned if entry in free)
        free.remove(chosen)
        given.append(chosen)
    return given


def save(figure: "Figure", stem: Path) -> None:
    """Write STEM.png (300 dots an inch), STEM.svg and STEM.pdf (text as text), each replaced in one rename."""
    from matplotlib import rc_context

    with rc_context(RC):
        for suffix, metadata in METADATA.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=300, metadata=metadata)
            target = stem.with_name(stem.name + suffix)
            aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
            try:
                aside.write_bytes(buffer.getvalue())
                os.replace(aside, target)
            finally:
                aside.unlink(missing_ok=True)


def _frame(ax: "Axes", panel: Panel, letter: str | None) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(panel.forgetting.label)
    corner = ", ".join(f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in panel.reference_2)
    title = f"hypervolume {panel.hypervolume:.3f}, reference ({corner})"
    if letter:
        title = f"({letter})  {title}"
    if panel.not_drawn:
        title += f"; {panel.not_drawn} not drawn"
    ax.set_title(title, loc="left", fontsize=7, color=GREY)


def _stairs(panel: Panel) -> np.ndarray:
    """Corners of the frontier from the reference point's side to its height, shape (N, 2); empty without a front."""
    fronts = [run.points_N2[run.front_N] for run in panel.trajectories]
    points_N2 = np.concatenate([*fronts, np.zeros((0, 2))])
    points_N2 = np.unique(points_N2[(points_N2 > panel.reference_2).all(axis=1)], axis=0)
    if not len(points_N2):
        return points_N2
    left, bottom = panel.reference_2
    xs = np.concatenate([[left], np.repeat(points_N2[:, 0], 2)])
    ys = np.concatenate([np.repeat(points_N2[:, 1], 2), [bottom]])
    return np.column_stack([xs, ys])


def _staircase(ax: "Axes", panel: Panel) -> None:
    """The border of what is attained and the area below it, which is the hypervolume."""
    xs, ys = _stairs(panel).T
    if len(xs):
        ax.fill_between(xs, ys, panel.reference_2[1], color="#000000", alpha=0.045, linewidth=0, zorder=1)
        ax.plot(xs, ys, color=INK, linewidth=0.9, zorder=2.5, solid_joinstyle="miter", gid="staircase")


def _trajectory(ax: "Axes", run: Trajectory, colour: str, marker: str) -> None:
    from matplotlib.colors import to_rgb

    xs, ys = run.points_N2.T
    ax.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.45, zorder=3, gid=f"trajectory {run.run}")
    # Progress by step number and not by position in the list: half-way is half-way whatever was kept.
    steps = np.asarray(run.steps, dtype=float)
    progress_N = (steps - steps[0]) / (steps[-1] - steps[0]) if steps[-1] > steps[0] else np.ones(len(steps))
    strength_N1 = (0.25 + 0.75 * progress_N)[:, None]
    shades_N3 = 1 - strength_N1 * (1 - np.array(to_rgb(colour)))
    sizes_N = (9 + 17 * progress_N) * MARKERS[marker]
    for on_front, edge, width, order in ((False, colour, 0.4, 4.0), (True, INK, 0.9, 5.0)):
        chosen = run.front_N == on_front
        if chosen.any():
            ax.scatter(
                xs[chosen],
                ys[chosen],
                s=sizes_N[chosen] + (6 if on_front else 0),
                c=shades_N3[chosen],
                marker=marker,
                edgecolors=edge,
                linewidths=width,
                zorder=order,
                clip_on=False,
            )


def _stars(ax: "Axes", panel: Panel) -> None:
    """Above every point. The golden star is the smaller and on top, so both show where the two coincide."""
    for points_N2, size, face, edge, order, name in (
        (panel.targets_N2, 230, INK, "white", 7.0, "target"),
        (panel.references_N2, 100, GOLD, INK, 8.0, "retrained"),
    ):
        if len(points_N2):
            ax.scatter(
                *points_N2.T,
                s=size,
                marker="*",
                c=face,
                edgecolors=edge,
                linewidths=0.8,
                zorder=order,
                clip_on=False,
                gid=f"star {name}",
            )


def _view(axes: Sequence["Axes"], panels: Sequence[Panel]) -> None:
    """Limits around what is drawn, with the reference point when it is near; shared utility limits."""
    tops: list[tuple[float, float]] = []
    for ax, panel in zip(axes, panels, strict=True):
        groups = [run.points_N2 for run in panel.trajectories] + [panel.targets_N2, panel.references_N2]
        points_N2 = np.concatenate([*groups, np.zeros((0, 2))])
        if not len(points_N2):
            points_N2 = np.array([panel.forgetting.limits, panel.utility.limits]).T
        ax.set_xlim(*_limits(points_N2[:, 0], panel.forgetting, panel.reference_2[0]))
        tops.append(_limits(points_N2[:, 1], panel.utility, panel.reference_2[1]))
        if panel.forgetting.column == "forget_quality":
            ax.axvline(np.log10(0.05), color="#888888", linewidth=0.7, linestyle=(0, (4, 3)), zorder=1.5)
    axes[0].set_ylim(min(low for low, _ in tops), max(high for _, high in tops))


def _limits(values_N: np.ndarray, side: Axis, reference: float) -> tuple[float, float]:
    low, high = float(values_N.min()), float(values_N.max())
    whole = side.limits[1] - side.limits[0]
    span = max(high - low, 0.05 * whole)  # noise of a thousandth must not look like a trade-off
    if high - low < span:
        low = max((low + high - span) / 2, side.limits[0])
        high = low + span
    if low - 0.35 * span <= reference < low:
        low = reference
    return (low - 0.08 * span, high + 0.08 * span)


def _legend(figure: "Figure", styles: dict[str, tuple[str, str]]) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    def key(colour: str, marker: str, size: float, line: float, edge: str | None = None) -> Line2D:
        return Line2D(
            [], [], color=colour, marker=marker, markersize=size, linewidth=line, markeredgecolor=edge or colour
        )

    handles: list[Any] = [key(colour, marker, 4.5, 0.9) for colour, marker in styles.values()]
    frontier = key(INK, "o", 4.8, 0.9)
    frontier.set_markerfacecolor("white")
    growing = tuple(
        key(shade, "o", size, 0.0, "#666666") for shade, size in (("#d9d9d9", 3.0), ("#a6a6a6", 4.0), ("#666666", 5.1))
    )
    known = methods()
    labels = [known[name].title if name in known else name for name in styles] + ["frontier", "step, early to late"]
    handles += [frontier, growing]
    # As many columns as the names allow: the first that is not wider than the figure.
    for columns in range(min(len(labels), 8), 0, -1):
        legend = figure.legend(
            handles,
            labels,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
            loc="outside upper center",
            ncols=columns,
            columnspacing=1.4,
            handletextpad=0.5,
            frameon=False,
            fontsize=7.5,
            handlelength=1.8,
        )
        figure.draw_without_rendering()  # a legend has no size before
        if columns == 1 or legend.get_window_extent().width <= 0.97 * figure.bbox.width:
            break
        legend.remove()


def _labels(ax: "Axes", panel: Panel) -> None:
    """Names at the stars, steps at front members and at each run's last point, "better" in the emptiest corner.

    A step label that finds no free place is left out: the table has every step.
    """
    placer = LabelPlacer(ax)
    for run in panel.trajectories:
        placer.keep_free(run.points_N2, radius=2.6)
        placer.avoid_line(run.points_N2)
    placer.keep_line_free(_stairs(panel))
    stars = ((panel.targets_N2, "target"), (panel.references_N2, "retrained"))
    for points_N2, _ in stars:
        placer.keep_free(points_N2, radius=6.5)
    if panel.forgetting.column == "forget_quality":
        placer.keep_text_free(
            ax.text(
                np.log10(0.05),
                0.012,
                "p = 0.05 ",
                transform=ax.get_xaxis_transform(),
                ha="right",
                fontsize=6.5,
                color=GREY,
            )
        )
    # White paper behind the names: they may have to lie across a line, and must stay readable.
    bold = {"fontsize": 7.5, "color": INK, "fontweight": "bold"}
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.85}
    for points_N2, name in stars:
        if len(points_N2):
            placer.place(points_N2[0], name, distance=8.0, must=True, bbox=paper, **bold)
    placer.corner("better", GREY)
    members = [
        (-float(contribution), step, point_2)
        for run in panel.trajectories
        for contribution, point_2, step, on_front in zip(
            run.contributions_N, run.points_N2, run.steps, run.front_N, strict=True
        )
        if on_front
    ]
    for _, step, point_2 in sorted(members, key=lambda member: member[:2]):
        placer.place(point_2, str(step), distance=4.5, must=False, fontsize=6.5, color=INK)
    for run in panel.trajectories:
        if not run.front_N[-1]:
            placer.place(run.points_N2[-1], str(run.steps[-1]), distance=4.5, must=False, fontsize=6, color=GREY)
