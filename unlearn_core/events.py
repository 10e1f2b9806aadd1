"""What happened to a run beside its steps (restarts, damaged checkpoints, stalls): lines of OUTPUT/events.jsonl."""

import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
"""Written by the process that the user started."""
WORKER_EVENTS = "worker-events.jsonl"
"""Written by rank 0: in an object store no two processes write one file."""


def note_event(output: Path, kind: str, text: str, file_name: str = EVENTS) -> None:
    """Append an event; a disk that is full does not make it worse.

    Args:
        output: the run's folder.
        kind: one word for programs, such as `worker_lost`.
        text: a sentence for people.
        file_name: `EVENTS` or `WORKER_EVENTS`.
    """
    logging.getLogger("unlearn").warning(text)
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kind": kind, "text": text}) + "\n"
    try:
        with open(output / file_name, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        logging.getLogger("unlearn").warning("could not note it in %s: %s", output / file_name, error)


def read_events(output: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first; a line cut off by a kill is left out."""
    found = []
    for name in (EVENTS, WORKER_EVENTS):
        with suppress(FileNotFoundError):
            for line in (output / name).read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    found.append(json.loads(line))
    return sorted(found, key=lambda event: event["time"])
