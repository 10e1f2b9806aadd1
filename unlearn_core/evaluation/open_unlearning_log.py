"""Read open-unlearning's per-item evaluation logs (TOFU_EVAL.json) and recompute every aggregate of the TOFU suite.

A log is a JSON object: metric name to `{"agg_value": ..., "value_by_index": {"0": {...}, ...}}`. Membership-inference
metrics and privleak are read past; MUSE logs are not supported yet.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unlearn_core.errors import UserError
from unlearn_core.evaluation import metrics, tofu
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.rouge import Rouge, rouge

_LOSSES = {  # suffix of the metric's name -> record fields of its avg_loss and prob
    "_Q_A_Prob": ("avg_loss", "prob"),
    "_Q_A_PARA_Prob": ("paraphrased_loss", "paraphrased_prob"),
    "_Q_A_PERT_Prob": ("perturbed_losses", "perturbed_probs"),
}
_SCORES = ("extraction_strength", "exact_memorization")
_ROUGE = tuple(Rouge.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class LogEvaluation:
    """A log's aggregates, recomputed and as logged.

    Attributes:
        recomputed: by name, from the per-item values.
        logged: the log's own values; None where it logged null.
        missing: aggregates of the suite that could not be recomputed, with the reason.
        relative_difference: `|recomputed - logged| / |logged|` of every aggregate that has both.
        item_difference: the same for per-item values that follow from others (truth ratios, normalised probabilities,
            probabilities from losses): the largest per metric.
        rouge_items: items whose ROUGE was recomputed from their texts; 0 for logs without texts.
        rouge_mismatches: those of them where a recomputed number differs from the logged one.
        not_read: names in the log that are not part of the suite.
    """

    recomputed: dict[str, float]
    logged: dict[str, float | None]
    missing: dict[str, str]
    relative_difference: dict[str, float]
    item_difference: dict[str, float]
    rouge_items: int
    rouge_mismatches: tuple[str, ...]
    not_read: tuple[str, ...]

    @property
    def largest_difference(self) -> float:
        """Largest relative difference of any aggregate; 0 when nothing could be compared."""
        return max(self.relative_difference.values(), default=0.0)


def evaluate_log(
    log_path: str | Path, retain_log_path: str | Path | None = None, require_forget_quality: bool = False
) -> LogEvaluation:
    """Recompute the TOFU aggregates of a published log.

    Args:
        log_path: the model's log.
        retain_log_path: log of the model retrained without the forget data; forget quality needs it.
        require_forget_quality: make a missing `retain_log_path` an error instead of a missing value.

    Returns:
        Recomputed and logged aggregates and how they differ.

    Raises:
        UserError: a file is missing, is not JSON, is no TOFU log, has null or non-finite entries, its metrics cover
            different items, or the reference is required and missing.
        MissingPackageError: scipy or rouge-score is not installed.
    """
    if require_forget_quality and retain_log_path is None:
        raise UserError(
            f"forget quality of {log_path} was asked for without a reference: give the log of a model "
            "that was retrained without the forget data"
        )
    log = _Log(Path(log_path))
    reference = None if retain_log_path is None else _reference(Path(retain_log_path))
    records = log.records()
    try:
        result = tofu.aggregate(records, reference)
        item_difference = log.item_differences(records, result.values)
    except ValueError as error:  # such as a negative loss, or a reference log of another forget split
        raise UserError(f"{log_path}: {error}") from error
    logged = {name: log.aggregate(name) for name in tofu.NAMES if name in log.metrics}
    both = {n: (result.values[n], v) for n, v in logged.items() if n in result.values and v is not None}
    return LogEvaluation(
        recomputed=result.values,
        logged=logged,
        missing=result.missing,
        relative_difference={name: _relative(*pair) for name, pair in both.items()},
        item_difference=item_difference,
        rouge_items=log.rouge_items,
        rouge_mismatches=tuple(log.rouge_mismatches),
        not_read=tuple(name for name in log.metrics if name not in tofu.NAMES),
    )


class _Log:
    """One log file; every error names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rouge_items = 0
        self.rouge_mismatches: list[str] = []
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}; expected an open-unlearning evaluation log") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
        if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
            raise UserError(f"{path}: expected a JSON object of metrics, each an object with 'agg_value'")
        self.metrics: dict[str, dict[str, Any]] = content
        if not any(name in content for name in tofu.NAMES if "_Q_A_" in name):
            wanted = ", ".join(f"{group}_Q_A_Prob" for group in tofu.GROUPS)
            muse = sorted(name for name in content if "_knowmem_" in name or "_verbmem_" in name)
            what = f"it is a MUSE log ({', '.join(muse)}), and those are not supported yet" if muse else "no TOFU log"
            raise UserError(f"{path}: {what}; missing every per-item TOFU metric ({wanted}, ...)")

    def records(self) -> dict[str, list[ItemRecord]]:
        """Records by group; groups without any per-item metric are left out."""
        groups: dict[str, list[ItemRecord]] = {}
        for group in tofu.GROUPS:
            columns = self._columns(group)
            if columns:
                items = self._common_items(columns)
                groups[group] = [self._record(group, item, columns) for item in items]
        return groups

    def aggregate(self, name: str) -> float | None:
        """Logged aggregate of a metric; None where null was logged."""
        value = self.metrics[name].get("agg_value")
        return None if value is None else self._number(value, f"{name}.agg_value")

    def item_differences(
        self, records: Mapping[str, list[ItemRecord]], recomputed: Mapping[str, float]
    ) -> dict[str, float]:
        """Largest relative difference between logged and derived per-item values, per metric that allows it."""
        derived: dict[str, tuple[str, Mapping[str, float]]] = {}
        for group, rows in records.items():
            ids = [row.item_id for row in rows]
            name = "forget_truth_ratio" if group == "forget" else f"{group}_Truth_Ratio"
            if name in recomputed:
                derived[name] = ("score", tofu.truth_ratios(rows))
            name = f"{group}_Q_A_Prob_normalised"
            if name in recomputed:
                shares = metrics.normalised_probability(
                    [r.prob or 0.0 for r in rows], [r.perturbed_probs for r in rows]
                )
                derived[name] = ("prob", dict(zip(ids, shares.tolist(), strict=True)))
            name = f"{group}_Q_A_Prob"
            if name in recomputed:
                from_loss = metrics.probability([row.avg_loss or 0.0 for row in rows])
                derived[name] = ("prob", dict(zip(ids, from_loss.tolist(), strict=True)))
        return {name: self._largest(name, *pair) for name, pair in derived.items() if name in self.metrics}

    def _largest(self, name: str, key: str, derived: Mapping[str, float]) -> float:
        items = self._items(name)
        if len(items) != len(derived):
            raise UserError(f"{self.path}: {name} has {len(items)} items where its group has {len(derived)}")
        pairs = zip(derived.values(), sorted(items, key=int), strict=True)
        return max(_relative(value, self._number(items[i].get(key), f"{name}[{i}].{key}")) for value, i in pairs)

    def _columns(self, group: str) -> dict[str, dict[str, dict[str, Any]]]:
        wanted = [f"{group}{suffix}" for suffix in (*_LOSSES, "_Q_A_ROUGE")]
        wanted += _SCORES if group == "forget" else ()
        return {name: self._items(name) for name in wanted if name in self.metrics}

    def _items(self, name: str) -> dict[str, dict[str, Any]]:
        items = self.metrics[name].get("value_by_index")
        if not isinstance(items, dict) or not items:
            raise UserError(f"{self.path}: {name} has no 'value_by_index'; aggregates are recomputed from items only")
        null = [index for index, value in items.items() if value is None]
        if null:
            raise UserError(
                f"{self.path}: {name} is null for {len(null)} of {len(items)} items ({', '.join(null[:5])}"
                f"{', ...' if len(null) > 5 else ''}); a mean over the rest would be of other rows, so evaluate again"
            )
        odd = [index for index, value in items.items() if not index.isdecimal() or not isinstance(value, dict)]
        if odd:
            raise UserError(f"{self.path}: {name}[{odd[0]}]: expected a row number with an object of values")
        return items

    def _common_items(self, columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
        first, *others = columns
        for name in others:
            differing = columns[first].keys() ^ columns[name].keys()
            if differing:
                raise UserError(
                    f"{self.path}: {first} and {name} cover different items; {len(differing)} are in one only, "
                    f"such as '{min(differing, key=int)}'"
                )
        return sorted(columns[first], key=int)

    def _record(self, group: str, item: str, columns: Mapping[str, Mapping[str, dict[str, Any]]]) -> ItemRecord:
        values: dict[str, Any] = {}
        for suffix, (loss, prob) in _LOSSES.items():
            name = f"{group}{suffix}"
            if name in columns:
                for key, field in (("avg_loss", loss), ("prob", prob)):
                    read = self._numbers if suffix == "_Q_A_PERT_Prob" else self._number
                    values[field] = read(columns[name][item].get(key), f"{name}[{item}].{key}")
        for name in _SCORES:
            if name in columns:
                values[name] = self._number(columns[name][item].get("score"), f"{name}[{item}].score")
        if f"{group}_Q_A_ROUGE" in columns:
            values |= self._rouge(f"{group}_Q_A_ROUGE", item, columns[f"{group}_Q_A_ROUGE"][item])
        return ItemRecord(item_id=f"{group}/{int(item):05d}", group=group, **values)

    def _rouge(self, name: str, item: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        logged = {k: self._number(entry[k], f"{name}[{item}].{k}") for k in _ROUGE if k in entry}
        truth, generation = entry.get("ground_truth"), entry.get("generation")
        if not isinstance(truth, str) or not isinstance(generation, str):
            if "rougeL_recall" not in logged:
                raise UserError(f"{self.path}: {name}[{item}] has neither texts nor rougeL_recall")
            return logged
        scores = asdict(rouge(truth, generation))
        self.rouge_items += 1
        if any(not math.isclose(scores[key], value, rel_tol=1e-12) for key, value in logged.items()):
            self.rouge_mismatches.append(f"{name}[{item}]")
        return {"answer": truth, "generation": generation, **scores}

    def _number(self, value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.path}: {where} is {json.dumps(value)}; expected a finite number")
        return float(value)

    def _numbers(self, value: Any, where: str) -> tuple[float, ...]:
        if not isinstance(value, list) or not value:
            raise UserError(f"{self.path}: {where} is {json.dumps(value)}; expected a list of numbers")
        return tuple(self._number(number, f"{where}[{k}]") for k, number in enumerate(value))


def _reference(path: Path) -> dict[str, float]:
    """Truth ratios of the forget items in the reference's log, by item id."""
    forget = _Log(path).records().get("forget", [])
    if not forget:
        raise UserError(f"{path}: no per-item forget metrics; it cannot serve as the reference of forget quality")
    try:
        return tofu.truth_ratios(forget)
    except ValueError as error:
        raise UserError(f"{path} cannot serve as the reference of forget quality: {error}") from error


def _relative(value: float, logged: float) -> float:
    if value == logged:
        return 0.0
    return abs(value - logged) / abs(logged) if logged else math.inf
