"""What happened to a run beside its steps (restarts, damaged checkpoints, stalls): lines of OUTPUT/events.jsonl."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


def note_event(output: Path, kind: str, text: str) -> None:
    """Append an event; a disk that is full does not make it worse.

    Args:
        output: the run's folder.
        kind: one word for programs, such as `worker_lost`.
        text: a sentence for people.
    """
    logging.getLogger("unlearn").warning(text)
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kind": kind, "text": text}) + "\n"
    try:
        with open(output / EVENTS, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        logging.getLogger("unlearn").warning("could not note it in %s: %s", output / EVENTS, error)


def read_events(output: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first; a line cut off by a kill is left out."""
    try:
        lines = (output / EVENTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
