"""The TOFU suite: which rows are measured in which way, and which aggregates follow from the records.

Five groups of rows: `forget` (the forget split's perturbed version: same rows, with alternatives), `retain`
(`retain_perturbed`), `ra` (`real_authors_perturbed`), `wf` (`world_facts_perturbed`) and `holdout` (rows like the
forget split's that no model was trained on, for membership attacks). Each group's set is the benchmark's own and used
whole, so retain is the first authors of `full` whatever the forget split is.

`aggregate` serves freshly scored models and published logs alike: one code computes both.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from unlearn_core.data.rows import Row
from unlearn_core.data.tofu import Benchmark, matching
from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership, metrics, tofu_legacy
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Aggregates, Records, Suite, present

GROUPS = ("forget", "retain", "ra", "wf", "holdout")
"""Groups of rows, in the order in which they are scored and reported."""

_ANSWERED = GROUPS[:4]
"""Groups whose questions the model answers, with alternatives to compare the true answer with."""

_PARAPHRASED = ("forget", "retain")
"""Groups whose truth ratio compares with the paraphrase; the others have none and compare with the answer."""

NAMES = (
    *("forget_quality", "forget_quality_log10", "model_utility"),
    *membership.NAMES,
    *("forget_Q_A_Prob", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "forget_Q_A_ROUGE"),
    *("forget_truth_ratio", "forget_truth_ratio_arithmetic", "forget_truth_ratio_prob_mean"),
    *("extraction_strength", "exact_memorization"),
    *("retain_Q_A_Prob", "retain_Q_A_PARA_Prob", "retain_Q_A_PERT_Prob", "retain_Q_A_ROUGE"),
    *("retain_Truth_Ratio", "retain_Truth_Ratio_arithmetic", "retain_Truth_Ratio_prob_mean"),
    *("ra_Q_A_Prob", "ra_Q_A_PERT_Prob", "ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE"),
    *("ra_Truth_Ratio", "ra_Truth_Ratio_arithmetic", "ra_Truth_Ratio_prob_mean"),
    *("wf_Q_A_Prob", "wf_Q_A_PERT_Prob", "wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE"),
    *("wf_Truth_Ratio", "wf_Truth_Ratio_arithmetic", "wf_Truth_Ratio_prob_mean"),
)
"""Names of all aggregates, in the order of the table: open-unlearning's where it has them."""

HEADLINE = (
    "model_utility",
    "forget_quality",
    "privleak",
    "extraction_strength",
    "forget_Q_A_Prob",
    "forget_Q_A_ROUGE",
)


def splits(forget_split: str) -> dict[str, str]:
    """Split that each group is read from. Whether the benchmark has it is asked on reading; `holdout` is optional.

    Args:
        forget_split: such as `forget10`.

    Returns:
        Group to split name, in the order of `GROUPS`.

    Raises:
        UserError: no such forget split.
    """
    partners = matching(forget_split)
    names = (
        partners.perturbed,
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
        partners.holdout,
    )
    return dict(zip(GROUPS, names, strict=True))


def suite(benchmark: Benchmark, forget_split: str, legacy: bool = False) -> Suite:
    """The TOFU suite of one forget split.

    Args:
        benchmark: where the rows come from.
        forget_split: such as `forget10`.
        legacy: also aggregate as the original TOFU harness did (`tofu_legacy`).

    Returns:
        The suite. Without a holdout split it has no membership attacks, and a note says so.

    Raises:
        UserError: a split is missing, an id appears twice, or a row lacks the alternatives that its group needs.
    """
    names = splits(forget_split)
    items = [_item(group, row) for group in _ANSWERED for row in benchmark.split(names[group])]
    holdout = _optional(benchmark, names["holdout"])
    items += [_holdout_item(row) for row in holdout]
    notes = ()
    if not holdout:
        notes = (
            f"{benchmark.source} has no split '{names['holdout']}', so membership attacks and privleak are missing: "
            "they compare the forget rows with rows that no model was trained on",
        )
    found = Suite(
        name="tofu",
        source=benchmark.source,
        forget=forget_split,
        items=tuple(items),
        columns=NAMES,
        aggregate=aggregate,
        headline=HEADLINE,
        notes=notes,
    )
    return tofu_legacy.added_to(found) if legacy else found


def truth_ratios(
    records: Sequence[ItemRecord], average: Literal["geometric", "arithmetic"] = "geometric"
) -> dict[str, float]:
    """Truth ratio of every record of one group, by item id.

    Args:
        records: records of one group, with the losses that `metrics.truth_ratio` takes.
        average: the mean over the wrong answers.

    Returns:
        Item id to truth ratio, in record order.

    Raises:
        UserError: a record lacks a loss.
        ValueError: a loss is not finite.
    """
    ratios = metrics.truth_ratio(*answer_losses(records), average=average)
    return dict(zip((record.item_id for record in records), ratios.tolist(), strict=True))


def answer_losses(records: Sequence[ItemRecord]) -> tuple[list[float], list[tuple[float, ...]]]:
    """What truth ratios compare, for the records of one group.

    Args:
        records: at least one, all of one group.

    Returns:
        Mean loss of the paraphrase (of the answer where the group has no paraphrases), and the K losses of the wrong
        answers; nats, both in record order.

    Raises:
        UserError: a record lacks a loss.
    """
    correct = present(records, "paraphrased_loss" if records[0].group in _PARAPHRASED else "avg_loss")
    return correct, present(records, "perturbed_losses")


def aggregate(records: Records, reference: Records | None = None, compat: bool = False) -> Aggregates:
    """All aggregates that the records allow.

    Args:
        records: group to records. A group may be absent or its records may lack a measurement; what needs it is then
            reported as missing.
        reference: those of the model that never saw the forget data, on the same items. Without it forget quality and
            privleak are missing, and so is the reference attack unless the records hold its scores.
        compat: without a reference, also give `privleak_without_reference` as open-unlearning does.

    Returns:
        Values and reasons for those that are missing; together they are `NAMES`, where `privleak_without_reference` is
        one of them only under `compat` without a reference.

    Raises:
        UserError: the reference was measured on other items.
        ValueError: a measurement is not finite.
    """
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for group in _ANSWERED:
        for name, compute in _columns(group).items():
            if not records.get(group):
                missing[name] = f"there are no {group} records"
                continue
            try:
                values[name] = compute(records[group])
            except UserError as error:
                missing[name] = str(error)
    _model_utility(values, missing)
    _forget_quality(records.get("forget", ()), reference, values, missing)
    attacks = membership.aggregate(records, reference, compat)
    values |= attacks.values
    missing |= attacks.missing
    return Aggregates({n: values[n] for n in NAMES if n in values}, {n: missing[n] for n in NAMES if n in missing})


def _item(group: str, row: Row) -> Item:
    if not row.perturbed_answers:
        raise UserError(f"{row.item_id}: no 'perturbed_answer'; the truth ratio needs at least one wrong answer")
    if group in _PARAPHRASED and row.paraphrased_answer is None:
        raise UserError(f"{row.item_id}: no 'paraphrased_answer'; the truth ratio of '{group}' needs it")
    return Item(
        item_id=row.item_id,
        group=group,
        prompt=row.question,
        answer=row.answer,
        paraphrase=row.paraphrased_answer if group in _PARAPHRASED else None,
        wrong=row.perturbed_answers,
        token_scores=group == "forget",
        samples=group == "forget",
        paraphrased_question=row.paraphrased_question,
    )


def _holdout_item(row: Row) -> Item:
    return Item(
        item_id=row.item_id,
        group="holdout",
        prompt=row.question,
        answer=row.answer,
        token_scores=True,
        generate=False,
    )


def _optional(benchmark: Benchmark, split: str) -> list[Row]:
    try:
        return benchmark.split(split)
    except UserError:
        # Asked for in this order because a cached split of the hub needs no network, and the list of splits does.
        if split in benchmark.splits:
            raise
        return []


def _columns(group: str) -> dict[str, Callable[[Sequence[ItemRecord]], float]]:
    forget = group == "forget"
    folded = metrics.closer_to_one if forget else metrics.true_better
    ratio = "forget_truth_ratio" if forget else f"{group}_Truth_Ratio"
    columns: dict[str, Callable[[Sequence[ItemRecord]], float]] = {
        f"{group}_Q_A_Prob": _mean_of("prob"),
        f"{group}_Q_A_PERT_Prob": _perturbed_probability,
        f"{group}_Q_A_ROUGE": _mean_of("rougeL_recall"),
        ratio: lambda rows: folded(list(truth_ratios(rows).values())),
        f"{ratio}_arithmetic": lambda rows: folded(list(truth_ratios(rows, "arithmetic").values())),
        f"{ratio}_prob_mean": lambda rows: metrics.prob_mean(*answer_losses(rows)),
    }
    if group in _PARAPHRASED:
        columns[f"{group}_Q_A_PARA_Prob"] = _mean_of("paraphrased_prob")
    else:
        columns[f"{group}_Q_A_Prob_normalised"] = _normalised_probability
    if forget:
        columns["extraction_strength"] = _mean_of("extraction_strength")
        columns["exact_memorization"] = _mean_of("exact_memorization")
    return columns


def _mean_of(field: str) -> Callable[[Sequence[ItemRecord]], float]:
    return lambda rows: metrics.mean(present(rows, field), field)


def _perturbed_probability(rows: Sequence[ItemRecord]) -> float:
    per_item = [metrics.mean(probs, "perturbed probability") for probs in present(rows, "perturbed_probs")]
    return metrics.mean(per_item, "perturbed probability")


def _normalised_probability(rows: Sequence[ItemRecord]) -> float:
    shares = metrics.normalised_probability(present(rows, "prob"), present(rows, "perturbed_probs"))
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
    forget: Sequence[ItemRecord], reference: Records | None, values: dict[str, float], missing: dict[str, str]
) -> None:
    try:
        if reference is None:
            raise UserError(
                "needs the truth ratios of a reference model that never saw the forget data; none was given"
            )
        if "forget_truth_ratio" in missing:
            raise UserError(missing["forget_truth_ratio"])
        reference_ratios = reference_truth_ratios(reference)
    except UserError as error:
        missing["forget_quality"] = missing["forget_quality_log10"] = str(error)
        return
    membership.require_same_rows("forget quality", forget, reference["forget"])
    quality = metrics.forget_quality(list(truth_ratios(forget).values()), list(reference_ratios.values()))
    values["forget_quality"] = quality.p_value
    values["forget_quality_log10"] = quality.log10


def reference_truth_ratios(reference: Records) -> Mapping[str, float]:
    """Truth ratios of a reference's forget records, by item id.

    Args:
        reference: group to records of the model that never saw the forget data.

    Returns:
        As `truth_ratios`.

    Raises:
        UserError: it has no forget records, or they lack a loss; it cannot serve as the reference of forget quality.
        ValueError: a loss is not finite.
    """
    try:
        if not reference.get("forget"):
            raise UserError("there are no forget records")
        return truth_ratios(reference["forget"])
    except UserError as error:
        raise UserError(f"the reference cannot serve: {error}") from error
