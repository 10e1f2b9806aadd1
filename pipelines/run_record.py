"""A run's own account, OUTPUT/run.json: its config and fingerprint, whether it goes on or has ended, and how."""

import json
from pathlib import Path
from typing import Any

from unlearn_core.config import RunConfig
from unlearn_core.errors import UserError
from unlearn_core.loop import Outcome, model_folder
from unlearn_core.model_card import training_record
from unlearn_core.publish import is_complete

RUN = "run.json"


def earlier_outcome(config: RunConfig, output: Path) -> Outcome | None:
    """The outcome of this very run if the folder holds it to its end; None when there is something left to do.

    Raises:
        UserError: the folder holds another run.
    """
    path = output / RUN
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("fingerprint") != config.fingerprint():
        raise UserError(
            f"{output} holds the run '{record.get('run')}' of another config (fingerprint {record.get('fingerprint')}, "
            f"now {config.fingerprint()}). Choose another --output, or delete that folder."
        )
    if record["status"] not in ("finished", "diverged"):
        return None
    return Outcome(record["status"], record["step"], record["reason"])


def record_of(config: RunConfig, status: str) -> dict[str, Any]:
    """What run.json says of a run: its config, fingerprint and status."""
    return {"status": status, "steps": config.total_steps, **training_record(config)}


def ending_of(config: RunConfig, output: Path, outcome: Outcome) -> dict[str, Any]:
    """What is added when it has ended: how, and the last whole model."""
    exported = [step for step in range(1, outcome.step + 1) if config.exports_at(step)]
    whole = [step for step in exported if is_complete(model_folder(output, step))]
    last = str(model_folder(output, whole[-1]).relative_to(output)) if whole else None
    return {"step": outcome.step, "reason": outcome.reason, "last_model": last}
