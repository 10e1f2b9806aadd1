"""What a training run will write, against what is free: told before any worker starts."""

import shutil
from pathlib import Path

from unlearn_core.config import RunConfig
from unlearn_core.data.sources import looks_like_path
from unlearn_core.errors import StorageError
from unlearn_core.loop import model_folder
from unlearn_core.publish import is_complete

GIB = 1024**3
MASTER, MOMENT = 4, 4
"""Bytes a parameter of the fp32 master weights, and of each fp32 tensor like it."""


def parameters_of(folder: Path) -> int:
    """Number of parameters in a folder's safetensors files, from their headers."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                count = 1
                for size in file.get_slice(name).get_shape():
                    count *= size
                total += count
    return total


def bytes_needed(config: RunConfig, output: Path, parameters: int) -> tuple[int, int]:
    """Bytes of the exports that are still to be written, and of all checkpoints that lie there at once.

    Args:
        config: the run.
        output: its folder; whole exports in it are not written again.
        parameters: of the model.
    """
    exports = [step for step in range(1, config.total_steps + 1) if config.exports_at(step)]
    missing = sum(not is_complete(model_folder(output, step)) for step in exports)
    moments = {"adamw": 2, "sgd": int(config.optimizer.momentum > 0), "adamw_8bit": 0.5}[config.optimizer.name]
    trained = 0.01 if config.model.lora else 1.0  # adapters are small; what they cost exactly does not decide
    checkpoint = trained * parameters * (MASTER + moments * MOMENT)
    kept = config.checkpoints.last + config.checkpoints.best + 1  # one more while it is written
    return missing * parameters * (4 if config.model.dtype == "fp32" else 2), int(kept * checkpoint)


def check_disk(config: RunConfig, output: Path) -> None:
    """Refuse a run that cannot fit; nothing is said of a model that is on the hub and not here yet.

    Raises:
        StorageError: with what is needed, what is free, and what to change.
    """
    folder = Path(config.model.path).expanduser()
    if not looks_like_path(config.model.path) or not folder.is_dir():
        return
    exports, checkpoints = bytes_needed(config, output, parameters_of(folder))
    probe = next(place for place in (output, *output.parents) if place.is_dir())
    free = shutil.disk_usage(probe).free
    if exports + checkpoints > free:
        raise StorageError(
            f"{output} has room for {free / GIB:.2f} GiB; the run writes {exports / GIB:.2f} GiB of exports and up to "
            f"{checkpoints / GIB:.2f} GiB of checkpoints. Raise export_every, lower checkpoints.last, or choose "
            "another --output."
        )
