"""What a search found, as plain data and as a table: front, hypervolume, what became of the trials, re-runs."""

from collections import Counter
from typing import Any

from rich.table import Table

from tune.archive import Archive
from tune.attainment import MemberSpread, reported_hypervolume, rerun_spread
from tune.history import History, Point, values_of
from tune.kept_models import KeptModels
from tune.space import Config
from unlearn_core.publish import MARKER


def summarise(archive: Archive) -> dict[str, Any]:
    """The content of summary.json; every number is moocore's or read off the archive."""
    history, goal = archive.history, archive.goal
    models = KeptModels(archive, most=0)
    spread = rerun_spread(history)
    again = {(one.point.trial, one.point.step): as_data(one) for one in spread.members}
    members = []
    for point in sorted(history.front(), key=lambda point: point.values):
        trial = history.trials[point.trial]
        folder = models.folder(point)
        members.append(
            {
                "trial": point.trial,
                "step": point.step,
                "origin": trial.origin,
                "config": trial.config,
                "values": dict(zip((one.name for one in goal.objectives), point.values, strict=True)),
                "metrics": {column: point.metrics[column] for column in goal.columns},
                "model": str(folder.relative_to(archive.folder.resolve())) if (folder / MARKER).is_file() else None,
                "reruns": again.get((point.trial, point.step)),
            }
        )
    return {
        "search": archive.about["name"],
        "searcher": archive.about["searcher"],
        "goal": archive.about["goal"],
        "hypervolume": reported_hypervolume(values_of(history.front())),
        "hypervolume_of_rerun_members": {"means": spread.hypervolume, "as_searched": spread.hypervolume_seen}
        if spread.members
        else None,
        "front": members,
        "trials": dict(Counter(f"{trial.origin}: {trial.status}" for trial in history)),
        "points": sum(len(trial.points) for trial in history),
        "steps_spent": history.steps_spent,
        "hours": archive.seconds_used() / 3600,
        "failures": {
            trial.number: f"{trial.status}: {trial.reason}"
            for trial in history
            if trial.status in ("diverged", "out_of_memory", "hung", "failed")
        },
    }


def as_data(spread: MemberSpread) -> dict[str, Any]:
    """Re-runs of a front member, for JSON."""
    return {
        "seeds": len(spread.values),
        "mean": spread.mean,
        "deviation": spread.deviation,
        "without": spread.without,
        "infeasible": spread.infeasible,
    }


def short_config(config: Config) -> str:
    """A configuration in a line: keys by their last part, numbers at three digits."""
    parts = []
    for key, value in config.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(shown if key == "method.name" else f"{key.rpartition('.')[2]} {shown}")
    return ", ".join(parts)


def front_table(history: History, names: list[str], varying: set[str], most: int = 12) -> Table:
    """Best trade-offs so far, by falling contribution of the first objective; keys that do not vary are left out."""
    table = Table(title_justify="left", expand=False)
    for title in ("trial", "step", *names):
        table.add_column(title, justify="right")
    table.add_column("configuration", overflow="fold")
    front: list[Point] = sorted(history.front(), key=lambda point: point.values, reverse=True)
    shown = front if len(front) <= most else [front[i * (len(front) - 1) // (most - 1)] for i in range(most)]
    for point in shown:
        trial = history.trials[point.trial]
        config = {key: value for key, value in trial.config.items() if key in varying or key == "method.name"}
        told = short_config(config) if trial.origin == "search" else f"{trial.origin}: {short_config(trial.config)}"
        table.add_row(str(point.trial), str(point.step), *(f"{value:.4f}" for value in point.values), told)
    if len(front) > most:
        table.caption = f"{most} of {len(front)} non-dominated points"
    return table
