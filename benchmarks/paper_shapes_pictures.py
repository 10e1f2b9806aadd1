"""The four pictures of `benchmarks.paper_shapes`, in Okabe and Ito's colours and with one marker or dash a curve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.paper_shapes_runs import Curve
from benchmarks.paper_shapes_signs import Signs
from benchmarks.paper_shapes_teacher import FAMILIES, LEVELS, REACHED
from pipelines.frontier_plot import COLOURS, GREY, RC

BLUE, ORANGE, GREEN, PINK, SKY = COLOURS[:5]
DASHES: Sequence[Any] = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)))


def draw_signs(runs: Sequence[Signs], stem: Path) -> None:
    """Part (a): shares of wrong steps as bars; beside them, cosines to g_R step by step."""
    kinds = ("retain sign wrong", "forget sign wrong", "retain loss rose")
    with rc_context(RC):
        figure = _figure(7.4, 3.1)
        bars, lines = figure.subplots(1, 2, width_ratios=(1.35, 1))
        for n, (kind, colour) in enumerate(zip(kinds, (BLUE, ORANGE, GREY), strict=True)):
            places = [k + 0.26 * (n - 1) for k in range(len(runs))]
            heights = [100 * run.shares()[kind] for run in runs]
            drawn = bars.bar(places, heights, 0.24, color=colour, label=kind, hatch=("", "//", "..")[n], ec="white")
            bars.bar_label(drawn, fmt="%.0f", fontsize=6, color="#222222", padding=1)
        bars.set_xticks(range(len(runs)), [run.name.replace("GradDiff ", "GradDiff\n") for run in runs])
        bars.set_ylabel("share of steps, %")
        bars.set_ylim(0, 112)
        bars.legend(frameon=False, fontsize=7, loc="upper right", ncols=1)
        shown = {"GradDiff c=0.1": (ORANGE, "--"), "GradDiff c=0.5": (GREEN, "-."), "GradDiff c=0.9": (PINK, ":")}
        for run in runs:
            if run.name in shown or run.name == "NGDiff":
                colour, dash = shown.get(run.name, (BLUE, "-"))
                steps = range(1, len(run.retain_cosine) + 1)
                label = run.name.removeprefix("GradDiff ")
                lines.plot(steps, run.retain_cosine, color=colour, ls=dash, lw=1.3, label=label)
        lines.axhline(0, color="#222222", lw=0.6)
        lines.set_xlabel("step")
        lines.set_ylabel("cosine of $g$ and $g_R$; below 0: wrong")
        lines.set_ylim(-1.05, 1.05)
        lines.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1)
        _save(figure, stem)


def draw_leaving(curves: Sequence[Curve], stem: Path) -> None:
    """Part (b): forget probability and the norm of the forget gradient against the step."""
    with rc_context(RC):
        figure = _figure(7.0, 2.9)
        left, right = figure.subplots(1, 2)
        # The last two lie on each other: a broad light line under a thin dark one shows both.
        styles = ((BLUE, "-", 1.6), (SKY, "-", 4.0), (ORANGE, "--", 1.4))
        for curve, (colour, dash, width) in zip(curves, styles, strict=True):
            left.plot(curve.steps, curve.forget, color=colour, ls=dash, lw=width, label=curve.name)
            norms = [log["norm_forget"] for log in curve.logs]
            starts = range(0, len(norms) - 9, 10)  # means of ten steps
            means = [sum(norms[k : k + 10]) / 10 for k in starts]
            right.plot([k + 5 for k in starts], means, color=colour, ls=dash, lw=width)
        left.set_xlabel("step")
        left.set_ylabel("forget probability")
        left.set_ylim(-0.02, 1.04)
        left.legend(frameon=False, loc="center right")
        right.set_xlabel("step")
        right.set_ylabel("norm of the forget gradient")
        right.set_yscale("log")
        _save(figure, stem)


def draw_pace(curves: Sequence[Curve], stem: Path) -> None:
    """Part (c): forget probability against the step, and against delta x steps, where the curves should fall on one."""
    with rc_context(RC):
        figure = _figure(7.0, 3.1)
        left, right = figure.subplots(1, 2, sharey=True)
        for curve, colour, dash in zip(curves, (BLUE, ORANGE, GREEN, PINK, GREY), DASHES, strict=False):
            delta = curve.settings["teacher_rate"]
            left.plot(curve.steps, curve.forget, color=colour, ls=dash, lw=1.5, label=rf"$\delta$ = {delta:g}")
            if delta:
                right.plot([delta * step for step in curve.steps], curve.forget, color=colour, ls=dash, lw=1.5)
        for ax in (left, right):
            ax.axhline(REACHED, color="#222222", lw=0.5)
        left.set_ylim(REACHED - 0.03, 1.01)
        left.set_xlabel("step")
        left.set_ylabel("forget probability")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        right.set_xlabel(r"$\delta \times$ steps")
        _save(figure, stem)


def draw_equal_forgetting(curves: dict[str, list[Curve]], table: dict[str, Any], stem: Path) -> None:
    """Part (d): all runs as thin lines, each family's lowest KL at the compared levels as markers."""
    styles = {"mean_teacher": (BLUE, "-", "o"), "nlul": (ORANGE, "--", "s")}
    alphas = sorted({run.settings["forget_weight"] for runs in curves.values() for run in runs})
    with rc_context(RC):
        figure = _figure(7.4, 3.0)
        axes = figure.subplots(1, len(alphas), sharey=True)
        for ax, alpha in zip(axes, alphas, strict=True):
            for family, (colour, dash, marker) in styles.items():
                for run in curves[family]:
                    if run.settings["forget_weight"] == alpha:
                        shown = [(1 - p, kl) for p, kl in zip(run.forget, run.kl, strict=True) if kl > 0]
                        ax.plot(*zip(*shown, strict=True), color=colour, ls=dash, lw=0.8, alpha=0.6)
                lowest = [entry["lowest"] for entry in table[f"{family}, alpha {alpha:g}"]]
                where = [(1 - level, kl) for level, kl in zip(LEVELS, lowest, strict=True) if kl is not None]
                ax.plot(*zip(*where, strict=True), marker, color=colour, ms=4.5, mec="white", mew=0.5)
            ax.set_title(rf"$\alpha$ = {alpha:g}", fontsize=8.5)
            ax.set_yscale("log")
            ax.set_xlim(0, 0.93)
            ax.set_ylim(bottom=2e-5)
            ax.set_xlabel("1 - forget probability")
        axes[0].set_ylabel("generic KL, nats a token")
        for family, (colour, dash, marker) in styles.items():
            axes[0].plot([], [], color=colour, ls=dash, marker=marker, ms=4.5, lw=1.0, label=FAMILIES[family])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        _save(figure, stem)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, stem: Path) -> None:
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"), dpi=200)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
