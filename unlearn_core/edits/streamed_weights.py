"""new[name] = edit(name, old[name]), one tensor at a time: model folders larger than memory can be read and written.

A safetensors file is a header (names, dtypes, shapes, places) and then raw bytes. An edited file keeps the old one's
header to the byte, so each new tensor is written where the old one stood and no file is ever held whole.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from unlearn_core.data.sources import looks_like_path, on_this_node
from unlearn_core.errors import UserError
from unlearn_core.models import check_model_source
from unlearn_core.publish import MARKER, publish_folder

Edit = Callable[[str, torch.Tensor], torch.Tensor]
"""(name, old tensor) -> new tensor of any float dtype and the same shape. Returning the old one copies it."""

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_COMPANIONS = ("*.json", "*.jinja", "*.model", "merges.txt")
"""Config, generation config, index and tokenizer files: what makes weights a model folder."""


class StreamedWeights:
    """The tensors of a Hugging Face folder by name, each read when asked for.

    Attributes:
        source: the folder or hub name that was given.
        folder: where the files are.
        names: every tensor's name, in the order in which the files hold them.
    """

    def __init__(self, source: str | Path) -> None:
        """Read the headers.

        Args:
            source: a model folder (one safetensors file, or shards with an index), or a hub name, which is downloaded.

        Raises:
            UserError: what `check_model_source` finds, or a hub name that cannot be downloaded.
        """
        self.source = str(source)
        self.folder = _local(self.source)
        self._headers = {path.name: _header(path) for path in _files(self.folder)}
        self._places = {name: file for file, header in self._headers.items() for name in header}
        self.names = tuple(self._places)
        self._open: dict[str, Any] = {}

    @property
    def bytes(self) -> int:
        """Size of all tensors together."""
        return sum(_byte_length(entry) for header in self._headers.values() for entry in header.values())

    @property
    def dtypes(self) -> frozenset[str]:
        """Dtypes that occur, as the format writes them: F32, BF16, F16, ..."""
        return frozenset(entry["dtype"] for header in self._headers.values() for entry in header.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header alone."""
        return tuple(self._headers[self._places[name]][name]["shape"])

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor, on the CPU, in the file's dtype."""
        return self._file_of(name).get_tensor(name)

    def elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` - 1 of one flattened tensor; reads only the rows that they lie in."""
        shape = self.shape(name)
        part = self._file_of(name).get_slice(name)
        if len(shape) < 2:
            return part[start:stop]
        row = math.prod(shape[1:])
        first = start // row
        rows = part[first : -(-stop // row)].reshape(-1)
        return rows[start - first * row : stop - first * row]

    def _file_of(self, name: str) -> Any:
        file = self._places[name]
        if file not in self._open:
            self._open = {file: safe_open(self.folder / file, framework="pt")}  # one file at a time stays open
        return self._open[file]

    def write(self, final: Path, edit: Edit, marker: dict[str, Any], advance: Callable[[int], None] | None = None):
        """Publish an edited copy as a folder: same files, tensor names, shapes and dtypes, same config and tokenizer.

        Args:
            final: the new folder; appears only when it is whole.
            edit: gives each new tensor. Computed in whatever dtype it likes, stored in the old tensor's: an edit below
                half a unit in the last place of bf16 (1/256 of a weight) is lost there.
            marker: content of the folder's `complete.json`.
            advance: called with the bytes written after each tensor.

        Raises:
            UserError: the edit made an infinity or NaN where the old weights had none.
        """

        def fill(folder: Path) -> None:
            for pattern in _COMPANIONS:
                for path in self.folder.glob(pattern):
                    if path.name != MARKER:
                        shutil.copyfile(path, folder / path.name)
            for file, header in self._headers.items():
                self._write_file(folder / file, file, header, edit, advance)

        publish_folder(final, fill, marker)

    def _write_file(
        self, target: Path, file: str, header: dict[str, Any], edit: Edit, advance: Callable[[int], None] | None
    ) -> None:
        with open(self.folder / file, "rb") as old:
            head = old.read(8)
            head += old.read(int.from_bytes(head, "little"))
        with open(target, "wb") as new:
            new.write(head)
            for name in header:  # `_header` sorts by place, and the format leaves no gaps
                before = self.tensor(name)
                after = edit(name, before)
                if after is not before:
                    after = _stored_as(before, after, name, self.source)
                new.write(after.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                if advance is not None:
                    advance(_byte_length(header[name]))


def check_same_tensors(first: StreamedWeights, second: StreamedWeights) -> None:
    """Two models must have the same tensors before one is computed from the other.

    Dtypes may differ: edits are computed in fp32 and stored in the first model's.

    Raises:
        UserError: a name that one of them lacks, or two shapes; says the first.
    """
    missing = sorted(set(first.names) ^ set(second.names))
    if missing:
        has, lacks = (first, second) if missing[0] in first.names else (second, first)
        raise UserError(
            f"'{lacks.source}' has no tensor '{missing[0]}' and '{has.source}' has ({len(missing)} such tensors); "
            "expected two models of one architecture. Where only a tied lm_head.weight differs, load both and "
            "save_pretrained them"
        )
    for name in first.names:
        if first.shape(name) != second.shape(name):
            raise UserError(
                f"'{name}' is {list(first.shape(name))} in '{first.source}' and {list(second.shape(name))} in "
                f"'{second.source}'; expected two models of one architecture and one vocabulary"
            )


def _stored_as(before: torch.Tensor, after: torch.Tensor, name: str, source: str) -> torch.Tensor:
    if after.shape != before.shape:
        raise ValueError(f"edit of {name} has shape {list(after.shape)}; expected {list(before.shape)}")
    stored = after.to("cpu", before.dtype)
    if not stored.isfinite().all() and before.isfinite().all():
        raise UserError(
            f"the edit of '{name}' of '{source}' overflows {str(before.dtype).removeprefix('torch.')}; "
            "take a smaller edit weight"
        )
    return stored


def _local(source: str) -> Path:
    if looks_like_path(source):
        source = on_this_node(source)
        check_model_source(source)
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(source, allow_patterns=["*.safetensors", *_COMPANIONS])
    except (OSError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"cannot download the model '{source}' from the Hugging Face hub: {reason}. Check name and network, "
            "or give a model folder"
        ) from error
    check_model_source(folder)
    return Path(folder)


def _files(folder: Path) -> list[Path]:
    """The weight files of a folder that `check_model_source` found whole."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _header(path: Path) -> dict[str, Any]:
    """Name -> dtype, shape and place of each tensor, in the order of their places."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    # A tensor without elements shares its place with the next one and goes first.
    return dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))


def _byte_length(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    return end - start


def check_weight(weight: float, name: str, most: float = math.inf) -> None:
    """An edit's weight must be a finite number from 0 to `most`.

    Raises:
        UserError: it is not.
    """
    if not (0.0 <= weight <= most and math.isfinite(weight)):
        expected = "a finite number from 0" if math.isinf(most) else f"a number from 0 to {most:g}"
        raise UserError(f"{name} is {weight:g}; expected {expected}")
