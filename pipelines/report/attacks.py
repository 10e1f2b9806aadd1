"""What attacks brought back: robustness.json of each robustness folder, as the page's panel needs it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError


@dataclass(frozen=True)
class Attacks:
    """One robustness folder.

    Attributes:
        folder: as the user gave it.
        metric: the leading measure of knowledge, which is shown.
        known: what the model before unlearning knows by it; None where it was not scored.
        what: attack -> what is done, in words.
        rows: each model under each attack by the leading measure; of prompt attacks by their own.
        scores: each model in short.
        skipped: attacks that were not run -> why.
    """

    folder: Path
    metric: str
    known: float | None
    what: dict[str, str]
    rows: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    skipped: dict[str, str]


def read_attacks(folders: Sequence[Path]) -> list[Attacks]:
    """All robustness folders.

    Raises:
        UserError: a robustness.json that is not whole.
    """
    found = []
    for folder in folders:
        path = folder / "robustness.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["status"] != "complete":
                raise UserError(f"{path} is not complete; run `unlearn robustness` again")
            metric = content["metric"]
            found.append(
                Attacks(
                    folder=folder,
                    metric=metric,
                    known=content["knows_before_unlearning"],
                    what=content["what"],
                    rows=[row for row in content["rows"] if row["kind"] == "prompt" or row["metric"] == metric],
                    scores=[score for score in content["scores"] if score["metric"] == metric],
                    skipped=content["skipped"],
                )
            )
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"cannot read {path} ({error!r}); run `unlearn robustness` again") from error
    return found
