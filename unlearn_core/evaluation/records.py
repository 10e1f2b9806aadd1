"""What is kept about one item: everything its metrics need, so that every aggregate can be recomputed from records."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unlearn_core.errors import MissingPackageError, UserError

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning; files of another version are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """One item of one group, scored by one model. None (or an empty tuple) means: not measured.

    Attributes:
        item_id: identity of the row; records are joined on it.
        group: `forget`, `retain`, `ra` (real authors) or `wf` (world facts).
        question: the question; None in published logs, which leave it out.
        answer: the true answer.
        avg_loss: mean negative log-likelihood per label token of the true answer, end token included; nats.
        prob: `exp(-avg_loss)`; in a published log that value as logged, rounded to float32.
        tokens: label tokens of the true answer, end token included.
        matches: per label token (end token included, last), whether the arg-max given the true tokens before it hits.
        extraction_strength: of the answer tokens without the end token, in [0, 1].
        exact_memorization: of the same tokens, in [0, 1].
        paraphrased_loss: as `avg_loss`, of the paraphrased answer.
        paraphrased_prob: as `prob`, of the paraphrased answer.
        perturbed_losses: as `avg_loss`, of each of the K wrong answers.
        perturbed_probs: as `prob`, of each of the K wrong answers.
        generation: greedy answer to the question.
        rouge1_recall: of the generation against the answer, in [0, 1].
        rougeL_recall: the same for the longest common subsequence.
        rougeL_f1: harmonic mean of that recall and its precision.
    """

    item_id: str
    group: str
    question: str | None = None
    answer: str | None = None
    avg_loss: float | None = None
    prob: float | None = None
    tokens: int | None = None
    matches: tuple[bool, ...] = ()
    extraction_strength: float | None = None
    exact_memorization: float | None = None
    paraphrased_loss: float | None = None
    paraphrased_prob: float | None = None
    perturbed_losses: tuple[float, ...] = ()
    perturbed_probs: tuple[float, ...] = ()
    generation: str | None = None
    rouge1_recall: float | None = None
    rougeL_recall: float | None = None
    rougeL_f1: float | None = None


_LISTS = ("matches", "perturbed_losses", "perturbed_probs")
_TEXTS = ("item_id", "group", "question", "answer", "generation")


def to_table(records: Iterable[ItemRecord], **extra: str) -> Any:
    """Records as a `pyarrow.Table`, one row each, columns named as the fields.

    Args:
        records: in the order of the rows.
        extra: text columns with one value for all rows, such as `model_id="..."`.

    Returns:
        The table; its schema does not depend on which values are None.
    """
    arrow = _arrow()
    rows = list(records)
    table = arrow.Table.from_pylist([asdict(record) for record in rows], schema=_schema(arrow))
    for name, value in extra.items():
        table = table.append_column(name, arrow.array([value] * len(rows), arrow.string()))
    return table


def from_table(table: Any) -> list[ItemRecord]:
    """Inverse of `to_table`; extra columns are dropped.

    Args:
        table: a `pyarrow.Table` with every field as a column.

    Returns:
        The records in row order.
    """
    names = [field.name for field in fields(ItemRecord)]
    rows: list[dict[str, Any]] = table.select(names).to_pylist()
    for row in rows:
        row.update({name: tuple(row[name] or ()) for name in _LISTS})
    return [ItemRecord(**row) for row in rows]


def write_parquet(path: Path, records: Iterable[ItemRecord], metadata: Mapping[str, str]) -> None:
    """Write records aside, then rename: readers see the old file or the whole new one.

    Args:
        path: target file; its folder is made if missing.
        records: one row each.
        metadata: text pairs kept in the file's footer (read back by `read_metadata`).
    """
    import os
    import uuid

    _arrow()
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    footer = {**metadata, "schema_version": str(SCHEMA_VERSION)}
    try:
        parquet.write_table(to_table(records).replace_schema_metadata(footer), aside)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, str]:
    """Footer of a file written by `write_parquet`; empty when there is no such file or it is not readable as Parquet.

    Args:
        path: the file.

    Returns:
        The text pairs, `schema_version` among them.
    """
    arrow = _arrow()
    import pyarrow.parquet as parquet

    if not path.is_file():
        return {}
    try:
        footer = parquet.read_schema(path).metadata or {}
    except arrow.ArrowInvalid:
        return {}
    return {key.decode(): value.decode() for key, value in footer.items() if not key.startswith(b"ARROW:")}


def read_parquet(path: Path) -> list[ItemRecord]:
    """Records of a file written by `write_parquet`.

    Args:
        path: the file.

    Returns:
        Its records in row order.

    Raises:
        UserError: the file is missing, no records file, or of another schema version.
    """
    version = read_metadata(path).get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise UserError(
            f"{path}: expected a records file of schema version {SCHEMA_VERSION}, found "
            f"{'none' if version is None else f'version {version}'}; evaluate the model again"
        )
    import pyarrow.parquet as parquet

    return from_table(parquet.read_table(path))


def _schema(arrow: Any) -> Any:
    types = {
        **dict.fromkeys(_TEXTS, arrow.string()),
        **dict.fromkeys(_LISTS, arrow.list_(arrow.float64())),
        "matches": arrow.list_(arrow.bool_()),
        "tokens": arrow.int64(),
    }
    return arrow.schema([(field.name, types.get(field.name, arrow.float64())) for field in fields(ItemRecord)])


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingPackageError("records are kept as Parquet, which needs pyarrow: pip install pyarrow") from error
    return pyarrow
