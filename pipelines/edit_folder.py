"""The folder of an edit: record, points and models, written so that the same call on a finished one does nothing."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.model_cards import write_cards
from unlearn_core.data.sources import looks_like_path
from unlearn_core.errors import UserError
from unlearn_core.publish import write_json
from unlearn_core.storage import is_uri
from unlearn_core.strict import Strict

RUN = "run.json"
POINTS = "points.json"


@dataclass(frozen=True)
class Edits:
    """What an edit left in its folder.

    Attributes:
        output: the run's folder.
        points: the content of points.json.
        last: the model that stands for the run: the last weight given, or SLUG's best.
    """

    output: Path
    points: list[dict[str, Any]]
    last: Path


def earlier_edits(config: Strict, output: Path) -> Edits | None:
    """The finished run of these very options, if the folder holds it; `UserError` if it holds another run."""
    path = output / RUN
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("fingerprint") != _fingerprint(config):
        raise UserError(
            f"{output} holds the run '{record.get('run')}' with other options. Choose another --output, or delete that "
            "folder."
        )
    if record.get("status") != "finished":
        return None
    points = json.loads((output / POINTS).read_text(encoding="utf-8"))
    return Edits(output, points, output / record["last_model"])


def begin_edits(config: Any, method: str, output: Path) -> dict[str, Any]:
    """The run's record, written as running; what a kill cut off is removed."""
    output.mkdir(parents=True, exist_ok=True)
    for leftover in (output / "models").glob(".*.part"):  # a model that a kill cut off
        shutil.rmtree(leftover)
    record = {
        "run": config.name,
        "method": method,
        "status": "running",
        "steps": 0,
        "fingerprint": _fingerprint(config),
        "config": config.model_dump(mode="json"),
    }
    write_json(output / RUN, record)
    return record


def finish_edits(record: dict[str, Any], output: Path, points: list[dict[str, Any]], last: int) -> Edits:
    """Write the points, the finished record and the models' cards; `last` is the step that stands for the run."""
    write_json(output / POINTS, points)
    folder = model_folder(output, last)
    ending = {"status": "finished", "steps": len(points), "step": len(points), "reason": ""}
    write_json(output / RUN, record | ending | {"last_model": str(folder.relative_to(output))})
    write_cards(output)
    return Edits(output, points, folder)


def model_folder(output: Path, step: int) -> Path:
    """Where the model of a point lies."""
    return output / "models" / f"step-{step:05d}"


def _fingerprint(config: Strict) -> str:
    """Hash of the options; folders count by where they really are."""
    values = config.model_dump(mode="json")
    for key in {"unlearned", "target", "model", "reinforced", "reference"} & values.keys():
        if values[key] is not None and looks_like_path(values[key]):
            values[key] = values[key] if is_uri(values[key]) else str(Path(values[key]).expanduser().resolve())
    return hashlib.sha256(json.dumps([type(config).__name__, values], sort_keys=True).encode()).hexdigest()[:16]
