"""Read evaluation folders back: EVAL/evaluation.json and EVAL/metrics.csv of any number of evaluations, as one list."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError
from unlearn_core.frontier import AXES, Axis

ROLES = ("target", "reference", "checkpoint")
IDENTITY = ("model", "run", "method", "step", "role", "path")
"""Columns of metrics.csv that say which model a row is; all others are aggregates."""
NOT_METRICS = (*IDENTITY, "variant")
UTILITY = {"tofu": "model_utility", "muse": "retain_knowmem_ROUGE", "own_files": "retain_utility"}
"""What stands for utility in each suite."""
SHARED = ("benchmark", "forget_split")
"""Fields of evaluation.json that must agree before numbers may stand in one figure."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """A row of a metrics.csv.

    Attributes:
        evaluation: the folder it was read from, as the user gave it.
        model: id of the model within that folder.
        run: name of its training run; `name@folder` when two evaluations use the name for different runs.
        method: name of the method.
        step: optimizer step of the checkpoint; 0 is the untouched target.
        role: "target", "reference" or "checkpoint".
        path: the model's folder or hub name.
        metrics: the aggregates that have a value, those that are no axis too; may be NaN or infinite, as a diverged
            model gives.
        missing: why an aggregate has none, where the evaluation said so.
    """

    evaluation: str
    model: str
    run: str
    method: str
    step: int
    role: str
    path: str
    metrics: dict[str, float]
    missing: dict[str, str]

    def reason(self, column: str) -> str | None:
        """Why the model has no position on this column's axis, or None when it has one."""
        if math.isfinite(self.metrics.get(column, math.nan)):
            return None
        state = str(self.metrics[column]) if column in self.metrics else "missing"
        return f"{column} is {state}" + (f": {self.missing[column]}" if column in self.missing else "")

    def position(self, side: Axis) -> float:
        """Coordinate on an axis, higher is better. Only for models whose `reason` is None."""
        return side.value(self.metrics[side.column])


def read_evaluations(folders: Sequence[Path], needed: Sequence[str]) -> tuple[list[Evaluated], dict[str, str], int]:
    """All models of several evaluations.

    Args:
        folders: evaluation folders, each whole (evaluation.json says complete).
        needed: aggregate columns that every folder must have.

    Returns:
        The models in the order read; the settings that all folders share (`SHARED`); and how many rows were left out
        because an earlier folder holds the same model (same path, run, step and role) with the same numbers, as
        happens when two evaluations both score the target.

    Raises:
        UserError: no folder, an incomplete one, a malformed file, a missing column, or folders whose benchmark or
            forget split differ.
    """
    if not folders:
        raise UserError("No evaluation given; name at least one folder that `unlearn evaluate` wrote.")
    resolved = [Path(folder).resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        twice = next(str(f) for n, f in enumerate(folders) if resolved[n] in resolved[:n])
        raise UserError(f"Evaluation {twice} is given twice; name each folder once.")
    contents = {Path(folder): _read_settings(Path(folder)) for folder in folders}
    settings = _shared_settings(contents)
    every = [model for folder, content in contents.items() for model in _read_metrics(folder, content, needed)]
    kept: list[Evaluated] = []
    seen: set[tuple] = set()
    for model in every:
        numbers = tuple(sorted((name, repr(value)) for name, value in model.metrics.items()))
        key = (model.path, model.run, model.step, model.role, numbers)
        if key not in seen:
            kept.append(model)
        seen.add(key)
    return _distinguish_runs(kept), settings, len(every) - len(kept)


def usual_utility(folders: Sequence[Path]) -> str:
    """Utility column of the first evaluation's suite; TOFU's for an evaluation that does not name its suite.

    Raises:
        UserError: no folder, or one that is no whole evaluation.
    """
    if not folders:
        raise UserError("No evaluation given; name at least one folder that `unlearn evaluate` wrote.")
    return UTILITY.get(str(_read_settings(Path(folders[0])).get("suite")), "model_utility")


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation.json"
    if not path.is_file():
        raise UserError(f"{folder} has no evaluation.json: it is no evaluation or did not finish. Run it again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); run the evaluation again.") from error
    status = content.get("status") if isinstance(content, dict) else None
    if status != "complete":
        raise UserError(f"{path} says status {status!r}, expected 'complete'; let the evaluation finish first.")
    for field in SHARED:
        if not isinstance(content.get(field), str):
            raise UserError(f"{path} has no {field!r}; run the evaluation again with this version.")
    return content


def _shared_settings(contents: dict[Path, dict[str, Any]]) -> dict[str, str]:
    # Two folders of data can go by one name; the fingerprint of the rows tells them apart.
    for field in (*SHARED, "benchmark_fingerprint", "compat"):
        where: dict[str, list[str]] = defaultdict(list)
        for folder, content in contents.items():
            if field in content:
                where[str(content[field])].append(str(folder))
        if len(where) > 1:
            named = "; ".join(f"{value!r} in {', '.join(folders)}" for value, folders in where.items())
            raise UserError(f"The evaluations differ in {field}: {named}. Draw one frontier for each {field}.")
    first = next(iter(contents.values()))
    return {field: first[field] for field in SHARED}


def _read_metrics(folder: Path, content: dict[str, Any], needed: Sequence[str]) -> list[Evaluated]:
    path = folder / "metrics.csv"
    if not path.is_file():
        raise UserError(f"{folder} has no metrics.csv though evaluation.json is there; run the evaluation again.")
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        absent = [name for name in (*IDENTITY, *needed) if name not in (reader.fieldnames or ())]
        if absent:
            raise UserError(
                f"{path} has no column {', '.join(absent)}. Score the models for it, or choose an axis that is there: "
                f"{', '.join(sorted(set(AXES) & set(reader.fieldnames or ()))) or 'none'}."
            )
        missing = content.get("missing", {})
        # A model under attack is no point of its own: it is the same model.
        models = [
            _row(str(folder), f"{path}:{reader.line_num}", row, missing.get(row["model"], {}))
            for row in reader
            if not row.get("variant")
        ]
    names = [model.model for model in models]
    if len(set(names)) < len(names):
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise UserError(f"{path} has model {twice!r} twice; a model is one row. Run the evaluation again.")
    return models


def _row(evaluation: str, where: str, row: dict[str, str], missing: dict[str, str]) -> Evaluated:
    if row["role"] not in ROLES:
        raise UserError(f"{where}: role {row['role']!r}, expected one of {', '.join(ROLES)}.")
    try:
        # Stars may come without a step; a trajectory's point may not.
        step = float(row["step"]) if row["step"] or row["role"] == "checkpoint" else 0.0
        # Not the axes alone: a search's goal may read any column.
        metrics = {name: float(value) for name, value in row.items() if name not in NOT_METRICS and value}
    except ValueError as error:
        raise UserError(f"{where}: {error}; expected a number.") from error
    if not step.is_integer():
        raise UserError(f"{where}: step {row['step']!r}, expected a whole number.")
    for name, value in metrics.items():
        if name in AXES and math.isfinite(value):
            try:
                AXES[name].value(value)
            except ValueError as error:
                raise UserError(f"{where}: {error}.") from error
    names = {name: row[name] for name in ("model", "run", "method", "role", "path")}
    return Evaluated(evaluation=evaluation, step=int(step), metrics=metrics, missing=missing, **names)


def _distinguish_runs(models: list[Evaluated]) -> list[Evaluated]:
    """Runs of equal name from different evaluations are different runs; their names get the folder."""
    homes: dict[str, set[str]] = defaultdict(set)
    for model in models:
        if model.role == "checkpoint":
            homes[model.run].add(model.evaluation)
    folders = {folder for where in homes.values() if len(where) > 1 for folder in where}
    short_is_unique = len({Path(folder).name for folder in folders}) == len(folders)
    return [
        replace(model, run=f"{model.run}@{Path(model.evaluation).name if short_is_unique else model.evaluation}")
        if model.role == "checkpoint" and len(homes[model.run]) > 1
        else model
        for model in models
    ]
