"""Records on disk: what is there already, what arrives, and when a group of rows is whole.

    OUTPUT/records/<model id>/<group>.parquet       all records of one group of one model, in the order of its items
    OUTPUT/records/<model id>/<group>.parts/        pieces of it while it is not whole yet

A piece is written aside and renamed, so whatever kills the writer leaves whole pieces only. Files of other settings,
rows or weights have another fingerprint and do not count.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.model_points import ModelPoint, identity
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import SCHEMA_VERSION, ItemRecord, read_metadata, read_parquet, write_parquet
from unlearn_core.evaluation.suite import Suite, content_fingerprint

_ALWAYS = {"style", "max_length", "system_prompt", "dtype", "attention", "compat"}
"""Settings that every record depends on. The token budget and the memory of generation move numbers by rounding only,
so changing them must not throw records away; the others count where an item asks for what they set."""


@dataclass(frozen=True)
class Unit:
    """All items of one group, scored by one model.

    Attributes:
        model: the model.
        group: name of the group.
        path: file of the whole group.
        fingerprint: of everything that its records depend on.
        items: in the order of the file.
    """

    model: ModelPoint
    group: str
    path: Path
    fingerprint: str
    items: tuple[Item, ...]

    @property
    def whole(self) -> bool:
        """Whether the file is there."""
        return read_metadata(self.path).get("fingerprint") == self.fingerprint

    @property
    def parts(self) -> Path:
        """Folder of the pieces."""
        return self.path.with_suffix(".parts")


def units_of(models: Sequence[ModelPoint], suite: Suite, output: Path, config: EvaluationConfig) -> list[Unit]:
    """Every (model, group), models outermost, so that an actor meets one model after another.

    Args:
        models: the models.
        suite: gives the groups.
        output: the evaluation's folder.
        config: its settings.

    Returns:
        The units.
    """
    target = next((identity(point) for point in models if point.role == "target" and not point.variant), None)
    groups = {group: (items, content_fingerprint(items)) for group, items in suite.groups.items()}
    units = []
    for point in models:
        model = identity(point)
        for group, (items, content) in groups.items():
            facts: list[Any] = [SCHEMA_VERSION, _settings(items, config), model, group, content]
            if any(item.kl for item in items):
                facts.append(target)
            fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
            path = output / "records" / point.model_id / f"{group}.parquet"
            units.append(Unit(point, group, path, fingerprint, items))
    return units


class UnitWriter:
    """Collects the records of one unit, keeps them on disk as they arrive, and writes the whole file with the last.

    Attributes:
        unit: the unit.
        missing: indices of the items that have no record yet.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._records: dict[str, ItemRecord] = {}
        for path in sorted(unit.parts.glob("*.parquet")):
            if read_metadata(path).get("fingerprint") == unit.fingerprint:
                self._records.update((record.item_id, record) for record in read_parquet(path))
            else:
                path.unlink()
        self.missing = [i for i, item in enumerate(unit.items) if item.item_id not in self._records]
        self._finish_if_whole()

    def add(self, records: Sequence[ItemRecord]) -> bool:
        """Keep records that arrived; a row delivered twice counts once.

        Returns:
            Whether the unit is whole now.
        """
        metadata = {"fingerprint": self.unit.fingerprint, "model_id": self.unit.model.model_id}
        write_parquet(self.unit.parts / f"{uuid.uuid4().hex}.parquet", records, metadata)
        self._records.update((record.item_id, record) for record in records)
        return self._finish_if_whole()

    def _finish_if_whole(self) -> bool:
        if len(self._records) < len(self.unit.items):
            return False
        ordered = [self._records[item.item_id] for item in self.unit.items]
        metadata = {"fingerprint": self.unit.fingerprint, "model_id": self.unit.model.model_id}
        write_parquet(self.unit.path, ordered, metadata)
        # The whole file is there, so pieces that a crash leaves behind here are never needed again.
        shutil.rmtree(self.unit.parts, ignore_errors=True)
        return True


def _settings(items: Sequence[Item], config: EvaluationConfig) -> dict[str, Any]:
    names = set(_ALWAYS)
    if any(item.generate and item.max_new_tokens is None for item in items):
        names.add("max_new_tokens")
    if any(item.token_scores for item in items):
        names |= {"min_k", "gradient_norm"}
    if any(item.samples for item in items):
        names |= {"samples", "temperature", "seed", "max_new_tokens"}
    return config.model_dump(mode="json", include=names)
