"""Is the evaluation engine several times faster than the usual loop, at equal numbers, and does it scale?

    TOFU_DIR=/path/to/tofu python -m benchmarks.evaluation

The full TOFU suite of forget10 (real TOFU where `TOFU_DIR` says where it is, else `synthetic:medium`) on a small Llama
that was taught its rows first and ends its answers by itself. One process with one torch thread on either side:

    engine      the usual loop's seconds over the engine's: likelihoods, metrics, generation, ROUGE    at least 4
                both parts also apart, without a bound
    equal       every number of every item, greatest difference                                        at most 1e-5
                greedy answers identical, but where the two largest logits are less than 1e-4 apart
    actors      seconds of `pipelines.evaluate` with one actor over two, one thread each, from the
                moment that every actor has its model; one actor has at least 20 s of work             at least 1.6
    rows        seconds a row at 4,000 rows over those at 400                                          at most 1.15
    memory      peak memory above the loaded model at 4,000 rows over that at 400, fresh processes     at most 1.2
                and more with a token budget of 8,192 than with 1,024

The usual loop is benchmarks/evaluation_baseline.py: batches of 32 in the order of the data, one metric at a time. The
gradient norm is left out on both sides. Pairs are run in alternating order and medians taken of their ratios; ratios of
processor time, which other work on the machine disturbs less, stand beside them. `--quick` tries everything in a minute
on a toy; its figures mean nothing and have no bounds.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import evaluation_parts as parts
from benchmarks.evaluation_model import QUICK, Scale, open_rows, source, taught_model
from unlearn_core.models import load_model

FASTER, TWO_ACTORS, FLAT_ROWS, FLAT_MEMORY = 4.0, 1.6, 1.15, 1.2
EQUAL = 1e-5
LEAST_WORK = 20.0
"""Seconds of one actor."""
PARTS = ("engine", "actors", "rows", "memory")
Check = tuple[str, str, str, bool]
"""What, found, bound, whether it holds."""


def engine_checks(found: Mapping[str, Any]) -> list[Check]:
    """Ratios of the pairs, and the differences."""
    checks: list[Check] = []
    for name, keys in (
        ("all", ("scoring", "generation")),
        ("scoring", ("scoring",)),
        ("generation", ("generation",)),
    ):
        wall, cpu = (
            [
                sum(r["usual"][k][clock] for k in keys) / sum(r["engine"][k][clock] for k in keys)
                for r in found["rounds"]
            ]
            for clock in (0, 1)
        )
        ratio = statistics.median(wall)
        spread = f"{ratio:.2f} ({min(wall):.2f} to {max(wall):.2f}; processor time {statistics.median(cpu):.2f})"
        bound = f"at least {FASTER:g}" if name == "all" else "none"
        checks.append((f"engine: usual loop / engine, {name}", spread, bound, name != "all" or ratio >= FASTER))
    differences = found["differences"]
    name, worst = max(differences["largest"].items(), key=lambda pair: pair[1])
    checks.append(
        (
            f"equal: greatest difference of {differences['compared']:,} numbers",
            f"{worst:.1e} ({name})",
            f"at most {EQUAL:g}",
            worst <= EQUAL,
        )
    )
    near, otherwise = differences["generations_near_ties"], differences["generations_otherwise"]
    text = f"{otherwise} of {found['generated']['rows']}, and {near} near ties"
    checks.append(("equal: greedy answers that differ", text, "0", otherwise == 0))
    return checks


def actor_checks(found: Sequence[Mapping[str, float]]) -> list[Check]:
    """One actor over two."""
    ratios = [one["one"] / one["two"] for one in found]
    work = min(one["one"] for one in found)
    ratio = statistics.median(ratios)
    return [
        (
            "actors: one / two",
            f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"at least {TWO_ACTORS:g}",
            ratio >= TWO_ACTORS,
        ),
        ("actors: seconds of work", f"{work:.1f}", f"at least {LEAST_WORK:g}", work >= LEAST_WORK),
    ]


def row_checks(found: Mapping[str, Any], scale: Scale) -> list[Check]:
    """Cost of a row among many over its cost among few."""
    wall, cpu = (
        [(r[scale.large][clock] / scale.large) / (r[scale.small][clock] / scale.small) for r in found["rounds"]]
        for clock in (0, 1)
    )
    ratio = statistics.median(wall)
    spread = f"{ratio:.3f} ({min(wall):.3f} to {max(wall):.3f}; processor time {statistics.median(cpu):.3f})"
    name = f"rows: a row of {scale.large:,} / one of {scale.small:,}"
    return [(name, spread, f"at most {FLAT_ROWS:g}", ratio <= FLAT_ROWS)]


def memory_checks(found: Mapping[tuple[int, int], float], scale: Scale) -> list[Check]:
    """Peaks by (rows, token budget)."""
    low, high = parts.BUDGETS
    few, many, frugal = found[scale.small, high], found[scale.large, high], found[scale.large, low]
    text = f"{many / few:.3f} ({many:.0f} / {few:.0f} MiB)"
    name = f"memory: {scale.large:,} rows / {scale.small:,}, budget {high:,}"
    return [
        (name, text, f"at most {FLAT_MEMORY:g}", many / few <= FLAT_MEMORY),
        (f"memory: budget {high:,} / {low:,}", f"{many / frugal:.2f} ({frugal:.0f} MiB)", "above 1", many > frugal),
    ]


def measure_actors(
    folder: Path, quick: bool, scale: Scale, suite_seconds: float, report: Callable[[str], None]
) -> list[dict[str, float]]:
    """Pairs of one actor and two, in alternating order."""
    copies = 1 if quick else max(1, math.ceil(1.25 * LEAST_WORK / suite_seconds))
    found = []
    for number in range(scale.repetitions):
        counts = (("one", 1), ("two", 2))
        seconds = {
            name: parts.in_fresh_process(parts.actors, folder, quick, scale, count, copies)
            for name, count in (counts if number % 2 == 0 else counts[::-1])
        }
        found.append(seconds)
        report(f"actors {number + 1}: {copies} models, one {seconds['one']:.1f} s, two {seconds['two']:.1f} s")
    return found


def main() -> None:
    """Teach, measure, print the table, exit 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/evaluation_benchmark"), help="keeps the model")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a toy, no claims")
    arguments = parser.parse_args()
    chosen = arguments.parts.split(",")
    if not set(chosen) <= set(PARTS):
        parser.error(f"--parts {arguments.parts}: expected some of {', '.join(PARTS)}")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("needs 2 cores, one for each of two actors")
    scale, quick = (QUICK if arguments.quick else Scale()), arguments.quick
    console = Console(width=None if sys.stdout.isatty() else 130)

    def report(line: str) -> None:
        console.print(line, highlight=False)

    started = time.perf_counter()
    load = [os.getloadavg()[0]]
    benchmark = open_rows(quick)
    folder = arguments.output / ("quick" if quick else Path(source(quick)).name.replace(":", "-")) / "model"
    torch.set_num_threads(1)
    taught = taught_model(folder, benchmark, scale)
    model = load_model(str(folder), "fp32")
    head = sum(parameter.numel() for parameter in cast(nn.Module, model.get_output_embeddings()).parameters())
    size = {"parameters": model.num_parameters(), "head": head, "hidden": scale.hidden, "layers": scale.layers}
    share = head / size["parameters"]
    report(
        f"rows: {benchmark.source}; Llama of {size['parameters'] / 1e6:.2f}M parameters ({scale.layers} layers of "
        f"width {scale.hidden}, {head // scale.hidden:,} ids, head {share:.0%} of the parameters), "
        f"taught {scale.epochs} epochs in {taught:.0f} s" + ("" if taught else " (kept from before)")
    )
    del model
    checks: list[Check] = []
    results: dict[str, Any] = {"rows": benchmark.source, "model": size, "taught_seconds": taught}
    suite_seconds = LEAST_WORK
    if "engine" in chosen:
        found = results["engine"] = parts.speed(folder, benchmark, scale, report)
        checks += engine_checks(found)
        report(
            f"suite: {found['rows']:,} rows, {found['answers']:,} answers scored; {found['generated']['rows']:,} "
            f"generated, median {found['generated']['median']} tokens, longest {found['generated']['longest']}; "
            "the usual loop's passes, s: " + ", ".join(f"{name} {s:.1f}" for name, s in found["passes"].items())
        )
        totals = [sum(r["engine"][key][0] for key in ("scoring", "generation")) for r in found["rounds"]]
        suite_seconds = min(totals)
    if "actors" in chosen:
        results["actors"] = measure_actors(folder, quick, scale, suite_seconds, report)
        checks += actor_checks(results["actors"])
    if "rows" in chosen:
        results["rows_of_full"] = parts.rows(folder, benchmark, scale, report)
        checks += row_checks(results["rows_of_full"], scale)
    if "memory" in chosen:
        low, high = parts.BUDGETS
        runs = ((scale.small, high), (scale.large, high), (scale.large, low))
        peaks = {run: parts.in_fresh_process(parts.memory, folder, quick, scale, *run) for run in runs}
        results["memory_mib"] = {f"{count} rows, budget {budget}": peak for (count, budget), peak in peaks.items()}
        checks += memory_checks(peaks, scale)
    load.append(os.getloadavg()[0])
    table = Table(title="toy sizes, no claim" if quick else f"{scale.repetitions} pairs, fp32, one thread a process")
    for name in ("", "found", "bound", ""):
        table.add_column(name, overflow="fold")
    for what, text, bound, holds in checks:
        table.add_row(what, text, bound, "ok" if holds else "over")
    console.print(table)
    minutes = (time.perf_counter() - started) / 60
    report(f"{minutes:.1f} minutes; load average {load[0]:.2f} before, {load[1]:.2f} after")
    results |= {"checks": checks, "minutes": minutes, "load": load, "torch": torch.__version__}
    path = folder.parent / "results.json"
    path.write_text(json.dumps(results, indent=2), encoding="utf-8")
    failed = [what for what, _, _, holds in checks if not holds]
    if quick:
        print(f"quick: no claims; numbers are in {path}")
        return
    print(f"FAIL: {'; '.join(failed)}" if failed else "PASS", f"; numbers are in {path}", sep="")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
