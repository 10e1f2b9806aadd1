"""What ran: versions, fingerprints of data and runs, settings, and what it cost, from each folder's own account."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.report.curves import Curves
from pipelines.report.models import Run
from pipelines.search_frontier import Searched
from tune.archive import TRIALS, read_lines
from unlearn_core.errors import UserError
from unlearn_core.events import read_events
from unlearn_core.model_card import read_facts

Fact = tuple[str, str]
"""What, and its value for people."""


def evaluation_facts(folders: Sequence[Path]) -> list[tuple[str, list[Fact]]]:
    """Of each evaluation: what it measured, with which versions, on which rows."""
    return [(f"Evaluation {folder}", _evaluation(_json(folder / "evaluation.json"))) for folder in folders]


def _evaluation(about: Mapping[str, Any]) -> list[Fact]:
    config = about.get("config") or {}
    facts = [
        ("benchmark", f"{about.get('benchmark')}, {about.get('forget_split')}"),
        ("fingerprint of the rows", about.get("benchmark_fingerprint")),
        ("suite", about.get("suite")),
        ("models scored", len(about["models"]) if about.get("models") else None),
        ("device", about.get("device")),
        ("settings", ", ".join(f"{key} {value}" for key, value in config.items() if value not in (None, False, 0))),
        ("versions", ", ".join(f"{name} {number}" for name, number in (about.get("versions") or {}).items())),
        ("notes", " ".join(about.get("notes") or ())),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def training_facts(runs: Sequence[Run]) -> list[tuple[str, list[Fact]]]:
    """Of each training run whose exports have cards: versions, and the rows that it read with their SHA-256."""
    found = []
    for run in runs:
        cards = sorted((run.folder / "models").glob("step-*")) if run.folder is not None else []
        held = read_facts(cards[-1]) if cards and run.source != "search" else None
        if held is None:
            continue
        facts = [("versions", ", ".join(f"{name} {number}" for name, number in held["versions"].items()))]
        for rows in held["data"]:
            request = f", request {rows['request']}" if rows["request"] > 1 else ""
            facts.append((f"{rows['rows']} rows{request}", f"{rows['count']}, SHA-256 {rows['sha256']}"))
        found.append((f"Run {run.label}", facts))
    return found


def search_facts(searches: Sequence[Searched]) -> list[tuple[str, list[Fact]]]:
    """Of each search: who proposed, what was tried, what it cost, what failed."""
    found = []
    for one in searches:
        history, about = one.history, one.about
        counts = Counter(f"{trial.origin} {trial.status}" for trial in history)
        failed = [f"trial {t.number} {t.status}: {t.reason}" for t in history if t.status in ("diverged", "failed")]
        seconds = sum(point.seconds for trial in history for point in trial.points)
        base = about.get("base", {})
        facts = [
            ("searcher", f"{one.searcher}, seed {about['searcher'].get('seed')}"),
            ("fingerprint", about.get("fingerprint")),
            ("data", f"{about.get('benchmark')}, forget {', '.join(about.get('forget', ()))}"),
            ("trials", ", ".join(f"{count} {name}" for name, count in counts.items())),
            ("scored steps", sum(len(trial.points) for trial in history)),
            ("optimizer steps of proposed trials", history.steps_spent),
            ("seconds of training and scoring, all trials", f"{seconds:.0f}"),
            ("wall-clock span", _span(one.folder)),
            ("workers a trial", (base.get("workers") or {}).get("count")),
            ("failed", "; ".join(failed)),
        ]
        found.append((f"Search {one.folder}", [(name, str(value)) for name, value in facts if value not in (None, "")]))
    return found


def _span(folder: Path) -> str:
    times = [line["time"] for line in read_lines(folder / TRIALS)]
    return f"{(max(times) - min(times)) / 60:.1f} minutes from its first to its last line" if times else ""


def run_rows(runs: Sequence[Run], curves: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """A row a run that has a configuration or a log: how it ended, what it cost, its fingerprint, its events."""
    rows = []
    for run in runs:
        record = _record(run.folder)
        log = curves.get(run.key)
        if run.config is None and log is None:
            continue
        workers = ((run.config or {}).get("workers") or {}).get("count")
        events = read_events(run.folder) if run.folder is not None and run.source != "search" else []
        rows.append(
            {
                "key": run.key,
                "run": run.label,
                "method": run.method,
                "status": run.status,
                "steps": log.logged if log else None,
                "seconds": round(log.seconds, 1) if log else None,
                "workers": workers,
                "seed": run.seed,
                "fingerprint": record.get("fingerprint"),
                "events": [f"{event.get('time', '')} {event.get('text', '')}" for event in events],
            }
        )
    return rows


def _record(folder: Path | None) -> dict[str, Any]:
    path = None if folder is None else folder / "run.json"
    return _json(path) if path is not None and path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); run its command again") from error
