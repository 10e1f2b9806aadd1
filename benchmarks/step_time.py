"""What does a step cost beside a plain one? Times and extra state at ZeRO-2 on 2 workers, in fp32.

    python -m benchmarks.step_time

Two processes, one torch thread each, each pinned to a core of its own, hold three engines: GradDiff (one summed
backward), NGDiff (two gradients kept apart) with AutoLR, and the mean teacher with KL and NLUL. All train every
parameter of the same Llama, with the same optimizer, on batches of the same size. A round takes one step of each, and
one of NGDiff that probes; rounds go forth and back in turn, so that a drift of the machine's speed cancels. Figures are
medians over the rounds, of wall time. The same ratios of processor time, summed over the workers, stand beside them:
other work on the machine disturbs them less, but they leave out waiting.

    NGDiff          t(NGDiff) / t(GradDiff)                                                    at most 1.10
    AutoLR          (t(probing step) - t(step)) / (k t(step)),  k = 10 steps from probe to     at most 1.3 m / (6 k)
                    probe, m = 2 forward passes of the retain batch
    mean teacher    t(mean teacher) / t(GradDiff)                                              at most 1.30
                    floor: 7/6 (one forward pass more than six) plus what the KL of the vocabulary costs, measured apart

A forward pass counts 1, a backward 2, so a step of two batches counts 6. Extra state is counted from tensors: every
storage that Python can reach, each once, against GradDiff's at the same moment:

    NGDiff          with all gradients of a step at hand, over one live gradient shard          at most 1.05
    mean teacher    between steps, over one shard of fp32 master weights                        at most 1.05

Memory that lives only inside a step's passes (activations, the teacher's logits) is no state. A live gradient shard
counts as DeepSpeed allocates it: with the whole of a parameter that straddles two workers' parts, though only a piece
of it is used.
"""

import argparse
import contextlib
import gc
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import is_fake
from torch.multiprocessing.spawn import spawn
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_core.config import RunConfig, build_config
from unlearn_core.data.tokenization import IGNORE, Batch
from unlearn_core.method import compose
from unlearn_core.objectives.bounded import nlul
from unlearn_core.objectives.divergence import kl_teacher_first
from unlearn_core.objectives.likelihood import cross_entropy

WORKERS = 2
WARM_UPS = 5
PAIRS = 21
PROBE_EVERY, PROBE_PASSES = 10, 2
FLOOR = 7 / 6
BOUNDS = {
    "NGDiff / GradDiff": 1.10,
    "AutoLR's share of a step": 1.3 * PROBE_PASSES / (6 * PROBE_EVERY),
    "mean teacher / GradDiff": 1.30,
    "NGDiff's extra gradient shards": 1.05,
    "mean teacher's extra fp32 shards": 1.05,
}


@dataclass(frozen=True)
class Size:
    """Of the Llama and of one rank's batch."""

    hidden: int = 384
    layers: int = 5
    heads: int = 6
    mlp: int = 1024
    vocabulary: int = 2048
    rows: int = 2
    length: int = 256

    def model(self) -> LlamaForCausalLM:
        """Fresh fp32 weights, equal on every rank; embeddings untied."""
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.length,
            tie_word_embeddings=False,
        )
        torch.manual_seed(0)
        return LlamaForCausalLM(config).float()

    def batch(self, seed: int) -> Batch:
        """Random tokens; all but the first of a row are labels."""
        generator = torch.Generator().manual_seed(seed)
        ids_BT = torch.randint(0, self.vocabulary, (self.rows, self.length), generator=generator)
        labels_BT = ids_BT.clone()
        labels_BT[:, 0] = IGNORE
        return Batch(ids_BT, torch.ones_like(ids_BT), labels_BT)


class Trainee:
    """One method on an engine of its own, and the fixed rows of its steps."""

    def __init__(self, method: str, size: Size, stage: int, optimizer: str, rank: int, world_size: int):
        from unlearn_core.update import StepRows, Update, step_inputs
        from unlearn_core.zero.engine import ZeroEngine

        config = _config(method, size, stage, optimizer, world_size)
        self.engine = ZeroEngine(size.model(), config.zero, config.optimizer, bf16=False, batch=config.batch)
        # The mean teacher's default freezes embeddings, head and norms; here all methods train the same parameters.
        settings = {"freeze": ()} if method == "mean_teacher" else {}
        composition = compose(method, settings)
        self.update = Update(self.engine, composition, config)
        sets = ("forget", "retain", "generic")
        batches = {name: [size.batch(10 * k + rank)] for k, name in enumerate(sets)}
        self.rows = StepRows(
            inputs=step_inputs(composition, batches, self.engine.packs),
            label_tokens={(name, 0): world_size * size.rows * (size.length - 1) for name in sets},
            rows=world_size * size.rows,
        )

    def step(self, number: int = 1) -> None:
        """One optimizer step; a multiple of `PROBE_EVERY` probes where the method has AutoLR."""
        self.update.step(self.rows, number, 0)

    def master_bytes(self) -> int:
        """Of this rank's fp32 master weights."""
        return sum(tensor.nbytes for tensor in self.engine.shards.master())


def _config(method: str, size: Size, stage: int, optimizer: str, workers: int) -> RunConfig:
    return build_config(
        RunConfig,
        {
            "name": method,
            "model": {"path": "fresh", "dtype": "fp32"},
            "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]},
            "method": {"name": method},
            "optimizer": {
                "name": optimizer,
                "learning_rate": 1e-4,
                "momentum": 0.9,
                "schedule": "auto" if method == "ngdiff" else "constant",
                "auto": {"every": PROBE_EVERY},
            },
            "batch": {"rows": workers * size.rows, "micro": size.rows},
            "steps": 10**6,
            "zero": {"stage": stage},
            "workers": {"count": workers},
        },
    )


# -- state -----------------------------------------------------------------------------------------------------------


def tensor_bytes() -> int:
    """Bytes of every tensor that Python can reach, each storage counted once."""
    gc.collect()
    # By type(): isinstance() would ask every object for its class, and wake lazy modules.
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    gradients = [tensor.grad for tensor in tensors if tensor.is_leaf]
    # torch.compile leaves fake tensors behind, which have a shape and no bytes.
    return allocated([tensor for tensor in (*tensors, *gradients) if tensor is not None and not is_fake(tensor)])


def allocated(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the storages behind these tensors, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@dataclass(frozen=True)
class State:
    """Bytes on one rank that a method's engine and update hold."""

    between_steps: int
    """After two steps, when the optimizer has its state."""
    with_gradients: int
    """Inside a step, just before the Gram matrix: every gradient of the step is at hand."""
    live_gradient: int
    """Of the buffers that the optimizer will read, as allocated."""
    master: int
    """Of the fp32 master weights."""


def state_of(method: str, size: Size, stage: int, optimizer: str, rank: int, world_size: int) -> State:
    """Count one method's tensors, in a process that may hold other tensors; every rank calls it."""
    before = tensor_bytes()
    trainee = Trainee(method, size, stage, optimizer, rank, world_size)
    for _ in range(2):
        trainee.step()
    between = tensor_bytes()
    counts: list[list[int]] = []
    gram = trainee.engine.gram

    def counting(shards: Any) -> Any:
        counts.append([tensor_bytes(), *(allocated(shard) for shard in shards)])
        return gram(shards)

    trainee.engine.gram = counting
    trainee.step()
    ((inside, *gradients),) = counts
    state = State(between - before, inside - before, gradients[-1], trainee.master_bytes())
    trainee.engine.close()
    return state


def extra_state(size: Size, stage: int, optimizer: str, rank: int, world_size: int) -> dict[str, float]:
    """The two figures on this rank, in shards."""
    states = {
        method: state_of(method, size, stage, optimizer, rank, world_size)
        for method in ("grad_diff", "ngdiff", "mean_teacher")
    }
    plain, two, teacher = states["grad_diff"], states["ngdiff"], states["mean_teacher"]
    return {
        "NGDiff's extra gradient shards": (two.with_gradients - plain.with_gradients) / two.live_gradient,
        "mean teacher's extra fp32 shards": (teacher.between_steps - plain.between_steps) / teacher.master,
    }


# -- time ------------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds until every rank has done it, and processor seconds of this one."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    dist.barrier()
    return time.perf_counter() - wall, time.process_time() - cpu


Rounds = list[dict[str, tuple[float, float]]]
"""Wall and processor seconds of each kind of step, a dict for each round."""


def rounds(size: Size, optimizer: str, rank: int, world_size: int, pairs: int) -> Rounds:
    """The counted rounds; even ones go forth, odd ones back."""
    trainees = {
        method: Trainee(method, size, 2, optimizer, rank, world_size)
        for method in ("grad_diff", "ngdiff", "mean_teacher")
    }
    # Those that are compared stand next to each other.
    steps: list[tuple[str, Callable[[], None]]] = [
        ("mean_teacher", trainees["mean_teacher"].step),
        ("grad_diff", trainees["grad_diff"].step),
        ("ngdiff", trainees["ngdiff"].step),
        ("probing", lambda: trainees["ngdiff"].step(PROBE_EVERY)),
    ]
    found = []
    gc.collect()
    gc.disable()
    for number in range(WARM_UPS + pairs):
        order = steps if number % 2 == 0 else steps[::-1]
        seconds = {name: timed(step) for name, step in order}
        gc.collect()
        if number >= WARM_UPS:
            found.append(seconds)
    gc.enable()
    for trainee in trainees.values():
        trainee.engine.close()
    return found


def vocabulary_seconds(size: Size) -> dict[str, float]:
    """Median seconds of each loss alone, forward and backward to the logits, on one rank's label tokens."""
    count = size.rows * (size.length - 1)
    generator = torch.Generator().manual_seed(0)
    targets_N = torch.randint(0, size.vocabulary, (count,), generator=generator)
    teacher_NV = torch.randn(count, size.vocabulary, generator=generator)
    logits_NV = torch.randn(count, size.vocabulary, generator=generator, requires_grad=True)
    losses = {
        "cross_entropy": lambda: cross_entropy(logits_NV, targets_N),
        "kl": lambda: kl_teacher_first(logits_NV, teacher_NV, targets_N),
        "nlul": lambda: nlul(logits_NV, targets_N),
    }
    found: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(WARM_UPS + PAIRS):
        for name, loss in losses.items():
            seconds, _ = timed(lambda loss=loss: torch.autograd.grad(loss(), logits_NV))
            if number >= WARM_UPS:
                found[name].append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def worker(rank: int, port: int, folder: Path, optimizer: str, pairs: int) -> None:
    """One rank: pin it, count state, time steps; writes what it found to FOLDER/RANK.json."""
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORKERS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    size = Size()
    state = extra_state(size, 2, optimizer, rank, WORKERS)
    cpu, wall = time.process_time(), time.perf_counter()
    seconds = rounds(size, optimizer, rank, WORKERS, pairs)
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    found = {"state": state, "rounds": seconds, "losses": vocabulary_seconds(size), "busy": busy}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def ratios(seconds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The three timed figures of each round."""
    return {
        "NGDiff / GradDiff": [r["ngdiff"] / r["grad_diff"] for r in seconds],
        "AutoLR's share of a step": [(r["probing"] / r["ngdiff"] - 1) / PROBE_EVERY for r in seconds],
        "mean teacher / GradDiff": [r["mean_teacher"] / r["grad_diff"] for r in seconds],
    }


def measure(optimizer: str, pairs: int) -> dict[str, Any]:
    """Run both ranks and put together what they found."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            spawn(worker, (port, folder, optimizer, pairs), nprocs=WORKERS)
        except Exception:
            for path in sorted(folder.glob("*.log")):
                print(path.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
            raise
        ranks = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(WORKERS)]
    load.append(os.getloadavg()[0])
    wall = [{key: pair[0] for key, pair in one.items()} for one in ranks[0]["rounds"]]
    together = zip(*(rank["rounds"] for rank in ranks), strict=True)
    cpu = [{key: sum(one[key][1] for one in both) for key in both[0]} for both in together]
    figures: dict[str, list[float]] = ratios(wall)
    for name in ranks[0]["state"]:
        figures[name] = [rank["state"][name] for rank in ranks]
    return {
        "figures": figures,
        "processor_figures": {name: statistics.median(values) for name, values in ratios(cpu).items()},
        "step_seconds": {key: statistics.median(one[key] for one in wall) for key in wall[0]},
        "loss_seconds": ranks[0]["losses"],
        "busy": [rank["busy"] for rank in ranks],
        "load": load,
    }


def summary(values: list[float], bound: float) -> dict[str, Any]:
    """Median, spread and verdict; state has one value a rank, of which the worst counts."""
    few = len(values) <= WORKERS
    low, _, high = (min(values), 0.0, max(values)) if few else statistics.quantiles(values, n=4)
    median = max(values) if few else statistics.median(values)
    return {
        "median": median,
        "quartiles": [low, high],
        "range": [min(values), max(values)],
        "bound": bound,
        "ok": median <= bound,
    }


def main() -> None:
    """Run, print the table, exit 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--optimizer", choices=("sgd", "adamw"), default="sgd", help="of every method; SGD has momentum"
    )
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"counted rounds, at least 15 (default {PAIRS})")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    arguments = parser.parse_args()
    if arguments.pairs < 15:
        parser.error(f"--pairs {arguments.pairs}: fewer than 15 give no steady median")
    if len(os.sched_getaffinity(0)) < WORKERS:
        parser.error(f"needs {WORKERS} cores, one for each worker; this process may use {os.sched_getaffinity(0)}")
    size = Size()
    parameters = sum(parameter.numel() for parameter in size.model().parameters())
    console = Console(width=None if sys.stdout.isatty() else 130)
    with console.status(f"{WARM_UPS} + {arguments.pairs} rounds of 4 steps"):
        found = measure(arguments.optimizer, arguments.pairs)
    rows = {name: summary(found["figures"][name], bound) for name, bound in BOUNDS.items()}
    table = Table(title=f"{arguments.pairs} pairs, ZeRO-2, {WORKERS} workers, fp32, {arguments.optimizer}")
    for name in ("", "median", "quartiles", "range", "of processor time", "bound", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    for name, row in rows.items():
        spread = (f"{row[key][0]:.3f} to {row[key][1]:.3f}" for key in ("quartiles", "range"))
        cpu = found["processor_figures"].get(name)
        cells = [f"{row['median']:.4f}", *spread, "" if cpu is None else f"{cpu:.4f}", f"{row['bound']:.4f}"]
        table.add_row(name, *cells, "ok" if row["ok"] else "over")
    console.print(table)
    tokens = size.rows * size.length
    print(f"{parameters / 1e6:.1f}M parameters, vocabulary {size.vocabulary}, {tokens} tokens a pass on each worker")
    print("median seconds a step: " + ", ".join(f"{key} {value:.3f}" for key, value in found["step_seconds"].items()))
    plain, losses = found["step_seconds"]["grad_diff"], found["loss_seconds"]
    kl_share, nlul_share = ((losses[key] - losses["cross_entropy"]) / plain for key in ("kl", "nlul"))
    print(
        f"mean teacher's floor: 7/6 = {FLOOR:.3f}, plus {kl_share:.3f} for the KL over the vocabulary (its time alone, "
        f"less cross-entropy's) = {FLOOR + kl_share:.3f}; NLUL in place of cross-entropy adds {nlul_share:.3f}"
    )
    busy = ", ".join(f"{share:.0%}" for share in found["busy"])
    print(f"load average {found['load'][0]:.2f} before, {found['load'][1]:.2f} after; the workers had {busy} of a core")
    if arguments.json:
        setting = {"parameters": parameters, "tokens": tokens, "optimizer": arguments.optimizer}
        report = {"setting": setting, "summary": rows, "floor": FLOOR, "kl_share": kl_share, "nlul_share": nlul_share}
        arguments.json.write_text(json.dumps({**report, **found}, indent=2), encoding="utf-8")
    failed = [name for name, row in rows.items() if not row["ok"]]
    print("FAIL: " + ", ".join(failed) if failed else "PASS")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
