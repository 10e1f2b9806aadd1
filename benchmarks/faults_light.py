"""Rows of `benchmarks.faults` that need no Ray: damaged checkpoints, full and read-only disks, NaN, hostile input.

The training loop runs in this process, on one rank; `make test` runs these rows too.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes

from benchmarks.exactness import distance, norm
from benchmarks.faults_run import BOUND, Row, Workspace, newest_checkpoint, step_lines
from unlearn_core.config import RunConfig
from unlearn_core.errors import StorageError, UserError
from unlearn_core.events import read_events
from unlearn_core.local import LocalContext
from unlearn_core.loop import Outcome, model_folder, run
from unlearn_core.publish import write_json

STEPS, EVERY = 12, 3
SMALL_DISK = "FAULTS_SMALL_DISK"
"""Environment variable: a folder on a file system of about 16 MB, where a full disk is tried for real."""


class _Cut(Exception):
    """The run is interrupted here."""


class _CutContext(LocalContext):
    at = 0

    def checkpoint(self, metrics, write):  # type: ignore[no-untyped-def]
        super().checkpoint(metrics, write)
        if metrics["step"] == self.at:
            raise _Cut


def config_of(work: Workspace) -> RunConfig:
    """The short run of these rows."""
    return work.config(workers=1, steps=STEPS, checkpoint_every=EVERY, export_every=STEPS // 2)


def train_here(config: RunConfig, output: Path, cut_after: int = 0) -> Outcome | None:
    """The loop in this process; None when it was cut after a checkpoint."""
    context = _CutContext(output)
    context.at = cut_after
    try:
        return run(config, context)
    except _Cut:
        return None


def fresh(work: Workspace, name: str) -> Path:
    """An empty folder for a row's run."""
    output = work.folder / name
    shutil.rmtree(output, ignore_errors=True)
    return output


def final(output: Path) -> dict[str, torch.Tensor]:
    """The weights that a run of these rows ends with."""
    return load_file(model_folder(output, STEPS) / "model.safetensors")


def difference(work: Workspace, output: Path) -> float:
    """Relative L2 distance from an undisturbed run, made when first asked for."""
    whole = work.folder / "undisturbed-light"
    if not model_folder(whole, STEPS).is_dir():
        train_here(config_of(work), whole)
    return distance(final(output), final(whole)) / norm(final(whole))


def cut_short(path: Path) -> None:
    """Take the last byte away."""
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    """Change one bit near the end."""
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


RANK_FILE = "rank-00000-of-00001.safetensors"
DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda folder: cut_short(folder / RANK_FILE),
    "bit flipped": lambda folder: flip_a_bit(folder / RANK_FILE),
    "half written (no manifest)": lambda folder: (folder / "manifest.json").unlink(),
    "a file deleted between save and resume": lambda folder: (folder / RANK_FILE).unlink(),
    "deleted as a whole": shutil.rmtree,
}


def damaged_checkpoint(work: Workspace, damage: str) -> Row:
    """A run is cut, its newest checkpoint damaged, and the run started again."""
    output, config = fresh(work, "damaged"), config_of(work)
    train_here(config, output, cut_after=3 * EVERY)
    DAMAGES[damage](output / "checkpoints" / f"step-{3 * EVERY:05d}")
    started = time.monotonic()
    outcome = train_here(config, output)
    took = time.monotonic() - started
    said = "; ".join(event["text"] for event in read_events(output))
    silent = damage in ("half written (no manifest)", "deleted as a whole")  # then there is no such checkpoint
    error = difference(work, output)
    good = outcome is not None and outcome.status == "finished" and error <= BOUND and (silent or "step-00006" in said)
    said = said or "it does not count; went on from step-00006"
    return Row(f"checkpoint {damage}", said, good, took, EVERY, f"equal to {error:.1e}")


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def disk_full(work: Workspace) -> Row:
    """The checkpoint does not fit; then it does. On a small file system when `FAULTS_SMALL_DISK` names one."""
    place = os.environ.get(SMALL_DISK)
    output, config = fresh(work, "disk-full"), config_of(work)
    if place:
        output = Path(place) / "disk-full"
        shutil.rmtree(output, ignore_errors=True)
    train_here(config, output, cut_after=EVERY)
    said = ""
    try:
        if place:
            free = shutil.disk_usage(place).free
            ballast = Path(place) / "ballast"
            ballast.write_bytes(b"\0" * max(0, free - 200_000))
            train_here(config, output)
        else:
            with small_files(500_000):
                train_here(config, output)
    except StorageError as error:
        said = str(error)
    kept = newest_checkpoint(output)
    if place:
        (Path(place) / "ballast").unlink(missing_ok=True)
    outcome = train_here(config, output)
    error = difference(work, output)
    good = "the same command then goes on" in said and kept == EVERY and outcome is not None and error <= BOUND
    where = "small file system" if place else "file-size limit"
    return Row(f"disk full ({where})", said or "no error", good, None, EVERY, f"with room again: equal to {error:.1e}")


def read_only_output(work: Workspace) -> Row:
    """An output folder that cannot be made: told before any worker starts."""
    from pipelines.claim import claimed

    try:
        with claimed(Path("/proc/unlearn/output"), "a run"):
            return Row("read-only output", "it was accepted", False)
    except StorageError as error:
        said = str(error)
    return Row("read-only output", "refused before any worker starts", "Choose an --output" in said, result=said)


def nan_in_a_weight(work: Workspace) -> Row:
    """The model to start from has one NaN."""
    model = work.folder / "nan-model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(work.model, model)
    weights = load_file(model / "model.safetensors")
    next(iter(weights.values())).view(-1)[7] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    config = config_of(work).model_copy(update={"model": config_of(work).model.model_copy(update={"path": str(model)})})
    try:
        train_here(config, fresh(work, "nan-weight"))
    except UserError as error:
        return Row(
            "NaN in a weight", "refused before the first step", "NaN or infinite" in str(error), result=str(error)
        )
    return Row("NaN in a weight", "it was trained", False)


@contextmanager
def poisoned(step: int, rank: int = 0) -> Iterator[None]:
    """The loss of one micro-batch of a step, from 1, is NaN on this rank; two objectives of one micro-batch each."""
    from unlearn_core.zero.engine import ZeroEngine

    calls = 0
    whole = ZeroEngine._loss_sum

    def loss_sum(self, item, batch, index):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        hit = self.rank == rank and calls == 2 * (step - 1) + 1
        return whole(self, item, batch, index) * (float("nan") if hit else 1.0)

    with patch.object(ZeroEngine, "_loss_sum", loss_sum):
        yield


def nan_in_a_batch(work: Workspace) -> Row:
    """One micro-batch's loss is NaN at step 8: no optimizer step is taken with it, exports before it stay."""
    output = fresh(work, "nan-batch")
    with poisoned(step=8):
        outcome = train_here(config_of(work), output)
    good = outcome is not None and outcome.status == "diverged" and outcome.step == 7
    kept = all(bool(torch.isfinite(t).all()) for t in load_file(model_folder(output, 6) / "model.safetensors").values())
    reason = "" if outcome is None else outcome.reason
    return Row("NaN in a batch", f"diverged, {len(step_lines(output))} steps in the log", good and kept, result=reason)


def poisoned_rank(rank: int, world_size: int, config: RunConfig, output: Path) -> Outcome:
    """One rank of a run of several whose rank 1 meets a NaN at step 3."""
    with poisoned(step=3, rank=1):
        return run(config, LocalContext(output, rank, world_size))


def _poisoned_process(rank: int, port: int, config: RunConfig, output: Path) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    write_json(output / f"rank-{rank}.json", poisoned_rank(rank, 2, config, output).__dict__)


def nan_in_one_rank(work: Workspace) -> Row:
    """A NaN on one of two ranks: both end together, neither waits for the other."""
    output = fresh(work, "nan-rank")
    output.mkdir()
    config = work.config(workers=2, steps=STEPS, checkpoint_every=EVERY, export_every=STEPS)
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = start_processes(_poisoned_process, args=(port, config, output), nprocs=2, join=False, start_method="spawn")
    assert ranks is not None
    end = time.monotonic() + 120
    while not ranks.join(timeout=5):
        if time.monotonic() > end:
            for pid in ranks.pids():
                os.kill(pid, signal.SIGKILL)
            return Row("NaN in one rank only", "a rank hung", False)
    told = [json.loads((output / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    good = all(one["status"] == "diverged" and one["step"] == 2 for one in told) and told[0] == told[1]
    return Row("NaN in one rank only", "both ranks ended together before the step", good, result=told[0]["reason"])


HOSTILE = {
    "malformed": (b'{"text": "a"}\n{"text": \n', ":2: invalid JSON"),
    "empty": (b"", "no rows"),
    "wrong encoding": (b'{"text": "a"}\n{"text": "\xff\xfe"}\n', ":2: not UTF-8"),
    "nested 100,000 deep": (b'{"text": ' + b"[" * 100_000, ":1: nested too deeply"),
    "a line of 70 MB": (b'{"text": "' + b"a" * 70 * 10**6 + b'"}', ":1: a line of more than 64 MiB"),
    "half a surrogate pair": (b'{"text": "\\ud800"}', "is no character"),
    "binary": (bytes(range(256)) * 8, ": "),
}


def hostile_file(work: Workspace, kind: str) -> Row:
    """A forget file that must be refused, with file and line, before any worker starts."""
    content, says = HOSTILE[kind]
    path = work.folder / "hostile.jsonl"
    path.write_bytes(content)
    config = config_of(work)
    config = config.model_copy(update={"data": config.data.model_copy(update={"forget": (str(path),)})})
    return _refused(f"data file: {kind}", config, says if says != ": " else str(path))


def path_traversal(work: Workspace) -> Row:
    """A split name that leads out of the benchmark's folder."""
    folder = work.folder / "benchmark"
    folder.mkdir(exist_ok=True)
    for name in ("forget10", "retain90", "full"):
        row = {"question": f"{name}?", "answer": "Yes."}
        (folder / f"{name}.json").write_text(json.dumps([row]), encoding="utf-8")
    (work.folder / "outside.json").write_text(json.dumps([{"question": "a", "answer": "b"}]), encoding="utf-8")
    config = config_of(work)
    data = config.data.model_copy(update={"benchmark": str(folder), "forget": ("../outside",)})
    return _refused(
        "path traversal in a split's name", config.model_copy(update={"data": data}), "has no split '../outside'"
    )


def duplicated_rows(work: Workspace) -> Row:
    """The same row twice in the forget file: two rows with ids of their own, as the user wrote."""
    path = work.folder / "twice.jsonl"
    path.write_text(2 * (json.dumps({"question": "Who?", "answer": "Ada."}) + "\n"), encoding="utf-8")
    config = config_of(work)
    config = config.model_copy(update={"data": config.data.model_copy(update={"forget": (str(path),)})})
    outcome = train_here(config, fresh(work, "twice"))
    good = outcome is not None and outcome.status == "finished"
    return Row(
        "data file: duplicated rows", "kept as two rows, ids apart; trains", good, result="finished" if good else ""
    )


def _refused(fault: str, config: RunConfig, says: str) -> Row:
    from unlearn_core.preflight import preflight

    started = time.monotonic()
    try:
        preflight(config)
    except UserError as error:
        told = f"refused in {time.monotonic() - started:.1f} s, before any worker starts"
        return Row(fault, told, says in str(error), result=str(error)[:200])
    return Row(fault, "it was accepted", False)


def no_such_hub_model(work: Workspace, online: bool) -> Row:
    """A hub name that does not exist; offline, or without a network."""
    from unlearn_core.models import load_model

    fault = "no network" if online else "hub name that does not exist (offline)"
    started = time.monotonic()
    with patch("huggingface_hub.constants.HF_HUB_OFFLINE", not online):
        try:
            load_model("nobody/no-such-model-7b", "fp32")
        except UserError as error:
            took = time.monotonic() - started
            return Row(
                fault, f"refused in {took:.1f} s", "nobody/no-such-model-7b" in str(error), result=str(error)[:200]
            )
    return Row(fault, "it was loaded", False)


def no_network(work: Workspace) -> Row:
    """The hub cannot be reached; its client tries again for most of a minute first."""
    return no_such_hub_model(work, online=True)


def light_rows() -> dict[str, Callable[[Workspace], Row]]:
    """Name -> row."""
    rows: dict[str, Callable[[Workspace], Row]] = {}
    for damage in DAMAGES:
        rows[f"checkpoint {damage}"] = lambda work, damage=damage: damaged_checkpoint(work, damage)
    rows |= {
        act.__name__: act for act in (disk_full, read_only_output, nan_in_a_weight, nan_in_a_batch, duplicated_rows)
    }
    for kind in HOSTILE:
        rows[f"data file {kind}"] = lambda work, kind=kind: hostile_file(work, kind)
    rows["path_traversal"] = path_traversal
    rows["hub_name"] = lambda work: no_such_hub_model(work, online=False)
    return rows


def run_row(name: str, folder: Path) -> Row:
    """One light row, in a process with torch.distributed."""
    return light_rows()[name](Workspace(folder))
