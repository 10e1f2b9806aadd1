"""A suite: items to measure, and aggregates as a pure function of their records."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from unlearn_core.errors import UserError
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import ItemRecord

Records = Mapping[str, Sequence[ItemRecord]]
"""Group to records."""


NEAR_TIE = 1e-4
"""Two largest logits closer than this may change places with the batch or the machine, and the answer with them."""


@dataclass(frozen=True, slots=True)
class Aggregates:
    """Values of a suite for one model.

    Attributes:
        values: by column name.
        missing: columns that could not be computed, with the reason.
    """

    values: dict[str, float]
    missing: dict[str, str]


Aggregate = Callable[[Records, Records | None, bool], Aggregates]
"""(records, those of the model retrained without the forget data or None, compat) to aggregates."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything that defines an evaluation but the models.

    Attributes:
        name: such as `tofu`.
        source: where the rows come from, as the user gave it.
        forget: what was to be forgotten: a split's name, or the user's file.
        items: what is measured; ids are unique.
        columns: names of all aggregates, in the order of the table.
        aggregate: what computes them. It raises `ValueError` on numbers that are not finite and never fills in a
            missing reference; `compat` computes as open-unlearning does where that differs.
        headline: the columns that a terminal shows.
        notes: what the user should be told about the suite, such as metrics that it cannot have and why.
        fingerprint: SHA-256 of the items; of a suite with more items added, that of the first ones. Evaluations of
            equal fingerprints measured the same rows.
    """

    name: str
    source: str
    forget: str
    items: tuple[Item, ...]
    columns: tuple[str, ...]
    aggregate: Aggregate
    headline: tuple[str, ...]
    notes: tuple[str, ...] = ()
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", content_fingerprint(self.items))
        seen: set[str] = set()
        for item in self.items:
            if item.item_id in seen:
                raise UserError(f"{self.source}: item id '{item.item_id}' appears twice; ids must be unique")
            seen.add(item.item_id)

    @property
    def groups(self) -> dict[str, tuple[Item, ...]]:
        """Items by group, in order of first appearance."""
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(item.group, []).append(item)
        return {group: tuple(items) for group, items in groups.items()}

    def with_more(self, more: "Suite") -> "Suite":
        """This suite and another's items and columns; name, source and what was forgotten stay this one's."""

        def aggregate(records: Records, reference: Records | None, compat: bool) -> Aggregates:
            ours, theirs = self.aggregate(records, reference, compat), more.aggregate(records, reference, compat)
            return Aggregates(ours.values | theirs.values, ours.missing | theirs.missing)

        assert not set(self.columns) & set(more.columns), (self.columns, more.columns)
        return Suite(
            name=self.name,
            source=self.source,
            forget=self.forget,
            items=(*self.items, *more.items),
            columns=(*self.columns, *more.columns),
            aggregate=aggregate,
            headline=(*self.headline, *more.headline),
            notes=(*self.notes, *more.notes),
            fingerprint=self.fingerprint,
        )


def content_fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 of items: everything that is asked of the model, wherever the rows were read from."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(asdict(item), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def near_ties(groups: Records) -> list[str]:
    """Items whose greedy answer has a token that another batch or machine may choose otherwise."""
    rows = [record for records in groups.values() for record in records]
    return [row.item_id for row in rows if row.smallest_margin is not None and row.smallest_margin < NEAR_TIE]


def non_finite(groups: Records) -> str | None:
    """What is wrong with a model whose losses are NaN or infinite (it has diverged); None if all are finite."""
    rows = [record for records in groups.values() for record in records]
    bad = [
        record.item_id
        for record in rows
        if not all(
            math.isfinite(loss)
            for loss in (record.avg_loss or 0.0, record.paraphrased_loss or 0.0, *record.perturbed_losses)
        )
    ]
    return f"{len(bad)} of {len(rows)} rows have a NaN or infinite loss, the first is {bad[0]}" if bad else None


def present(rows: Sequence[ItemRecord], field: str) -> list:
    """One field of every record.

    Raises:
        UserError: a record does not have it; the message names the first.
    """
    found = [getattr(row, field) for row in rows]
    absent = [row.item_id for row, value in zip(rows, found, strict=True) if value is None or value == ()]
    if absent:
        raise UserError(f"{len(absent)} of {len(rows)} records have no {field}, the first is '{absent[0]}'")
    return found
