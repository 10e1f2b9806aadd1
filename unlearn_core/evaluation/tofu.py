"""The TOFU suite: which rows are scored in which way, and which aggregates follow from the records.

Four groups of rows: `forget` (the forget split's perturbed version: same rows, with alternatives), `retain`
(`retain_perturbed`), `ra` (`real_authors_perturbed`) and `wf` (`world_facts_perturbed`). Each group's set is the
benchmark's own and used whole, so retain is the first authors of `full` whatever the forget split is.

`aggregate` serves freshly scored models and published logs alike: one code computes both.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from unlearn_core.data.rows import Row
from unlearn_core.data.tofu import Benchmark, matching
from unlearn_core.errors import UserError
from unlearn_core.evaluation import metrics
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.rouge import rouge
from unlearn_core.evaluation.scorer import Score

GROUPS = ("forget", "retain", "ra", "wf")
"""Groups of rows, in the order in which they are scored and reported."""

_PARAPHRASED = ("forget", "retain")
"""Groups whose truth ratio compares with the paraphrase; the others have none and compare with the answer."""

Records = Mapping[str, Sequence[ItemRecord]]


@dataclass(frozen=True, slots=True)
class Item:
    """One row to score.

    Attributes:
        group: one of `GROUPS`.
        row: the question with its answer and alternatives.
    """

    group: str
    row: Row

    @property
    def answers(self) -> tuple[str, ...]:
        """Answers whose loss is needed: the answer, the paraphrase where the group has one, the K wrong answers."""
        paraphrase = (self.row.paraphrased_answer,) if self.row.paraphrased_answer is not None else ()
        return (self.row.answer, *paraphrase, *self.row.perturbed_answers)


def splits(forget_split: str) -> dict[str, str]:
    """Split that each group is read from.

    Args:
        forget_split: such as `forget10`.

    Returns:
        Group to split name, in the order of `GROUPS`.

    Raises:
        UserError: no such forget split.
    """
    names = (matching(forget_split).perturbed, "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    return dict(zip(GROUPS, names, strict=True))


def tasks(benchmark: Benchmark, forget_split: str) -> list[Item]:
    """Every item of the suite, group by group in row order. Each answer is scored and each question is generated for.

    Args:
        benchmark: where the rows come from.
        forget_split: such as `forget10`.

    Returns:
        The items; ids are unique.

    Raises:
        UserError: a split is missing, an id appears twice, or a row lacks the alternatives that its group needs.
    """
    items = [Item(group, row) for group, split in splits(forget_split).items() for row in benchmark.split(split)]
    seen: set[str] = set()
    for item in items:
        row = item.row
        if row.item_id in seen:
            raise UserError(f"{benchmark.source}: item id '{row.item_id}' appears twice; ids must be unique")
        seen.add(row.item_id)
        if not row.perturbed_answers:
            raise UserError(f"{row.item_id}: no 'perturbed_answer'; the truth ratio needs at least one wrong answer")
        if item.group in _PARAPHRASED and row.paraphrased_answer is None:
            raise UserError(f"{row.item_id}: no 'paraphrased_answer'; the truth ratio of '{item.group}' needs it")
    return items


def record(item: Item, scores: Sequence[Score], generation: str) -> ItemRecord:
    """Put one item's measurements together.

    Args:
        item: the item.
        scores: one per `item.answers`, in that order.
        generation: the greedy answer to its question.

    Returns:
        The item's record.

    Raises:
        UserError: the answer has no token before its end token, so that memorisation of it is undefined.
    """
    answer, *others = scores
    paraphrase = others.pop(0) if item.row.paraphrased_answer is not None else None
    # The end token is left out of both, as in open-unlearning: every finetuned model predicts it.
    hits = answer.matches[:-1]
    if not hits:
        raise UserError(f"{item.row.item_id}: the answer {item.row.answer!r} has no token before the end token")
    return ItemRecord(
        item_id=item.row.item_id,
        group=item.group,
        question=item.row.question,
        answer=item.row.answer,
        avg_loss=answer.avg_loss,
        prob=math.exp(-answer.avg_loss),
        tokens=answer.tokens,
        matches=answer.matches,
        extraction_strength=metrics.extraction_strength(hits),
        exact_memorization=metrics.exact_memorization(hits),
        paraphrased_loss=paraphrase.avg_loss if paraphrase else None,
        paraphrased_prob=math.exp(-paraphrase.avg_loss) if paraphrase else None,
        perturbed_losses=tuple(score.avg_loss for score in others),
        perturbed_probs=tuple(math.exp(-score.avg_loss) for score in others),
        generation=generation,
        **asdict(rouge(item.row.answer, generation)),
    )


@dataclass(frozen=True, slots=True)
class Aggregates:
    """Values of the suite.

    Attributes:
        values: by open-unlearning's names, plus `forget_quality_log10`. Each is described in `metrics`.
        missing: names that could not be computed, with the reason.
    """

    values: dict[str, float]
    missing: dict[str, str]


NAMES = (
    "forget_quality",
    "forget_quality_log10",
    "model_utility",
    *("forget_Q_A_Prob", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio"),
    *("extraction_strength", "exact_memorization"),
    *("retain_Q_A_Prob", "retain_Q_A_PARA_Prob", "retain_Q_A_PERT_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob", "ra_Q_A_PERT_Prob", "ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob", "wf_Q_A_PERT_Prob", "wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
"""Names of all aggregates, in the order of the table."""


def truth_ratios(records: Sequence[ItemRecord]) -> dict[str, float]:
    """Truth ratio of every record of one group, by item id.

    Args:
        records: records of one group, with the losses that `metrics.truth_ratio` takes.

    Returns:
        Item id to truth ratio, in record order.

    Raises:
        UserError: a record lacks a loss.
        ValueError: a loss is not finite.
    """
    paraphrased = records[0].group in _PARAPHRASED
    correct = _present(records, "paraphrased_loss" if paraphrased else "avg_loss")
    wrong = _present(records, "perturbed_losses")
    return dict(zip((r.item_id for r in records), metrics.truth_ratio(correct, wrong).tolist(), strict=True))


def aggregate(records: Records, reference_forget_truth_ratio: Mapping[str, float] | None = None) -> Aggregates:
    """All aggregates that the records allow.

    Args:
        records: group to records. A group may be absent or its records may lack a measurement; what needs it is then
            reported as missing.
        reference_forget_truth_ratio: item id to truth ratio of the model that never saw the forget data. Without it
            forget quality is missing.

    Returns:
        Values and reasons for those that are missing; together they are `NAMES`.

    Raises:
        UserError: the reference was measured on other items than the forget records.
        ValueError: a measurement is not finite.
    """
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for group in GROUPS:
        for name, compute in _columns(group).items():
            if not records.get(group):
                missing[name] = f"there are no {group} records"
                continue
            try:
                values[name] = compute(records[group])
            except UserError as error:
                missing[name] = str(error)
    _model_utility(values, missing)
    _forget_quality(records.get("forget", ()), reference_forget_truth_ratio, values, missing)
    return Aggregates({n: values[n] for n in NAMES if n in values}, {n: missing[n] for n in NAMES if n in missing})


def _columns(group: str) -> dict[str, Callable[[Sequence[ItemRecord]], float]]:
    columns: dict[str, Callable[[Sequence[ItemRecord]], float]] = {f"{group}_Q_A_Prob": _mean_of("prob")}
    if group in _PARAPHRASED:
        columns[f"{group}_Q_A_PARA_Prob"] = _mean_of("paraphrased_prob")
    columns[f"{group}_Q_A_PERT_Prob"] = _perturbed_probability
    if group not in _PARAPHRASED:
        columns[f"{group}_Q_A_Prob_normalised"] = _normalised_probability
    columns[f"{group}_Q_A_ROUGE"] = _mean_of("rougeL_recall")
    if group != "forget":
        columns[f"{group}_Truth_Ratio"] = lambda rows: metrics.true_better(list(truth_ratios(rows).values()))
        return columns
    columns["forget_truth_ratio"] = lambda rows: metrics.closer_to_one(list(truth_ratios(rows).values()))
    columns["extraction_strength"] = _mean_of("extraction_strength")
    columns["exact_memorization"] = _mean_of("exact_memorization")
    return columns


def _mean_of(field: str) -> Callable[[Sequence[ItemRecord]], float]:
    return lambda rows: metrics.mean(_present(rows, field), field)


def _perturbed_probability(rows: Sequence[ItemRecord]) -> float:
    per_item = [metrics.mean(probs, "perturbed probability") for probs in _present(rows, "perturbed_probs")]
    return metrics.mean(per_item, "perturbed probability")


def _normalised_probability(rows: Sequence[ItemRecord]) -> float:
    shares = metrics.normalised_probability(_present(rows, "prob"), _present(rows, "perturbed_probs"))
    return metrics.mean(shares, "normalised probability")


def _model_utility(values: dict[str, float], missing: dict[str, str]) -> None:
    terms = (
        ("retain_Q_A_Prob", "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised"),
        ("retain_Q_A_ROUGE", "ra_Q_A_ROUGE", "wf_Q_A_ROUGE"),
        ("retain_Truth_Ratio", "ra_Truth_Ratio", "wf_Truth_Ratio"),
    )
    absent = [name for row in terms for name in row if name not in values]
    if absent:
        missing["model_utility"] = f"{len(absent)} of its nine terms are missing: {', '.join(absent)}"
        return
    values["model_utility"] = metrics.model_utility(*([values[name] for name in row] for row in terms))


def _forget_quality(
    forget: Sequence[ItemRecord],
    reference: Mapping[str, float] | None,
    values: dict[str, float],
    missing: dict[str, str],
) -> None:
    reason = None
    if reference is None:
        reason = "needs the truth ratios of a reference model that never saw the forget data; none was given"
    elif "forget_truth_ratio" in missing:
        reason = missing["forget_truth_ratio"]
    if reason is not None or reference is None:
        missing["forget_quality"] = missing["forget_quality_log10"] = str(reason)
        return
    ratios = truth_ratios(forget)
    if ratios.keys() != reference.keys():
        only = sorted(ratios.keys() ^ reference.keys())
        raise UserError(
            f"forget quality compares the same items, but the model has {len(ratios)} and the reference "
            f"{len(reference)}; {len(only)} ids are in one only, such as '{only[0]}'. "
            "Evaluate both on one forget split"
        )
    quality = metrics.forget_quality(list(ratios.values()), list(reference.values()))
    values["forget_quality"] = quality.p_value
    values["forget_quality_log10"] = quality.log10


def _present(rows: Sequence[ItemRecord], field: str) -> list:
    found = [getattr(row, field) for row in rows]
    absent = [row.item_id for row, value in zip(rows, found, strict=True) if value is None or value == ()]
    if absent:
        raise UserError(f"{len(absent)} of {len(rows)} records have no {field}, the first is '{absent[0]}'")
    return found
