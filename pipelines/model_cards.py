"""Cards of a run's exported models, with the scores of an evaluation."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.evaluated_models import NOT_METRICS
from pipelines.glance import HEADLINE, evaluations_near
from unlearn_core.errors import UserError
from unlearn_core.model_card import CARD, Scores, read_facts, write_card
from unlearn_core.publish import MARKER, is_complete


def write_cards(run: Path, evaluation: Path | None = None) -> list[dict[str, Any]]:
    """Write the card of every whole export of a run anew.

    Args:
        run: folder of a training or an edit.
        evaluation: a finished evaluation with models of the run; None for cards without scores.

    Returns:
        For each model `model` (its folder), `card` and `metrics`, how many were written into it.

    Raises:
        UserError: no such run, no whole export, a README.md of somebody else's in one, or an evaluation that is not
            finished or has none of its models.
    """
    record = _record(run)
    folders = [path for path in sorted(run.glob("models/step-*")) if is_complete(path)]
    if not folders:
        raise UserError(f"{run} has no whole model in models/ yet; let the run export one first.")
    held = {folder: read_facts(folder) for folder in folders}
    for folder in folders:
        if held[folder] is None and (folder / CARD).exists():
            raise UserError(f"{folder / CARD} is not a card that `unlearn` wrote; move it away to have one written.")
    scores = _scores(evaluation, folders) if evaluation is not None else {}
    written = []
    for folder in folders:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        made = {name: value for name, value in marker.items() if name not in ("step", "method", "run")}
        own = record | {"config": record["config"] | made}  # an edit's marker has its weight, or layer and scale
        path = write_card(folder, own, marker["step"], scores=scores.get(folder), **(held[folder] or {}))
        told = [value for value in scores[folder].model.values() if value is not None] if folder in scores else []
        written.append({"model": folder, "card": path, "metrics": len(told)})
    return written


def evaluation_of(run: Path) -> Path | None:
    """The one evaluation in the folders around a run that has scores of it; None for none.

    Raises:
        UserError: there are several.
    """
    found = evaluations_near(run)
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise UserError(f"{len(found)} evaluations have scores of {run}: {names}. Choose one with --evaluation.")
    return found[0] if found else None


def _record(run: Path) -> dict[str, Any]:
    if not (run / "run.json").is_file():
        raise UserError(f"{run} holds no run.json; give the folder of a run, such as outputs/ngdiff.")
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def _scores(evaluation: Path, folders: list[Path]) -> dict[Path, Scores]:
    if not (evaluation / "evaluation.json").is_file():
        raise UserError(f"{evaluation} has no evaluation.json: it is no evaluation or did not finish. Run it again.")
    about = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))
    with open(evaluation / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["variant"]]
    stars = {row["role"]: _metrics(row) for row in rows}
    by_place = {Path(row["path"]).resolve(): _metrics(row) for row in rows}
    found = {
        folder: Scores(about, by_place[folder.resolve()], HEADLINE, stars.get("target"), stars.get("reference"))
        for folder in folders
        if folder.resolve() in by_place
    }
    if not found:
        raise UserError(
            f"{evaluation} has no scores of the models in {folders[0].parent}; give an evaluation of this run."
        )
    return found


def _metrics(row: Mapping[str, str]) -> dict[str, float | None]:
    numbers = {name: float(text) if text else math.nan for name, text in row.items() if name not in NOT_METRICS}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
