"""Write so that a half-written output never passes for a whole one: aside first, then rename; the marker last."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "complete.json"
"""Name of the file that is written last into a published folder. A folder without it is not whole."""


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` in one rename; readers see the old or the new file, never a part.

    Args:
        path: target file; its folder is made if missing.
        text: whole content, written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of `value` as indented JSON. NaN and infinity raise `ValueError`: JSON has no word for them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def publish_folder(final: str | Path, fill: Callable[[Path], None], marker: dict[str, Any]) -> Path:
    """Fill a folder aside, write its marker, then rename it to `final`.

    Args:
        final: where the whole folder appears. An older folder of that name is replaced only after the new one is whole.
        fill: writes every file into the folder that it is given.
        marker: content of `complete.json`, for readers who want to know what this is.

    Returns:
        `final` as a path.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex}.part")
    aside.mkdir()
    try:
        fill(aside)
        write_json(aside / MARKER, marker)
        if final.exists():
            old = final.with_name(f".{final.name}.{uuid.uuid4().hex}.old")
            os.replace(final, old)
            os.replace(aside, final)
            shutil.rmtree(old)
        else:
            os.replace(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def is_complete(folder: str | Path) -> bool:
    """Whether `folder` was published whole."""
    return (Path(folder) / MARKER).is_file()
