"""What a folder holds, at a glance: plain data for `unlearn show`, read from files alone, also while they grow.

A document has `kind` (run, pair, evaluation, search, robustness, frontier or model), `folder`, and what that kind has.
Folders that this package did not make are a `UserError` that says what was looked for.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError
from unlearn_core.events import read_events
from unlearn_core.publish import MARKER, is_complete

_BARS = "▁▂▃▄▅▆▇█"
POINTS = 24
"""Characters of a sparkline."""
HEADLINE = (
    *("extraction_strength", "forget_quality", "model_utility", "forget_Q_A_ROUGE"),
    *("forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "privleak", "retain_utility"),
)
"""Columns that are shown of an evaluation, as far as it has them."""


def glance(folder: str | Path) -> dict[str, Any]:
    """What lies in a folder.

    Raises:
        UserError: nothing is there, or nothing that a command of this package wrote.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that a command of `unlearn` wrote, such as outputs/run.")
    for name, read in _KINDS.items():
        if (folder / name).exists():
            return read(folder)
    raise UserError(
        f"{folder} holds nothing that `unlearn` wrote; expected one of {', '.join(_KINDS)} in it. "
        "Give the folder that was a command's --output."
    )


def sparkline(values: Sequence[float], points: int = POINTS) -> str:
    """A curve in a line of block characters, lowest to highest; a non-finite value is a blank.

    Args:
        values: the curve; each character is the mean of its share of them.
        points: most characters.
    """
    count = min(points, len(values))
    parts = [values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that is being written is left out."""
    found = []
    with suppress(FileNotFoundError):
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def evaluations_near(run: Path) -> list[Path]:
    """Evaluations in the folders around a run's that scored models of it, and the one that best.json names."""
    run = run.resolve()
    places = [path for up in (run.parent, run.parent.parent) for path in sorted(up.glob("*/evaluation.json"))]
    with suppress(FileNotFoundError):
        places.append(Path(_json(run / "best.json")["evaluation"]) / "evaluation.json")
    found = dict.fromkeys(path.parent.resolve() for path in places if path.is_file())
    return [folder for folder in found if _rows_of(folder, run)]


def _run(folder: Path) -> dict[str, Any]:
    record = _json(folder / "run.json")
    steps, config = read_steps(folder), record.get("config", {})
    last = steps[-1] if steps else {}
    events = read_events(folder)
    model = config.get("model")
    return {
        "kind": "run",
        "folder": folder,
        "run": record.get("run"),
        "method": record.get("method"),
        "status": record.get("status"),
        "reason": record.get("reason") or None,
        "step": record.get("step", last.get("step", 0)),
        "steps": record.get("steps"),
        "fingerprint": record.get("fingerprint"),
        "model": model.get("path") if isinstance(model, dict) else model,
        "data": _data(config.get("data") or {}),
        "curves": {name: _curve(name, steps) for name, value in last.items() if _is_curve(name, value)},
        "seconds_a_step": _median([one["seconds"] for one in steps if "seconds" in one]),
        "checkpoints": sorted(path.parent.name for path in folder.glob("checkpoints/step-*/manifest.json")),
        "exports": sorted(path.parent.name for path in folder.glob(f"models/step-*/{MARKER}")),
        "last_model": record.get("last_model"),
        "events": {"count": len(events), "last": events[-1]["text"] if events else None},
        "best": _json(folder / "best.json") if (folder / "best.json").is_file() else None,
        "evaluations": [{"folder": found, "models": _rows_of(found, folder)} for found in evaluations_near(folder)],
    }


def _is_curve(name: str, value: Any) -> bool:
    more = ("update_norm", "learning_rate", "teacher_gap")
    return isinstance(value, int | float) and (name.startswith(("loss_", "norm_", "cos")) or name in more)


def _curve(name: str, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [step.get(name, math.nan) for step in steps]
    return {"first": values[0], "last": values[-1], "line": sparkline(values)}


def _pair(folder: Path) -> dict[str, Any]:
    runs = {name: _run(folder / name) for name in ("target", "reference") if (folder / name / "run.json").is_file()}
    return {"kind": "pair", "folder": folder, "status": _together(runs.values())} | runs


def _evaluation(folder: Path) -> dict[str, Any]:
    about = _json(folder / "evaluation.json")
    names = ("status", "suite", "benchmark", "forget_split", "target", "reference", "device", "versions")
    return {
        "kind": "evaluation",
        "folder": folder,
        **{name: about.get(name) for name in names},
        "models": _rows_of(folder),
    }


def _unfinished_evaluation(folder: Path) -> dict[str, Any]:
    groups = Counter(path.parent.name for path in folder.glob("records/*/*.parquet"))
    return {"kind": "evaluation", "folder": folder, "status": "unfinished", "groups_scored": dict(groups), "models": []}


def _search(folder: Path) -> dict[str, Any]:
    from tune.archive import SEARCH, read_about, read_history
    from tune.objectives import Goal

    about, history = read_about(folder), read_history(folder)
    goal = Goal.from_data(about["goal"])
    names = [objective.name for objective in goal.objectives]
    return {
        "kind": "search",
        "folder": folder,
        "search": about.get("name"),
        "searcher": about["searcher"]["name"],
        "status": "finished" if (folder / "summary.json").is_file() else "unfinished",
        "started": (folder / SEARCH).stat().st_mtime,
        "objectives": names,
        "trials": dict(Counter(f"{trial.origin}: {trial.status}" for trial in history)),
        "steps_spent": history.steps_spent,
        "hypervolume": history.hypervolume(),
        "front": [
            {"trial": point.trial, "step": point.step, **dict(zip(names, point.values, strict=True))}
            for point in sorted(history.front(), key=lambda point: point.values)
        ],
    }


def _robustness(folder: Path) -> dict[str, Any]:
    about = _json(folder / "robustness.json")
    names = ("status", "benchmark", "forget_split", "metric", "reference", "target", "attacks", "skipped", "scores")
    return {"kind": "robustness", "folder": folder, **{name: about.get(name) for name in names}}


def _frontier(folder: Path) -> dict[str, Any]:
    return {"kind": "frontier", "folder": folder, "status": "finished"} | _json(folder / "summary.json")


def _model(folder: Path) -> dict[str, Any]:
    config = _json(folder / "config.json")
    status = "complete" if is_complete(folder) else "without the marker of a finished export"
    return {
        "kind": "model",
        "folder": folder,
        "status": status,
        "architecture": (config.get("architectures") or [None])[0],
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "made_by": _json(folder / MARKER) if is_complete(folder) else None,
    }


_KINDS: Mapping[str, Any] = {
    "search.json": _search,
    "robustness.json": _robustness,
    "run.json": _run,
    "evaluation.json": _evaluation,
    "target/run.json": _pair,
    "frontier.csv": _frontier,
    "config.json": _model,
    "records": _unfinished_evaluation,
}


def _rows_of(evaluation: Path, run: Path | None = None) -> list[dict[str, Any]]:
    """Rows of an evaluation's metrics.csv, of one run's models or of all, with the headline columns they have."""
    rows = []
    with suppress(FileNotFoundError), open(evaluation / "metrics.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if run is not None and run.resolve() not in Path(row["path"]).resolve().parents:
                continue
            who = {name: row[name] for name in ("model", "run", "method", "role")}
            step = int(float(row["step"])) if row["step"] else None
            numbers = {name: float(row[name]) if row[name] else None for name in HEADLINE if name in row}
            rows.append(who | {"step": step} | numbers)
    return rows


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    names = ("benchmark", "forget", "retain", "sequential", "generic")
    return {name: data[name] for name in names if data.get(name)}


def _together(runs: Any) -> str:
    statuses = {run["status"] for run in runs}
    return statuses.pop() if len(statuses) == 1 else "running"


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); was it cut off or edited?") from error
