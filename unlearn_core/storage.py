"""Folders in object stores: brought into a local mirror, worked on there, and brought back.

All stages read and write local paths. `pull` makes a mirror like its URI, `push` the URI like its mirror. A folder is
published by its marker: markers go last in both directions and are removed first.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from unlearn_core.errors import UserError
from unlearn_core.publish import MARKER
from unlearn_core.storage_objects import (
    SUMS,
    Store,
    TornError,
    check_bucket,
    delete,
    download,
    explained,
    list_objects,
    open_store,
    sum_of,
    upload,
)
from unlearn_core.storage_places import (
    Mirror,
    check_uri,
    find_mirror,
    is_uri,
    join_uri,
    mirror_folder,
    mirror_of,
    reading_mirror,
    uri_of,
)

__all__ = [
    "MARKERS",
    "SMALL",
    "check_uri",
    "fetch",
    "is_uri",
    "mirror_folder",
    "pull",
    "push",
    "refresh",
    "remove",
    "sha256_of",
    "shared",
    "uri_of",
]

MARKERS = (MARKER, "manifest.json", "archive.json", "outcome.json", "summary.json", "evaluation.json", "run.json")
"""Files that say that others are whole, in the order in which they are uploaded, after all others."""

SMALL = 16 << 20
"""Bytes of the largest file that `pull` with `small_only` brings: tables, records and logs, no weights."""

_AT_ONCE = 8
_State = dict[str, dict[str, Any]]


def pull(uri: str, small_only: bool = False) -> Path:
    """Make the mirror like the store, but for what was changed here and is not uploaded yet.

    Files that are the same as at the last transfer are not read again. One that was changed here since is left alone,
    and so is one that the store holds only a part of. A file that is gone from the store goes here too, unless it was
    changed. A file that is gone here is brought again, unless a command at work in the mirror may have deleted it. A
    marker is brought only after everything in its folder.

    Args:
        uri: a folder or file of a store; one with nothing in it is no error.
        small_only: leave out files above `SMALL`.

    Returns:
        The local counterpart, which may not exist.

    Raises:
        UserError: a mistake in the URI, or the store cannot be reached.
    """
    mirror = mirror_of(uri)
    _pull(mirror, "", small_only)
    return mirror.place


def refresh(path: str | Path, small_only: bool = False) -> None:
    """`pull` for a path in a mirror; one outside mirrors is left alone."""
    found = find_mirror(path)
    if found is not None:
        _pull(*found, small_only)


def fetch(uri: str | Path) -> Path:
    """The local counterpart of what is to be read whole, such as a model. Several processes may ask at once.

    A mirror of a folder above that is on this node already is used, so a run's model is not held twice.

    Args:
        uri: a folder or file of a store, or a path in a mirror. A path outside mirrors is given back.

    Returns:
        Its path on this node.

    Raises:
        UserError: nothing is there, or a part of a file only; or as `pull`.
    """
    found = reading_mirror(str(uri)) if is_uri(uri) else find_mirror(uri)
    if found is None:
        return Path(uri)
    mirror, relative = found
    uri = join_uri(mirror.uri, relative)
    torn = _pull(mirror, relative, small_only=False)
    local = mirror.local(relative)
    if torn:
        raise UserError(
            f"'{uri}' is not whole: {', '.join(sorted(torn)[:3])} was cut off while it was uploaded, or is being "
            "uploaded; run the command that writes it again, or wait for it"
        )
    if not local.is_file() and not _files(local):
        raise UserError(f"'{uri}' does not exist or is empty; give the URI of something that was written there")
    return local


def push(path: str | Path) -> int:
    """Make the store like a mirror: upload what changed here since the last transfer, delete what was deleted here.

    Names that start with a dot or end in `.part` stay here. Markers go last, each only if it did not change meanwhile.
    A folder's `complete.json` that is in the store is removed before the folder's files are replaced.

    Args:
        path: a path in a mirror; one outside mirrors, or one that does not exist, is left alone.

    Returns:
        How many files were uploaded or deleted.

    Raises:
        UserError: the store cannot be reached. Whatever was uploaded is kept and not uploaded again.
    """
    found = find_mirror(path)
    if found is None:
        return 0
    mirror, relative = found
    with mirror.locked():
        state = mirror.read_state()
        # The markers as they are before the search for other files: none can speak for a file that was not seen.
        markers = {name: mark for name, mark in _files(mirror.local(relative), relative).items() if _rank(name)}
        others = {name: mark for name, mark in _files(mirror.local(relative), relative).items() if not _rank(name)}
        changed = {name: mark for name, mark in others.items() if _mark_of(state, name) != mark}
        marking = {name: mark for name, mark in markers.items() if _mark_of(state, name) != mark}
        gone = _gone(mirror, relative, state) if mirror.place.exists() else []
        if not changed and not marking and not gone:
            return 0
        store = open_store(mirror.uri)
        try:
            _delete(store, gone, state)
            outdated = [name for name in marking if _name(name) == MARKER and name in state]
            _delete(store, [name for name in outdated if any(_below(file, name) for file in changed)], state)
            unsettled = _upload(store, mirror, changed, state)
            for rank in range(1, len(MARKERS) + 1):
                settled = [n for n in marking if _rank(n) == rank and not any(_below(file, n) for file in unsettled)]
                _upload(store, mirror, {name: marking[name] for name in settled}, state)
            sent = [name for name, mark in {**changed, **marking}.items() if _mark_of(state, name) == mark]
        except OSError as error:
            raise explained(error, join_uri(mirror.uri, relative)) from error
        finally:
            mirror.write_state(state)
        return len(sent) + len(gone)


def remove(path_or_uri: str | Path) -> int:
    """Delete a folder or file from the store, markers first. What lies on this node stays.

    Args:
        path_or_uri: a URI, or a path in a mirror; a path outside mirrors is left alone.

    Returns:
        How many files were deleted.

    Raises:
        UserError: a mistake in the URI, or the store cannot be reached.
    """
    found = (mirror_of(str(path_or_uri)), "") if is_uri(path_or_uri) else find_mirror(path_or_uri)
    if found is None:
        return 0
    mirror, relative = found
    with mirror.locked():
        state = mirror.read_state()
        store = open_store(mirror.uri)
        try:
            there = list_objects(store, relative)
            names = [name for name in there if SUMS not in PurePosixPath(name).parts]
            _delete(store, names, state)
            alone = {name for name in there if SUMS in PurePosixPath(name).parts} - {sum_of(name) for name in names}
            for name in alone:
                store.files.delete_file(store.key_of(name))
        except OSError as error:
            raise explained(error, join_uri(mirror.uri, relative)) from error
        finally:
            mirror.write_state(state)
    return len(names)


def shared(path: str | Path) -> str:
    """A name of `path` that processes on other nodes understand.

    Args:
        path: any path.

    Returns:
        For a path in a mirror the URI, to which it is uploaded first; otherwise the absolute path.

    Raises:
        UserError: as `push`.
    """
    push(path)
    return uri_of(path) or str(Path(path).expanduser().resolve())


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, as noted at its last transfer if it lies in a mirror and was not changed since."""
    found = find_mirror(path)
    if found is not None:
        mirror, relative = found
        known = mirror.read_state().get(relative)
        if known and known["here"] == _mark(mirror.local(relative)):
            return known["sha256"]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pull(mirror: Mirror, relative: str, small_only: bool) -> list[str]:
    """What `pull` does; returns the files that the store does not hold whole."""
    with mirror.locked():
        state = mirror.read_state()
        busy = mirror.busy
        store = open_store(mirror.uri)
        try:
            there = list_objects(store, relative)
            if not there:
                check_bucket(store, mirror.uri)
            objects = {name: info for name, info in there.items() if _counts(name)}
            wanted = {n: i for n, i in objects.items() if _to_download(mirror, state, n, i, small_only, busy)}
            missing = [name for name in state if _within(name, relative) and name not in objects]
            for name in sorted(missing, key=_rank, reverse=True):
                if _mark_of(state, name) == _mark(mirror.local(name)):
                    mirror.local(name).unlink(missing_ok=True)
                    del state[name]
            for name in wanted:  # an old marker must not speak for new files
                if _name(name) == MARKER:
                    mirror.local(name).unlink(missing_ok=True)
            torn = _download(store, mirror, {n: i for n, i in wanted.items() if not _rank(n)}, there, state)
            for rank in range(1, len(MARKERS) + 1):
                marking = {name: info for name, info in wanted.items() if _rank(name) == rank}
                marking = {n: i for n, i in marking.items() if not any(_below(file, n) for file in torn)}
                torn += _download(store, mirror, marking, there, state)
        except OSError as error:
            raise explained(error, join_uri(mirror.uri, relative)) from error
        finally:
            # What is not here is not known either: else `push` would take it for deleted here and delete it there.
            mirror.write_state({name: known for name, known in state.items() if busy or mirror.local(name).exists()})
    return torn


def _to_download(mirror: Mirror, state: _State, name: str, info: Any, small_only: bool, busy: bool) -> bool:
    here, known = _mark(mirror.local(name)), state.get(name)
    if here is None and known is not None and busy:
        return False  # deleted by who is at work
    if here is not None and (known is None or known["here"] != here):
        return False  # made or changed on this node
    if here is not None and known is not None and known["there"] == [info.size, info.mtime_ns]:
        return False
    return not (small_only and info.size > SMALL)


def _download(store: Store, mirror: Mirror, objects: dict[str, Any], there: dict[str, Any], state: _State) -> list[str]:
    torn: list[str] = []

    def one(name: str) -> None:
        info, local = objects[name], mirror.local(name)
        try:
            digest = download(store, name, info, local, sum_of(name) in there)
        except (TornError, FileNotFoundError):
            torn.append(name)
            return
        state[name] = {"here": _mark(local), "there": [info.size, info.mtime_ns], "sha256": digest}

    _each(one, objects)
    return torn


def _upload(store: Store, mirror: Mirror, files: dict[str, list[int]], state: _State) -> list[str]:
    """Upload files; returns those that were being written or deleted here, which the next push takes."""
    unsettled: list[str] = []

    def one(name: str) -> None:
        local = mirror.local(name)
        if _mark(local) != files[name]:  # a marker may speak for files that were not seen
            unsettled.append(name)
            return
        try:
            digest = upload(store, local, name)
        except (TornError, FileNotFoundError):
            if _mark(local) == files[name]:
                raise
            unsettled.append(name)
            return
        info = store.files.get_file_info(store.key_of(name))
        state[name] = {"here": files[name], "there": [info.size, info.mtime_ns], "sha256": digest}

    _each(one, files)
    return unsettled


def _delete(store: Store, names: Iterable[str], state: _State) -> None:
    """Delete objects, markers before what they speak for."""
    names = list(names)
    for rank in range(len(MARKERS), -1, -1):

        def one(name: str) -> None:
            delete(store, name)
            state.pop(name, None)

        _each(one, [name for name in names if _rank(name) == rank])


def _each(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Call `work` for every name, several at once; all are tried, then the first error is raised."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(work, name) for name in names]
    for future in futures:
        future.result()


def _gone(mirror: Mirror, relative: str, state: _State) -> list[str]:
    # Looked at twice: a folder that is being replaced is away for a moment.
    names = [name for name in state if _within(name, relative) and _mark(mirror.local(name)) is None]
    return [name for name in names if _mark(mirror.local(name)) is None]


def _files(local: Path, relative: str = "") -> dict[str, list[int]]:
    """Size and time of change of every file at or below a path that may be uploaded, by path relative to the mirror."""
    if local.is_file():
        mark = _mark(local)
        return {} if mark is None else {relative: mark}
    found = {}
    for folder, folders, names in os.walk(local):
        folders[:] = [name for name in folders if _fit(name)]
        for name in filter(_fit, names):
            path = Path(folder) / name
            mark = _mark(path)
            if mark is not None:
                found[(PurePosixPath(relative) / path.relative_to(local).as_posix()).as_posix()] = mark
    return found


def _mark(path: Path) -> list[int] | None:
    with suppress(OSError):
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    return None


def _mark_of(state: _State, name: str) -> Sequence[int] | None:
    return state[name]["here"] if name in state else None


def _fit(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".part")


def _counts(relative: str) -> bool:
    return all(_fit(part) for part in PurePosixPath(relative).parts)


def _name(relative: str) -> str:
    return PurePosixPath(relative).name


def _rank(relative: str) -> int:
    """0 for a plain file, else 1 and up in the order of `MARKERS`."""
    name = _name(relative)
    return MARKERS.index(name) + 1 if name in MARKERS else 0


def _within(name: str, relative: str) -> bool:
    return not relative or name == relative or name.startswith(f"{relative}/")


def _below(name: str, marker: str) -> bool:
    """Whether a file lies in the folder of a marker, or further down."""
    folder = PurePosixPath(marker).parent.as_posix()
    return folder == "." or name.startswith(f"{folder}/")
