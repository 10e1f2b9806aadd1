"""What is kept about one item: everything its metrics need, so that every aggregate can be recomputed from records."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unlearn_core.errors import MissingPackageError, UserError

SCHEMA_VERSION = 2
"""Raised when a field changes its meaning; files of another version are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """One item of one group, scored by one model. None (or an empty tuple) means: not measured.

    Membership scores are higher where the text looks less like training data (arXiv 2407.06460, section 3.1; min-k:
    arXiv 2310.16789; min-k++: arXiv 2404.02936; zlib and reference: arXiv 2012.07805).

    Attributes:
        item_id: identity of the row; records are joined on it.
        group: the set of rows that it is aggregated with, such as `forget`.
        question: the prompt; None in published logs, which leave it out.
        answer: the true answer; for a generation that is compared with a part of it, that part.
        avg_loss: mean negative log-likelihood per label token of the true answer, end token (if any) included; nats.
        prob: `exp(-avg_loss)`; in a published log that value as logged, rounded to float32.
        tokens: label tokens of the true answer, end token included.
        matches: per label token, whether the arg-max given the true tokens before it hits; an end token comes last.
        extraction_strength: of the answer tokens without the end token, in [0, 1].
        exact_memorization: of the same tokens, in [0, 1].
        paraphrased_loss: as `avg_loss`, of the paraphrased answer.
        paraphrased_prob: as `prob`, of the paraphrased answer.
        perturbed_losses: as `avg_loss`, of each of the K wrong answers.
        perturbed_probs: as `prob`, of each of the K wrong answers.
        token_log_probs: log-probability of each label token of the true answer; nats, at most 0.
        token_z_scores: the same, minus the mean and over the standard deviation of the log-probability under the
            model's own prediction at that place.
        loss_score: membership score: `avg_loss`.
        zlib_score: membership score: `avg_loss` over the bytes of the zlib-compressed answer.
        min_k_score: membership score: minus the mean of the lowest share k of `token_log_probs` (no end token).
        min_k_plus_plus_score: the same of `token_z_scores`.
        gradient_norm: membership score: mean over the parameter tensors of the L2 norm of the loss's gradient.
        reference_score: membership score: `avg_loss` minus the reference model's; kept only by published logs, else
            computed on the way to the aggregate.
        kl_to_target: mean over label tokens of KL(target model || this model); nats, at least 0.
        generation: greedy answer to the prompt.
        smallest_margin: smallest difference of the two largest logits over the greedy tokens; below 1e-4, another
            batch or machine may generate otherwise.
        rouge1_recall: of the generation against the answer, in [0, 1].
        rougeL_recall: the same for the longest common subsequence.
        rougeL_f1: harmonic mean of that recall and its precision.
        samples: sampled answers to the prompt.
        sample_rougeL_recall: ROUGE-L recall of each sampled answer, in [0, 1].
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
    token_log_probs: tuple[float, ...] = ()
    token_z_scores: tuple[float, ...] = ()
    loss_score: float | None = None
    zlib_score: float | None = None
    min_k_score: float | None = None
    min_k_plus_plus_score: float | None = None
    gradient_norm: float | None = None
    reference_score: float | None = None
    kl_to_target: float | None = None
    generation: str | None = None
    smallest_margin: float | None = None
    rouge1_recall: float | None = None
    rougeL_recall: float | None = None
    rougeL_f1: float | None = None
    samples: tuple[str, ...] = ()
    sample_rougeL_recall: tuple[float, ...] = ()


_NUMBER_LISTS = ("perturbed_losses", "perturbed_probs", "token_log_probs", "token_z_scores", "sample_rougeL_recall")
_LISTS = (*_NUMBER_LISTS, "matches", "samples")
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
        **dict.fromkeys(_NUMBER_LISTS, arrow.list_(arrow.float64())),
        "matches": arrow.list_(arrow.bool_()),
        "samples": arrow.list_(arrow.string()),
        "tokens": arrow.int64(),
    }
    return arrow.schema([(field.name, types.get(field.name, arrow.float64())) for field in fields(ItemRecord)])


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingPackageError("records are kept as Parquet, which needs pyarrow: pip install pyarrow") from error
    return pyarrow
