"""One forward pass's tensors: rows packed one behind the other, or padded; and where their labels are.

    packed   (1, T)   T real tokens of B rows, positions counted anew in each row; attention is per row
    padded   (B, L)   for models whose attention cannot be packed, and for rows of equal length, which have no padding

Every index is worked out here, on the CPU: to find labels on a GPU would make the CPU wait for it. N counts label
tokens; indices point into the flattened (1 x T or B x L) tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from unlearn_core.data.tokenization import IGNORE, Batch


@dataclass(frozen=True)
class Packing:
    """Where the tokens of packed rows lie in a padded (B, L) rectangle."""

    slots_T: torch.Tensor
    """b x L + t of each token."""
    rows: int
    """B."""
    longest: int
    """L, tokens of the longest row."""
    starts_B1: torch.Tensor
    """Where each row begins among the packed tokens, and their number at the end: int32, as flash attention has it."""


@dataclass(frozen=True)
class PassInputs:
    """What one forward pass reads; see the file's head."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    """(B, L), 1 on tokens; None where there is no padding."""
    position_ids: torch.Tensor | None
    """(1, T) where packed; else None: counted from 0 in each row."""
    packing: Packing | None
    predictors_N: torch.Tensor
    """Indices of the tokens whose outputs predict labels."""
    labels_at_N: torch.Tensor
    """Indices of the label tokens themselves; may be more than N by labels on a row's first token."""
    targets_N: torch.Tensor
    """The label ids."""
    rows_N: torch.Tensor
    """Which row each label belongs to, from 0 to B - 1."""
    item_ids: tuple[str, ...]
    counts: bool = True
    """As in `Batch`."""

    def to(self, device: torch.device | str) -> "PassInputs":
        """The same on `device`; from pinned memory without waiting."""
        return _moved(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "PassInputs":
        """The same in page-locked memory, from where a GPU copies without the CPU waiting."""
        return _moved(self, lambda tensor: tensor.pin_memory())

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.input_ids.numel()


def prepare(batch: Batch, packed: bool, skip_first: int = 0) -> PassInputs:
    """The tensors of one forward pass on a batch.

    Args:
        batch: padded on the right, on the CPU.
        packed: whether rows of unequal length are packed.
        skip_first: label tokens at the start of each row that do not count.
    """
    real_BL = batch.attention_mask_BT.bool()
    rows, longest = real_BL.shape
    full = bool(real_BL.all())
    packed = packed and not full
    place_BL = torch.arange(rows * longest).view(rows, longest)
    if packed:
        place_BL = (real_BL.flatten().cumsum(0) - 1).view(rows, longest)
    kept_BL = batch.labels_BT != IGNORE
    if skip_first:
        kept_BL &= kept_BL.cumsum(dim=1) > skip_first
    rows_N, before_N = kept_BL[:, 1:].nonzero(as_tuple=True)
    input_ids, mask, positions, packing = batch.input_ids_BT, batch.attention_mask_BT, None, None
    if full:
        mask = None
    elif packed:
        slots_T = real_BL.flatten().nonzero().squeeze(1)
        starts_B1 = torch.nn.functional.pad(real_BL.sum(dim=1).cumsum(0), (1, 0)).int()
        packing = Packing(slots_T, rows, longest, starts_B1)
        input_ids, mask, positions = input_ids.flatten()[slots_T][None], None, (slots_T % longest)[None]
    return PassInputs(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        packing=packing,
        predictors_N=place_BL[rows_N, before_N],
        labels_at_N=place_BL[kept_BL],
        targets_N=batch.labels_BT[rows_N, before_N + 1],
        rows_N=rows_N,
        item_ids=batch.item_ids,
        counts=batch.counts,
    )


def _moved(inputs: Any, move: Any) -> Any:
    changed = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, torch.Tensor):
            changed[field.name] = move(value)
        elif isinstance(value, Packing):
            changed[field.name] = _moved(value, move)
    return replace(inputs, **changed)
