"""Write our records as an open-unlearning log (TOFU_EVAL.json, MUSE_EVAL.json).

The file has the shape of open-unlearning's own: sorted metric names, items by row number, AUCs with both their parts.
It serves there as the log of a retrained model too, of which `forget_truth_ratio`'s item scores and `mia_min_k`'s
aggregate are read; and `open_unlearning_log` reads it back with the same aggregates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError
from unlearn_core.evaluation.membership import ATTACKS
from unlearn_core.evaluation.open_unlearning_layout import (
    LAYOUT,
    WITHOUT_ITEMS,
    WITHOUT_REFERENCE,
    Place,
    derived_items,
)
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Records
from unlearn_core.publish import write_json


@dataclass(frozen=True, slots=True)
class WrittenLog:
    """What became of an evaluation.

    Attributes:
        path: the file.
        metrics: names in it.
        left_out: names of metrics of the suite, or of the given aggregates, that are not in it, with the reason.
    """

    path: Path
    metrics: tuple[str, ...]
    left_out: dict[str, str]


def write_log(
    path: str | Path,
    suite_name: str,
    records: Records,
    aggregates: Mapping[str, float],
    reference: Records | None = None,
) -> WrittenLog:
    """Write one model's records and aggregates; readers see the old file or the whole new one.

    Args:
        path: target file; its folder is made if missing.
        suite_name: `tofu` or `muse`.
        records: group to records. Row numbers are those that end the item ids, else places within the group.
        aggregates: by column name. One that is absent or NaN is written as null where its items are there.
        reference: records of the retrained model; the reference attack's scores are losses minus its losses. None
            leaves that attack out, unless the records hold its scores.

    Returns:
        What was written and what was not.

    Raises:
        UserError: open-unlearning has no log of this suite, no metric of it was measured, or a value is NaN or
            infinite.
    """
    path = Path(path)
    if suite_name not in LAYOUT:
        raise UserError(
            f"open-unlearning has no logs of the suite '{suite_name}'; expected {' or '.join(LAYOUT)}. "
            "Own files have their records in EVAL/records instead"
        )
    groups = {group: list(records[group]) for group in LAYOUT[suite_name] if records.get(group)}
    if reference is not None:
        groups = {group: _with_reference_scores(rows, reference.get(group, ())) for group, rows in groups.items()}
    log: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for group, places in LAYOUT[suite_name].items():
        rows = groups.get(group)
        for place in places:
            entries = _entries(place, rows, path) if rows else f"there are no {group} records"
            if isinstance(entries, str):
                left_out[place.metric] = entries
            elif place.part:
                mean = math.fsum(entry["score"] for entry in entries.values()) / len(entries)
                log.setdefault(place.metric, {})[place.part] = {"agg_value": mean, "value_by_index": entries}
            else:
                log[place.metric] = {"value_by_index": entries}
        for metric, (key, values) in (_derived(suite_name, group, rows, path) if rows else {}).items():
            numbers = zip(_row_numbers(rows or ()), values.values(), strict=True)
            log[metric] = {"value_by_index": {row: {key: value} for row, value in numbers}}
    for metric in ATTACKS:
        # Half of an attack has no AUC.
        if metric in left_out:
            log.pop(metric, None)
    if not log:
        raise UserError(f"{path}: these records hold no metric of the suite '{suite_name}', so there is nothing to log")
    _put_aggregates(log, suite_name, aggregates)
    left_out |= {
        name: "open-unlearning has no such metric"
        for name in aggregates
        if name not in log and name not in left_out and name != WITHOUT_REFERENCE
    }
    write_json(path, dict(sorted(log.items())))
    return WrittenLog(path, tuple(sorted(log)), left_out)


def _put_aggregates(log: dict[str, dict[str, Any]], suite_name: str, aggregates: Mapping[str, float]) -> None:
    finite = {name: float(value) for name, value in aggregates.items() if math.isfinite(value)}
    for metric in log:
        log[metric] = {"agg_value": finite.get(metric), **log[metric]}
        if metric in ATTACKS:
            log[metric]["auc"] = finite.get(metric)
    for metric in WITHOUT_ITEMS:
        if metric in finite:
            log[metric] = {"agg_value": finite[metric]}
    if "privleak" not in finite and WITHOUT_REFERENCE in finite:
        log["privleak"] = {"agg_value": finite[WITHOUT_REFERENCE], "reference_auc": 0.5}
    if suite_name == "tofu" and "forget_truth_ratio" in log:
        log.setdefault("forget_quality", {"agg_value": None})


def _entries(place: Place, rows: Sequence[ItemRecord], path: Path) -> dict[str, dict[str, Any]] | str:
    """A place's items by row number, or why there are none."""
    wanted = {key: field for key, field in place.fields.items() if not place.rouge or key == place.rouge}
    absent = [row.item_id for row in rows if any(getattr(row, field) in (None, ()) for field in wanted.values())]
    if absent:
        return f"{len(absent)} of {len(rows)} records have no {' or '.join(wanted.values())}, first '{absent[0]}'"
    entries: dict[str, dict[str, Any]] = {}
    for index, row in zip(_row_numbers(rows), rows, strict=True):
        entry = {key: getattr(row, field) for key, field in place.fields.items()}
        entry = {key: list(value) if place.lists else value for key, value in entry.items() if value is not None}
        _check_finite(entry, f"{path}: {place.metric} of '{row.item_id}'")
        if place.rouge:
            texts = {"input": row.question, "ground_truth": row.answer, "generation": row.generation}
            entry |= {key: text for key, text in texts.items() if text is not None}
        entries[index] = entry
    return entries


def _derived(
    suite_name: str, group: str, rows: Sequence[ItemRecord], path: Path
) -> dict[str, tuple[str, dict[str, float]]]:
    try:
        return derived_items(suite_name, group, rows)
    except ValueError as error:
        raise UserError(f"{path}: {group}: {error}") from error


def _check_finite(entry: Mapping[str, Any], where: str) -> None:
    for key, value in entry.items():
        for number in value if isinstance(value, list) else [value]:
            if not math.isfinite(number):
                raise UserError(
                    f"{where}: {key} is {number}; a log of a diverged model would be of no use, so export another "
                    "checkpoint"
                )


def _with_reference_scores(rows: Sequence[ItemRecord], reference: Sequence[ItemRecord]) -> list[ItemRecord]:
    losses = {row.item_id: row.loss_score for row in reference}
    found = []
    for row in rows:
        theirs = losses.get(row.item_id)
        if row.reference_score is None and row.loss_score is not None and theirs is not None:
            row = replace(row, reference_score=row.loss_score - theirs)
        found.append(row)
    return found


def _row_numbers(rows: Sequence[ItemRecord]) -> list[str]:
    ends = [row.item_id.rpartition("/")[2] for row in rows]
    if all(end.isdecimal() for end in ends) and len({int(end) for end in ends}) == len(ends):
        return [str(int(end)) for end in ends]
    return [str(index) for index in range(len(rows))]
