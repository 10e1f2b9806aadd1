"""What models answered: questions of each group with the target's, a chosen checkpoint's and the reference's answer.

Records of every model are in its evaluation; the page takes a few questions of each group, the same for all models, and
of each run the checkpoint that a reader would ask for: its best one on the front, else its last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.report.models import Point, Run
from unlearn_core.errors import UserError
from unlearn_core.evaluation.records import ItemRecord, read_parquet

QUESTIONS = 6
"""Of each group, at most."""
RUNS = 12
"""Runs whose answers the page holds at most."""
LONGEST = 600
"""Characters of an answer that are shown."""
GROUPS = {
    "forget": "forget",
    "knowmem_forget": "forget",
    "verbmem": "forget (verbatim)",
    "retain": "retain",
    "knowmem_retain": "retain",
    "ra": "general (real authors)",
    "wf": "general (world facts)",
}
"""Group of records -> what it is on the page; groups that no model answers questions of are left out."""


@dataclass(frozen=True)
class Answer:
    """One model's answer to one question. None: not measured."""

    text: str | None
    probability: float | None
    rouge: float | None


@dataclass(frozen=True)
class Question:
    """A row with all models' answers, by column of `Answers`."""

    group: str
    question: str
    truth: str
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class Answers:
    """The panel.

    Attributes:
        columns: key -> heading; `target` and `reference` where there are such, then a key a run.
        questions: in the order of the groups.
        generated: whether any model answered; else probabilities are all there is.
        notes: what is missing.
    """

    columns: Mapping[str, str]
    questions: Sequence[Question]
    generated: bool
    notes: Sequence[str]


def answers(points: Sequence[Point], runs: Mapping[str, Run], chosen: Mapping[str, Point]) -> Answers | None:
    """Answers of the first evaluation that has records of questions; None where none has.

    Args:
        points: all of them; those of searches have no records.
        runs: by key.
        chosen: key of a run -> the checkpoint whose answers stand for it.

    Raises:
        UserError: a damaged file of records.
    """
    for folder in dict.fromkeys(point.folder for point in points if point.model):
        stars = {point.role: point for point in points if point.folder == folder and point.role != "checkpoint"}
        mine = {key: point for key, point in chosen.items() if point.folder == folder}
        models = {role: stars[role] for role in ("target", "reference") if role in stars}
        models |= dict(list(mine.items())[:RUNS])
        read = {key: _records(Path(folder), point.model) for key, point in models.items()}
        read = {key: groups for key, groups in read.items() if groups}
        if not read:
            continue
        headings = {
            key: {"target": "before unlearning", "reference": "retrained"}.get(key)
            or f"{runs[key].label}, step {point.step}"
            for key, point in models.items()
        }
        notes = []
        if len(mine) > RUNS:
            notes.append(f"Answers of {RUNS} of {len(mine)} runs are shown.")
        notes += [f"{headings[key]} has no records of answers." for key in models if key not in read]
        if "reference" not in read:
            notes.append("There is no retrained model to compare with.")
        questions = list(_questions(read))
        generated = any(one.text is not None for question in questions for one in question.answers.values())
        return Answers({key: headings[key] for key in read}, questions, generated, notes)
    return None


def _records(folder: Path, model: str) -> dict[str, list[ItemRecord]]:
    found = {}
    for group in GROUPS:
        path = folder / "records" / model / f"{group}.parquet"
        if path.is_file():
            try:
                found[group] = read_parquet(path)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error}); run the evaluation again") from error
    return found


def _questions(read: Mapping[str, Mapping[str, list[ItemRecord]]]) -> list[Question]:
    found = []
    for group, title in GROUPS.items():
        by_model = {key: {one.item_id: one for one in groups.get(group, ())} for key, groups in read.items()}
        first = next((records for records in by_model.values() if records), None)
        asked = [one for one in (first or {}).values() if one.question is not None]
        for record in spread(asked, QUESTIONS):
            told = {key: _answer(records.get(record.item_id)) for key, records in by_model.items()}
            found.append(Question(title, record.question or "", _short(record.answer) or "", told))
    return found


def spread(rows: Sequence[ItemRecord], most: int) -> list[ItemRecord]:
    """At most so many rows, evenly spaced, the first one always among them."""
    count = min(most, len(rows))
    return [rows[n * len(rows) // count] for n in range(count)]


def _answer(record: ItemRecord | None) -> Answer:
    if record is None:
        return Answer(None, None, None)
    rouge = record.rougeL_f1 if record.rougeL_recall is None else record.rougeL_recall
    return Answer(_short(record.generation), record.prob, rouge)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else text[:LONGEST] + " \N{HORIZONTAL ELLIPSIS}"
