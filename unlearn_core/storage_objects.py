"""Single objects of a store: each is read and written whole, or it does not count.

A file above `LARGE` goes up in pieces. pyarrow's streams cannot be given up: closing one, or losing it, ends the upload
with what was sent so far. So a small file beside it, written first, says what size and SHA-256 the whole one has
(`.sums/<name>.json`), and readers take nothing else.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlencode

from unlearn_core.errors import UserError

LARGE = 4 << 20
"""Bytes up to which a file goes up in one request, which a store does as a whole or not at all."""

SUMS = ".sums"
"""Folder of what says how large files look when they are whole."""

_PIECE = 8 << 20


class TornError(OSError):
    """An object is not the whole one that was announced, or changed while it was read."""


@dataclass(frozen=True)
class Store:
    """A file system of pyarrow and the key of a URI in it.

    Attributes:
        files: the file system.
        key: bucket and key; for `file` URIs the path.
        scheme: of the URI.
    """

    files: Any
    key: str
    scheme: str

    def key_of(self, relative: str) -> str:
        """The key of a relative path."""
        return f"{self.key}/{relative}" if relative else self.key


def open_store(uri: str) -> Store:
    """Connect to the store of a checked URI.

    Raises:
        UserError: pyarrow cannot make a file system of it.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    scheme = uri.partition("://")[0]
    base, _, query = uri.partition("?")
    options = dict(parse_qsl(query))
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if scheme == "s3" and "region" not in options and region:
        # Otherwise pyarrow asks Amazon where the bucket is, even if the endpoint is another one.
        options["region"] = region
    if scheme == "s3":
        options.setdefault("allow_delayed_open", "true")  # a small file in one request in place of three
    try:
        files, key = FileSystem.from_uri(base + (f"?{urlencode(options)}" if options else ""))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise explained(error, uri) from error
    return Store(files, key.rstrip("/"), scheme)


def explained(error: Exception, uri: str) -> UserError:
    """What a store's error means for the user.

    Args:
        error: from pyarrow.
        uri: what was read or written.

    Returns:
        The error to raise.
    """
    text = str(error).strip()
    lower = text.lower()
    if "region" in lower or "301" in lower or "permanentredirect" in lower:
        remedy = "set AWS_REGION to the bucket's region, or add ?region=NAME to the URI"
    elif "no_such_bucket" in lower or "nosuchbucket" in lower or "bucket does not exist" in lower:
        remedy = "make the bucket first, or correct its name"
    elif "access_denied" in lower or "access denied" in lower or "403" in lower or "credential" in lower:
        remedy = "give credentials that may list, read and write there (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
    elif "curl" in lower or "network" in lower or "connect" in lower:
        remedy = "look at the network, and at AWS_ENDPOINT_URL for a store that is not Amazon's"
    else:
        remedy = "look at the name, the network and the credentials in the environment"
    return UserError(f"cannot reach '{uri}': {text}; {remedy}")


def check_bucket(store: Store, uri: str) -> None:
    """Tell a bucket with nothing in it, which is fine, from one that does not exist.

    Raises:
        UserError: it does not exist.
        OSError: the store cannot be used.
    """
    from pyarrow.fs import FileType

    bucket = store.key.partition("/")[0]
    if store.scheme != "file" and store.files.get_file_info(bucket).type == FileType.NotFound:
        raise UserError(f"'{uri}': the bucket '{bucket}' does not exist; make it first, or correct its name")


def list_objects(store: Store, relative: str) -> dict[str, Any]:
    """Every file at or below a relative path.

    Returns:
        pyarrow's `FileInfo` by relative path, with the files of `SUMS`.
    """
    from pyarrow.fs import FileSelector, FileType

    key = store.key_of(relative)
    if "/" in key.strip("/"):
        info = store.files.get_file_info(key)
        if info.type == FileType.File:
            found = {relative: info}
            sums = store.files.get_file_info(_sum_key(key))
            return found | ({sum_of(relative): sums} if sums.type == FileType.File else {})
    infos = store.files.get_file_info(FileSelector(key, recursive=True, allow_not_found=True))
    start = len(store.key) + 1
    return {info.path[start:]: info for info in infos if info.type == FileType.File}


def sum_of(relative: str) -> str:
    """The relative path of the file that says how a large one looks when it is whole."""
    path = PurePosixPath(relative)
    return (path.parent / SUMS / f"{path.name}.json").as_posix()


def upload(store: Store, local: Path, relative: str) -> str:
    """Write one file to the store.

    Returns:
        Its SHA-256.

    Raises:
        TornError: the file changed meanwhile.
        OSError: the file or the store cannot be used.
    """
    with open(local, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= LARGE:
            data = file.read()
            _put(store, store.key_of(relative), [data])
            return hashlib.sha256(data).hexdigest()
        digest = _digest(file, size)
        announced = json.dumps({"size": size, "sha256": digest}).encode()
        _put(store, _sum_key(store.key_of(relative)), [announced])
        file.seek(0)
        _put(store, store.key_of(relative), _checked(file, size, digest))
        return digest


def download(store: Store, relative: str, info: Any, local: Path, announced: bool) -> str:
    """Read one object into a file, aside and then renamed, with the store's time of change.

    Args:
        store: the store.
        relative: the object.
        info: its `FileInfo`.
        local: the file.
        announced: whether a file of `SUMS` says how it looks.

    Returns:
        Its SHA-256.

    Raises:
        TornError: it is not whole.
        OSError: the file or the store cannot be used.
    """
    expected = None
    if announced:
        with store.files.open_input_stream(_sum_key(info.path)) as stream:
            try:
                expected = json.loads(stream.read())
            except ValueError as error:
                raise TornError(f"{relative} has an unreadable sum") from error
        if expected["size"] != info.size:
            raise TornError(f"{relative} has {info.size} bytes of {expected['size']}")
    local.parent.mkdir(parents=True, exist_ok=True)
    aside = local.with_name(f".{local.name}.{uuid.uuid4().hex}.part")
    digest = hashlib.sha256()
    try:
        with store.files.open_input_stream(info.path) as stream, open(aside, "wb") as file:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                file.write(piece)
            size = file.tell()
        if size != info.size or (expected is not None and digest.hexdigest() != expected["sha256"]):
            raise TornError(f"{relative} is not whole")
        os.utime(aside, ns=(info.mtime_ns, info.mtime_ns))
        os.replace(aside, local)
    finally:
        aside.unlink(missing_ok=True)
    return digest.hexdigest()


def delete(store: Store, relative: str) -> None:
    """Remove one object and what says how it looks; one that is not there is no error."""
    for key in (store.key_of(relative), _sum_key(store.key_of(relative))):
        with suppress(FileNotFoundError):
            store.files.delete_file(key)


def _put(store: Store, key: str, pieces: Any) -> None:
    if store.scheme == "file":
        store.files.create_dir(key.rpartition("/")[0], recursive=True)
        aside = str(Path(key).with_name(f".{Path(key).name}.{uuid.uuid4().hex}.part"))
        _write(store.files, aside, pieces)
        store.files.move(aside, key)
    else:
        _write(store.files, key, pieces)


def _write(files: Any, key: str, pieces: Any) -> None:
    stream = files.open_output_stream(key)
    try:
        for piece in pieces:
            stream.write(piece)
    except BaseException:
        # The stream ends its upload with what it has, here or when it is collected; then that must go.
        with suppress(Exception):
            stream.close()
        with suppress(Exception):
            files.delete_file(key)
        raise
    stream.close()


def _checked(file: BinaryIO, size: int, digest: str) -> Iterator[bytes]:
    """Pieces of a file, which must be those that were announced."""
    found = hashlib.sha256()
    left = size
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            raise TornError(f"the file became shorter than {size} bytes while it was uploaded")
        left -= len(piece)
        found.update(piece)
        if not left and found.hexdigest() != digest:
            raise TornError("the file changed while it was uploaded")
        yield piece


def _digest(file: BinaryIO, size: int) -> str:
    found = hashlib.sha256()
    while size and (piece := file.read(min(_PIECE, size))):
        found.update(piece)
        size -= len(piece)
    return found.hexdigest()


def _sum_key(key: str) -> str:
    above, _, name = key.rpartition("/")
    return f"{above}/{SUMS}/{name}.json"
