"""The values of a data file one after the other, each with the place that an error message names."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unlearn_core.errors import UserError

_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")
_MARK = b"\xef\xbb\xbf"
LONGEST_LINE = 64 * 2**20
"""Bytes; a whole book is under 2 MiB."""


def read_values(path: str | Path) -> Iterator[tuple[str, Any]]:
    r"""Decoded values of a file, in file order. JSON lines and parquet are read as they are asked for, not at once.

    Args:
        path: `.parquet`: one mapping (column -> value) a row. `.txt`: one text for each run of lines between blank
            lines. Any other name: JSON lines (one value a line, blank lines skipped) or a single JSON array. Text
            files are UTF-8, a byte-order mark is allowed.

    Yields:
        (place, value): the place is `file:line`, or `file, element k` of a JSON array, or `file, row k` of parquet.

    Raises:
        UserError: the file is missing, not UTF-8, not valid JSON or not valid parquet; raised on reaching the place.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    try:
        with open(path, "rb") as file:
            start = file.read(4096).removeprefix(_MARK).lstrip()
            file.seek(0)
            if path.suffix.lower() == ".txt":
                yield from _paragraphs(file.read(), path)
            elif start.startswith(b"["):
                yield from _array(file.read(), path)
            else:
                # Lines of bytes end at \n alone; lines of text would also end at U+2028, which JSON allows in a text.
                yield from _lines(file, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a file of data") from error


def read_whole(path: str | Path) -> str:
    """The text of a whole UTF-8 file; `UserError` where it cannot be read."""
    path = Path(path)
    try:
        return _decoded(path.read_bytes().removeprefix(_MARK), path, 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a text file") from error


def _decoded(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw[: error.start].count(b"\n")
        raise UserError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); re-save the file as UTF-8"
        ) from error


def _array(raw: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    text = _decoded(raw.removeprefix(_MARK), path, 1)
    try:
        values = _parsed(text, str(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
    for index, value in enumerate(values):
        yield f"{path}, element {index}", value


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, Any]]:
    for number in itertools.count(1):
        raw = file.readline(LONGEST_LINE + 1)
        if not raw:
            return
        where = f"{path}:{number}"
        if len(raw) > LONGEST_LINE:
            raise UserError(
                f"{where}: a line of more than {LONGEST_LINE // 2**20} MiB; expected one row a line. Is it JSON lines?"
            )
        line = _decoded(raw.removeprefix(_MARK) if number == 1 else raw, path, number)
        if line.strip():
            try:
                value = _parsed(line, where)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where}: invalid JSON at column {error.colno}: {error.msg}; expected one object a line"
                ) from error
            yield where, value


def _parsed(text: str, where: str) -> Any:
    """A JSON value; `JSONDecodeError` where it is malformed, `UserError` where it is hostile."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair alone is valid JSON and no character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; expected an object of texts") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: \\u{ord(error.object[error.start]):04x} alone is no character; remove it") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{where}: {error}; expected an object of texts") from error


def _paragraphs(raw: bytes, path: Path) -> Iterator[tuple[str, str]]:
    raw = raw.removeprefix(_MARK)
    start = 0
    for end, following in [*((gap.start(), gap.end()) for gap in _BLANK_LINES.finditer(raw)), (len(raw), len(raw))]:
        piece = raw[start:end]
        line = raw[:start].count(b"\n") + 1
        text = _decoded(piece, path, line).strip("\r\n")
        if text.strip():
            yield f"{path}:{line}", text
        start = following


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    yield f"{path}, row {index}", value
                    index += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path} as a parquet file: {error}") from error
