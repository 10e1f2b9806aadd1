"""Everything that the page shows, gathered from the folders, as plain data for its scripts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.evaluated_models import usual_utility
from pipelines.frontier_plot import method_styles
from pipelines.report.answers import Answers, answers
from pipelines.report.attacks import Attacks, read_attacks
from pipelines.report.curves import GROUPS, Curves, curves_of, read_log
from pipelines.report.gradient_plane import Plane, plane_of
from pipelines.report.inputs import Inputs
from pipelines.report.models import Point, Run, View
from pipelines.report.points import Gathered, gather
from pipelines.report.provenance import Fact, evaluation_facts, run_rows, search_facts, training_facts
from pipelines.report.views import default_pair, hypervolumes, is_candidate, views
from pipelines.report.words import Front, front_of, star_of, summary, title_of
from tune.attainment import attainment_surfaces

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
}
"""Markers of the printed figures -> the page's."""
DIGITS = 6
"""Significant digits of numbers on the page."""


@dataclass(frozen=True)
class Content:
    """A report before it is drawn.

    Attributes:
        evaluations: folders of evaluations that were read, those inside robustness folders too.
        sentences: the summary.
        facts: (heading, facts) of each evaluation and search.
        data: for the page's scripts.
        title: of the page.
    """

    evaluations: tuple[Path, ...]
    sentences: list[str]
    facts: list[tuple[str, list[Fact]]]
    data: dict[str, Any]
    title: str


def content_of(inputs: Inputs) -> Content:
    """Read everything.

    Raises:
        UserError: folders that are damaged, unfinished or do not belong on one page.
        MissingPackageError: moocore is not installed.
    """
    attacked = read_attacks(inputs.attacks)
    evaluations = inputs.evaluations
    if not evaluations and not inputs.searches:  # a robustness folder holds an evaluation of its own
        evaluations = tuple(one.folder / "evaluation" for one in attacked)
    gathered = gather(evaluations, inputs.searches, inputs.runs)
    found = views(gathered.points, gathered.goal)
    usual = usual_utility(evaluations) if evaluations else None
    pair = default_pair(found, usual)
    areas = hypervolumes(gathered, found)
    by_key = {view.key: view for view in found}
    front = None
    if pair is not None:
        front = front_of(gathered, by_key[pair[0]], by_key[pair[1]], areas.get("|".join(pair), {}))
    logs = {key: read_log(run.folder) for key, run in gathered.runs.items() if not key.startswith(("target", "refer"))}
    curves = {key: one for key, log in logs.items() if (one := curves_of(log)) is not None}
    planes = {key: plane_of(logs[key], gathered.runs[key].config) for key in curves}
    told = answers(gathered.points, gathered.runs, _chosen(gathered, front))
    data = {
        **_frontier_data(gathered, found, pair, areas),
        "runs": _runs(list(gathered.runs.values())),
        "curves": {key: _curves(one) for key, one in curves.items()},
        "panels": [list(group) for group in GROUPS],
        "planes": {key: _plane(one) for key, one in planes.items()},
        "answers": _answers(told),
        "attacks": [_attacks(one) for one in attacked],
        "costs": run_rows(list(gathered.runs.values()), curves),
    }
    facts = [("This report", [("unlearn", version("unlearn"))])]
    facts += evaluation_facts(evaluations) + search_facts(gathered.searches)
    facts += training_facts(list(gathered.runs.values()))
    where = ", ".join(value for value in gathered.settings.values() if value)
    return Content(
        evaluations=evaluations,
        sentences=summary(gathered, front, told, attacked, len(curves)),
        facts=facts,
        data=data,
        title=f"Unlearning report: {where}" if where else "Unlearning report",
    )


def _chosen(gathered: Gathered, front: Front | None) -> dict[str, Point]:
    """Of each evaluated run the checkpoint whose answers are shown.

    The one with most utility among those that forget at least as much as the retrained model; where none does or there
    is no retrained model, the one with the largest sum of both axes; without a front, the last.
    """
    enough = None if front is None else star_of(gathered, front, "reference")
    chosen: dict[str, tuple[tuple[bool, float, int], Point]] = {}
    for n, point in enumerate(gathered.points):
        if not point.model or not is_candidate(point):
            continue
        x, y = (None, None) if front is None else (front.x.values[n], front.y.values[n])
        rank = (False, -math.inf, point.step)
        if x is not None and y is not None:
            reaches = enough is not None and x >= enough[0]
            rank = (reaches, y if reaches else x + y, point.step)
        if point.run not in chosen or rank > chosen[point.run][0]:
            chosen[point.run] = (rank, point)
    return {key: point for key, (_, point) in chosen.items()}


def _frontier_data(
    gathered: Gathered, found: Sequence[View], pair: tuple[str, str] | None, areas: dict[str, dict[str, float]]
) -> dict[str, Any]:
    runs = list(gathered.runs.values())
    place = {run.key: n for n, run in enumerate(runs)}
    drawn = {gathered.runs[point.run].method for point in gathered.points if point.role in ("checkpoint", "rerun")}
    drawn |= {run.method for run in runs if run.method != "finetune"}
    styles = method_styles(drawn)
    columns = list(dict.fromkeys(name for point in gathered.points for name in point.metrics))
    return {
        "methods": [
            {"name": name, "title": title_of(name), "colour": colour, "symbol": SYMBOLS[marker]}
            for name, (colour, marker) in styles.items()
        ],
        "points": [
            {
                "run": place[point.run],
                "step": point.step,
                "role": point.role,
                "model": point.model,
                "excluded": point.excluded,
                "parent": [place[point.parent[0]], point.parent[1]] if point.parent else None,
            }
            for point in gathered.points
        ],
        "columns": columns,
        "metrics": [[_short(point.metrics.get(name)) for name in columns] for point in gathered.points],
        "views": [
            {
                "key": view.key,
                "label": view.label,
                "kind": view.kind,
                "log": view.log,
                "reference": view.reference,
                # Raw columns are in `metrics` already.
                "values": None if view.kind == "raw" else [_short(value) for value in view.values],
                "column": columns.index(view.key.removeprefix("raw:")) if view.kind == "raw" else None,
            }
            for view in found
        ],
        "pair": list(pair) if pair else None,
        "areas": {key: {name: _short(value) for name, value in one.items()} for key, one in areas.items()},
        "bands": _bands(gathered),
    }


def _bands(gathered: Gathered) -> list[dict[str, Any]]:
    """Attainment surfaces over search seeds, for each searcher with more than one search of two objectives."""
    if gathered.goal is None or len(gathered.goal.objectives) != 2:
        return []
    groups: dict[str, list[Any]] = {}
    for one in gathered.searches:
        groups.setdefault(one.searcher, []).append(one.history)
    bands = []
    for name, histories in groups.items():
        if len(histories) > 1 and any(history.front() for history in histories):
            surfaces = attainment_surfaces(histories)
            bands.append(
                {
                    "label": f"{name}, {len(histories)} search seeds",
                    "axes": [f"objective:{one.name}" for one in gathered.goal.objectives],
                    "surfaces": {str(p): [[_short(v) for v in row] for row in rows] for p, rows in surfaces.items()},
                }
            )
    return bands


def _runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Runs that differ by their seed alone have the same number as their family; null where that is not known."""
    families = {family: n for n, family in enumerate(dict.fromkeys(run.family for run in runs if run.family))}
    return [
        {
            "key": run.key,
            "label": run.label,
            "method": run.method,
            "family": families.get(run.family),
            "seed": run.seed,
            "settings": {name: _told(value) for name, value in run.settings.items()},
            "config": run.config,
            "status": run.status,
            "source": run.source,
        }
        for run in runs
    ]


def _curves(one: Curves) -> dict[str, Any]:
    return {
        "steps": one.steps,
        "series": {name: [_short(value) for value in values] for name, values in one.series.items()},
        "probes": {str(step): outcome for step, outcome in one.probes.items()},
        "every": one.every,
    }


def _plane(one: Plane | str) -> dict[str, Any]:
    if isinstance(one, str):
        return {"missing": one}
    return {
        "names": one.names,
        "ascends": one.ascends,
        "steps": one.steps,
        "gradients": [[_short(value) for value in row] for row in one.gradients],
        "directions": [None if d is None else [_short(value) for value in d] for d in one.directions],
        "lengths": [_short(value) for value in one.lengths],
        "why_not": one.why_not,
    }


def _answers(told: Answers | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        "columns": told.columns,
        "generated": told.generated,
        "notes": list(told.notes),
        "questions": [
            {
                "group": one.group,
                "question": one.question,
                "truth": one.truth,
                "answers": {
                    key: [answer.text, _short(answer.probability), _short(answer.rouge)]
                    for key, answer in one.answers.items()
                },
            }
            for one in told.questions
        ],
    }


def _attacks(one: Attacks) -> dict[str, Any]:
    return {
        "folder": str(one.folder),
        "metric": one.metric,
        "known": one.known,
        "what": one.what,
        "rows": one.rows,
        "scores": one.scores,
        "skipped": one.skipped,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _told(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
