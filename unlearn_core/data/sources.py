"""Tell files, folders, hub names and split names apart, the same way for data sets and models."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from unlearn_core.errors import UserError
from unlearn_core.storage import fetch, is_uri

FILE_SUFFIXES = (".json", ".jsonl", ".txt")
"""How the names of a user's own data files end; no split's name does."""

# One optional owner and a name; the hub allows letters, digits, '-', '_' and '.', and no name starts with '.' or '-'.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def looks_like_path(source: str) -> bool:
    r"""Whether `source` can only be meant as a folder on this machine.

    What exists here, or starts with a folder that exists here, is a path (`outputs/tarcet` beside a folder `outputs`).
    Otherwise everything that is not a well-formed hub name (`name` or `owner/name`) is: `./x`, `/x`, `~/x`, `a/b/c`,
    `a/b/`, `C:\x`, and a URI.

    Args:
        source: what the user gave.

    Returns:
        True for a path, False for a name to look up on the hub.
    """
    if is_uri(source):
        return True
    path = Path(source).expanduser()
    return path.exists() or Path(*path.parts[:1]).is_dir() or _HUB_NAME.fullmatch(source) is None


def on_this_node(source: str) -> str:
    """A URI fetched from its store, as the folder that it was fetched into; a path or hub name as it is.

    Raises:
        UserError: a mistake in the URI, a store that cannot be reached, or nothing whole there.
    """
    return str(fetch(source)) if is_uri(source) else source


def is_data_file(entry: str) -> bool:
    """Whether an entry of `data.forget`, `data.retain` or `data.sequential` names a file, by its suffix alone.

    The suffix decides, not what exists: a file that went missing must not turn into a split.
    """
    return entry.lower().endswith(FILE_SUFFIXES)


def no_such_split(source: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a split that a source does not have: it lists the valid ones and the nearest."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"'{source}' has no split '{name}'{hint} Valid splits: {', '.join(valid)}")
