"""The default suite for a user's own rows: what was to be forgotten, what was to be kept, and perhaps a holdout.

Groups: `forget`, `retain` and `holdout` (rows like the forget rows that no model was trained on). A row is a question
with its answer, a conversation or a text. A text is asked for by its own beginning: each passage of it is parted after
half of its words, the first half is the prompt and the second the answer.

Columns have TOFU's names where they mean the same (`tofu.aggregate` computes them), so that both serve on a frontier.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from unlearn_core.data.rows import Conversation, Document, Row, TrainingRow, read_training_rows
from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership, metrics, tofu
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.suite import Aggregates, Records, Suite, present

PASSAGE_CHARACTERS = 1200
"""Longest passage of a text, about: some 200 English words, or 300 tokens."""

# A script without spaces is parted every 30 characters.
_WORD = re.compile(r"\S{1,30}")

_UTILITY = "retain_utility"
_RETAIN = {"retain_extraction_strength": "extraction_strength", "retain_exact_memorization": "exact_memorization"}
"""Columns that TOFU measures on forget rows only, and their record field."""


def suite(
    forget: Sequence[Path | str],
    retain: Sequence[Path | str],
    holdout: Sequence[Path | str] = (),
    passage_characters: int = PASSAGE_CHARACTERS,
) -> Suite:
    """The suite of a user's files.

    Args:
        forget: files of what was to be forgotten, at least one; see `read_training_rows`.
        retain: files of what was to be kept; without one there is no measure of utility.
        holdout: files of rows of the forget rows' kind that no model was trained on, for membership attacks.
        passage_characters: a longer text is measured in passages of about as many characters, equal in words.

    Returns:
        The suite. Its notes say which metrics of TOFU it does not have, and why.

    Raises:
        UserError: no forget file, a file that cannot be read, a text of fewer than two words, a row in two of the three
            sets, or a file named twice.
    """
    if not forget:
        raise UserError("no file of rows to forget; give at least one .jsonl, .json or .txt file")
    files = {"forget": forget, "retain": retain, "holdout": holdout}
    rows = {group: _rows(paths, group) for group, paths in files.items()}
    _refuse_overlap(rows)
    # The truth ratio of a group is a mean over its rows: some rows without alternatives leave none.
    compared = {group: bool(rows[group]) and all(map(_has_alternatives, rows[group])) for group in ("forget", "retain")}
    items = [
        item
        for group, members in rows.items()
        for row in members
        for item in _items(row, group, compared.get(group, False), bool(holdout), passage_characters)
    ]
    columns = (
        *("extraction_strength", "exact_memorization", "forget_Q_A_Prob", "forget_Q_A_ROUGE"),
        *(_with_alternatives("forget") if compared["forget"] else ()),
        *(membership.NAMES if holdout else ()),
        *((_UTILITY, "retain_Q_A_Prob", "retain_Q_A_ROUGE", *_RETAIN) if retain else ()),
        *(_with_alternatives("retain") if compared["retain"] else ()),
    )
    headline = ("forget_quality", "privleak", "extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE")

    def aggregate(records: Records, reference: Records | None, compat: bool) -> Aggregates:
        return _aggregate(columns, records, reference, compat)

    return Suite(
        name="own_files",
        source=_names(*files.values()),
        forget=_names(forget),
        items=tuple(items),
        columns=columns,
        aggregate=aggregate,
        headline=tuple(name for name in (_UTILITY, *headline) if name in columns),
        notes=tuple(_notes(rows, compared)),
    )


def _aggregate(columns: Sequence[str], records: Records, reference: Records | None, compat: bool) -> Aggregates:
    found = tofu.aggregate(records, reference, compat)
    values, missing = dict(found.values), dict(found.missing)
    for name, field in _RETAIN.items():
        if not records.get("retain"):
            missing[name] = "there are no retain records"
            continue
        try:
            values[name] = metrics.mean(present(records["retain"], field), name)
        except UserError as error:
            missing[name] = str(error)
    terms = [name for name in ("retain_Q_A_Prob", "retain_Q_A_ROUGE") if name in values]
    if len(terms) == 2:
        values[_UTILITY] = metrics.harmonic_mean([values[name] for name in terms])
    else:
        missing[_UTILITY] = "needs both retain_Q_A_Prob and retain_Q_A_ROUGE"
    return Aggregates(
        {name: values[name] for name in columns if name in values},
        {name: missing[name] for name in columns if name in missing},
    )


def _with_alternatives(group: str) -> tuple[str, ...]:
    """Columns that need each row's paraphrase and wrong answers."""
    ratio = "forget_truth_ratio" if group == "forget" else "retain_Truth_Ratio"
    quality = ("forget_quality", "forget_quality_log10") if group == "forget" else ()
    answers = (f"{group}_Q_A_PARA_Prob", f"{group}_Q_A_PERT_Prob")
    return (*quality, ratio, f"{ratio}_arithmetic", f"{ratio}_prob_mean", *answers)


def _rows(paths: Sequence[Path | str], group: str) -> list[TrainingRow]:
    rows = []
    for path in paths:
        where = Path(path).expanduser()
        if not where.is_file():
            raise UserError(f"{group} file '{path}' does not exist; give a .jsonl, .json or .txt file")
        rows += read_training_rows(where, str(path))
    return rows


def _has_alternatives(row: TrainingRow) -> bool:
    return isinstance(row, Row) and row.paraphrased_answer is not None and bool(row.perturbed_answers)


def _items(row: TrainingRow, group: str, compared: bool, attacked: bool, passage_characters: int) -> list[Item]:
    forget, holdout = group == "forget", group == "holdout"
    how = {
        "group": group,
        "token_scores": holdout or (forget and attacked),
        "generate": not holdout,
        "samples": forget,
    }
    if isinstance(row, Document):
        halves = _halves(row, passage_characters)
        names = [row.item_id] if len(halves) == 1 else [f"{row.item_id}#{k}" for k in range(len(halves))]
        return [
            Item(item_id=name, kind="continuation", prompt=prompt, answer=answer, **how)
            for name, (prompt, answer) in zip(names, halves, strict=True)
        ]
    if isinstance(row, Conversation):
        return [Item(item_id=row.item_id, kind="conversation", turns=row.turns, answer=row.answer, **how)]
    return [
        Item(
            item_id=row.item_id,
            prompt=row.question,
            answer=row.answer,
            paraphrase=row.paraphrased_answer if compared else None,
            wrong=row.perturbed_answers if compared else (),
            paraphrased_question=row.paraphrased_question,
            **how,
        )
    ]


def _halves(document: Document, passage_characters: int) -> list[tuple[str, str]]:
    """(prompt, answer) of each passage: the same number of words in all passages but for one more, in order.

    The white space before the answer's first word belongs to the answer, where most tokenizers put it; that around a
    passage is left out.
    """
    text = document.text
    words = [match.span() for match in _WORD.finditer(text)]
    if len(words) < 2:
        raise UserError(
            f"{document.item_id}: the text {text.strip()!r} has one word; expected at least two, to ask for the second "
            "by the first. Leave it out, or give it as a question and answer"
        )
    length = words[-1][1] - words[0][0]
    passages = max(1, min(-(-length // passage_characters), len(words) // 2))
    starts = [len(words) * k // passages for k in range(passages + 1)]
    halves = []
    for first, after in pairwise(starts):
        middle = words[(first + after + 1) // 2 - 1][1]
        halves.append((text[words[first][0] : middle], text[middle : words[after - 1][1]]))
    return halves


def _refuse_overlap(rows: dict[str, list[TrainingRow]]) -> None:
    seen: dict[tuple[object, ...], tuple[str, str]] = {}
    for group, members in rows.items():
        for row in members:
            if isinstance(row, Document):
                content: tuple[object, ...] = (row.text.strip(),)
            else:
                turns = (("user", row.question),) if isinstance(row, Row) else row.turns
                content = (*((role, text.strip()) for role, text in turns), row.answer.strip())
            other, item_id = seen.setdefault(content, (group, row.item_id))
            if other != group:
                raise UserError(
                    f"{row.item_id} ({group}) is also {item_id} ({other}); a row can be in one of forget, retain and "
                    "holdout only"
                )


def _notes(rows: dict[str, list[TrainingRow]], compared: dict[str, bool]) -> Iterable[str]:
    if rows["retain"]:
        yield (
            f"model_utility is missing: it takes TOFU's questions on real authors and world facts; {_UTILITY} is the "
            "harmonic mean of retain_Q_A_Prob and retain_Q_A_ROUGE"
        )
    else:
        yield "no retain file was given, so there is no measure of utility"
    for group, names in (("forget", "forget_truth_ratio and forget_quality are"), ("retain", "retain_Truth_Ratio is")):
        if rows[group] and not compared[group]:
            having = sum(map(_has_alternatives, rows[group]))
            yield (
                f"{names} missing: every {group} row needs a 'paraphrased_answer' and a 'perturbed_answer', and "
                f"{having} of {len(rows[group])} have both"
            )
    if not rows["holdout"]:
        yield (
            "membership attacks and privleak are missing: they compare the forget rows with a holdout, rows of the "
            "same kind that no model was trained on, and none was given"
        )
    elif {type(row) for row in rows["forget"]} != {type(row) for row in rows["holdout"]}:
        yield (
            "forget and holdout hold different kinds of rows (questions, conversations, texts); membership attacks may "
            "tell the kinds apart instead of what was trained on"
        )


def _names(*groups: Sequence[Path | str]) -> str:
    return ", ".join(str(path) for group in groups for path in group)
