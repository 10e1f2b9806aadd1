"""From evaluated checkpoints to the frontier: table, non-dominated set, hypervolume, figure.

    EVAL/metrics.csv ... -> points -> front and hypervolume -> frontier.csv, frontier.png, .svg, .pdf, summary.json

Every evaluated checkpoint is a candidate, also one of step 0, which equals the target. The target (where unlearning
starts) and the retrained reference (where it should arrive) are drawn as stars and are not candidates: a front that
holds the reference would say nothing about the methods.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from pipelines.evaluated_models import Evaluated, read_evaluations, usual_utility
from pipelines.frontier_plot import Panel, Trajectory, draw, save
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.frontier import AXES, LOG10_FLOOR, Axis, axis, non_dominated
from unlearn_core.publish import write_json, write_text

MAXIMISE = (True, True)
"""`Axis.value` turns every objective so that higher is better."""
IDENTITY_COLUMNS = ("evaluation", "run", "method", "step", "role", "model", "path")


@dataclass(frozen=True, slots=True)
class FrontMember:
    """A non-dominated checkpoint. `contribution` is its exclusive hypervolume: what the area loses without it."""

    evaluation: str
    run: str
    method: str
    step: int
    model: str
    path: str
    forgetting: float
    utility: float
    contribution: float


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """An evaluated model without a position, and why."""

    evaluation: str
    run: str
    model: str
    role: str
    reason: str


@dataclass(frozen=True, slots=True)
class Companion:
    """The figure's second panel: the same checkpoints against log10 forget quality, with a front of its own."""

    forgetting: str
    reference_point: tuple[float, float]
    hypervolume: float
    front: int
    not_drawn: int


@dataclass(frozen=True, slots=True)
class FrontierSummary:
    """What `frontier` found; summary.json holds the same fields.

    Attributes:
        benchmark: benchmark that all evaluations share.
        forget_split: forget split that they share.
        forgetting: column of the forgetting axis; `forgetting_label` names its transform.
        utility: column of the utility axis; `utility_label` names its transform.
        reference_point: (forgetting, utility) after the transforms; volume counts from here.
        hypervolume: area beyond the reference point covered by all candidates, by moocore; higher is better.
        hypervolume_by_method: the same for each method's checkpoints alone.
        front: the non-dominated candidates by rising forgetting; copies of a point are all there.
        candidates: number of checkpoints with a position.
        not_drawn: models (checkpoints and stars) without one.
        repeated: rows left out because another evaluation holds the same checkpoint with the same numbers.
        companion: the second panel, or None when no checkpoint has a forget quality.
        caption: text for under the figure.
    """

    evaluations: tuple[str, ...]
    benchmark: str
    forget_split: str
    forgetting: str
    forgetting_label: str
    utility: str
    utility_label: str
    reference_point: tuple[float, float]
    hypervolume: float
    hypervolume_by_method: dict[str, float]
    front: tuple[FrontMember, ...]
    candidates: int
    not_drawn: tuple[NotDrawn, ...]
    repeated: int
    companion: Companion | None
    caption: str
    moocore: str


@dataclass(frozen=True, slots=True)
class _Placed:
    """All models against one pair of axes. The arrays run over the candidates; `rest` explains the others."""

    forgetting: Axis
    utility: Axis
    reference_2: tuple[float, float]
    candidates: list[Evaluated]
    points_N2: np.ndarray
    front_N: np.ndarray
    contributions_N: np.ndarray
    hypervolume: float
    targets_N2: np.ndarray
    references_N2: np.ndarray
    rest: dict[Evaluated, str]


def frontier(
    evaluations: Sequence[Path],
    output: Path,
    forgetting: str = "extraction_strength",
    utility: str | None = None,
    reference_point: tuple[float, float] | None = None,
) -> FrontierSummary:
    """Write OUTPUT/frontier.csv, frontier.png, .svg, .pdf and, last, summary.json.

    Args:
        evaluations: folders that `unlearn evaluate` wrote, all of one benchmark and forget split.
        output: folder for the files; older files of these names are replaced.
        forgetting: column of a forgetting axis (`unlearn_core.frontier.AXES`).
        utility: column of a utility axis; None takes the suite's own: model_utility for TOFU, retain_knowmem_ROUGE for
            MUSE, retain_utility for own files.
        reference_point: (forgetting, utility) after the axes' transforms, where both are better when higher; None
            takes the axes' own, (0, 0) for the default pair.

    Returns:
        The summary that was written.

    Raises:
        UserError: unknown axis, incomplete or mixed evaluations, a column that was not evaluated, no checkpoint, or a
            reference point that no checkpoint could be beyond.
        MissingPackageError: moocore or matplotlib is not installed.
    """
    forgetting_axis = axis(forgetting, "forgetting")
    utility = utility or usual_utility(evaluations)
    utility_axis = axis(utility, "utility")
    reference_2 = _reference(reference_point, forgetting_axis, utility_axis)
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder to write the frontier into.")
    models, settings, repeated = read_evaluations(evaluations, (forgetting, utility))
    if not any(model.role == "checkpoint" for model in models):
        raise UserError("These evaluations hold no checkpoint, only target or reference; evaluate a run's folder too.")

    main = _place(models, forgetting_axis, utility_axis, reference_2)
    quality = _companion(models, main)
    summary = _summary(main, quality, evaluations, settings, repeated)
    figure = draw([_panel(placed) for placed in (main, quality) if placed is not None])

    output.mkdir(parents=True, exist_ok=True)
    # A summary left from an earlier call would vouch for files of this one that are not written yet.
    (output / "summary.json").unlink(missing_ok=True)
    write_text(output / "frontier.csv", _csv(main, models))
    save(figure, output / "frontier")
    write_json(output / "summary.json", asdict(summary))
    return summary


def summary_table(summary: FrontierSummary) -> Table:
    """The front for the terminal: a row a member, hypervolumes below."""
    by_method = ", ".join(f"{method} {volume:.4f}" for method, volume in summary.hypervolume_by_method.items())
    point = f"({summary.reference_point[0]:g}, {summary.reference_point[1]:g})"
    lines = [
        f"hypervolume {summary.hypervolume:.4f} beyond (forgetting, utility) = {point}; alone: {by_method or 'none'}",
        f"{len(summary.front)} of {summary.candidates} checkpoints are non-dominated",
    ]
    if summary.not_drawn:
        noun = "model" if len(summary.not_drawn) == 1 else "models"
        lines.append(f"{len(summary.not_drawn)} {noun} without a position, see frontier.csv")
    table = Table(
        title=f"Frontier on {summary.benchmark}, {summary.forget_split}",
        caption="\n".join(lines),
        caption_justify="left",
    )
    for name in ("method", "run"):
        table.add_column(name)
    for name in ("step", summary.forgetting_label, summary.utility_label, "contribution"):
        table.add_column(name, justify="right")
    for member in summary.front:
        numbers = (f"{value:.4f}" for value in (member.forgetting, member.utility, member.contribution))
        table.add_row(member.method, member.run, str(member.step), *numbers)
    return table


def _reference(given: tuple[float, float] | None, forgetting: Axis, utility: Axis) -> tuple[float, float]:
    if given is None:
        return (forgetting.reference, utility.reference)
    if len(given) != 2 or not all(math.isfinite(value) for value in given):
        raise UserError(f"--reference-point {given}: expected two finite numbers, forgetting then utility.")
    for value, side in zip(given, (forgetting, utility), strict=True):
        if value >= side.limits[1]:
            raise UserError(
                f"--reference-point {value:g} for {side.column}: no checkpoint can be beyond it, since "
                f"{side.label} is at most {side.limits[1]:g}. Give a smaller number; the default is {side.reference:g}."
            )
    return (float(given[0]), float(given[1]))


def _place(models: list[Evaluated], forgetting: Axis, utility: Axis, reference_2: tuple[float, float]) -> _Placed:
    """Sort models into candidates, stars and the rest, and measure the candidates with moocore."""
    try:
        import moocore
    except ImportError as error:
        raise MissingPackageError("The frontier's hypervolume needs moocore: pip install moocore") from error
    found: dict[str, list[Evaluated]] = {"checkpoint": [], "target": [], "reference": []}
    rest: dict[Evaluated, str] = {}
    for model in models:
        reasons = [reason for side in (forgetting, utility) if (reason := model.reason(side.column))]
        if reasons:
            rest[model] = "; ".join(reasons)
        else:
            found[model.role].append(model)
    points = {
        role: np.array([[m.position(forgetting), m.position(utility)] for m in group], dtype=float).reshape(-1, 2)
        for role, group in found.items()
    }
    points_N2 = points["checkpoint"]
    return _Placed(
        forgetting=forgetting,
        utility=utility,
        reference_2=reference_2,
        candidates=found["checkpoint"],
        points_N2=points_N2,
        front_N=non_dominated(points_N2, MAXIMISE),
        contributions_N=moocore.hv_contributions(points_N2, reference_2, maximise=True, ignore_dominated=False),
        hypervolume=float(moocore.hypervolume(points_N2, ref=reference_2, maximise=True)),
        targets_N2=points["target"],
        references_N2=points["reference"],
        rest=rest,
    )


def _companion(models: list[Evaluated], main: _Placed) -> _Placed | None:
    """The forget-quality panel, when it is not the main axis already and some checkpoint has a value."""
    quality = AXES["forget_quality"]
    has_values = any(m.role == "checkpoint" and m.reason(quality.column) is None for m in models)
    if main.forgetting is quality or not has_values:
        return None
    return _place(models, quality, main.utility, (quality.reference, main.reference_2[1]))


def _summary(
    main: _Placed,
    quality: _Placed | None,
    evaluations: Sequence[Path],
    settings: dict[str, str],
    repeated: int,
) -> FrontierSummary:
    import moocore

    by_method = {}
    for method in sorted({model.method for model in main.candidates}):
        own = main.points_N2[[model.method == method for model in main.candidates]]
        by_method[method] = float(moocore.hypervolume(own, ref=main.reference_2, maximise=True))
    members = [
        FrontMember(
            evaluation=model.evaluation,
            run=model.run,
            method=model.method,
            step=model.step,
            model=model.model,
            path=model.path,
            forgetting=float(point_2[0]),
            utility=float(point_2[1]),
            contribution=float(contribution),
        )
        for model, point_2, contribution, on_front in zip(
            main.candidates, main.points_N2, main.contributions_N, main.front_N, strict=True
        )
        if on_front
    ]
    missing = [NotDrawn(m.evaluation, m.run, m.model, m.role, reason) for m, reason in main.rest.items()]
    return FrontierSummary(
        evaluations=tuple(str(folder) for folder in evaluations),
        benchmark=settings["benchmark"],
        forget_split=settings["forget_split"],
        forgetting=main.forgetting.column,
        forgetting_label=main.forgetting.label,
        utility=main.utility.column,
        utility_label=main.utility.label,
        reference_point=main.reference_2,
        hypervolume=main.hypervolume,
        hypervolume_by_method=by_method,
        front=tuple(sorted(members, key=lambda member: (member.forgetting, member.method, member.run, member.step))),
        candidates=len(main.candidates),
        not_drawn=tuple(missing),
        repeated=repeated,
        companion=None
        if quality is None
        else Companion(
            forgetting=quality.forgetting.column,
            reference_point=quality.reference_2,
            hypervolume=quality.hypervolume,
            front=int(quality.front_N.sum()),
            not_drawn=len(quality.rest),
        ),
        caption=_caption(main, quality, settings),
        moocore=moocore.__version__,
    )


def _caption(main: _Placed, quality: _Placed | None, settings: dict[str, str]) -> str:
    """Text for under the figure: what is drawn, from where area counts, what is missing."""
    reference = ", ".join(f"{value:g}" for value in main.reference_2)
    counts = Counter(model.role for model in main.rest)
    parts = [
        f"{main.utility.label} against {main.forgetting.label} on {settings['benchmark']}, "
        f"{settings['forget_split']}. A point is a checkpoint, darker and larger at later steps of its run; outlined "
        "points are non-dominated and carry their step. Stars (target, retrained reference) are not candidates. "
        f"Shaded: hypervolume {main.hypervolume:.4f} beyond (forgetting, utility) = ({reference}).",
    ]
    if quality is not None:
        corner = ", ".join(f"{value:g}" for value in quality.reference_2)
        parts.append(f"Panel (b) has its own front and hypervolume {quality.hypervolume:.4f} beyond ({corner}).")
    if quality is not None or main.forgetting.transform == "log10":
        parts.append(f"p-values below 1e{LOG10_FLOOR:g} are drawn at 1e{LOG10_FLOOR:g}.")
    if counts:
        named = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for role, count in sorted(counts.items()))
        parts.append(f"Not drawn for want of a value: {named}.")
    if quality is not None and len(quality.rest) > len(main.rest):
        parts.append(f"Panel (b) lacks {len(quality.rest) - len(main.rest)} more without a forget quality.")
    return " ".join(parts)


def _panel(placed: _Placed) -> Panel:
    """What the figure needs of one pair of axes: trajectories by run, in the order of their steps."""
    rows: dict[tuple[str, str], list[int]] = {}
    for n, model in enumerate(placed.candidates):
        rows.setdefault((model.method, model.run), []).append(n)
    trajectories = []
    for (method, run), indices in sorted(rows.items()):
        ordered = sorted(indices, key=lambda n: placed.candidates[n].step)
        trajectories.append(
            Trajectory(
                run=run,
                method=method,
                steps=tuple(placed.candidates[n].step for n in ordered),
                points_N2=placed.points_N2[ordered],
                front_N=placed.front_N[ordered],
                contributions_N=placed.contributions_N[ordered],
            )
        )
    return Panel(
        forgetting=placed.forgetting,
        utility=placed.utility,
        trajectories=tuple(trajectories),
        targets_N2=placed.targets_N2,
        references_N2=placed.references_N2,
        reference_2=placed.reference_2,
        hypervolume=placed.hypervolume,
        not_drawn=len(placed.rest),
    )


def _csv(placed: _Placed, models: list[Evaluated]) -> str:
    """All models in the order they were read. Stars and models without a position have no front flag to carry."""
    raw = list(dict.fromkeys((placed.utility.column, placed.forgetting.column)))
    at = {model: n for n, model in enumerate(placed.candidates)}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (*IDENTITY_COLUMNS, *raw, "utility", "forgetting", "on_front", "hypervolume_contribution", "reason")
    )
    for model in models:
        head = [model.evaluation, model.run, model.method, model.step, model.role, model.model, model.path]
        values = [model.metrics.get(column, "") for column in raw]
        if model in placed.rest:
            tail = ["", "", False, "", placed.rest[model]]
        else:
            n = at.get(model)
            tail = [
                model.position(placed.utility),
                model.position(placed.forgetting),
                False if n is None else bool(placed.front_N[n]),
                "" if n is None else float(placed.contributions_N[n]),
                "" if n is not None else f"the {model.role} is not a candidate",
            ]
        writer.writerow(head + values + tail)
    return out.getvalue()
