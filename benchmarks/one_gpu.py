"""What the benchmarks for one GPU share: a process group of one, facts of the machine, rows on disk, timed children.

They run on a machine that may have nothing but torch, transformers and deepspeed, so nothing here needs Ray, a network
or a package beside those. Without a GPU everything runs on the CPU, to try it; such rows say so and count for nothing.
"""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unlearn_core.publish import write_text

MOST_SECONDS, GRACE = 450.0, 30.0
"""A command ends itself after the first, its process is ended the second later: eight minutes in all."""
CPU = "CPU"
"""Name of the device of rows that were made without a GPU."""
# Large blocks come and go in a step; without this the caching allocator strands several GiB between them.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
ROOT = Path(__file__).resolve().parents[1]


def device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name() -> str:
    """Of the GPU; `CPU` without one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else CPU


def machine() -> dict[str, Any]:
    """What a row needs to say about where it was made."""
    facts: dict[str, Any] = {"device": device_name(), "python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "deepspeed", "bitsandbytes"):
        with contextlib.suppress(PackageNotFoundError):
            facts[name] = version(name)
    if torch.cuda.is_available():
        facts |= {"cuda": torch.version.cuda, "gpu_bytes": torch.cuda.mem_get_info()[1]}
        facts["allocator"] = os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    return facts | {"source": source_version()}


def source_version() -> str:
    """Commit of the source tree, marked where files were changed; `unknown` without git."""
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()


def today() -> str:
    """Date, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Deadline:
    """How much is left of the seconds that a command may take, counted from the start of this object."""

    def __init__(self, seconds: float):
        self.seconds, self._started = seconds, time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Seconds; negative when it has passed."""
        return self.seconds - self.spent


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """torch.distributed with this process alone, met by way of a file: no port is opened for it."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


class RowFile:
    """Rows as JSON lines, one for each key; a row replaces the earlier one of its key, whole or not at all.

    Args:
        path: the file; made when the first row comes.
        key: names of the fields that tell rows apart.
    """

    def __init__(self, path: Path, key: Sequence[str]):
        self.path, self.key = path, tuple(key)

    def read(self) -> list[dict[str, Any]]:
        """All rows, in the order in which their keys first came."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line]

    def find(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row with the key fields of `wanted`."""
        return next((row for row in self.read() if self._key(row) == self._key(wanted)), None)

    def put(self, row: Mapping[str, Any]) -> None:
        """Write a row; two processes that write at once wait for each other."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(f".{self.path.name}.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = {self._key(old): old for old in self.read()}
            rows[self._key(row)] = dict(row)
            write_text(self.path, "".join(json.dumps(one, allow_nan=False) + "\n" for one in rows.values()))

    def _key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in self.key)


def run_child(module: str, arguments: Sequence[str], seconds: float) -> str:
    """`python -m module arguments` in a process of its own, which is ended when it takes too long.

    Returns:
        "" when it ended well, else how it ended.
    """
    child = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, start_new_session=True)
    try:
        code = child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s, its limit"
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return "" if code == 0 else f"exit code {code}" if code > 0 else f"killed by signal {-code}"
