"""How fast and how large is a step of a 7B model on one GPU? Needs torch, transformers and deepspeed, nothing else.

    python -m benchmarks.gpu_7b                                         all that is missing, each in its own process
    python -m benchmarks.gpu_7b run --shape llama-2-7b --method ngdiff  one of them, at most eight minutes
    python -m benchmarks.gpu_7b table                                   what there is, and the bounds

Llama-2-7B, Llama-3.1-8B and Llama-3.2-1B with random weights, made on the GPU, trained on real text (gpu_7b_text.py) by
the engine and the update that training runs use, in bf16 with fp32 master weights, 8 rows of 1,024 tokens a
micro-batch. Every command writes its row as it goes; a row is partial until its command is through, and only whole rows
count. A method that does not fit is a row that says so. The same command again goes on with what is missing.

    7B NGDiff without offload, AdamW in fp32: fits; model FLOPs utilisation against the GPU's
    own rate on square matrices, measured in the same process                                         at least 0.35
    8B NGDiff, the first gradient parked on the host or 8-bit optimizer state: fits
    NGDiff / GradDiff, taking turns in one process                                                    at most 1.05
    mean teacher / GradDiff, both with the paper's SGD with momentum                                  at most 1.22
    AutoLR's probes, every 10 steps: share of a step                                                  at most 0.05
    planned peak of tensors against what torch allocated                                              within 10 %

Rows of a GPU go to benchmarks/results/gpu_7b.jsonl. Without a GPU the shape `tiny` alone is run, to outputs/, to try
every path; such rows are no result.
"""

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_7b_measure as measure
from benchmarks.gpu_7b_evaluation import measure_evaluation
from benchmarks.gpu_7b_shapes import CASES, EVALUATION, SHAPES, find_case, find_shape, fingerprint, run_config
from benchmarks.gpu_7b_table import report
from benchmarks.gpu_7b_text import TextRows, text_rows
from benchmarks.one_gpu import (
    GRACE,
    MOST_SECONDS,
    ROOT,
    Deadline,
    RowFile,
    alone,
    device,
    device_name,
    machine,
    run_child,
    today,
)
from unlearn_core.config import parse_overrides
from unlearn_core.errors import MissingPackageError, UserError

KEY = ("device", "shape", "method", "settings")
PARTIAL, DONE, TOO_LARGE, MISSING, FAILED = "partial", "done", "does not fit", "package missing", "failed"
SETTLED = (DONE, TOO_LARGE, MISSING)
"""What is not run again unless asked for."""
PROFILING = 75.0
"""Seconds that are kept for `--profile`."""


def default_output() -> Path:
    """Where rows go: results of a GPU into the source tree, others to outputs/."""
    return ROOT / ("benchmarks/results/gpu_7b.jsonl" if torch.cuda.is_available() else "outputs/gpu_7b.jsonl")


def row_key(shape: str, method: str, overrides: Mapping[str, Any], text: str | None) -> dict[str, str]:
    """The fields that tell rows apart."""
    case = None if method == EVALUATION else dataclasses.asdict(find_case(method))
    settings = {"case": case, "overrides": dict(overrides), "text": text or os.environ.get("TOFU_DIR") or ""}
    return {
        "device": device_name(),
        "shape": shape,
        "method": method,
        "settings": fingerprint(find_shape(shape), settings),
    }


def run_one(arguments: argparse.Namespace) -> str:
    """Measure one method on one shape and write its row; how it ended."""
    deadline = Deadline(arguments.seconds - (PROFILING if arguments.profile else 0.0))
    overrides = parse_overrides(arguments.set)
    rows, shape = RowFile(arguments.output, KEY), find_shape(arguments.shape)
    key = row_key(shape.name, arguments.method, overrides, arguments.text)
    for contender in () if arguments.method == EVALUATION else find_case(arguments.method).contenders:
        run_config(shape, find_case(arguments.method), contender, overrides)  # a mistake is found before a row is begun
    text = text_rows(shape.llama().vocab_size, shape.length, arguments.text)
    row: dict[str, Any] = {**key, "status": PARTIAL, "date": today(), "machine": machine(), "overrides": overrides}

    def note(fields: Mapping[str, Any]) -> None:
        row.update(fields)
        rows.put(row)

    note({})
    try:
        with alone():
            reason = _measure(arguments, text, overrides, deadline, note)
        note({"status": PARTIAL if reason else DONE, "reason": reason, "command_seconds": deadline.spent})
    except torch.OutOfMemoryError as error:
        note({"status": TOO_LARGE, "reason": str(error)[:400], "command_seconds": deadline.spent})
    except MissingPackageError as error:
        note({"status": MISSING, "reason": str(error), "command_seconds": deadline.spent})
    except Exception as error:
        traceback.print_exc()
        note({"status": FAILED, "reason": f"{type(error).__name__}: {error}"[:400]})
    print(f"{arguments.shape} {arguments.method}: {row['status']} {row.get('reason', '')}", flush=True)
    return row["status"]


def _measure(
    arguments: argparse.Namespace, rows: TextRows, overrides: Mapping[str, Any], deadline: Deadline, note: Any
) -> str:
    """Everything of one row; what is missing of it when time was short, else ""."""
    shape, here = find_shape(arguments.shape), device()
    rate = measure.matrix_rate(here)
    note({"text": rows.source, "matrix_flops": rate, "matrix_side": measure.MATRIX[here.type]})
    if arguments.method == EVALUATION:
        found: dict[str, Any] = {}

        def both(fields: Mapping[str, Any]) -> None:
            found.update(fields)
            note(fields)

        measure_evaluation(shape, rows, here, deadline, both)
        return "" if "generation" in found else "no time was left to score or generate"
    case = find_case(arguments.method)
    note({"plan": measure.planned(shape, case, overrides, here.type)})
    bench = measure.Bench(shape, case, overrides, rows, here)
    try:
        note(bench.build())
        seconds = bench.time_steps(deadline, note, arguments.rounds)
        counted = min(len(one) for one in seconds.values())
        if counted < min(measure.LEAST_ROUNDS, arguments.rounds):
            return f"{counted} rounds in the time that there was, {measure.LEAST_ROUNDS} are needed"
        note({"figures": measure.figures(shape, case, seconds, rate), "ratios": measure.ratios(seconds)})
        note({"parts": bench.parts()})
        if arguments.profile:
            folder = arguments.output.parent / "gpu_7b_profiles"
            bench.profile(folder / f"{arguments.shape}-{arguments.method}.txt")
    finally:
        bench.close()
    return ""


def run_missing(arguments: argparse.Namespace) -> int:
    """Run every method on every shape that has no whole row yet; the number of those that still have none."""
    on_gpu = torch.cuda.is_available()
    shapes = arguments.shapes or [name for name in SHAPES if (name != "tiny") == on_gpu]
    methods = arguments.methods or [*CASES, EVALUATION]
    rows, overrides = RowFile(arguments.output, KEY), parse_overrides(arguments.set)
    unsettled = 0
    for shape, method in ((find_shape(shape).name, method) for shape in shapes for method in methods):
        key = row_key(shape, method, overrides, arguments.text)
        row = rows.find(key)
        if row and row["status"] in SETTLED and not arguments.again:
            print(f"{shape} {method}: {row['status']} already", flush=True)
            continue
        words = ["run", "--shape", shape, "--method", method, *_shared_words(arguments)]
        problem = run_child("benchmarks.gpu_7b", words, arguments.seconds + GRACE)
        row = rows.find(key)
        if problem and (row is None or row["status"] == PARTIAL):
            base = row or {**key, "date": today(), "machine": machine()}
            rows.put({**base, "status": FAILED, "reason": problem})
            print(f"{shape} {method}: {problem}", flush=True)
        row = rows.find(key)
        unsettled += row is None or row["status"] not in SETTLED
    return unsettled


def _shared_words(arguments: argparse.Namespace) -> list[str]:
    words = ["--output", str(arguments.output), "--seconds", str(arguments.seconds), "--rounds", str(arguments.rounds)]
    words += ["--text", arguments.text] if arguments.text else []
    words += ["--profile"] if arguments.profile else []
    return [*words, *(word for pair in arguments.set for word in ("--set", pair))]


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--output", type=lambda text: Path(text).resolve(), default=default_output(), help="JSON lines")
    shared.add_argument("--seconds", type=float, default=MOST_SECONDS, help="most seconds of one command")
    shared.add_argument("--rounds", type=int, default=measure.ROUNDS, help="counted steps of each kind, at least 1")
    shared.add_argument("--text", help="folder of text; without it TOFU_DIR, else Python's own manual pages")
    shared.add_argument("--profile", action="store_true", help="also write a table of the kernels of three steps")
    shared.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the run's config")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[shared]
    )
    parser.add_argument("--shapes", nargs="+", help=f"of {', '.join(SHAPES)}; all but tiny on a GPU, else tiny")
    parser.add_argument("--methods", nargs="+", help=f"of {', '.join((*CASES, EVALUATION))}; else all")
    parser.add_argument("--again", action="store_true", help="also what has a whole row")
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("run", parents=[shared], help="one method on one shape")
    one.add_argument("--shape", required=True, help=", ".join(SHAPES))
    one.add_argument("--method", required=True, help=", ".join((*CASES, EVALUATION)))
    commands.add_parser("table", parents=[shared], help="print and write the table of the rows that there are")
    arguments = parser.parse_args(words)
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    arguments = arguments_of(words)
    try:
        if arguments.command == "run":
            return 0 if run_one(arguments) in SETTLED else 1
        unsettled = 0 if arguments.command == "table" else run_missing(arguments)
        text, failed = report(RowFile(arguments.output, KEY).read())
        print(text)
        path = arguments.output.with_suffix(".md")
        if arguments.output.is_file():
            path.write_text(text + "\n", encoding="utf-8")
            print(f"written to {path}")
        return 1 if unsettled or failed else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
