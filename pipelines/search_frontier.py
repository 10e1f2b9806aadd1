"""`unlearn frontier` for searches: any number of them, and evaluated runs, on one frontier.

OUTPUT/frontier.{png,svg,pdf}      points, staircases or attainment bands over search seeds, front members, re-runs
OUTPUT/hypervolume.{png,svg,pdf}   hypervolume against optimizer steps spent
OUTPUT/parallel.{png,svg,pdf}      configurations in parallel coordinates
OUTPUT/importance.{png,svg,pdf}    importance of each hyper-parameter per objective; left out where trials are too few
OUTPUT/frontier.csv            every point; OUTPUT/summary.json, written last
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipelines.evaluated_models import Evaluated, read_evaluations
from pipelines.frontier_plot import METADATA, save
from pipelines.search_parallel import parallel_groups
from pipelines.search_plots import (
    FrontierPicture,
    Rerun,
    Run,
    Series,
    draw_frontier,
    draw_hypervolume,
    draw_importance,
    draw_parallel,
)
from pipelines.search_summary import as_data, short_config
from tune.archive import SEARCH, read_about, read_history, table_of
from tune.attainment import (
    attainment_surfaces,
    hypervolume_curve,
    hypervolume_summary,
    reported_hypervolume,
    rerun_spread,
)
from tune.history import History, Point, values_of
from tune.importance import Importance, importance
from tune.objectives import Goal
from tune.space import Space
from unlearn_core.errors import UserError
from unlearn_core.frontier import non_dominated
from unlearn_core.publish import write_json, write_text

FILES = ("frontier", "hypervolume", "parallel", "importance")


@dataclass(frozen=True)
class Searched:
    """A search that was read.

    Attributes:
        folder: as the user gave it.
        about: its search.json.
        history: its trials.
    """

    folder: Path
    about: dict[str, Any]
    history: History

    @property
    def searcher(self) -> str:
        """Name of what proposed, with what it was told where that is not the usual."""
        named = self.about["searcher"]
        return named["name"] + (" (told final)" if named.get("told") == "final" else "")


def is_search(folder: Path) -> bool:
    """Whether a folder is a search's."""
    return (Path(folder) / SEARCH).is_file()


def read_searches(folders: Sequence[Path]) -> tuple[list[Searched], Goal]:
    """Searches, and the goal that they share.

    Raises:
        UserError: a folder without a search, or searches of different goals.
    """
    searches = [_read(folder) for folder in folders]
    return searches, _shared_goal(searches)


def search_frontier(folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Draw searches, and evaluated runs beside them.

    Args:
        folders: searches, at least one, of one goal; and evaluations that hold the goal's metrics.
        output: folder for the files; older ones of these names are replaced.

    Returns:
        What summary.json holds.

    Raises:
        UserError: searches of different goals, or without a point that counts; an evaluation without the metrics.
        MissingPackageError: matplotlib, moocore or Optuna is not installed.
    """
    searches, goal = read_searches([Path(folder) for folder in folders if is_search(folder)])
    evaluations = [Path(folder) for folder in folders if not is_search(folder)]
    models = read_evaluations(evaluations, goal.columns)[0] if evaluations else []
    everything = [point for one in searches for point in one.history.points() if min(point.values) > 0]
    if not everything:
        raise UserError("these searches have no point that is better than the worst that counts in every objective")
    groups: dict[str, list[Searched]] = {}
    for one in searches:
        groups.setdefault(one.searcher, []).append(one)
    found = _importance(searches, goal)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.json").unlink(missing_ok=True)
    save(draw_frontier(_picture(searches, groups, models, goal)), output / "frontier")
    save(draw_hypervolume(_series(groups, goal)), output / "hypervolume")
    save(draw_parallel(parallel_groups([(one.history, _space(one)) for one in searches], goal)), output / "parallel")
    if found.shares:
        save(draw_importance(found.shares), output / "importance")
    else:
        for suffix in METADATA:
            (output / f"importance{suffix}").unlink(missing_ok=True)
    import pandas as pd

    tables = [table_of(one.history, goal, str(one.folder)) for one in searches]
    write_text(output / "frontier.csv", pd.concat(tables).to_csv(index=False))
    summary = _summary(searches, groups, goal, found)
    write_json(output / "summary.json", summary)
    return summary


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The joint front for the terminal, hypervolumes below."""
    lines = [f"hypervolume {summary['hypervolume']:.4f} beyond the origin of {', '.join(summary['objectives'])}"]
    for name, found in summary["searchers"].items():
        told = f"{name}: {found['mean']:.4f} over {len(found['hypervolumes'])} searches"
        if found["interval"] is not None:
            low, high = found["interval"]
            told += f", 95 % bootstrap interval {low:.4f} to {high:.4f}"
        lines.append(told)
    if summary["importance_missing"]:
        lines.append(f"no importance: {summary['importance_missing']}")
    table = Table(title="Front of all searches", caption="\n".join(lines), caption_justify="left")
    for title in ("search", "trial", "step", *summary["objectives"], "configuration"):
        table.add_column(title, justify="left" if title in ("search", "configuration") else "right", overflow="fold")
    front = summary["front"]
    shown = front if len(front) <= 15 else [front[n * (len(front) - 1) // 14] for n in range(15)]
    for member in shown:
        values = (f"{value:.4f}" for value in member["values"])
        where = Path(member["search"]).name
        table.add_row(where, str(member["trial"]), str(member["step"]), *values, short_config(member["config"]))
    return table


def _read(folder: Path) -> Searched:
    return Searched(folder, read_about(folder), read_history(folder))


def _space(one: Searched) -> Space:
    return Space.from_data(one.about["space"])


def _importance(searches: Sequence[Searched], goal: Goal) -> Importance:
    """Over the trials of all searches of one space; of several spaces only the first one's."""
    space = searches[0].about["space"]
    trials = [trial for one in searches if one.about["space"] == space for trial in one.history.searched()]
    joined = History(replace(trial, number=number) for number, trial in enumerate(trials))
    return importance(joined, Space.from_data(space), tuple(one.name for one in goal.objectives))


def _shared_goal(searches: Sequence[Searched]) -> Goal:
    first = searches[0]
    for other in searches[1:]:
        if other.about["goal"] != first.about["goal"]:
            raise UserError(
                f"{first.folder} and {other.folder} have other objectives or scales, so their points and hypervolumes "
                "cannot stand in one figure. Draw them apart, or search both with the same `objectives`."
            )
    return Goal.from_data(first.about["goal"])


def _series(groups: Mapping[str, Sequence[Searched]], goal: Goal) -> list[Series]:
    series = []
    for label, members in groups.items():
        points = [values_of(one.history.points())[:, :2] for one in members if one.history.points()]
        # Bands are of two objectives: with more they would be a projection that no search attained.
        fronts = sum(bool(one.history.front()) for one in members)
        banded = len(members) > 1 and fronts > 0 and len(goal.objectives) == 2
        bands = attainment_surfaces([one.history for one in members]) if banded else {}
        curves = [hypervolume_curve(one.history) for one in members]
        series.append(Series(label, points, [(curve[:, 0], curve[:, 1]) for curve in curves], bands))
    return series


def _picture(
    searches: Sequence[Searched], groups: Mapping[str, Sequence[Searched]], models: Sequence[Evaluated], goal: Goal
) -> FrontierPicture:
    front = _joint_front(searches)
    members_N3 = np.array([[*point.values[:2], point.step] for _, point in front]).reshape(-1, 3)
    on_front = {(one.folder, point.trial, point.step) for one, point in front}
    reruns = [
        Rerun(
            np.array(spread.point.values[:2]),
            np.array(spread.mean[:2]),
            np.array((spread.deviation or (0.0, 0.0))[:2]),
        )
        for one in searches
        for spread in rerun_spread(one.history).members
        if spread.mean is not None and (one.folder, spread.point.trial, spread.point.step) in on_front
    ]
    return FrontierPicture(
        axes=(_label(goal, 0), _label(goal, 1)),
        series=_series(groups, goal),
        runs=_runs(models, goal),
        members_N3=members_N3,
        reruns=reruns,
        reference_2=_reference(searches[0], goal),
        hypervolume=reported_hypervolume(values_of(point for _, point in front)),
    )


def _runs(models: Sequence[Evaluated], goal: Goal) -> list[Run]:
    found: dict[str, list[tuple[int, tuple[float, ...]]]] = {}
    for model in models:
        values = goal.values(model.metrics)
        if model.role == "checkpoint" and np.isfinite(values).all():
            found.setdefault(model.run, []).append((model.step, values[:2]))
    return [Run(name, np.array([values for _, values in sorted(rows)])) for name, rows in found.items()]


def _reference(one: Searched, goal: Goal) -> tuple[float, float] | None:
    scores = one.about.get("baseline", {}).get("reference")
    if not scores:
        return None
    x, y = goal.values(scores)[:2]
    return (x, y) if np.isfinite((x, y)).all() else None


def _joint_front(searches: Sequence[Searched]) -> list[tuple[Searched, Point]]:
    every = [(one, point) for one in searches for point in one.history.front()]
    values_NM = values_of(point for _, point in every)
    mask_N = non_dominated(values_NM, (True,) * values_NM.shape[1])
    kept = [pair for pair, on_front in zip(every, mask_N, strict=True) if on_front]
    return sorted(kept, key=lambda pair: pair[1].values)


def _label(goal: Goal, number: int) -> str:
    objective = goal.objectives[number]
    raw = objective.metrics[0] if len(objective.metrics) == 1 else f"harmonic mean of {len(objective.metrics)} metrics"
    towards = "nearness of " if objective.direction == "target" else ""
    return f"{objective.name} ({towards}{raw};\n0 at {objective.worst:.3g}, 1 at {objective.best:.3g})"


def _summary(
    searches: Sequence[Searched],
    groups: Mapping[str, Sequence[Searched]],
    goal: Goal,
    found: Importance,
) -> dict[str, Any]:
    front = _joint_front(searches)
    again = {
        (one.folder, spread.point.trial, spread.point.step): as_data(spread)
        for one in searches
        for spread in rerun_spread(one.history).members
    }
    searchers = {}
    for name, members in groups.items():
        volumes = hypervolume_summary([one.history for one in members])
        searchers[name] = {
            "searches": [str(one.folder) for one in members],
            "hypervolumes": volumes.each,
            "mean": volumes.mean,
            "interval": None if volumes.low is None else (volumes.low, volumes.high),
            "steps_spent": [one.history.steps_spent for one in members],
        }
    return {
        "objectives": [one.name for one in goal.objectives],
        "goal": goal.to_data(),
        "hypervolume": reported_hypervolume(values_of(point for _, point in front)),
        "searchers": searchers,
        "front": [
            {
                "search": str(one.folder),
                "trial": point.trial,
                "step": point.step,
                "values": list(point.values),
                "config": one.history.trials[point.trial].config,
                "reruns": again.get((one.folder, point.trial, point.step)),
            }
            for one, point in front
        ],
        "importance": found.shares,
        "importance_missing": found.reason,
    }
