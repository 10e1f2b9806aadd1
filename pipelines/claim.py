"""One writer an output folder: a file that says who, renewed while its owner lives.

    OUTPUT/owner.json      host, process and what it does; its modification time is the owner's sign of life

On its own machine an owner is gone when its process is. On another, when the file has not been renewed for a minute, by
the clock of the file system that both write to (in an object store, by the clocks of the two machines). What a killed
owner leaves behind is taken over without a word.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from unlearn_core import storage
from unlearn_core.errors import StorageError, UserError, storage_problem
from unlearn_core.publish import write_json

OWNER = "owner.json"
RENEW_SECONDS = 10.0
GONE_SECONDS = 60.0
"""Without a renewal for so long, an owner on another machine counts as gone."""


@contextmanager
def claimed(output: Path, what: str) -> Iterator[None]:
    """Hold `output` while entered; makes the folder, readable by its owner alone, and removes it if nothing came of it.

    Args:
        output: folder to write to, which may be the mirror of one in an object store.
        what: the work, in a word or two, for the message that another run gets.

    Raises:
        UserError: another live process holds it; the message names it.
        StorageError: the folder cannot be made or written to.
    """
    mine = {"host": socket.gethostname(), **_this_process(), "what": what, "token": uuid.uuid4().hex}
    path = output / OWNER
    made = not output.is_dir()
    try:
        output.mkdir(parents=True, mode=0o700, exist_ok=True)
        storage.refresh(path)
        if not _create(path, mine):
            other = _read(path)
            if _lives(path, other):
                raise UserError(
                    f"{output} is being written by another run: {other.get('what')}, process {other.get('pid')} on "
                    f"{other.get('host')}. Wait for it, end it, or choose another --output."
                )
            write_json(path, mine | {"renewed": time.time()})
        storage.push(path)
        storage.refresh(path)
        if _read(path).get("token") != mine["token"]:
            raise UserError(f"{output} was taken by another run at the same moment. Choose another --output.")
    except OSError as error:
        raise StorageError(storage_problem(error, output)) from error
    released = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, mine, released), name="claim", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        released.set()
        renewing.join()
        if _read(path).get("token") == mine["token"]:
            path.unlink(missing_ok=True)
            storage.push(path)
        if made:
            with suppress(OSError):  # not empty: what was written stays
                output.rmdir()


def _create(path: Path, mine: dict[str, Any]) -> bool:
    """Whether the file was made; it was not when there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(mine | {"renewed": time.time()}, file)
    return True


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": psutil.Process().create_time()}


def _read(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _lives(path: Path, owner: dict[str, Any]) -> bool:
    if owner.get("host") == socket.gethostname():
        try:
            process = psutil.Process(owner["pid"])
            return process.create_time() == owner["started"] and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, KeyError):
            return False
    if storage.uri_of(path) is not None:  # no clock is common to all who write there
        return time.time() - owner.get("renewed", 0) < GONE_SECONDS
    probe = path.with_name(f".{uuid.uuid4().hex}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime < GONE_SECONDS
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _renew(path: Path, mine: dict[str, Any], released: threading.Event) -> None:
    while not released.wait(RENEW_SECONDS):
        with suppress(OSError, UserError):
            if storage.uri_of(path) is None:
                os.utime(path)
            else:
                write_json(path, mine | {"renewed": time.time()})
                storage.push(path)
