"""URIs of object stores, and the local folders (mirrors) in which they are worked on.

A mirror's place follows from the URI alone, so every process on every node finds or makes the same one:

    <root>/<16 hex digits of the URI's SHA-256>/<last name of the URI>     the files
    <root>/<16 hex digits of the URI's SHA-256>/.origin.json, .state.json, .lock    what belongs to the mirror itself
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from unlearn_core.errors import UserError
from unlearn_core.publish import write_json

SCHEMES = ("s3", "gs", "file")
"""What a URI may start with."""

MIRROR_ROOT = "UNLEARN_MIRROR"
"""Environment variable that names the folder of all mirrors; `~/.cache/unlearn/mirror` without it."""

_ORIGIN = ".origin.json"
_SECRET_WORDS = ("access_key", "accesskey", "secret", "token", "password", "credential", "signature")


def is_uri(text: object) -> bool:
    """Whether `text` is written as a URI (`scheme://...`) and not as a path or a hub name."""
    return isinstance(text, str) and text.partition("://")[1] != "" and text.partition("://")[0].isalnum()


def check_uri(text: str) -> str:
    """Find mistakes in a URI before anything is read or written.

    Args:
        text: such as `s3://bucket/folder`, `gs://bucket/folder` or `file:///folder`.

    Returns:
        The URI without trailing slashes, as mirrors are named after it.

    Raises:
        UserError: an unknown scheme, no bucket, a `file` URI that is not absolute, a part `..`, or credentials in it.
    """
    scheme, _, rest = text.partition("://")
    place, _, query = rest.partition("?")
    bucket, _, key = place.partition("/")
    if "@" in bucket or any(word in name.lower() for name, _ in parse_qsl(query) for word in _SECRET_WORDS):
        # The URI itself is not repeated: this message ends up in logs.
        raise UserError(
            f"a {scheme}:// URI holds credentials, which would end in logs and configs; expected none in it. Give them "
            "by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS) and, "
            "if this one was real, replace the key"
        )
    if scheme not in SCHEMES:
        raise UserError(
            f"'{text}' has the unknown scheme '{scheme}'; expected {', '.join(name + '://' for name in SCHEMES)} or a "
            "plain path"
        )
    if scheme == "file" and (bucket or not key.strip("/")):
        raise UserError(f"'{text}' names no absolute folder; write file:///folder, or the plain path")
    if scheme != "file" and not bucket:
        raise UserError(f"'{text}' names no bucket; expected {scheme}://bucket/folder")
    parts = [part for part in key.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise UserError(f"'{text}' has a part '.' or '..', which object stores do not know; write the place itself")
    return f"{scheme}://{'/'.join([bucket, *parts])}" + (f"?{query}" if query else "")


def join_uri(uri: str, relative: str) -> str:
    """`uri` with more names after it, before its query.

    Args:
        uri: a checked URI.
        relative: names with slashes between them; "" for none.

    Returns:
        The longer URI.
    """
    base, mark, query = uri.partition("?")
    return f"{base}/{relative}{mark}{query}" if relative else uri


def parent_uris(uri: str) -> Iterator[tuple[str, str]]:
    """The folders above a checked URI, nearest first, each with the names that lead from it to the URI."""
    base, mark, query = uri.partition("?")
    scheme, _, place = base.partition("://")
    above, _, name = place.rpartition("/")
    relative = name
    while above:
        yield f"{scheme}://{above}{mark}{query}", relative
        above, _, name = above.rpartition("/")
        relative = f"{name}/{relative}"


@dataclass(frozen=True)
class Mirror:
    """One URI's place on this node.

    Attributes:
        uri: the checked URI.
        home: the folder that holds the mirror and what belongs to it.
    """

    uri: str
    home: Path

    @property
    def place(self) -> Path:
        """The URI's local counterpart: a folder, or a file where the URI names one."""
        return self.home / self.uri.partition("?")[0].rpartition("/")[2]

    def register(self) -> None:
        """Make the home, for this user only, and note the URI in it for other processes."""
        if (self.home / _ORIGIN).is_file():
            return
        root = self.home.parent
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.mkdir(mode=0o700, exist_ok=True)
        write_json(self.home / _ORIGIN, {"uri": self.uri})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes of this node out of the mirror's transfers."""
        self.register()
        with open(self.home / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Say to other processes that a command works in the mirror: what it deleted is not to be brought back."""
        self.register()
        with open(self.home / ".work", "w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @property
    def busy(self) -> bool:
        """Whether a command works in the mirror, in this process or another of this node."""
        with open(self.home / ".work", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def read_state(self) -> dict[str, dict[str, Any]]:
        """What was last the same here and in the store, by path relative to the mirror; "" for the URI itself."""
        try:
            return json.loads((self.home / ".state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Keep what `read_state` gives."""
        write_json(self.home / ".state.json", state)

    def local(self, relative: str) -> Path:
        """The local counterpart of a relative path."""
        return self.place / relative if relative else self.place


def mirror_of(uri: str) -> Mirror:
    """The mirror of a URI. Makes nothing.

    Raises:
        UserError: as `check_uri`.
    """
    uri = check_uri(uri)
    root = Path(os.environ.get(MIRROR_ROOT) or "~/.cache/unlearn/mirror").expanduser().resolve()
    return Mirror(uri, root / hashlib.sha256(uri.encode()).hexdigest()[:16])


def mirror_folder(uri: str) -> Path:
    """The local counterpart of a URI, registered so that other processes know what it belongs to.

    Args:
        uri: as for `check_uri`.

    Returns:
        Its path; the folder above it exists, itself it may not yet.

    Raises:
        UserError: as `check_uri`.
    """
    mirror = mirror_of(uri)
    mirror.register()
    return mirror.place


def find_mirror(path: str | Path) -> tuple[Mirror, str] | None:
    """The mirror that a path lies in, made by whatever process.

    Args:
        path: any path.

    Returns:
        The mirror and the path relative to it ("" for the mirror itself); None for a path outside mirrors.
    """
    path = Path(path).expanduser().resolve()
    for home in path.parents:
        if (home / _ORIGIN).is_file():
            uri = json.loads((home / _ORIGIN).read_text(encoding="utf-8"))["uri"]
            mirror = Mirror(uri, home)
            if path.is_relative_to(mirror.place):
                relative = path.relative_to(mirror.place).as_posix()
                return mirror, "" if relative == "." else relative
    return None


def uri_of(path: str | Path) -> str | None:
    """The URI that a path in a mirror stands for.

    Args:
        path: a path at or below a mirror.

    Returns:
        The mirror's URI with the rest of the path after it; None for a path outside mirrors.
    """
    found = find_mirror(path)
    return None if found is None else join_uri(found[0].uri, found[1])


def reading_mirror(uri: str) -> tuple[Mirror, str]:
    """The mirror to read a URI in, and the path in it: its own, or else one above that has it on this node already."""
    own = mirror_of(uri)
    if not own.place.exists():
        for above, relative in parent_uris(own.uri):
            if above.partition("?")[0] == "file://":
                break
            mirror = mirror_of(above)
            if mirror.local(relative).exists():
                return mirror, relative
    return own, ""
