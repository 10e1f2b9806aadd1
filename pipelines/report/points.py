"""Points of the frontier: checkpoints of evaluations, scored steps of searches, and the stars, with their runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.evaluated_models import Evaluated, read_evaluations
from pipelines.report.models import Point, Run
from pipelines.search_frontier import Searched, read_searches
from pipelines.trial import run_config
from tune.archive import trial_folder
from tune.history import Trial
from tune.objectives import Goal
from unlearn_core.errors import UserError

SHOWN = ("method.", "optimizer.learning_rate", "optimizer.schedule", "optimizer.name", "lora", "seed")
"""Beginnings of the keys that are shown of a run's own configuration."""


@dataclass
class Gathered:
    """Points and runs of all folders.

    Attributes:
        runs: by key.
        points: in the order read.
        searches: what was read of each search.
        goal: what the searches aim at; None without a search.
        settings: benchmark and forget split.
        notes: what the reader should know about what was read.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    searches: list[Searched] = field(default_factory=list)
    goal: Goal | None = None
    settings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def gather(evaluations: Sequence[Path], searches: Sequence[Path], runs: Sequence[Path]) -> Gathered:
    """Read every point.

    Args:
        evaluations: folders of one benchmark and forget split.
        searches: folders of one goal.
        runs: run folders; those of evaluated checkpoints are found by themselves.

    Raises:
        UserError: as `read_evaluations` and `read_searches`; a damaged run.json; or searches and evaluations of
            different benchmarks.
    """
    found = Gathered()
    given = {folder.resolve(): _run_of(folder) for folder in runs}
    if evaluations:
        models, found.settings, repeated = read_evaluations(evaluations, ())
        if repeated:
            found.notes.append(f"{repeated} rows were in two evaluations with the same numbers and count once.")
        for model in models:
            _add_model(found, model, given)
    if searches:
        found.searches, found.goal = read_searches(searches)
        _check_benchmark(found)
        for one in found.searches:
            _add_search(found, one)
    for folder, run in given.items():
        if not any(known.folder is not None and known.folder.resolve() == folder for known in found.runs.values()):
            found.runs[run.key] = run
    return found


def _check_benchmark(found: Gathered) -> None:
    about = found.searches[0].about
    named = {"benchmark": str(about.get("benchmark")), "forget_split": ", ".join(about.get("forget", ()))}
    for field_name, value in named.items():
        known = found.settings.get(field_name)
        if known is not None and known != value:
            raise UserError(
                f"the evaluations are of {field_name} {known!r}, {found.searches[0].folder} of {value!r}. Write one "
                f"report for each {field_name}"
            )
    found.settings = found.settings or named


def _run_of(folder: Path) -> Run:
    """A run folder's own account."""
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); run `unlearn train` again, or leave the folder out") from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise UserError(f"{path} holds no run's record with its config; run `unlearn train` again")
    name = str(record.get("run", folder.name))
    status = str(record.get("status", ""))
    if record.get("reason"):
        status += f": {record['reason']}"
    return _run(f"run:{folder.resolve()}", name, record["config"], folder, status, "run")


def _run(key: str, label: str, config: dict[str, Any], folder: Path | None, status: str, source: str) -> Run:
    flat = flattened(config)
    shown = {name: value for name, value in flat.items() if name.startswith(SHOWN) and value is not None}
    anonymous = {name: value for name, value in flat.items() if name not in ("name", "seed")}
    return Run(
        key=key,
        label=label,
        method=str(config["method"]["name"]),
        family=json.dumps(anonymous, sort_keys=True, default=str),
        seed=config.get("seed"),
        settings=shown,
        config=config,
        folder=folder,
        status=status,
        source=source,
    )


def flattened(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested groups of keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _add_model(found: Gathered, model: Evaluated, given: dict[Path, Run]) -> None:
    """A row of a metrics.csv, with its run's own account where its folder still has one."""
    key = f"{model.role}:{model.run}"
    if key not in found.runs:
        folder = run_folder(model.path)
        if folder is not None and model.role == "checkpoint":
            own = given.get(folder.resolve()) or _run_of(folder)
            run = Run(**{**_fields(own), "key": key, "label": model.run, "method": model.method})
        else:
            run = Run(key, model.run, model.method, folder=folder)
        found.runs[key] = run
    found.points.append(
        Point(
            run=key,
            step=model.step,
            role=model.role,  # type: ignore[arg-type]  (checked on reading)
            metrics=_finite(model.metrics),
            model=model.model,
            folder=model.evaluation,
        )
    )


def _fields(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in run.__dataclass_fields__}


def run_folder(model: str) -> Path | None:
    """The run folder that an exported model lies in; None where there is none on this machine."""
    for folder in list(Path(model).parents)[:2]:
        if (folder / "run.json").is_file():
            return folder
    return None


def _add_search(found: Gathered, one: Searched) -> None:
    names = [str(other.folder) for other in found.searches]
    short = one.folder.name if len({Path(name).name for name in names}) == len(names) else str(one.folder)
    for trial in one.history:
        run = _trial_run(one, short, trial)
        found.runs[run.key] = run
        for point in trial.points:
            excluded = ""
            if not point.scored:
                excluded = "an objective or constraint has no number"
            elif not point.feasible:
                excluded = "a constraint is broken"
            again = trial.origin == "rerun"
            parent = (f"{one.folder}:{trial.parent}", trial.parent_step or point.step) if again else None
            metrics = _finite(point.metrics)
            role = "rerun" if again else "checkpoint"
            found.points.append(Point(run.key, point.step, role, metrics, "", str(one.folder), excluded, parent))
    for role in ("target", "reference"):
        scores = one.about.get("baseline", {}).get(role)
        if scores and not any(point.role == role for point in found.points):
            key = f"{role}:{one.folder}"
            found.runs[key] = Run(key, role, "finetune", source="search")
            found.points.append(Point(key, 0, role, _finite(scores), "", str(one.folder)))


def _trial_run(one: Searched, short: str, trial: Trial) -> Run:
    key, label = f"{one.folder}:{trial.number}", f"{short} trial {trial.number}"
    status = trial.status + (f": {trial.reason}" if trial.reason else "")
    folder = trial_folder(one.folder, trial.number)
    method = str(trial.config.get("method.name", one.about["base"]["method"]["name"]))
    if trial.origin in ("search", "rerun"):
        config = run_config(one.about["base"], trial.config, trial.seed, trial.number).model_dump(mode="json")
        made = _run(key, label, config, folder, status, "search")
        settings = {**trial.config, "seed": trial.seed}
        return Run(**{**_fields(made), "settings": settings})
    return Run(key, f"{label} ({trial.origin})", method, settings=trial.config, status=status, source="search")


def _finite(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if value == value and abs(value) != float("inf")}
