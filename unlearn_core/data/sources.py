"""Tell a local folder from a Hugging Face hub name, the same way for data sets and models."""

import re
from pathlib import Path

# One optional owner and a name; the hub allows letters, digits, '-', '_' and '.', and no name starts with '.' or '-'.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def looks_like_path(source: str) -> bool:
    r"""Whether `source` can only be meant as a folder on this machine.

    What exists here, or starts with a folder that exists here, is a path (`outputs/tarcet` beside a folder `outputs`).
    Otherwise everything that is not a well-formed hub name (`name` or `owner/name`) is: `./x`, `/x`, `~/x`, `a/b/c`,
    `a/b/`, `C:\x`.

    Args:
        source: what the user gave.

    Returns:
        True for a path, False for a name to look up on the hub.
    """
    path = Path(source).expanduser()
    return path.exists() or Path(*path.parts[:1]).is_dir() or _HUB_NAME.fullmatch(source) is None
