"""Log an evaluation's scores to where the evaluated runs have logged their steps (pipelines/run_logging.py)."""

import csv
import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipelines.evaluated_models import NOT_METRICS
from pipelines.log_sinks import check_packages, check_reachable, note, open_sinks, state
from pipelines.run_logging import failures
from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import MissingPackageError
from unlearn_core.storage import is_uri

_SCORES = "scores"
"""Key of logging.json: evaluation -> model -> hash of the row that was logged."""


def log_scores(evaluation: Path) -> list[str]:
    """Log each model's aggregates, as `eval/NAME` at the model's step, into its run's log.

    Only runs that have ended and whose run.json has a `logging` section; a row that was logged is not logged again.

    Args:
        evaluation: a finished evaluation.

    Returns:
        What could not be logged and why, a sentence for each run. The evaluation is none the worse for it.
    """
    with open(evaluation / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["variant"] and not is_uri(row["path"])]
    by_run: dict[Path, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_run[Path(row["path"]).parent.parent].append(row)
    problems = [_log_run(run, own, str(evaluation.resolve())) for run, own in by_run.items()]
    return [problem for problem in problems if problem]


def _log_run(run: Path, rows: list[dict[str, str]], evaluation: str) -> str:
    record = json.loads((run / "run.json").read_text(encoding="utf-8")) if (run / "run.json").is_file() else {}
    if record.get("status") not in ("finished", "diverged") or "logging" not in record["config"]:
        return ""
    config = build_config(RunConfig, record["config"], source=str(run / "run.json"))
    known = state(run).get(_SCORES, {}).get(evaluation, {})
    fresh = [row for row in rows if known.get(row["model"]) != _digest(row)]
    if not config.logging.anything or not fresh:
        return ""
    try:
        check_packages(config.logging)
    except MissingPackageError as error:
        return f"{run}: scores not logged: {error}"
    away = check_reachable(config.logging)
    if away:
        return f"{run}: scores not logged: {away}; the same command logs them later"
    try:
        for sink in open_sinks(config, run):
            for row in fresh:
                sink.add_scores(int(row["step"] or 0), _numbers(row))
            sink.close(record["status"])
    except failures() as error:
        return f"{run}: scores not logged whole: {type(error).__name__}: {error}"
    note(run, _SCORES, **{evaluation: known | {row["model"]: _digest(row) for row in fresh}})
    return ""


def _numbers(row: dict[str, str]) -> dict[str, float]:
    values: dict[str, Any] = {name: float(text) for name, text in row.items() if text and name not in NOT_METRICS}
    return {f"eval/{name}": value for name, value in values.items() if math.isfinite(value)}


def _digest(row: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
