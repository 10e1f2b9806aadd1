"""Errors that cross process borders. All are picklable: each takes one message."""

import errno
import os
import re
import shutil
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave: a path, a split, a number, a file.

    The message says the value, what was expected and what to do. The command line prints it without a traceback and
    exits with code 2.
    """


class MissingPackageError(ImportError):
    """An optional package is needed here and not installed; the message names it and the install command."""


class StoppedError(RuntimeError):
    """A run was asked to end and did, with a checkpoint of its last step."""


class DivergedError(RuntimeError):
    """A loss or gradient became non-finite; every rank stopped together before the optimizer step."""


class StorageError(UserError):
    """What must be written cannot be: disk full, read-only, no permission, no such place."""


def storage_problem(error: BaseException, place: Path, full_only: bool = False) -> str:
    """What an error says about the disk, with the remedy; "" for an error about something else.

    Args:
        error: from writing; safetensors wraps the system's error number into its message.
        place: what was written to.
        full_only: count a full or read-only disk alone, where it is not known that the error came from writing there.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found.group(1)) if found else None
    if number is None:
        return ""
    said = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        probe = next((folder for folder in (place, *place.parents) if folder.is_dir()), Path("/"))
        remedy = "Raise the file-size limit there (ulimit -f)" if number == errno.EFBIG else "Free space there"
        free = shutil.disk_usage(probe).free / 2**20
        return f"cannot write to {place}: {said} ({free:.0f} MiB free). {remedy}; the same command then goes on."
    if full_only and number != errno.EROFS:
        return ""
    if number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT, errno.EEXIST):
        return f"cannot write to {place}: {said}. Choose an --output that can be written from every node."
    return f"cannot write to {place}: {said}."
