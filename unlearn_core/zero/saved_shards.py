"""Read a checkpoint's shards into any layout: each value is found by its parameter's name and its place in it.

saved   rank file r, tensor kind/<i>:  fragments (name, start, length, offset)
wanted  this rank's tensor i:          fragments (name, start, length, offset)
copied  where a saved and a wanted fragment of one name overlap; the rest of a wanted tensor is padding, and zero
"""

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from unlearn_core.errors import UserError
from unlearn_core.zero.shards import Fragment

LAYOUT = "layout"
"""Key of a rank file's metadata."""


def encode_layout(fragments: Sequence[Sequence[Fragment]]) -> str:
    """Fragments of each master tensor as JSON: [[[name, start, length, offset], ...], ...]."""
    return json.dumps([[astuple(fragment) for fragment in tensor] for tensor in fragments])


class SavedShards:
    """The files of a checkpoint, read as if they had been written by this layout.

    Args:
        files: rank files that together hold every element, in order of rank.
        mine: fragments of each of this rank's master tensors.
        rank: this rank's place among `files`, should the layouts be the same; beyond them otherwise.

    Raises:
        UserError: a file without a layout.
    """

    def __init__(self, files: Sequence[Path], mine: Sequence[Sequence[Fragment]], rank: int):
        self._mine = mine
        self._files: list[Any] = []
        self._places: dict[str, list[tuple[int, int, Fragment]]] = {}
        """Parameter -> (file, tensor's index, fragment)."""
        texts = []
        for number, path in enumerate(files):
            file = safe_open(path, framework="pt")
            text = (file.metadata() or {}).get(LAYOUT)
            if text is None:
                raise UserError(f"{path} has no layout: it was written by an older version. Start in another --output.")
            self._files.append(file)
            texts.append(text)
            for index, tensor in enumerate(json.loads(text)):
                for name, *numbers in tensor:
                    self._places.setdefault(name, []).append((number, index, Fragment(name, *numbers)))
        self._own = self._files[rank] if rank < len(files) and texts[rank] == encode_layout(mine) else None
        self._keys = [set(file.keys()) for file in self._files]

    @property
    def same_layout(self) -> bool:
        """Whether this rank's shards lie as one of the files has them."""
        return self._own is not None

    def names(self, prefix: str) -> list[str]:
        """Names in the first file that begin with `prefix`, without it: `optimizer/{}/` -> exp_avg."""
        keys = self._keys[0]
        start = prefix.format(0)
        return sorted(key.removeprefix(start) for key in keys if key.startswith(start))

    def has(self, kind: str) -> bool:
        """Whether tensors of a kind, such as `teacher/{}`, were saved."""
        return kind.format(0) in self._keys[0]

    def read(self, kind: str, index: int, numel: int) -> torch.Tensor:
        """One tensor of this rank's layout.

        Args:
            kind: name with `{}` for the tensor's index, such as `optimizer/{}/exp_avg`.
            index: which of this rank's master tensors it goes with.
            numel: of that master tensor.

        Returns:
            (numel,) on the CPU, in the saved dtype, zero in the padding; as it was saved where it is a scalar or the
            layout is the same.

        Raises:
            UserError: another layout, and the tensor is not elementwise or lacks elements.
        """
        if self._own is not None:
            tensor = self._own.get_tensor(kind.format(index))
            if kind.startswith("master") and tensor.numel() != numel:
                raise UserError(f"the checkpoint's shard {index} has {tensor.numel()} elements, expected {numel}")
            return tensor
        first = self._files[0].get_slice(kind.format(0))
        if not first.get_shape():
            return self._files[0].get_tensor(kind.format(0))
        found: torch.Tensor | None = None
        for wanted in self._mine[index]:
            missing = wanted.length
            for number, tensor_index, saved in self._places.get(wanted.name, ()):
                begin = max(wanted.start, saved.start)
                end = min(wanted.start + wanted.length, saved.start + saved.length)
                if begin >= end:
                    continue
                source = self._elementwise(number, kind.format(tensor_index), tensor_index)
                at = saved.offset + begin - saved.start
                part = source[at : at + end - begin]
                if found is None:
                    found = torch.zeros(numel, dtype=part.dtype)
                to = wanted.offset + begin - wanted.start
                found[to : to + end - begin] = part
                missing -= end - begin
            if missing:
                raise UserError(f"the checkpoint lacks {missing} elements of {wanted.name} in {kind}")
        return torch.zeros(numel) if found is None else found

    def _elementwise(self, number: int, key: str, index: int) -> Any:
        """A tensor that has one value for each element of its master tensor."""
        tensor = self._files[number].get_slice(key)
        if tensor.get_shape() != self._files[number].get_slice(f"master/{index}").get_shape():
            raise UserError(
                f"the checkpoint's {key} is stored in blocks (8-bit optimizer state), which only the same number of "
                "workers at the same ZeRO stage can read. Resume as it was started, or use optimizer.name adamw."
            )
        return tensor
