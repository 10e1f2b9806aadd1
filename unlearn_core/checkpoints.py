"""A run's checkpoints: written by all ranks, whole only with their manifest, checked before they are read.

    CHECKPOINTS/step-00012/rank-00000-of-00002.safetensors ...   written aside by each rank, then renamed
    CHECKPOINTS/step-00012/manifest.json                         size and SHA-256 of every file; written last, by rank 0

A folder without a manifest does not count. In an object store each rank brings its own files there before rank 0 does
the manifest. One whose files are gone, cut short or altered is passed over, with the
reason said, for the newest that is whole. What is in the files is the caller's (`zero/checkpoint.py`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from unlearn_core import storage
from unlearn_core.errors import StorageError, UserError, storage_problem
from unlearn_core.layout_config import RetentionConfig
from unlearn_core.publish import write_json

MANIFEST = "manifest.json"


@dataclass
class Checkpoints:
    """The folder in which a run's checkpoints lie. Every method is called by all ranks together.

    Args:
        folder: where they lie, the same on every rank.
        rank: of this process.
        world_size: number of ranks.
        retention: which ones are kept.
    """

    folder: Path
    rank: int = 0
    world_size: int = 1
    retention: RetentionConfig = field(default_factory=RetentionConfig)

    def save(self, metrics: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
        """Write a checkpoint and drop those that are not to be kept.

        Args:
            metrics: of its step, `step` among them; numbers that `retention.best_by` may name.
            fill: writes this rank's files into the folder it is given.

        Raises:
            StorageError: a rank could not write, on all ranks, with that rank's reason. Older checkpoints are unharmed.
            UserError: `retention.best_by` is no metric of the run.
        """
        final = self.folder / _name(metrics["step"])
        self._together(self._prepare if self._clears else _nothing, final)
        entries = self._together(self._write, final, fill)
        kept = self._together(self._finish if self.rank == 0 else _nothing, final, metrics, entries)[0]
        if self._clears and self.rank != 0:
            drop_all_but(self.folder, kept)

    def newest_whole(self) -> tuple[Path | None, list[str]]:
        """The checkpoint to go on from, every file of it read and compared with its SHA-256.

        Returns:
            Its folder, None when there is none; and, for each newer one that was passed over, why.
        """
        names = self._together(self._published if self.rank == 0 else list)[0]
        passed_over = []
        for name in names:
            problems = [p for p in self._together(self._check, self.folder / name) if p]
            if not problems:
                return self.folder / name, passed_over
            passed_over.append(f"{name}: {problems[0]}")
        return None, passed_over

    def keep_only_best(self) -> None:
        """When the run has finished: drop all but the best by the criterion; everything where there is none."""
        drop_all_but(self.folder, self._best(_manifests(self.folder)))

    # -- one rank's part ---------------------------------------------------------------------------------------------

    @property
    def _clears(self) -> bool:
        """Whether this rank clears old files away: on a disk that all share one does, on mirrors each of its own."""
        return self.rank == 0 or storage.uri_of(self.folder) is not None

    def _prepare(self, final: Path) -> None:
        shutil.rmtree(final, ignore_errors=True)  # of a run that was cut here, perhaps by another number of workers
        for leftover in self.folder.glob(".*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
        if self.rank == 0:
            storage.remove(final)
        final.mkdir(parents=True, exist_ok=True)

    def _write(self, final: Path, fill: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
        aside = self.folder / f".{final.name}-rank-{self.rank:05d}.part"
        try:
            aside.mkdir(parents=True)
            final.mkdir(exist_ok=True)
            fill(aside)
            entries = {}
            for path in sorted(aside.iterdir()):
                entries[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
                _sync(path)
                os.replace(path, final / path.name)
            storage.push(final)
            return entries
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _finish(self, final: Path, metrics: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> set[str]:
        files = {name: entry for part in entries for name, entry in part.items()}
        about = {"step": metrics["step"], "metrics": dict(metrics), "world_size": self.world_size, "files": files}
        write_json(final / MANIFEST, about)
        storage.push(final)
        manifests = _manifests(self.folder)
        last = sorted(manifests, key=_step, reverse=True)[: self.retention.last]
        kept = {*last, *self._best(manifests)}
        drop_all_but(self.folder, kept)
        return kept

    def _best(self, manifests: Mapping[str, Mapping[str, Any]]) -> set[str]:
        rule = self.retention
        if not rule.best:
            return set()
        scored = {}
        for name, manifest in manifests.items():
            value = manifest["metrics"].get(rule.best_by)
            if not isinstance(value, int | float):
                numbers = [key for key, number in manifest["metrics"].items() if isinstance(number, int | float)]
                raise UserError(
                    f"checkpoints.best_by is '{rule.best_by}'; this run's steps have {', '.join(sorted(numbers))}."
                )
            scored[name] = value if rule.best_is == "lowest" else -value
        return set(sorted(scored, key=lambda name: (scored[name], name))[: rule.best])

    def _published(self) -> list[str]:
        """Names of folders with a manifest, newest first; half-written ones are cleared away."""
        storage.refresh(self.folder, small_only=True)
        if not self.folder.is_dir():
            return []
        for path in self.folder.glob("step-*"):
            if not (path / MANIFEST).is_file():
                storage.remove(path)
                shutil.rmtree(path, ignore_errors=True)
        for leftover in self.folder.glob(".*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
        return sorted((path.name for path in self.folder.glob("step-*")), key=_step, reverse=True)

    def _check(self, folder: Path) -> str:
        """What is wrong with this rank's share of a checkpoint's files; "" for nothing."""
        try:
            storage.fetch(folder)
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files = sorted(manifest["files"].items())
        except UserError as error:
            return str(error)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        for name, entry in files[self.rank :: self.world_size]:
            problem = file_problem(folder / name, entry)
            if problem:
                return problem
        return ""

    def _together(self, act: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `act` returned on each rank; if it failed on any, the same error on all, so that none waits."""
        answer, problem = None, ""
        try:
            answer = act(*arguments)
        except UserError as error:
            problem = str(error)
        except Exception as error:  # told to all ranks, below
            problem = storage_problem(error, self.folder) or f"{type(error).__name__}: {error}"
        gathered: list[Any] = [(answer, problem)]
        if self.world_size > 1:
            gathered = [None] * self.world_size
            dist.all_gather_object(gathered, (answer, problem))
        problems = [f"rank {rank}: {said}" for rank, (_, said) in enumerate(gathered) if said]
        if problems:
            raise StorageError(problems[0] if self.world_size > 1 else problems[0].partition(": ")[2])
        return [answer for answer, _ in gathered]


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_problem(path: Path, entry: Mapping[str, Any]) -> str:
    """How a file differs from its manifest entry (`bytes`, `sha256`); "" if it does not."""
    if not path.is_file():
        return f"{path.name} is gone"
    if path.stat().st_size != entry["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes, written were {entry['bytes']}"
    if sha256(path) != entry["sha256"]:
        return f"{path.name} is altered (its SHA-256 is not the one written down)"
    return ""


def drop_all_but(folder: Path, kept: set[str]) -> None:
    """Remove checkpoints, the manifest of each first, so that what a kill leaves behind does not count."""
    for path in folder.glob("step-*"):
        if path.name not in kept:
            with suppress(FileNotFoundError):
                (path / MANIFEST).unlink()
            storage.remove(path)
            shutil.rmtree(path, ignore_errors=True)


def _manifests(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in folder.glob(f"step-*/{MANIFEST}"):
        with suppress(OSError, ValueError):
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _name(step: int) -> str:
    return f"step-{step:05d}"


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _nothing(*_: Any) -> dict[str, Any]:
    return {}
