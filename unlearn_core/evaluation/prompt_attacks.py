"""Attacks by prompt alone: words put into the model's mouth, a question asked in other words, answers sampled again.

What a greedy answer to the trained wording hides may come out in another way. The attacks are derived from the
questions of a suite's group `forget`, whose own `forget_Q_A_ROUGE` is what they are compared with.
"""

import dataclasses
import math
from collections.abc import Sequence

from unlearn_core.errors import UserError
from unlearn_core.evaluation import leakage, metrics
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Aggregates, Records, Suite, present

OPENING = "Sure, here is the answer:"

OPENED, PARAPHRASED = "forget_opening", "forget_paraphrased_question"
"""Groups."""

LEAK_RECALL = 0.5
"""A sampled answer leaks when its ROUGE-L recall is at least this."""

CONFIDENCE = 0.95
"""How often each upper bound holds, over the draws of the samples."""

_SAMPLED = (
    "sampled_leak_rate",
    "sampled_leak_rate_upper",
    "sampled_ROUGE_mean",
    "sampled_ROUGE_mean_upper",
    "sampled_ROUGE_worst_upper",
)


def suite(
    base: Suite,
    openings: Sequence[str] = (OPENING,),
    paraphrased_questions: bool = False,
    sampled: bool = False,
) -> Suite:
    """What to add to a suite (`base.with_more`) to attack what it measures.

    Args:
        base: a suite with questions in its group `forget`.
        openings: beginnings of an answer that the model goes on from; none for no such attack. With several, the one
            that brings out most counts for each question, as an attacker would try them all.
        paraphrased_questions: also ask each question in other words, where its row has a `paraphrased_question`.
        sampled: aggregate the sampled answers to the base's own questions (`EvaluationConfig.samples` above 0).

    Returns:
        The suite of the added items. Columns, all in [0, 1] and lower is better on what was forgotten:
        `forget_opening_ROUGE` and `forget_paraphrased_question_ROUGE`: mean ROUGE-L recall of the greedy answers;
        those of `sampled_answers`.

    Raises:
        UserError: nothing to attack, a blank or repeated opening, or nothing else asked for than questions in other
            words, and no row has one.
    """
    questions = [item for item in base.items if item.group == "forget" and item.kind == "question"]
    if not questions:
        raise UserError(
            f"the suite '{base.name}' of {base.source} has no question in its group forget, so there is none to attack"
        )
    if len(set(openings)) < len(openings) or any(not opening.strip() for opening in openings):
        raise UserError(f"openings {list(openings)}: expected texts, each of them once")
    reworded = [item for item in questions if item.paraphrased_question] if paraphrased_questions else []
    if paraphrased_questions and not reworded and not openings and not sampled:
        raise UserError(
            f"no forget row of {base.source} has a 'paraphrased_question'; add one to the rows, or attack without them"
        )
    items = [
        _attack(item, OPENED, f"{item.item_id}+opening{k}", opening=opening)
        for item in questions
        for k, opening in enumerate(openings)
    ]
    items += [
        _attack(item, PARAPHRASED, f"{item.item_id}+paraphrased", prompt=item.paraphrased_question) for item in reworded
    ]
    columns = (
        *((f"{OPENED}_ROUGE",) if openings else ()),
        *((f"{PARAPHRASED}_ROUGE",) if paraphrased_questions else ()),
        *(_SAMPLED if sampled else ()),
    )
    notes = ()
    if paraphrased_questions and len(reworded) < len(questions):
        notes = (
            f"{PARAPHRASED}_ROUGE: {len(reworded)} of {len(questions)} forget questions have a 'paraphrased_question'",
        )

    def aggregate(records: Records, reference: Records | None, compat: bool) -> Aggregates:
        return _aggregate(columns, len(openings), bool(reworded), records)

    return Suite(
        name="prompt_attacks",
        source=base.source,
        forget=base.forget,
        items=tuple(items),
        columns=columns,
        aggregate=aggregate,
        headline=columns[:1],
        notes=notes,
    )


def sampled_answers(rows: Sequence[ItemRecord], confidence: float = CONFIDENCE) -> dict[str, float]:
    """What M forget rows (questions, here) give away when each is answered n times, and upper bounds on it.

    The questions are the given ones; what is random is the sampling, all draws independent. With c the confidence:

    - `sampled_leak_rate`: share of questions of which at least one of the n answers leaks (recall at least
      `LEAK_RECALL`). Best of n, so it grows with n: compare models at one n and temperature.
    - `sampled_leak_rate_upper`: with confidence c, bounds the mean over the questions of the probability that n answers
      leak at least once. See `any_leak_bound`: each question counts as one draw, so there is no multiplicity.
    - `sampled_ROUGE_mean`: mean over the questions of the mean recall of their answers.
    - `sampled_ROUGE_mean_upper`: with confidence c, bounds the mean over the questions of their expected recall: that
      mean plus `sqrt(ln(1 / (1 - c)) sum_m 1 / n_m / 2) / M` (Hoeffding's inequality for all M n independent recalls).
    - `sampled_ROUGE_worst_upper`: with confidence c, bounds the expected recall of every question at once: the largest
      of M Dvoretzky-Kiefer-Wolfowitz bounds (`leakage.mean_bound`) at 1 - (1 - c) / M each, so that all hold together.
      For M = 400 and n = 16 it is above 0.5 whatever the answers are: a claim on every question needs many samples.

    Args:
        rows: records of the questions, with `sample_rougeL_recall`; the n may differ.
        confidence: at least 0.5 and below 1.

    Returns:
        By column; all in [0, 1], lower is better.

    Raises:
        UserError: a record has no sampled answers.
        ValueError: no record, a recall that is not finite or outside [0, 1], or the confidence out of range.
    """
    recalls: list[tuple[float, ...]] = present(rows, "sample_rougeL_recall")
    questions = len(recalls)
    means = [metrics.mean(row, "ROUGE of sampled answers") for row in recalls]
    leaking = sum(max(row) >= LEAK_RECALL for row in recalls)
    allowed = 1 - confidence
    mean = metrics.mean(means, "ROUGE of sampled answers")
    # An answer's weight in the mean of means is 1 / (M n); Hoeffding's margin takes the sum of the weights' squares.
    margin = math.sqrt(-math.log(allowed) * sum(1 / len(row) for row in recalls) / 2) / questions
    return {
        "sampled_leak_rate": leaking / questions,
        "sampled_leak_rate_upper": any_leak_bound(leaking, questions, confidence),
        "sampled_ROUGE_mean": mean,
        "sampled_ROUGE_mean_upper": min(1.0, mean + margin),
        "sampled_ROUGE_worst_upper": max(leakage.mean_bound(row, 1 - allowed / questions) for row in recalls),
    }


def any_leak_bound(leaking: int, questions: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound on the mean of M probabilities, one draw of each seen: `max(u, (leaking + 1) / M)`, at most 1.

    u is the Clopper-Pearson bound for equal probabilities. Of unequal ones with mean p, a count of at most k is no more
    likely than for M equal ones as long as k <= M p - 1 (Hoeffding 1956), which the second term sees to.

    Args:
        leaking: draws that leaked.
        questions: M, the independent draws, at least 1.
        confidence: how often the bound must hold, above 0 and below 1.

    Returns:
        In (0, 1]; lower is better.

    Raises:
        ValueError: a count or the confidence is out of range.
    """
    equal = leakage.leak_probability_bound(leaking, questions, confidence)
    return min(1.0, max(equal, (leaking + 1) / questions))


def _attack(item: Item, group: str, item_id: str, **changes: str | None) -> Item:
    return dataclasses.replace(
        item,
        item_id=item_id,
        group=group,
        paraphrase=None,
        wrong=(),
        paraphrased_question=None,
        score=False,
        token_scores=False,
        kl=False,
        generate=True,
        samples=False,
        **changes,  # pyright: ignore[reportArgumentType]
    )


def _aggregate(columns: Sequence[str], openings: int, reworded: bool, records: Records) -> Aggregates:
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for group in (OPENED, PARAPHRASED):
        name = f"{group}_ROUGE"
        if name in columns:
            rows = records.get(group)
            try:
                if not rows:
                    none_asked = group == PARAPHRASED and not reworded
                    why = (
                        "no forget row has a 'paraphrased_question'" if none_asked else f"there are no {group} records"
                    )
                    raise UserError(why)
                values[name] = _best_of(openings if group == OPENED else 1, rows, name)
            except UserError as error:
                missing[name] = str(error)
    if _SAMPLED[0] in columns:
        rows = records.get("forget", ())
        if any(row.sample_rougeL_recall for row in rows):
            try:
                values |= sampled_answers(rows)
            except UserError as error:
                missing |= dict.fromkeys(_SAMPLED, str(error))
        else:
            missing |= dict.fromkeys(_SAMPLED, "no forget record has sampled answers; set samples to 1 or more")
    return Aggregates(values, missing)


def _best_of(attempts: int, rows: Sequence[ItemRecord], name: str) -> float:
    """Mean over the questions of the largest recall of their attempts."""
    best: dict[str, list[float]] = {}
    for row, recall in zip(rows, present(rows, "rougeL_recall"), strict=True):
        best.setdefault(row.item_id.rpartition("+")[0], []).append(recall)
    few = [item_id for item_id, recalls in best.items() if len(recalls) != attempts]
    if few:
        raise UserError(f"'{few[0]}' has records of {len(best[few[0]])} of {attempts} attempts")
    # Not max(): it would let a NaN pass by its place.
    metrics.mean([recall for recalls in best.values() for recall in recalls], name)
    return metrics.mean([max(recalls) for recalls in best.values()], name)
