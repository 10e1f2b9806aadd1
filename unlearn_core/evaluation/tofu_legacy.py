"""TOFU's numbers as the original harness (locuslab/tofu, 2024) aggregated them, to compare with papers that used it.

Against today's definitions (`unlearn_core.evaluation.tofu`):

- rows: the first 300 of the forget split and of retain_perturbed, all of the authors and facts;
- truth ratio x = exp(mean_k l_k - l), the right answer over the wrong ones, without the 1e-10 of today's inverse;
  forget: mean of min(x, 1/x); the others: mean of max(0, 1 - 1/x);
- normalised probability p / (p + sum_k p_k), without 1e-10;
- model utility: harmonic mean of nine, as today; forget quality: the same Kolmogorov-Smirnov test, of x.

Here all are computed from differences of losses, which is the same wherever the original divides by no zero and has a
value where it does.

Scores and ROUGE are those of the records, so what came before them is not reproduced: the model family's tags around
the question (here the style and the tokenizer's template that the user chose), the limit of 200 tokens on question plus
answer, scored or generated (here `max_length` and `max_new_tokens`), prompts read back from decoded text, labels masked
by the length of the separately tokenised question, and bf16 weights.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership, metrics
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Aggregates, Records, Suite, present

ROWS = 300
"""Rows of the forget and retain sets that the original harness looks at (its `ds_size`)."""

_SETS = ("retain", "ra", "wf")
_PARAPHRASED = ("forget", "retain")

_QUALITY = ("legacy_forget_quality", "legacy_forget_quality_log10", "legacy_forget_quality_statistic")

NAMES = (
    "legacy_model_utility",
    *_QUALITY,
    *(f"legacy_{group}_{part}" for group in ("forget", *_SETS) for part in ("Prob", "ROUGE", "Truth_Ratio")),
)
"""Names of all columns, in the order of the table."""


def legacy(records: Records, reference: Records | None = None, compat: bool = False) -> Aggregates:
    """The original harness's aggregates.

    Args:
        records: group to records, each group in the order of its file; a group may be absent.
        reference: those of the model retrained without the forget data, on the same items. Without it forget quality
            is missing.
        compat: no part of this: it changes nothing.

    Returns:
        Values and reasons for those that are missing; together they are `NAMES`.

    Raises:
        UserError: the reference was measured on other items.
        ValueError: a measurement is not finite.
    """
    del compat
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for group in ("forget", *_SETS):
        for part, compute in (("Prob", _probability), ("ROUGE", _rouge), ("Truth_Ratio", _truth_ratio)):
            try:
                values[f"legacy_{group}_{part}"] = compute(_rows(records, group))
            except UserError as error:
                missing[f"legacy_{group}_{part}"] = str(error)
    terms = [[f"legacy_{group}_{part}" for group in _SETS] for part in ("Prob", "ROUGE", "Truth_Ratio")]
    absent = [name for row in terms for name in row if name in missing]
    if absent:
        missing["legacy_model_utility"] = f"{len(absent)} of its nine terms are missing: {', '.join(absent)}"
    else:
        values["legacy_model_utility"] = metrics.model_utility(*([values[name] for name in row] for row in terms))
    _forget_quality(records, reference, values, missing)
    return Aggregates({n: values[n] for n in NAMES if n in values}, {n: missing[n] for n in NAMES if n in missing})


def added_to(suite: Suite) -> Suite:
    """A suite with these columns as well; its items already give what they need.

    Args:
        suite: the TOFU suite.

    Returns:
        The suite with `NAMES` after its own columns.
    """
    more = Suite(
        name="tofu-legacy",
        source=suite.source,
        forget=suite.forget,
        items=(),
        columns=NAMES,
        aggregate=legacy,
        headline=("legacy_model_utility", "legacy_forget_quality"),
    )
    return suite.with_more(more)


def _rows(records: Records, group: str) -> list[ItemRecord]:
    """The group's rows that the harness looked at, in the order of the split's file."""
    rows = sorted(records.get(group, ()), key=lambda record: record.item_id)
    if not rows:
        raise UserError(f"there are no {group} records")
    return rows[:ROWS] if group in _PARAPHRASED else rows


def _probability(rows: Sequence[ItemRecord]) -> float:
    if rows[0].group in _PARAPHRASED:
        return metrics.mean(metrics.probability(present(rows, "avg_loss")), "probability")
    losses = zip(present(rows, "avg_loss"), present(rows, "perturbed_losses"), strict=True)
    return metrics.mean([_share(correct, wrong) for correct, wrong in losses], "normalised probability")


def _share(correct: float, wrong_K: Sequence[float]) -> float:
    losses = metrics.finite([correct, *wrong_K], "loss")
    # Relative to the likeliest answer: not all terms underflow, however small the probabilities.
    relative = np.exp(losses.min() - losses)
    return float(relative[0] / relative.sum())


def _rouge(rows: Sequence[ItemRecord]) -> float:
    return metrics.mean(present(rows, "rougeL_recall"), "rougeL_recall")


def _log_ratios(rows: Sequence[ItemRecord]) -> NDArray[np.float64]:
    """Logarithm of the right answer's probability over the wrong ones' geometric mean, `[N]`."""
    correct = metrics.finite(
        present(rows, "paraphrased_loss" if rows[0].group in _PARAPHRASED else "avg_loss"), "loss of the correct answer"
    )
    wrong = [metrics.mean(losses_K, "loss of a perturbed answer") for losses_K in present(rows, "perturbed_losses")]
    return np.array(wrong) - correct


def _truth_ratio(rows: Sequence[ItemRecord]) -> float:
    log_N = _log_ratios(rows)
    if rows[0].group == "forget":
        return float(np.mean(np.exp(-np.abs(log_N))))
    return float(np.mean(-np.expm1(-np.maximum(log_N, 0.0))))


def _forget_quality(
    records: Records, reference: Records | None, values: dict[str, float], missing: dict[str, str]
) -> None:
    try:
        if reference is None:
            raise UserError("needs the losses of a reference model that never saw the forget data; none was given")
        rows = _rows(records, "forget")
        log_N = _log_ratios(rows)
        try:
            reference_rows = _rows(reference, "forget")
            reference_log_N = _log_ratios(reference_rows)
        except UserError as error:
            raise UserError(f"the reference cannot serve: {error}") from error
    except UserError as error:
        missing |= dict.fromkeys(_QUALITY, str(error))
        return
    membership.require_same_rows("legacy forget quality", rows, reference_rows)
    # Ratios beyond the largest double are tied there, as they were in the original.
    quality = metrics.forget_quality(*(np.exp(np.minimum(log, 709.0)) for log in (log_N, reference_log_N)))
    values |= dict(zip(_QUALITY, (quality.p_value, quality.log10, quality.statistic), strict=True))
