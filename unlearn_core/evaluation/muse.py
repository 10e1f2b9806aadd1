"""The MUSE suite (Shi et al. 2024, arXiv 2407.06460): what is measured of News, Books or a synthetic corpus, and how.

Groups: `verbmem` (continue a forgotten text), `knowmem_forget` and `knowmem_retain` (answer questions after a few
shots), `privleak_forget`, `privleak_holdout` and, where the data has it, `privleak_retain` (texts whose likelihood
tells whether a model was trained on them). They serve the first four of the six criteria; the other two compare runs
and are computed from finished evaluations.

Prompts, token counts, stop rules and ROUGE are those of the authors' code. `docs/muse.md` lists where open-unlearning
differs, which `compat` follows.
"""

from collections.abc import Sequence
from dataclasses import replace

from unlearn_core.data.muse_probes import MuseProbes, Passage, Side
from unlearn_core.data.rows import Document, Row
from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership, metrics
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Aggregates, Records, Suite, present

GROUPS = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_holdout", "privleak_retain")
"""Groups of rows, in the order in which they are scored and reported; `privleak_retain` is optional."""

MAX_LENGTH = 4096
"""Tokens that an evaluation must allow so that no published text is cut: their models' context. Texts for attacks were
cut at 2048 tokens once, and come out a few longer where they are tokenised again."""

VERBMEM_TOKENS = 128
"""Tokens that a passage is continued by, and of its true continuation that they are compared with."""

KNOWMEM_TOKENS = 32
"""Longest answer to a question."""

KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")
"""Texts before which an answer is cut."""

RETAIN_ATTACK = "mia_min_k_retain"
"""Column: AUC of the min-k attack for kept texts against the holdout's."""

_MEANS = {
    "forget_verbmem_ROUGE": ("verbmem", "rougeL_f1"),
    "forget_knowmem_ROUGE": ("knowmem_forget", "rougeL_f1"),
    "retain_knowmem_ROUGE": ("knowmem_retain", "rougeL_f1"),
    "extraction_strength": ("verbmem", "extraction_strength"),
    "exact_memorization": ("verbmem", "exact_memorization"),
}

NAMES = (*_MEANS, *membership.NAMES, RETAIN_ATTACK)
"""Names of all aggregates, in the order of the table: open-unlearning's where it has them."""

_HEADLINE = ("forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "privleak", "retain_knowmem_ROUGE", "extraction_strength")


def suite(source: str, compat: bool = False) -> Suite:
    """The MUSE suite of one corpus. Evaluate it with a `max_length` of at least `MAX_LENGTH`.

    Args:
        source: folder, hub name or `synthetic-muse:SIZE`; see `muse.MuseSplits`.
        compat: ask and compare as open-unlearning does: stemmed ROUGE, a space between a passage and its continuation,
            and the whole continuation compared with.

    Returns:
        The suite.

    Raises:
        UserError: probes are missing or malformed.
    """
    probes = MuseProbes(source)
    kept = probes.texts("retain") if probes.has_retain_texts() else []
    items = [
        *(_continued(passage, compat) for passage in probes.passages()),
        *_asked(probes, "forget", compat),
        *_asked(probes, "retain", compat),
        *(_attacked("privleak_forget", text) for text in probes.texts("forget")),
        *(_attacked("privleak_holdout", text) for text in probes.texts("holdout")),
        *(_attacked("privleak_retain", text) for text in kept),
    ]
    return Suite(
        name="muse",
        source=source,
        forget="raw/forget",
        items=tuple(items),
        columns=NAMES,
        aggregate=aggregate,
        headline=_HEADLINE,
        notes=() if kept else (f"{source} has no privleak/retain, so {RETAIN_ATTACK} is missing",),
    )


def aggregate(records: Records, reference: Records | None = None, compat: bool = False) -> Aggregates:
    """All aggregates that the records allow.

    Args:
        records: group to records. A group may be absent or its records may lack a measurement; what needs it is then
            reported as missing.
        reference: those of the model retrained without the forget texts, on the same items. Without it PrivLeak is
            missing, and so is the reference attack unless the records hold its scores.
        compat: without a reference, also give `privleak_without_reference` as open-unlearning does.

    Returns:
        Values and reasons for those that are missing; together they are `NAMES`, where `privleak_without_reference` is
        one of them only under `compat` without a reference. ROUGE, extraction strength and exact memorisation are in
        [0, 1], AUCs too, PrivLeak is in percent.

    Raises:
        UserError: the reference was measured on other texts.
        ValueError: a measurement is not finite.
    """
    attacks = membership.aggregate(_of_attack(records), reference and _of_attack(reference), compat)
    values, missing = dict(attacks.values), dict(attacks.missing)
    for name, (group, field) in _MEANS.items():
        try:
            values[name] = metrics.mean(present(_group(records, group), field), name)
        except UserError as error:
            missing[name] = str(error)
    try:
        kept, unseen = (present(_group(records, f"privleak_{name}"), "min_k_score") for name in ("retain", "holdout"))
        values[RETAIN_ATTACK] = membership.auc(kept, unseen)
    except UserError as error:
        missing[RETAIN_ATTACK] = str(error)
    return Aggregates({n: values[n] for n in NAMES if n in values}, {n: missing[n] for n in NAMES if n in missing})


def _continued(passage: Passage, compat: bool) -> Item:
    return Item(
        item_id=passage.item_id,
        group="verbmem",
        kind="continuation",
        prompt=passage.prompt,
        answer=f" {passage.continuation}" if compat else passage.continuation,
        max_new_tokens=VERBMEM_TOKENS,
        reference_tokens=None if compat else VERBMEM_TOKENS,
        stemmer=compat,
        joined=compat,
    )


def _asked(probes: MuseProbes, side: Side, compat: bool) -> list[Item]:
    shots = "".join(f"Question: {row.question}\nAnswer: {row.answer}\n\n" for row in probes.shots(side))
    return [_answered(row, shots, f"knowmem_{side}", compat) for row in probes.questions(side)]


def _answered(row: Row, shots: str, group: str, compat: bool) -> Item:
    return Item(
        item_id=row.item_id,
        group=group,
        kind="continuation",
        # The space at the end belongs to the published prompt.
        prompt=f"{shots}Question: {row.question}\nAnswer: ",
        answer=row.answer,
        score=False,
        max_new_tokens=KNOWMEM_TOKENS,
        stops=KNOWMEM_STOPS,
        stemmer=compat,
    )


def _attacked(group: str, text: Document) -> Item:
    return Item(item_id=text.item_id, group=group, kind="text", answer=text.text, token_scores=True, generate=False)


def _group(records: Records, group: str) -> Sequence[ItemRecord]:
    if not records.get(group):
        raise UserError(f"there are no {group} records")
    return records[group]


def _of_attack(records: Records) -> Records:
    """The rows that a membership attack compares, in the groups that it knows them by."""
    groups = {"forget": "privleak_forget", "holdout": "privleak_holdout"}
    return {
        name: [replace(record, group=name) for record in records[group]]
        for name, group in groups.items()
        if group in records
    }
