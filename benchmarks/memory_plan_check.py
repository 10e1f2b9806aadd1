"""The planner against counted bytes: every method at every ZeRO stage on 1 and 2 workers, on CPU.

    python -m benchmarks.memory_plan_check

The real engine trains a small Llama, micro-batches accumulated twice, rows packed, the head in slices. A ledger notes
every storage that an operation makes, on each rank, and when it is gone: saved activations, DeepSpeed's buffers and
temporary tensors among them (`unlearn_core/byte_ledger.py`; torch's profiler gives the same sums, but misses what other
threads release). Two figures of a case, each against the plan of that rank:

    peak       most bytes that live at one moment of a step, once the optimizer has its state     within 5 %
    resting    bytes that live between two steps                                                  within 5 %

Buffers whose size is a constant of DeepSpeed's are made small for this (`BUCKETS`): at their defaults, half a billion
elements, they would outweigh everything else and make the comparison empty.
"""

import argparse
import contextlib
import gc
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import spawn
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_core.activation_plan import RowShape
from unlearn_core.byte_ledger import ByteLedger
from unlearn_core.config import RunConfig, build_config
from unlearn_core.data.tokenization import IGNORE, Batch
from unlearn_core.memory_plan import plan_memory
from unlearn_core.method import compose, methods
from unlearn_core.model_shapes import model_shape
from unlearn_core.plan_setting import MemoryPlan, Setting
from unlearn_core.zero_plan import Buckets

BOUND = 0.05
BUCKETS = Buckets(reduce=600_000)
LENGTHS = (40, 64)
"""Tokens of the two rows of a micro-batch."""
MICRO_BATCHES = 2
SETTINGS: dict[str, dict[str, Any]] = {"rmu": {"layer": 2}, "pdu": {"epsilon": 0.5}}
"""Of methods whose defaults do not fit the small model, or are missing."""
SETS = ("forget", "retain", "generic", "refusal", "alternate")


@dataclass(frozen=True)
class Case:
    """One run."""

    method: str
    stage: int
    workers: int
    changes: dict[str, Any] = field(default_factory=dict)
    """Further config keys."""

    @property
    def name(self) -> str:
        """In the table."""
        extra = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in self.changes.items())
        return self.method + (f" ({extra})" if extra else "")


@dataclass(frozen=True)
class Row:
    """What was counted and planned for one rank, bytes."""

    case: str
    stage: int
    workers: int
    rank: int
    peak: int
    planned_peak: int
    resting: int
    planned_resting: int
    moment: str
    """Of the plan's peak."""

    @property
    def errors(self) -> tuple[float, float]:
        """(planned - counted) / counted, of peak and resting."""
        return self.planned_peak / self.peak - 1, self.planned_resting / self.resting - 1

    @property
    def ok(self) -> bool:
        """Whether both are within the bound."""
        return all(abs(error) <= BOUND for error in self.errors)


def llama() -> LlamaConfig:
    """About 5M parameters, so that all cases take minutes; embeddings untied."""
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )


def run_config(case: Case, dtype: str) -> RunConfig:
    """The case's run."""
    rows = MICRO_BATCHES * len(LENGTHS) * case.workers
    settings = SETTINGS.get(case.method, {})
    values: dict[str, Any] = {
        "name": "memory",
        "model": {"path": "fresh", "dtype": dtype},
        "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]},
        "method": {"name": case.method, "settings": settings},
        "optimizer": {"name": "adamw", "learning_rate": 1e-5, "momentum": 0.9},
        "batch": {"rows": rows, "micro": len(LENGTHS), "logit_rows": 40},
        "steps": 10,
        "zero": {"stage": case.stage},
        "workers": {"count": case.workers},
    }
    return build_config(RunConfig, values, case.changes)


def row_shape() -> RowShape:
    """The mean of the rows; all but a row's first token are labels."""
    mean = sum(LENGTHS) // len(LENGTHS)
    return RowShape(tokens=mean, labels=mean - 1, longest=max(LENGTHS))


def planned(case: Case, dtype: str, rank: int) -> MemoryPlan:
    """The plan of one rank."""
    run = run_config(case, dtype)
    composition = compose(run.method.name, run.method.settings)
    shape = model_shape(llama(), "benchmark", run, composition)
    return plan_memory(Setting(shape, run, row_shape(), "cpu", rank, BUCKETS))


# -- counting --------------------------------------------------------------------------------------------------------


def batch(number: int, vocabulary: int) -> Batch:
    """Random rows of `LENGTHS` tokens, padded on the right; references know their ids."""
    generator = torch.Generator().manual_seed(number)
    longest = max(LENGTHS)
    ids_BL = torch.randint(0, vocabulary, (len(LENGTHS), longest), generator=generator)
    mask_BL = (torch.arange(longest)[None] < torch.tensor(LENGTHS)[:, None]).long()
    labels_BL = ids_BL.masked_fill(mask_BL == 0, IGNORE)
    labels_BL[:, 0] = IGNORE
    return Batch(ids_BL, mask_BL, labels_BL, tuple(f"{number}-{row}" for row in range(len(LENGTHS))))


class Trainee:
    """A method on an engine of its own."""

    def __init__(self, case: Case, dtype: str, rank: int):
        from unlearn_core.trainable import choose_trainable
        from unlearn_core.update import StepRows, Update, step_inputs
        from unlearn_core.zero.engine import ZeroEngine

        run = run_config(case, dtype)
        composition = compose(run.method.name, run.method.settings)
        torch.manual_seed(0)
        plain: Any = LlamaForCausalLM(llama())
        model: Any = plain.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
        del plain
        model = choose_trainable(model, run, composition)
        self.engine = ZeroEngine(model, run.zero, run.optimizer, dtype == "bf16", run.batch)
        self.update = Update(self.engine, composition, run)
        numbers = [MICRO_BATCHES * rank + index for index in range(MICRO_BATCHES)]
        batches = {name: [batch(n, llama().vocab_size) for n in numbers] for name in SETS}
        self.update.begin_request(
            {(name, item): -50.0 for name in SETS for one in batches[name] for item in one.item_ids}, fresh=False
        )
        labels = case.workers * MICRO_BATCHES * sum(length - 1 for length in LENGTHS)
        self.rows = StepRows(
            inputs=step_inputs(composition, batches, self.engine.packs),
            label_tokens={(o.rows, o.skip_first): labels for o in composition.objectives},
            rows=run.batch.rows,
        )

    def step(self, number: int) -> None:
        """One optimizer step."""
        self.update.step(self.rows, number, 0)


def counted(case: Case, dtype: str, rank: int) -> tuple[int, int]:
    """(peak, resting) bytes of one case on this rank; every rank calls it."""
    gc.collect()
    with ByteLedger("cpu") as ledger:
        trainee = Trainee(case, dtype, rank)
        trainee.step(0)  # the optimizer makes its state, stage 3 learns the order of the layers
        gc.collect()
        ledger.restart()
        trainee.step(1)
        peak = ledger.restart()
        gc.collect()
        resting = ledger.live
    trainee.engine.close()
    return peak, resting


def small_buckets() -> None:
    """Make the engine's DeepSpeed work with `BUCKETS`."""
    import unlearn_core.zero.engine as engine

    plain = engine.deepspeed_config

    def config(*arguments: Any) -> dict[str, Any]:
        found = plain(*arguments)
        found["zero_optimization"]["reduce_bucket_size"] = BUCKETS.reduce
        return found

    engine.deepspeed_config = config  # type: ignore[assignment]


def worker(rank: int, port: int, folder: Path, cases: list[Case], dtype: str) -> None:
    """One rank; writes a line for each case to FOLDER/WORKERS-RANK.jsonl."""
    workers = cases[0].workers
    log = os.open(folder / f"{workers}-{rank}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    small_buckets()
    with open(folder / f"{workers}-{rank}.jsonl", "w", encoding="utf-8") as file:
        for case in cases:
            peak, resting = counted(case, dtype, rank)
            file.write(json.dumps({"peak": peak, "resting": resting}) + "\n")
            file.flush()
    dist.barrier()
    dist.destroy_process_group()


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def planner_rows(cases: Sequence[Case], dtype: str = "fp32") -> Iterator[Row]:
    """Count every case, and set it beside its plan."""
    for workers in sorted({case.workers for case in cases}):
        mine = [case for case in cases if case.workers == workers]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            try:
                spawn(worker, (_free_port(), folder, mine, dtype), nprocs=workers)
            except Exception:
                for path in sorted(folder.glob("*.log")):
                    print(path.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
                raise
            lines = [
                [json.loads(line) for line in (folder / f"{workers}-{rank}.jsonl").read_text().splitlines()]
                for rank in range(workers)
            ]
        for number, case in enumerate(mine):
            for rank in range(workers):
                found, plan = lines[rank][number], planned(case, dtype, rank)
                yield Row(
                    case.name,
                    case.stage,
                    workers,
                    rank,
                    found["peak"],
                    plan.peak.total,
                    found["resting"],
                    plan.resting.total,
                    plan.peak.name,
                )


def all_cases(names: Sequence[str], stages: Sequence[int], workers: Sequence[int]) -> list[Case]:
    """Every method at every stage and number of workers, and NGDiff's options."""
    found = [Case(name, stage, count) for count in workers for name in names for stage in stages]
    options: list[dict[str, Any]] = [
        {"optimizer.schedule": "auto", "optimizer.auto.every": 1},
        {"optimizer.name": "sgd"},
        {"zero.activation_checkpointing": True},
        {"zero.sub_group": 1_500_000},
        {"zero.park_gradients": True},
        {"zero.offload_optimizer": True},
    ]
    if "ngdiff" in names:
        found += [
            Case("ngdiff", stage, count, change)
            for count in workers
            for change in options
            for stage in stages
            if stage or "zero.offload_optimizer" not in change
        ]
    if "mean_teacher" in names:
        found += [
            Case("mean_teacher", stage, count, {"zero.teacher_on_host": True}) for count in workers for stage in stages
        ]
    return found


def table_of(rows: Sequence[Row]) -> Table:
    """One line a case, the worst rank's figures."""
    table = Table(title=f"planned against counted MB (10^6 bytes); within {BOUND:.0%}")
    for name in ("method", "ZeRO", "workers", "peak counted", "planned", "error", "at rest", "planned", "error", "at"):
        table.add_column(name, justify="left" if name in ("method", "at") else "right")
    for row in rows:
        peak, resting = row.errors
        figures = [f"{row.peak / 1e6:.1f}", f"{row.planned_peak / 1e6:.1f}", f"{peak:+.1%}"]
        figures += [f"{row.resting / 1e6:.1f}", f"{row.planned_resting / 1e6:.1f}", f"{resting:+.1%}"]
        style = "" if row.ok else "red"
        table.add_row(row.case, str(row.stage), str(row.workers), *figures, row.moment, style=style)
    return table


def worst_ranks(rows: Sequence[Row]) -> list[Row]:
    """Of each case the rank whose plan is furthest off."""
    found: dict[tuple[str, int, int], Row] = {}
    for row in rows:
        key = (row.case, row.stage, row.workers)
        if key not in found or max(map(abs, row.errors)) > max(map(abs, found[key].errors)):
            found[key] = row
    return list(found.values())


def planner_part(console: Console) -> tuple[list[dict[str, Any]], bool]:
    """All cases in fp32, for `python -m benchmarks.memory`: every row, and whether each is within the bound."""
    rows = list(planner_rows(all_cases(sorted(methods()), (0, 1, 2, 3), (1, 2))))
    console.print(table_of(worst_ranks(rows)))
    return [asdict(row) | {"ok": row.ok} for row in rows], all(row.ok for row in rows)


def main() -> None:
    """Run, print the table, exit 1 when a figure is off by more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(methods())
    parser.add_argument("--methods", nargs="+", default=known, choices=known, metavar="NAME", help="default: all")
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3], choices=range(4))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], choices=(1, 2))
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    started = time.perf_counter()
    cases = all_cases(arguments.methods, arguments.stages, arguments.workers)
    rows = list(planner_rows(cases, arguments.dtype))
    worst = worst_ranks(rows)
    Console(width=None if sys.stdout.isatty() else 150).print(table_of(worst))
    failed = [row for row in worst if not row.ok]
    peak, resting = (max(abs(row.errors[which]) for row in rows) for which in (0, 1))
    print(
        f"{len(worst)} cases, {arguments.dtype}, in {time.perf_counter() - started:.0f} s; largest error of the peak "
    )
    print(f"{peak:.1%}, at rest {resting:.1%}. " + (f"FAIL: {len(failed)} over {BOUND:.0%}" if failed else "PASS"))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
