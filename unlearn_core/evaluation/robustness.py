"""How much an attack brings back, against what it does to a model that never knew: recovery ratios from aggregates.

For an unlearned model u and the model r retrained without the forget data, with m a measure of knowledge of the forget
set (higher = knows more) before and after the same attack on both:

    relearning, prompts   min((m_r after - m_r before) / (m_u after - m_u before), 1), at least 0
    quantisation          min(m_u before / m_u after, 1)

1 = the attack brings nothing back that the retrained model does not gain as well, 0 = all that comes back was hidden.
The first is OpenUnlearning's R, the second its Q (arXiv 2506.12618; `leakage`). A ratio says how firmly a model is
where it is, not that it has forgotten: a model that still knows everything has nothing to recover. Read it beside
`before`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from unlearn_core.errors import UserError
from unlearn_core.evaluation.leakage import quantisation_robustness, relearning_robustness, robustness

Kind = Literal["relearning", "quantisation", "prompt"]


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to get back what was unlearned.

    Attributes:
        name: as in tables, folders and options.
        kind: which ratio it has.
        what: what is done, in a few words.
        column: of a prompt attack, the aggregate that is measured under it; else "".
        plain: of a prompt attack, the aggregate of the same answers without it; else "".
    """

    name: str
    kind: Kind
    what: str
    column: str = ""
    plain: str = ""


_PLAIN = "forget_Q_A_ROUGE"

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack("relearn-forget", "relearning", "fine-tuned on forget rows"),
        Attack("relearn-correlated", "relearning", "fine-tuned on text about the same subjects"),
        Attack("relearn-unrelated", "relearning", "fine-tuned on unrelated text"),
        Attack("int8", "quantisation", "weights rounded to 8 bits"),
        Attack("nf4", "quantisation", "weights rounded to 4 bits"),
        Attack("opening", "prompt", "the answer's first words put into its mouth", "forget_opening_ROUGE", _PLAIN),
        Attack("paraphrase", "prompt", "the question in other words", "forget_paraphrased_question_ROUGE", _PLAIN),
    )
}
"""Every attack, in the order of tables."""

KNOWLEDGE = (
    *("extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE"),
    *("forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "exact_memorization"),
)
"""Aggregates that may be m: in [0, 1], of the forget set, higher = knows more. The first that a suite has is its
default. Truth ratio and forget quality are none: they are not monotone in what is known."""

FOR_R, FOR_Q = "relearn-forget", "nf4"
"""The attacks whose ratios are R and Q of the robustness that OpenUnlearning reports."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Aggregates of every model and of every attacked version of it.

    Attributes:
        values: model id -> column -> value; a value may be NaN. An attacked version is `variant_id(model, attack)`.
        missing: model id -> column -> why it has no value.
        absent: id of an attacked version that does not exist -> why.
    """

    values: Mapping[str, Mapping[str, float]]
    missing: Mapping[str, Mapping[str, str]]
    absent: Mapping[str, str]

    def value(self, model: str, column: str) -> tuple[float | None, str]:
        """The value, or None with the reason."""
        found = self.values.get(model, {}).get(column)
        if found is not None and math.isfinite(found):
            return found, ""
        reason = self.absent.get(model) or self.missing.get(model, {}).get(column) or f"{column} was not measured"
        return None, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One model under one attack, by one measure. None: not measured.

    Attributes:
        model: id of the unlearned model.
        attack: name of the attack.
        kind: its kind.
        metric: the measure of knowledge, in [0, 1], higher = knows more; under a prompt attack the column after it.
        before: of the unlearned model.
        after: of it under the attack.
        reference_before: of the retrained model.
        reference_after: of it under the same attack.
        ratio: in [0, 1], higher = less comes back; 1 where nothing comes back.
        reason: why there is no ratio, or what to know about it.
    """

    model: str
    attack: str
    kind: Kind
    metric: str
    before: float | None
    after: float | None
    reference_before: float | None
    reference_after: float | None
    ratio: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A model's ratios in short, by one measure. None: not measured.

    Attributes:
        model: its id.
        metric: the measure of knowledge.
        before: what it knows without an attack.
        relearning: R, the ratio under `FOR_R`.
        quantisation: Q, the ratio under `FOR_Q`.
        robustness: harmonic mean of the two.
        lowest: smallest ratio over all attacks, prompts included.
        lowest_attack: the attack that has it; "" for none.
    """

    model: str
    metric: str
    before: float | None
    relearning: float | None
    quantisation: float | None
    robustness: float | None
    lowest: float | None
    lowest_attack: str


def attacks_named(names: Sequence[str]) -> list[Attack]:
    """The attacks of these names, in the order of `ATTACKS`, each once.

    Raises:
        UserError: an unknown name or none at all; the message lists the known ones and the nearest.
    """
    for name in names:
        if name not in ATTACKS:
            near = get_close_matches(name, ATTACKS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"unknown attack '{name}'.{hint} Expected some of: {', '.join(ATTACKS)}")
    if not names:
        raise UserError(f"no attack was given; expected some of: {', '.join(ATTACKS)}")
    return [attack for name, attack in ATTACKS.items() if name in names]


def knowledge_metrics(columns: Sequence[str], first: str | None = None) -> list[str]:
    """The measures of knowledge that a suite has, the leading one first.

    Args:
        columns: the suite's.
        first: the one to lead; None for the first of `KNOWLEDGE` that is there.

    Returns:
        At least one name: the leading measure and at most two more.

    Raises:
        UserError: the suite has none, or `first` is none of them.
    """
    found = [name for name in KNOWLEDGE if name in columns]
    if not found:
        raise UserError(f"the suite measures no knowledge; expected one of the columns {', '.join(KNOWLEDGE)}")
    if first is not None and first not in found:
        raise UserError(
            f"'{first}' is no measure of knowledge that this suite has; expected one of {', '.join(found)}. It must be "
            "higher where the model knows more of the forget set"
        )
    leading = first or found[0]
    return [leading, *(name for name in found if name != leading)][:3]


def variant_id(model: str, attack: Attack) -> str:
    """Id of a model's attacked version: that of the model itself for a prompt attack, which leaves the weights."""
    return model if attack.kind == "prompt" else f"{model}.{attack.name}"


def ratio(kind: Kind, before: float, after: float, reference_before: float, reference_after: float) -> float:
    """The recovery ratio of one kind of attack; see the module's head.

    Args:
        kind: of the attack.
        before: knowledge of the unlearned model, at least 0.
        after: of it under the attack.
        reference_before: of the retrained model; quantisation leaves it out.
        reference_after: of it under the attack; likewise.

    Returns:
        In [0, 1]; 1 where the unlearned model gains nothing, whatever the reference does; 0 where it gains and the
        reference does not (relearning, prompts) or where it knew nothing before (quantisation).

    Raises:
        ValueError: a number is negative or not finite.
    """
    if kind == "quantisation":
        return quantisation_robustness(before, after)
    return relearning_robustness(
        reference_before=reference_before,
        reference_after=reference_after,
        unlearned_before=before,
        unlearned_after=after,
    )


def recoveries(
    models: Sequence[str], reference: str, attacks: Sequence[Attack], metrics: Sequence[str], measured: Measured
) -> list[Recovery]:
    """Every model under every attack: by every measure, under a prompt attack by that attack's own.

    Args:
        models: ids of the unlearned models.
        reference: id of the retrained one.
        attacks: those to report.
        metrics: measures of knowledge.
        measured: aggregates of models and their attacked versions.

    Returns:
        A row for each model, attack and measure, models outermost. One without a ratio says why.
    """
    return [
        _recovery(model, reference, attack, plain, column, measured)
        for model in models
        for attack in attacks
        for plain, column in (
            [(attack.plain, attack.column)] if attack.kind == "prompt" else [(metric, metric) for metric in metrics]
        )
    ]


def _recovery(model: str, reference: str, attack: Attack, plain: str, column: str, measured: Measured) -> Recovery:
    places = (
        ("", model, plain),
        ("", variant_id(model, attack), column),
        ("the reference: ", reference, plain),
        ("the reference: ", variant_id(reference, attack), column),
    )
    values: list[float | None] = []
    reasons: list[str] = []
    for whose, name, wanted in places:
        value, reason = measured.value(name, wanted)
        values.append(value)
        if reason:
            reasons.append(whose + reason)
    before, after, reference_before, reference_after = values
    found: float | None = None
    # Quantisation compares a model with itself; the reference's two numbers only stand beside it.
    needed = values[:2] if attack.kind == "quantisation" else values
    if None not in needed and before is not None and after is not None:
        found = ratio(attack.kind, before, after, reference_before or 0.0, reference_after or 0.0)
        if after <= before:
            reasons.append("nothing comes back")
    return Recovery(
        model=model,
        attack=attack.name,
        kind=attack.kind,
        metric=column,
        before=before,
        after=after,
        reference_before=reference_before,
        reference_after=reference_after,
        ratio=found,
        reason="; ".join(dict.fromkeys(reasons)),
    )


def scores(rows: Sequence[Recovery], metric: str) -> list[Score]:
    """Each model's ratios in short.

    Args:
        rows: what `recoveries` gave.
        metric: the measure of knowledge of R and Q. Prompt attacks count into `lowest` by their own.

    Returns:
        One score a model, in the order of the rows.
    """
    return [_score(model, metric, rows) for model in dict.fromkeys(row.model for row in rows)]


def _score(model: str, metric: str, rows: Sequence[Recovery]) -> Score:
    own = [row for row in rows if row.model == model and (row.kind == "prompt" or row.metric == metric)]
    ratios = {row.attack: row.ratio for row in own if row.ratio is not None}
    relearning, quantisation = ratios.get(FOR_R), ratios.get(FOR_Q)
    lowest = min(ratios, key=lambda attack: ratios[attack], default="")
    return Score(
        model=model,
        metric=metric,
        before=next((row.before for row in own if row.metric == metric), None),
        relearning=relearning,
        quantisation=quantisation,
        robustness=None if relearning is None or quantisation is None else robustness(relearning, quantisation),
        lowest=ratios.get(lowest),
        lowest_attack=lowest,
    )


@dataclass(frozen=True, slots=True)
class Leakage:
    """One aggregate of sampled answers.

    Attributes:
        model: id of the model, or of the reference.
        column: the aggregate, `sampled_...`.
        value: lower is better; None where it was not measured.
        reason: why not.
    """

    model: str
    column: str
    value: float | None
    reason: str


def leakages(models: Sequence[str], reference: str, columns: Sequence[str], measured: Measured) -> list[Leakage]:
    """What sampled answers leak, of every model and last of the reference.

    Args:
        models: ids of the unlearned models.
        reference: id of the retrained one.
        columns: the suite's; those that start with `sampled_` are taken.
        measured: aggregates of the models.

    Returns:
        A row for each model and column; none where no column is of samples, or no answer was sampled.
    """
    sampled = [name for name in columns if name.startswith("sampled_")]
    rows = [Leakage(model, name, *measured.value(model, name)) for model in (*models, reference) for name in sampled]
    return rows if any(row.value is not None for row in rows) else []
