"""Keys and values of the rows that are being generated: rows enter, grow by a token a step, and leave.

Shapes: B rows, H key heads, C columns (tokens of the longest row, others are padded on the left), D head size.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE_COLUMNS = 64
"""Columns allocated ahead: concatenating a column a step would copy the whole cache every step."""


class GrowingLayer(DynamicLayer):
    """A layer's cache in a buffer with spare columns; `keys` and `values` are views of its used part."""

    def __init__(self) -> None:
        super().__init__()
        self._keys = self._values = torch.empty(0)
        self._used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new columns in place.

        Args:
            key_states: `[B, H, new columns, D]`.
            value_states: of the same shape but for D.
            args: ignored, as the base class does.
            kwargs: likewise.

        Returns:
            All keys and values.
        """
        used, columns = self._used, self._used + key_states.shape[-2]
        if used == 0:
            self.lazy_initialization(key_states, value_states)
        if used == 0 or columns > self._keys.shape[-2]:
            room = columns + _SPARE_COLUMNS
            self._keys = _grown(self._keys[:, :, :used] if used else None, key_states, room)
            self._values = _grown(self._values[:, :, :used] if used else None, value_states, room)
        self._keys[:, :, used:columns] = key_states
        self._values[:, :, used:columns] = value_states
        return self._show(columns)

    def rearrange(
        self, keep: Tensor, first_column: int, padding: int, extra: "GrowingLayer | None", shift: int
    ) -> None:
        """Drop rows and leading columns, pad on the left, and append another cache's rows.

        Args:
            keep: indices of the rows that stay.
            first_column: columns before it are dropped.
            padding: empty columns put before what stays.
            extra: rows to append; None for none.
            shift: empty columns put before those.
        """
        more = (None, None) if extra is None else (extra._keys, extra._values)
        used, new = slice(first_column, self._used), 0 if extra is None else extra._used
        self._keys = _joined(self._keys[:, :, used], keep, padding, more[0], new, shift)
        self._values = _joined(self._values[:, :, used], keep, padding, more[1], new, shift)
        self._show(self._keys.shape[-2] - _SPARE_COLUMNS)

    def repeat_rows(self, count: int) -> None:
        """Turn one row into `count` equal ones."""
        self._keys, self._values = self._keys.repeat(count, 1, 1, 1), self._values.repeat(count, 1, 1, 1)
        self._show(self._used)

    def chosen(self, rows: Tensor) -> "GrowingLayer":
        """A layer of copies of some rows, repeats allowed."""
        layer = GrowingLayer()
        layer.update(self._keys[rows, :, : self._used], self._values[rows, :, : self._used])
        return layer

    def release(self) -> None:
        """Free the memory."""
        self._keys = self._values = torch.empty(0)
        self.reset()
        self._used = 0

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        self._used = columns
        keys, values = self._keys[:, :, :columns], self._values[:, :, :columns]
        self.keys, self.values = keys, values
        return keys, values


class RowCache(DynamicCache):
    """The cache of all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer

    def rearrange(self, keep: Tensor, first_column: int, padding: int, extra: "RowCache | None", shift: int) -> None:
        """As `GrowingLayer.rearrange`, in every layer; `extra` loses its layers as they are copied."""
        others = [None] * len(self.layers) if extra is None else extra._growing()
        for layer, other in zip(self._growing(), others, strict=True):
            layer.rearrange(keep, first_column, padding, other, shift)
            if other is not None:
                # A layer's copy is freed before the next is made: two whole caches never stand side by side.
                other.release()

    def repeat_rows(self, count: int) -> None:
        """As `GrowingLayer.repeat_rows`, in every layer."""
        for layer in self._growing():
            layer.repeat_rows(count)

    def chosen(self, rows: Tensor) -> "RowCache":
        """A cache of copies of some rows, repeats allowed."""
        cache = RowCache()
        cache.layers = [layer.chosen(rows) for layer in self._growing()]
        return cache

    def _growing(self) -> list[GrowingLayer]:
        return cast("list[GrowingLayer]", self.layers)


def _grown(old: Tensor | None, new: Tensor, room: int) -> Tensor:
    # Spare columns are shown only once they are written.
    buffer = new.new_empty(new.shape[0], new.shape[1], room, new.shape[3])
    if old is not None:
        buffer[:, :, : old.shape[-2]] = old
    return buffer


def _joined(old: Tensor, keep: Tensor, padding: int, extra: Tensor | None, extra_used: int, shift: int) -> Tensor:
    """Kept rows behind their padding, then the extra rows behind theirs, with spare columns at the end."""
    columns = old.shape[-2] + padding
    assert extra is None or extra_used + shift == columns
    rows = len(keep) + (len(extra) if extra is not None else 0)
    buffer = old.new_empty(rows, old.shape[1], columns + _SPARE_COLUMNS, old.shape[3])
    # Zeros, not garbage: a masked column still multiplies its attention weight of 0, and 0 times NaN is NaN.
    buffer[: len(keep), :, :padding] = 0
    buffer[: len(keep), :, padding:columns] = old[keep]
    if extra is not None:
        buffer[len(keep) :, :, :shift] = 0
        buffer[len(keep) :, :, shift:columns] = extra[:, :, :extra_used]
    return buffer
