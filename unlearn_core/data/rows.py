"""The three kinds of training row, and the readers of the files that hold them.

A question with its answer (the TOFU schema, arXiv 2401.06121), a text document, a chat that ends in an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_core.data.files import read_values
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
        alternate: another answer that the model may give instead; only in a user's own files, else None.
        paraphrased_question: the same question in other words; None where the split has none.
    """

    item_id: str
    question: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    alternate: str | None = None
    paraphrased_question: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A text without a question; every token but the first is trained on.

    Attributes:
        item_id: as of a `Row`.
        text: not blank; white space at its ends belongs to it.
    """

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat of which the last message, the assistant's, is trained on.

    Attributes:
        item_id: as of a `Row`.
        turns: (role, content) of the messages before the answer: at least one; a `system` message comes first only.
        answer: content of the assistant's last message; never empty.
        alternate: as of a `Row`.
    """

    item_id: str
    turns: tuple[tuple[str, str], ...]
    answer: str
    alternate: str | None = None


TrainingRow = Row | Document | Conversation


def parse_row(value: Any, item_id: str, where: str) -> Row:
    """Check one decoded JSON value against the schema.

    Keys read: `question`, `answer` (non-empty text), `paraphrased_answer` (text or null, optional),
    `perturbed_answer` (a list of texts, one text, or null, optional), `alternate` and `paraphrased_question` (text or
    null, optional). Other keys (`option1`, ...) are ignored.

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
        paraphrased_answer=_optional(value, "paraphrased_answer", where),
        perturbed_answers=tuple(_checked(text, f"perturbed_answer[{k}]", where) for k, text in enumerate(perturbed)),
        alternate=_optional(value, "alternate", where),
        paraphrased_question=_optional(value, "paraphrased_question", where),
    )


def parse_document(value: Any, item_id: str, where: str, key: str = "text") -> Document:
    """Check one decoded value: a text, or a mapping with a text under `key`; other keys are ignored.

    Args:
        value: the decoded value.
        item_id: identity of the row.
        where: place named in the error.
        key: name of the text.

    Returns:
        The row.

    Raises:
        UserError: neither of the two, or a blank text.
    """
    if isinstance(value, str):
        return Document(item_id, _checked(value, key, where))
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a text or an object with '{key}', found {_kind(value)}")
    return Document(item_id, _text(value, key, where))


def parse_training_row(value: Any, item_id: str, where: str) -> TrainingRow:
    """Check one decoded value of a user's own file; which keys it has says which kind of row it is.

    Args:
        value: a text or `{text}`; `{question, answer}` and the other keys of `parse_row`; or `{messages}`, a list of
            `{role, content}` with roles `system` (first only), `user` and `assistant` (last), and `alternate`.
        item_id: identity of the row.
        where: place named in the error.

    Returns:
        The row.

    Raises:
        UserError: no kind or more than one kind of row, or a malformed one.
    """
    if isinstance(value, str):
        return parse_document(value, item_id, where)
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected {_ROW_KINDS}, found {_kind(value)}")
    kinds = [key for key in ("text", "question", "messages") if key in value]
    if len(kinds) != 1:
        found = " and ".join(f"'{key}'" for key in kinds) or f"only {sorted(map(str, value))}"
        raise UserError(f"{where}: expected {_ROW_KINDS}, found {found}; give each row one kind's keys")
    if kinds == ["text"]:
        return parse_document(value, item_id, where)
    if kinds == ["question"]:
        return parse_row(value, item_id, where)
    return _conversation(value, item_id, where)


_ROW_KINDS = "an object with 'text', with 'question' and 'answer', or with 'messages'"


def _conversation(value: Mapping[str, Any], item_id: str, where: str) -> Conversation:
    messages = value["messages"]
    if not isinstance(messages, list | tuple):
        raise UserError(f"{where}: 'messages' must be a list of {{role, content}}, found {_kind(messages)}")
    turns: list[tuple[str, str]] = []
    for k, message in enumerate(messages):
        place = f"{where}, message {k}"
        if not isinstance(message, Mapping):
            raise UserError(f"{place}: expected an object with 'role' and 'content', found {_kind(message)}")
        role = _text(message, "role", place)
        if role not in ("user", "assistant") and (role != "system" or k > 0):
            raise UserError(f"{place}: role '{role}'; expected user or assistant, or system as the first message")
        turns.append((role, _text(message, "content", place)))
    if len(turns) < 2 or turns[-1][0] != "assistant" or turns[-2][0] != "user":
        raise UserError(
            f"{where}: the roles are {[role for role, _ in turns]}; expected a user's message and then the "
            "assistant's at the end, which is the answer that is trained on; leave out what follows it"
        )
    return Conversation(item_id, tuple(turns[:-1]), turns[-1][1], _optional(value, "alternate", where))


def read_rows(path: str | Path, split: str) -> list[Row]:
    """Read one split's file of questions and answers: JSON lines or a single JSON array.

    Args:
        path: the file, see `read_values`.
        split: name that the item ids start with.

    Returns:
        The rows in file order; never empty.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or a row is malformed. The message names file and line
            (for a JSON array: file and element).
    """
    rows = [parse_row(value, _item_id(split, index), where) for index, (where, value) in enumerate(read_values(path))]
    if not rows:
        raise UserError(f"{path} holds no rows; expected one JSON object per line")
    return rows


def read_training_rows(path: str | Path, name: str) -> list[TrainingRow]:
    """Read a user's own file: the rows of `parse_training_row` as JSON lines or an array, or texts with blank lines.

    Args:
        path: the file, see `read_values`; kinds of rows may be mixed.
        name: what the item ids start with.

    Returns:
        The rows in file order; never empty.

    Raises:
        UserError: as `read_rows`.
    """
    values = enumerate(read_values(path))
    rows = [parse_training_row(value, _item_id(name, index), where) for index, (where, value) in values]
    if not rows:
        raise UserError(f"{path} holds no rows; expected one JSON object per line, or texts parted by blank lines")
    return rows


def _item_id(split: str, index: int) -> str:
    return f"{split}/{index:05d}"


def _optional(value: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if value.get(key) is None else _text(value, key, where)


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
