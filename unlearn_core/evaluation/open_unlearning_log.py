"""Read open-unlearning's per-item evaluation logs (TOFU_EVAL.json, MUSE_EVAL.json) and recompute every aggregate.

Records come out as from our own evaluation, and the same code computes their aggregates. What a log holds is taken as
it is: nothing in it is corrected, so extraction strengths keep open-unlearning's floor of 1 / T.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError
from unlearn_core.evaluation import metrics
from unlearn_core.evaluation.open_unlearning_layout import (
    LAYOUT,
    SUITES,
    WITHOUT_REFERENCE,
    Place,
    derived_items,
    layout_of,
    suites_of,
)
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.rouge import rouge
from unlearn_core.evaluation.suite import Aggregates, Records


@dataclass(frozen=True, slots=True)
class LogEvaluation:
    """A log's aggregates, recomputed and as logged.

    Attributes:
        suites: what the log is of: `tofu`, `muse`, or both.
        columns: names of all aggregates that its suites have.
        recomputed: by name, from the per-item values.
        logged: the log's own values; None where it logged null.
        missing: aggregates of the suite that could not be recomputed, with the reason.
        relative_difference: `|recomputed - logged| / |logged|` of every aggregate that has both and means the same.
        item_difference: the same for per-item values that follow from others (truth ratios, normalised probabilities,
            probabilities from losses): the largest per metric.
        rouge_items: items whose ROUGE was recomputed from their texts; 0 for logs without texts.
        rouge_compared: those of them whose logged numbers are meant to be the same.
        rouge_mismatches: those of the compared where a number differs.
        not_read: names in the log that are not part of the suites.
        notes: what to know when comparing the numbers with others.
    """

    suites: tuple[str, ...]
    columns: tuple[str, ...]
    recomputed: dict[str, float]
    logged: dict[str, float | None]
    missing: dict[str, str]
    relative_difference: dict[str, float]
    item_difference: dict[str, float]
    rouge_items: int
    rouge_compared: int
    rouge_mismatches: tuple[str, ...]
    not_read: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def largest_difference(self) -> float:
        """Largest relative difference of any aggregate; 0 when nothing could be compared."""
        return max(self.relative_difference.values(), default=0.0)


def evaluate_log(
    log_path: str | Path,
    retain_log_path: str | Path | None = None,
    require_forget_quality: bool = False,
    compat: bool = False,
) -> LogEvaluation:
    """Recompute the aggregates of a published log of TOFU or MUSE.

    Args:
        log_path: the model's log.
        retain_log_path: log of the model retrained without the forget data; forget quality and privleak need it.
        require_forget_quality: make a missing `retain_log_path` an error instead of missing values.
        compat: compute as open-unlearning does where it differs: ROUGE of MUSE's texts with stemmer, and without a
            reference log privleak against the constant AUC 0.5 (named `privleak_without_reference`).

    Returns:
        Recomputed and logged aggregates and how they differ.

    Raises:
        UserError: a file is missing, is not JSON, is no log of TOFU or MUSE, has null or non-finite entries, its
            metrics cover different items, the reference is of another suite or cannot serve as one, or it is required
            and missing.
        MissingPackageError: scipy or rouge-score is not installed.
    """
    if require_forget_quality and retain_log_path is None:
        raise UserError(
            f"forget quality of {log_path} was asked for without a reference: give the log of a model "
            "that was retrained without the forget data"
        )
    log = Log(log_path, compat)
    return compare(log, None if retain_log_path is None else Log(retain_log_path, compat))


def compare(log: "Log", reference: "Log | None" = None) -> LogEvaluation:
    """`evaluate_log` of files that are read already.

    Args:
        log: the model's log.
        reference: the retrained model's, read with the same `compat`.

    Returns:
        As `evaluate_log`.

    Raises:
        UserError: as there.
    """
    if reference is not None:
        reference.check_as_reference(log)
    try:
        result = log.aggregates(reference)
        item_difference = log.item_differences(result.values)
    except ValueError as error:  # such as a negative loss, or a reference log of another forget split
        raise UserError(f"{log.path}: {error}") from error
    names = log.columns
    logged = {name: log.aggregate(name) for name in names if name in log.metrics}
    notes = log.notes()
    if WITHOUT_REFERENCE in result.values:
        notes.append(f"{WITHOUT_REFERENCE} is measured against the constant AUC 0.5, no retrained model")
        if "privleak" in log.metrics:
            logged[WITHOUT_REFERENCE] = log.aggregate("privleak")
    both = {n: (result.values[n], v) for n, v in logged.items() if n in result.values and v is not None}
    return LogEvaluation(
        suites=log.suites,
        columns=(*names, *(name for name in result.values if name not in names)),
        recomputed=result.values,
        logged=logged,
        missing=result.missing,
        relative_difference={n: _relative(*pair) for n, pair in both.items() if n not in log.unstemmed},
        item_difference=item_difference,
        rouge_items=log.rouge_items,
        rouge_compared=log.rouge_compared,
        rouge_mismatches=tuple(log.rouge_mismatches),
        not_read=tuple(name for name in log.metrics if name not in names),
        notes=tuple(notes),
    )


class Log:
    """One log file, read whole; every error names it.

    Attributes:
        path: the file.
        compat: how MUSE's ROUGE is recomputed and what stands for a missing reference.
        metrics: the file's content.
        suites: what it is of.
        records: group to records in row order; ids are `<group>/<row number>`. Groups without values are left out.
        rouge_items: items whose ROUGE was recomputed.
        rouge_compared: those of them whose logged numbers are meant to be the same.
        rouge_mismatches: those of the compared that differ.
        unstemmed: ROUGE metrics recomputed without stemmer where the log's is with one.
        as_logged: ROUGE metrics of which the log's own numbers, with stemmer, had to be taken.
    """

    def __init__(self, path: str | Path, compat: bool = False) -> None:
        """Read a log.

        Args:
            path: the file.
            compat: as for `evaluate_log`.

        Raises:
            UserError: as for `evaluate_log`.
        """
        self.path = Path(path)
        self.compat = compat
        self.rouge_items = self.rouge_compared = 0
        self.rouge_mismatches: list[str] = []
        self.unstemmed: list[str] = []
        self.as_logged: list[str] = []
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}; expected an open-unlearning evaluation log") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: expected a JSON object of metrics, each an object with 'agg_value'")
        self.metrics: dict[str, Any] = content
        try:
            self.suites = suites_of(content, self.path.name)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        self.records: dict[str, list[ItemRecord]] = {}
        for group, places in layout_of(self.suites).items():
            columns = [(place, self._items(place)) for place in places if place.metric in content]
            if columns:
                self.records[group] = self._group(group, columns)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of all aggregates of the log's suites, in the order of their tables."""
        return tuple(dict.fromkeys(name for suite in self.suites for name in SUITES[suite].NAMES))

    def aggregates(self, reference: "Log | None" = None) -> Aggregates:
        """Aggregates of the records, by our own suites' code.

        Raises:
            ValueError: a measurement makes no sense, or the reference covers other items.
        """
        values: dict[str, float] = {}
        missing: dict[str, str] = {}
        for suite in self.suites:
            theirs = None if reference is None else reference.suite_records(suite)
            result = SUITES[suite].aggregate(self.suite_records(suite), theirs, self.compat)
            # A metric that both suites have was kept with the first; the second cannot have it.
            known = values.keys() | missing.keys()
            values |= {name: value for name, value in result.values.items() if name not in known}
            missing |= {name: reason for name, reason in result.missing.items() if name not in known}
        return Aggregates(values, missing)

    def notes(self) -> list[str]:
        """What sets the recomputed ROUGE apart from the logged one, or from our own evaluation's."""
        why = {
            "recomputed without stemmer, as MUSE's own code does; the log's numbers are with one": self.unstemmed,
            "the log's own numbers, made with stemmer: only the texts of all items would tell those without": (
                self.as_logged
            ),
        }
        return [f"{', '.join(names)}: {reason}" for reason, names in why.items() if names]

    def suite_records(self, suite: str) -> Records:
        """Those records that one suite aggregates."""
        return {group: rows for group, rows in self.records.items() if group in LAYOUT[suite]}

    def check_as_reference(self, log: "Log") -> None:
        """See to it that this log can be the retrained model's for another one.

        Raises:
            UserError: it is of another suite, or lacks all that is compared.
        """
        if not set(log.suites) <= set(self.suites):
            raise UserError(
                f"{self.path} cannot serve as the reference: it is a log of {' and '.join(self.suites)}, and "
                f"{log.path} one of {' and '.join(log.suites)}; give the retrained model's log of the same suite"
            )
        try:
            own = self.aggregates()
        except ValueError as error:
            raise UserError(f"{self.path} cannot serve as the reference: {error}") from error
        compared = ("forget_truth_ratio", "mia_min_k") if "tofu" in log.suites else ("mia_min_k",)
        if not any(name in own.values for name in compared):
            reasons = "; ".join(f"no {name}: {own.missing[name]}" for name in compared)
            raise UserError(f"{self.path} cannot serve as the reference: {reasons}")

    def aggregate(self, name: str) -> float | None:
        """Logged aggregate of a metric; None where null was logged."""
        value = self._metric(name).get("agg_value")
        return None if value is None else self._number(value, f"{name}.agg_value")

    def item_differences(self, recomputed: Mapping[str, float]) -> dict[str, float]:
        """Largest relative difference between logged and derived per-item values, per metric that allows it."""
        derived: dict[str, tuple[str, Mapping[str, float]]] = {}
        for group, rows in self.records.items():
            for suite in self.suites:
                derived |= derived_items(suite, group, rows) if group in LAYOUT[suite] else {}
            if f"{group}_Q_A_Prob" in recomputed:
                from_loss = metrics.probability([row.avg_loss or 0.0 for row in rows])
                ids = [row.item_id for row in rows]
                derived[f"{group}_Q_A_Prob"] = ("prob", dict(zip(ids, from_loss.tolist(), strict=True)))
        return {name: self._largest(name, *pair) for name, pair in derived.items() if name in self.metrics}

    def _largest(self, name: str, key: str, derived: Mapping[str, float]) -> float:
        items = self._items(Place(name, {}))
        if len(items) != len(derived):
            raise UserError(f"{name} has {len(items)} items where its group has {len(derived)}")
        pairs = zip(derived.values(), sorted(items, key=int), strict=True)
        return max(_relative(value, self._number(items[i].get(key), f"{name}[{i}].{key}")) for value, i in pairs)

    def _metric(self, name: str) -> Mapping[str, Any]:
        value = self.metrics[name]
        if not isinstance(value, dict):
            raise UserError(
                f"{self.path}: {name} is {json.dumps(value)[:40]}; expected an object with 'value_by_index'. A summary "
                "has no items; give the EVAL.json beside it"
            )
        return value

    def _items(self, place: Place) -> dict[str, dict[str, Any]]:
        holder: Any = self._metric(place.metric)
        holder = holder.get(place.part) if place.part else holder
        items = holder.get("value_by_index") if isinstance(holder, dict) else None
        if not isinstance(items, dict) or not items:
            raise UserError(
                f"{self.path}: {place.name} has no 'value_by_index'; aggregates are recomputed from items only"
            )
        null = [index for index, value in items.items() if value is None]
        if null:
            raise UserError(
                f"{self.path}: {place.name} is null for {len(null)} of {len(items)} items ({', '.join(null[:5])}"
                f"{', ...' if len(null) > 5 else ''}); a mean over the rest would be of other rows, so evaluate again"
            )
        odd = [index for index, value in items.items() if not index.isdecimal() or not isinstance(value, dict)]
        if odd:
            raise UserError(f"{self.path}: {place.name}[{odd[0]}]: expected a row number with an object of values")
        return items

    def _group(self, group: str, columns: list[tuple[Place, dict[str, dict[str, Any]]]]) -> list[ItemRecord]:
        first, items = columns[0]
        values: dict[str, dict[str, Any]] = {item: {} for item in sorted(items, key=int)}
        for place, entries in columns:
            differing = values.keys() ^ entries.keys()
            if differing:
                raise UserError(
                    f"{self.path}: {first.name} and {place.name} cover different items; {len(differing)} are in one "
                    f"only, such as '{min(differing, key=int)}'"
                )
            if place.rouge:
                self._read_rouge(place, entries, values)
                continue
            read = self._numbers if place.lists else self._number
            for item, entry in entries.items():
                where = f"{place.name}[{item}]"
                values[item] |= {f: read(entry.get(k), f"{where}.{k}") for k, f in place.fields.items()}
        return [
            ItemRecord(item_id=f"{group}/{int(item):05d}", group=group, **fields) for item, fields in values.items()
        ]

    def _read_rouge(
        self, place: Place, entries: Mapping[str, dict[str, Any]], values: dict[str, dict[str, Any]]
    ) -> None:
        """Put ROUGE numbers and texts of every item into `values`; recomputed wherever both texts are there."""
        with_texts = [item for item, e in entries.items() if all(_text(e, k) for k in ("ground_truth", "generation"))]
        stemmed = self.compat or place.rouge == "rougeL_recall"  # TOFU's, with stemmer here and there
        # A mean of some numbers with and some without stemmer would be neither.
        recomputable = set(with_texts) if stemmed or len(with_texts) == len(entries) else set()
        if not stemmed:
            (self.unstemmed if recomputable else self.as_logged).append(place.metric)
        for item, entry in entries.items():
            name = f"{place.metric}[{item}]"
            scores = {k: self._number(entry[k], f"{name}.{k}") for k in place.fields if k in entry}
            if item in recomputable:
                logged, scores = scores, asdict(rouge(entry["ground_truth"], entry["generation"], stemmer=stemmed))
                self.rouge_items += 1
                self.rouge_compared += stemmed
                if stemmed and any(not math.isclose(scores[k], v, rel_tol=1e-12) for k, v in logged.items()):
                    self.rouge_mismatches.append(name)
            elif place.rouge not in scores:
                raise UserError(f"{self.path}: {name} has neither texts nor {place.rouge}")
            texts = {"input": "question", "ground_truth": "answer", "generation": "generation"}
            values[item] |= scores | {field: entry[key] for key, field in texts.items() if _text(entry, key)}

    def _number(self, value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.path}: {where} is {json.dumps(value)}; expected a finite number")
        return float(value)

    def _numbers(self, value: Any, where: str) -> tuple[float, ...]:
        if not isinstance(value, list) or not value:
            raise UserError(f"{self.path}: {where} is {json.dumps(value)}; expected a list of numbers")
        return tuple(self._number(number, f"{where}[{k}]") for k, number in enumerate(value))


def _text(entry: Mapping[str, Any], key: str) -> bool:
    return isinstance(entry.get(key), str)


def _relative(value: float, logged: float) -> float:
    if value == logged:
        return 0.0
    return abs(value - logged) / abs(logged) if logged else math.inf
