"""Log-probabilities of rows under the model that unlearning starts from: one number a row, computed once.

NPO and DPO compare the student with the start model on each row. That comparison needs one float a row, not a second
model in memory: it is worked out before the first step, written beside the run and joined by row id.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from unlearn_core import storage
from unlearn_core.data.packing import prepare
from unlearn_core.data.tokenization import Example, collate
from unlearn_core.errors import UserError
from unlearn_core.publish import write_json

if TYPE_CHECKING:
    from unlearn_core.zero.engine import ZeroEngine

References = dict[tuple[str, str], float]


def compute_references(
    engine: "ZeroEngine", sets: Mapping[str, Sequence[Example]], micro_batch: int, pad_id: int
) -> References:
    """Summed log-probability of each row's labels under the engine's current weights, in nats; equal on every rank.

    Args:
        engine: before the first step.
        sets: set name -> examples.
        micro_batch: rows of a forward pass on one rank.
        pad_id: any valid token id.
    """
    mine: References = {}
    for name, examples in sets.items():
        parts = rows_of_rank(examples, micro_batch, engine.rank, engine.world_size)
        inputs = [prepare(collate(rows, pad_id), engine.packs) for rows in parts]
        found = engine.read(inputs, lambda readout: readout.row_log_probs()[0])
        for one, log_prob_B in zip(inputs, found, strict=True):
            values = log_prob_B.double().cpu().tolist()
            mine |= {(name, item_id): value for item_id, value in zip(one.item_ids, values, strict=True)}
    gathered: list[References | None] = [None] * engine.world_size
    dist.all_gather_object(gathered, mine)
    merged: References = {}
    for part in reversed(gathered):  # the lowest rank's number wins, on every rank
        merged |= part or {}
    return merged


def rows_of_rank(examples: Sequence[Example], micro_batch: int, rank: int, world_size: int) -> list[list[Example]]:
    """One rank's micro-batches of a single pass over all rows.

    Every rank gets the same number (stage 3 gathers weights on all ranks at once), so the last row may come repeatedly.
    """
    size, last = micro_batch * world_size, len(examples) - 1
    starts = range(rank * micro_batch, len(examples) + rank * micro_batch, size)
    return [[examples[min(start + k, last)] for k in range(micro_batch)] for start in starts]


def save_references(path: Path, references: References) -> None:
    """Write them as JSON, whole or not at all."""
    nested: dict[str, dict[str, float]] = {}
    for (name, item_id), value in references.items():
        nested.setdefault(name, {})[item_id] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, nested)
    storage.push(path)


def load_references(path: Path) -> References:
    """Read what `save_references` wrote.

    Raises:
        UserError: the file is gone or damaged; without it a resumed run would compare with another model.
    """
    storage.refresh(path)
    try:
        nested = json.loads(path.read_text(encoding="utf-8"))
        return {(name, item_id): value for name, rows in nested.items() for item_id, value in rows.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); a resumed run needs the start model's log-probabilities. "
            "Start again in another --output."
        ) from error


def references_for(
    engine: "ZeroEngine",
    sets: Mapping[str, Sequence[Example]],
    micro_batch: int,
    pad_id: int,
    path: Path,
    fresh: bool,
) -> References:
    """The references of one request: computed and written when it begins, read when a run resumes inside it."""
    if not sets:
        return {}
    if not fresh:
        return load_references(path)
    references = compute_references(engine, sets, micro_batch, pad_id)
    if engine.rank == 0:
        save_references(path, references)
    if torch.distributed.is_initialized():
        dist.barrier()
    return references
