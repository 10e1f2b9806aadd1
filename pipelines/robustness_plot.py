"""The robustness figure: a panel an attack, a line a model, from what it knows before to what it knows after.

A hollow dot is the model before the attack, a filled one after it. The band is what the retrained model gains under
the same attack, with a line where it ends up: where a model's own line is no longer than the band is wide, no more
comes back than anyone learns (ratio 1). No band: the retrained model gains nothing. Quantised weights are compared
with the model's own, so their ratio needs no band.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.frontier_plot import GOLD, GREY, INK, RC, method_styles
from unlearn_core.errors import MissingPackageError
from unlearn_core.evaluation.robustness import ATTACKS, Recovery

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_LABELS = {
    "extraction_strength": "extraction strength",
    "exact_memorization": "exact memorization",
    "forget_Q_A_Prob": "forget answer probability",
    "forget_Q_A_ROUGE": "forget ROUGE-L recall",
    "forget_verbmem_ROUGE": "verbatim ROUGE-L F1",
    "forget_knowmem_ROUGE": "knowledge ROUGE-L F1",
}


def draw(rows: Sequence[Recovery], metric: str, methods: Mapping[str, str], known: float | None) -> "Figure":
    """Draw every attack.

    Args:
        rows: all models under all attacks; of the measures only `metric` is drawn, of a prompt attack its own.
        metric: the measure of knowledge.
        methods: model id -> method, for the colours; its order is that of the lines, from the top.
        known: what the model before unlearning knows by `metric`; None for no line.

    Returns:
        The figure, not yet saved.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("the robustness figure needs matplotlib: pip install matplotlib") from error
    shown = [row for row in rows if row.kind == "prompt" or row.metric == metric]
    attacks = [name for name in ATTACKS if any(row.attack == name for row in shown)]
    styles = method_styles(set(methods.values()))
    columns = min(_COLUMNS, len(attacks))
    lines = math.ceil(len(attacks) / columns)
    names_width = 0.055 * max(len(name) for name in methods)
    size = (names_width + 1.9 * columns, 0.55 + lines * (0.75 + 0.19 * max(2, len(methods))))
    with rc_context(RC):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
        for ax, attack in zip(axes, attacks, strict=False):
            of_attack = {row.model: row for row in shown if row.attack == attack}
            prompt = ATTACKS[attack].kind == "prompt"
            _panel(ax, attack, of_attack, methods, styles, None if prompt else known)
            ax.set_xlabel("ROUGE-L recall" if prompt else _LABELS.get(metric, metric))
            ax.set_xlim(*_limits([row for row in shown if (row.kind == "prompt") == prompt], None if prompt else known))
        for ax in axes[len(attacks) :]:
            ax.set_visible(False)
        axes[0].set_yticks(range(len(methods)), list(methods))
        axes[0].set_ylim(len(methods) - 0.4, -0.6)
        _legend(figure, known is not None)
    return figure


def _panel(
    ax: "Axes",
    attack: str,
    rows: Mapping[str, Recovery],
    methods: Mapping[str, str],
    styles: Mapping[str, tuple[str, str]],
    known: float | None,
) -> None:
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_title(attack, loc="left", fontsize=8, color=INK)
    ax.text(1.02, 1.0, "ratio", transform=ax.transAxes, fontsize=6.5, color=GREY, va="bottom")
    first = next(iter(rows.values()))
    start, end = first.reference_before, first.reference_after
    if start is not None and end is not None and end > start:
        ax.axvspan(start, end, color=GOLD, alpha=0.3, linewidth=0, zorder=1)
    if end is not None:
        ax.axvline(end, color="#B8860B", linewidth=1.0, zorder=1.5, gid="reference after")
    if known is not None:
        ax.axvline(known, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.5, gid="target")
    for place, (model, method) in enumerate(methods.items()):
        row = rows.get(model)
        if row is None:
            continue
        colour, marker = styles[method]
        if row.before is not None and row.after is not None:
            ax.plot([row.before, row.after], [place, place], color=colour, linewidth=1.1, alpha=0.6, zorder=3)
        # The hollow dot on top, so that it shows where nothing moves.
        for value, face, order, width in ((row.after, colour, 4, 30), (row.before, "white", 5, 14)):
            if value is not None:
                ax.scatter(
                    [value],
                    [place],
                    s=width,
                    marker=marker,
                    facecolors=face,
                    edgecolors=colour,
                    linewidths=0.9,
                    zorder=order,
                    clip_on=False,
                )
        text = "\N{EN DASH}" if row.ratio is None else f"{row.ratio:.2f}"
        ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), fontsize=6.5, color=INK, va="center")


def _limits(rows: Sequence[Recovery], known: float | None) -> tuple[float, float]:
    """The same for all panels of one measure, from 0: lengths can be compared across attacks."""
    values = [known, *(value for row in rows for value in (row.before, row.after, row.reference_after))]
    top = max((value for value in values if value is not None), default=1.0)
    top = max(top, 0.05)  # noise of a thousandth must not look like a recovery
    return (-0.02 * top, 1.05 * top)


def _legend(figure: "Figure", target: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dot: Any = {"linestyle": "none", "marker": "o", "color": GREY}
    handles: list[Any] = [
        Line2D([], [], markersize=3.7, markerfacecolor="white", **dot),
        Line2D([], [], markersize=5.2, **dot),
        Patch(facecolor=GOLD, alpha=0.3),
        Line2D([], [], color="#B8860B", linewidth=1.0),
    ]
    labels = ["before", "after the attack", "gain of the retrained model", "retrained model after it"]
    if target:
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (1, 2))))
        labels.append("before unlearning")
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels) if figure.get_figwidth() > 6 else 2,
        columnspacing=1.4,
        handletextpad=0.5,
        frameon=False,
        fontsize=7.5,
    )
