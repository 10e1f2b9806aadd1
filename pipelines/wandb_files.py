"""The files that Weights & Biases writes, read for the steps that they hold.

Its package writes them and has no reader in Python (0.31). A file is a log in blocks of 32 KiB, as LevelDB's: after 7
bytes of header, each piece has a checksum (4 bytes), a length (2), whether it is a whole record (1), a first (2), a
middle (3) or a last part (4), and its bytes; no piece crosses a block. Records are the package's protobuf messages.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_PIECE = struct.Struct("<IHB")
_FILE_HEADER = b":W&B"


def history(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """What was logged, in all files of a run: one dict a step, with `_step`.

    Args:
        folder: the folder that holds `wandb/`.
        run_id: the run's id.

    Returns:
        In the order of the files and of their records; one that a kill cut off is left out.
    """
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made when it is imported
    steps = []
    # A folder's name is a time in seconds and the id; of two in one second the later one's ends in -1.
    for path in sorted(folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")):
        for message in _messages(path.read_bytes()):
            record = messages.Record.FromString(message)
            if record.HasField("history"):
                values = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                steps.append({name: json.loads(value) for name, value in values.items()})
    return steps


def _messages(data: bytes) -> Iterator[bytes]:
    at, message = 7, b""
    if not data.startswith(_FILE_HEADER):
        return
    while at + _PIECE.size <= len(data):
        if _BLOCK - at % _BLOCK < _PIECE.size:  # no room for a piece: the block is padded
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        if kind == 0 or at + length > len(data):
            return
        message = data[at : at + length] if kind in (1, 2) else message + data[at : at + length]
        at += length
        if kind in (1, 4):
            yield message
