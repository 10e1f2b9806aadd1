"""A question-answer row and the reader of the files that hold them (the TOFU schema, arXiv 2401.06121)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError


@dataclass(frozen=True, slots=True)
class Row:
    """One question with its true answer and, where the split has them, its alternatives.

    Attributes:
        item_id: `{split}/{index:05d}`, index from 0 within the split's file. Records are joined on it.
        question: never empty.
        answer: the true answer; never empty.
        paraphrased_answer: the same fact in other words; None where the split has none.
        perturbed_answers: K wrong answers in the paraphrase's wording; empty where the split has none. Order as in the
            file.
    """

    item_id: str
    question: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()


def parse_row(value: Any, item_id: str, where: str) -> Row:
    """Check one decoded JSON value against the schema.

    Keys read: `question`, `answer` (non-empty text), `paraphrased_answer` (text or null, optional),
    `perturbed_answer` (a list of texts, one text, or null, optional). Other keys (`option1`, ...) are ignored.

    Args:
        value: the decoded value.
        item_id: identity of the row.
        where: place named in the error, such as `forget10.json:7`.

    Returns:
        The row.

    Raises:
        UserError: the value is not an object, or a key is missing, has the wrong type or is empty.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a JSON object with 'question' and 'answer', found {_kind(value)}")
    paraphrase = value.get("paraphrased_answer")
    perturbed = value.get("perturbed_answer")
    if perturbed is None:
        perturbed = []
    elif isinstance(perturbed, str):
        perturbed = [perturbed]
    elif not isinstance(perturbed, list | tuple):
        raise UserError(f"{where}: 'perturbed_answer' must be a list of texts, found {_kind(perturbed)}")
    return Row(
        item_id=item_id,
        question=_text(value, "question", where),
        answer=_text(value, "answer", where),
        paraphrased_answer=None if paraphrase is None else _text(value, "paraphrased_answer", where),
        perturbed_answers=tuple(_checked(text, f"perturbed_answer[{k}]", where) for k, text in enumerate(perturbed)),
    )


def read_rows(path: str | Path, split: str) -> list[Row]:
    """Read one split's file: JSON lines (one object a line, blank lines skipped) or a single JSON array.

    Args:
        path: the file, UTF-8 (a byte-order mark is allowed).
        split: name that the item ids start with.

    Returns:
        The rows in file order; never empty.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or a row is malformed. The message names file and line
            (for a JSON array: file and element).
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a JSON-lines file") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); re-save the file as UTF-8"
        ) from error
    values = _array(text, path) if text.lstrip().startswith("[") else _lines(text, path)
    rows = [parse_row(value, f"{split}/{index:05d}", where) for index, (where, value) in enumerate(values)]
    if not rows:
        raise UserError(f"{path} holds no rows; expected one JSON object per line")
    return rows


def _array(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
    for index, value in enumerate(values):
        yield f"{path}, element {index}", value


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): it also breaks at U+2028 and U+0085, which JSON allows unescaped inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: invalid JSON at column {error.colno}: {error.msg}") from error
            yield where, value


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    if key not in value:
        raise UserError(f"{where}: no '{key}'; found the keys {sorted(map(str, value))}")
    return _checked(value[key], key, where)


def _checked(text: Any, name: str, where: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: '{name}' must be a text, found {_kind(text)}")
    if not text.strip():
        raise UserError(f"{where}: '{name}' is empty")
    return text


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
