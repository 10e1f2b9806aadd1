"""Membership attacks: how well a score tells forget rows from rows that no model was trained on.

AUC = P(score of a forget row < score of a holdout row), ties half. Scores are higher where a text looks less like
training data, so that 1 means the forget rows are recognised as members without a mistake. MUSE's PrivLeak (arXiv
2407.06460, section 3.1) compares that with a model retrained without them.

The functions of numbers compute in double precision and raise `ValueError` on NaN, infinity or an empty input.
Shape suffixes: T answer tokens, N forget rows, M holdout rows.
"""

import zlib
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from unlearn_core.errors import UserError
from unlearn_core.evaluation.metrics import EPSILON, finite
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Aggregates, Records, present

ATTACKS = {
    "mia_loss": "loss_score",
    "mia_zlib": "zlib_score",
    "mia_min_k": "min_k_score",
    "mia_min_k_plus_plus": "min_k_plus_plus_score",
    "mia_gradnorm": "gradient_norm",
    "mia_reference": "reference_score",
}
"""Column of each attack's AUC, and the record field of its score."""

NAMES = ("privleak", "privleak_without_reference", *ATTACKS)
"""Columns of `aggregate`, in the order of the table."""


def min_k(scores_T: ArrayLike, k: float) -> float:
    """Min-k score: minus the mean of the lowest `max(1, int(k * T))` token scores.

    Of log-probabilities it is min-k (arXiv 2310.16789), of standardised ones min-k++ (arXiv 2404.02936).

    Args:
        scores_T: log-probability of each answer token (nats), or its z-score under the model's own prediction.
        k: share of the tokens, above 0 and at most 1.

    Returns:
        Higher where the text looks less like training data; at least 0 for log-probabilities, any number for z-scores.

    Raises:
        ValueError: no token, a score that is not finite, or k out of range.
    """
    if not 0 < k <= 1:
        raise ValueError(f"min-k: k must be above 0 and at most 1, got {k}")
    scores = np.sort(finite(scores_T, "token score"))
    return float(-np.mean(scores[: max(1, int(k * scores.size))]))


def zlib_score(avg_loss: float, text: str) -> float:
    """Loss over compressed size: `avg_loss / len(zlib(text in UTF-8))` (arXiv 2012.07805, section 5.2).

    Args:
        avg_loss: mean negative log-likelihood per label token of the text; nats.
        text: the answer alone, without its prompt.

    Returns:
        Nats per token and byte, at least 0. Higher where the text looks less like training data; the size discounts
        texts that are likely because they repeat themselves.

    Raises:
        ValueError: the loss is not finite or the text is empty.
    """
    if not text:
        raise ValueError("zlib score: the text is empty")
    return float(finite([avg_loss], "avg_loss")[0]) / len(zlib.compress(text.encode()))


def auc(forget_N: ArrayLike, holdout_M: ArrayLike) -> float:
    """Area under the ROC curve: P(a forget row's score < a holdout row's score), ties half.

    Args:
        forget_N: scores of the forget rows, higher where a row looks less like training data.
        holdout_M: scores of rows of the same kind that no model was trained on.

    Returns:
        In [0, 1]: 1 = every forget row looks more like training data than every holdout row (nothing forgotten), 0.5 =
        not told apart, below 0.5 = the forget rows look less familiar than unseen ones, itself a trace of unlearning.

    Raises:
        ValueError: empty or not finite.
    """
    forget = finite(forget_N, "score of a forget row")
    holdout = np.sort(finite(holdout_M, "score of a holdout row"))
    below_or_equal = np.searchsorted(holdout, forget, side="right")
    below = np.searchsorted(holdout, forget, side="left")
    # Whole numbers up to here, so the result does not depend on the order of rows.
    twice_won = 2 * forget.size * holdout.size - int(np.sum(below_or_equal)) - int(np.sum(below))
    return twice_won / (2 * forget.size * holdout.size)


def privleak(auc_value: float, reference_auc: float) -> float:
    """MUSE's PrivLeak in percent: `100 ((1 - auc) - (1 - r)) / ((1 - r) + 1e-10)`, r the reference's AUC.

    MUSE writes `(auc' - r') / r'` with AUCs of the other direction, x' = 1 - x: the same number.

    Args:
        auc_value: `auc` of the model, in [0, 1].
        reference_auc: `auc` of the model retrained without the forget rows, on the same rows.

    Returns:
        0 = told apart as well as by the retrained model (best). Negative = under-unlearned, down to -100 = forget rows
        recognised without a mistake. Positive = over-unlearned, up to 100 r / (1 - r), which is 100 for r = 0.5: the
        rows stand out as less familiar than unseen ones. Divides by almost nothing when r is near 1.

    Raises:
        ValueError: an AUC is not finite or outside [0, 1].
    """
    model, reference = _share(auc_value, "AUC"), _share(reference_auc, "AUC of the reference")
    return 100 * ((1 - model) - (1 - reference)) / ((1 - reference) + EPSILON)


def relative_difference(score: float, reference: float) -> float:
    """Relative difference in percent: `100 (score - r) / (r + 1e-10)`.

    For scores that are no AUC, of which 1 - x means nothing, and for AUCs as they stand.

    Args:
        score: of the model.
        reference: of the model retrained without the forget rows.

    Returns:
        Any number; 0 = the same score. The sign is that of `score - reference` for a positive reference, so for an AUC
        positive means under-unlearned: the opposite of `privleak`.

    Raises:
        ValueError: a score is not finite.
    """
    values = finite([score, reference], "score")
    return float(100 * (values[0] - values[1]) / (values[1] + EPSILON))


def aggregate(records: Records, reference: Records | None = None, compat: bool = False) -> Aggregates:
    """Attacks and PrivLeak of one model, from the groups `forget` and `holdout`.

    Args:
        records: group to records with the membership scores.
        reference: those of the model retrained without the forget rows, on the same rows. PrivLeak needs it, and so
            does the reference attack unless the records hold `reference_score`.
        compat: without a reference, also give PrivLeak against an AUC of 0.5 as open-unlearning does, as the column
            `privleak_without_reference`: it is no PrivLeak, and its zero is not the retrained model's.

    Returns:
        Values and reasons for those that are missing; together they are `NAMES`, where `privleak_without_reference` is
        one of them only if it was asked for.

    Raises:
        UserError: the reference was measured on other rows.
        ValueError: a score is not finite.
    """
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in ATTACKS:
        try:
            values[name] = _attack(name, records, reference)
        except UserError as error:
            missing[name] = str(error)
    if "mia_min_k" in missing:
        missing["privleak"] = missing["mia_min_k"]
    elif reference is None:
        missing["privleak"] = "needs the AUC of a reference model that never saw the forget data; none was given"
    else:
        try:
            reference_auc = _attack("mia_min_k", reference, None)
        except UserError as error:
            missing["privleak"] = f"the reference cannot serve: {error}"
        else:
            for group in ("forget", "holdout"):
                require_same_rows("privleak", records[group], reference[group])
            values["privleak"] = privleak(values["mia_min_k"], reference_auc)
    if compat and reference is None:
        if "mia_min_k" in values:
            values["privleak_without_reference"] = privleak(values["mia_min_k"], 0.5)
        else:
            missing["privleak_without_reference"] = missing["mia_min_k"]
    return Aggregates({n: values[n] for n in NAMES if n in values}, {n: missing[n] for n in NAMES if n in missing})


def require_same_rows(what: str, ours: Collection[ItemRecord], reference: Collection[ItemRecord]) -> None:
    """Check that a model and its reference were measured on the same rows.

    Args:
        what: the metric that compares them, for the message.
        ours: the model's records of one group.
        reference: the reference's.

    Raises:
        UserError: an id is in one only.
    """
    ids, reference_ids = {record.item_id for record in ours}, {record.item_id for record in reference}
    if ids != reference_ids:
        only = sorted(ids ^ reference_ids)
        raise UserError(
            f"{what} compares the same items, but the model has {len(ids)} and the reference "
            f"{len(reference_ids)}; {len(only)} ids are in one only, such as '{only[0]}'. "
            "Evaluate both on the same rows"
        )


def _attack(name: str, records: Records, reference: Records | None) -> float:
    groups = {group: records.get(group, ()) for group in ("forget", "holdout")}
    for group, rows in groups.items():
        if not rows:
            raise UserError(f"there are no {group} records, and a membership attack compares forget with holdout rows")
    field = ATTACKS[name]
    if name == "mia_gradnorm" and all(getattr(row, field) is None for rows in groups.values() for row in rows):
        raise UserError("not measured: it costs a backward pass for each row; ask for it by gradient_norm")
    if name == "mia_reference":
        return auc(*(_reference_scores(rows, reference) for rows in groups.values()))
    return auc(*(present(rows, field) for rows in groups.values()))


def _reference_scores(rows: Sequence[ItemRecord], reference: Records | None) -> list[float]:
    """The model's loss minus the reference's, by item; those of the records where a published log had them."""
    if any(row.reference_score is not None for row in rows):
        return present(rows, "reference_score")
    if reference is None:
        raise UserError("needs the losses of a reference model that never saw the forget data; none was given")
    group = rows[0].group
    try:
        if not reference.get(group):
            raise UserError(f"there are no {group} records")
        losses = dict(
            zip((row.item_id for row in reference[group]), present(reference[group], "loss_score"), strict=True)
        )
    except UserError as error:
        raise UserError(f"the reference cannot serve: {error}") from error
    require_same_rows("the reference attack", rows, reference[group])
    return [loss - losses[row.item_id] for row, loss in zip(rows, present(rows, "loss_score"), strict=True)]


def _share(value: float, what: str) -> float:
    number = float(finite([value], what)[0])
    if not 0 <= number <= 1:
        raise ValueError(f"{what}: must lie in [0, 1], got {number}")
    return number
