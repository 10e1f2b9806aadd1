"""Memory: the sliced head against plain losses, loading and exporting, and the planner against counted bytes.

    losses    loss and gradients of a sliced head equal to the plain ones (1e-6), peak bytes at most 0.3 of the plain
              KL's at a vocabulary of 32,000 and 1,024 label rows in slices of 128; and with slices of 1,024, the
              default, at 4,096 rows
    host      loading and exporting a model on 1 and 2 ranks: host memory beyond the ranks' own parts of the model
    planner   the planned bytes of every method, ZeRO stage and 1 and 2 workers against counted ones: within 5 %

Run: python -m benchmarks.memory [--parts losses host planner]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmarks.memory_host import host_part
from benchmarks.memory_plan_check import planner_part
from benchmarks.peak_bytes import peak_bytes
from unlearn_core.data.packing import PassInputs
from unlearn_core.head import KeptHead, SlicedHead, WholeLogits
from unlearn_core.objectives.divergence import kl_teacher_first, qkl
from unlearn_core.objectives.likelihood import cross_entropy
from unlearn_core.objectives.preference import npo

VOCABULARY, WIDTH = 32_000, 256
PEAK_BOUND, EXACT_BOUND = 0.3, 1e-6
SIZES = ((1024, 128), (4096, 1024))
"""Label rows, and rows of a slice."""


def inputs_of(rows: int, answers: int = 8) -> PassInputs:
    """Labels of so many rows of text, without the tokens that a head does not read."""
    generator = torch.Generator().manual_seed(rows)
    none = torch.zeros(0, dtype=torch.long)
    return PassInputs(
        input_ids=none,
        attention_mask=None,
        position_ids=None,
        packing=None,
        predictors_N=none,
        labels_at_N=none,
        targets_N=torch.randint(0, VOCABULARY, (rows,), generator=generator),
        rows_N=torch.arange(rows) * answers // rows,
        item_ids=tuple(map(str, range(answers))),
    )


def heads(rows: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Hidden states and head of student and teacher, some of whose labels are likely."""
    generator = torch.Generator().manual_seed(0)
    found = {
        "hidden": torch.randn(rows, WIDTH, generator=generator),
        "weight": torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.2,
    }
    found["teacher_hidden"] = found["hidden"] + 0.1 * torch.randn(rows, WIDTH, generator=generator)
    found["teacher_weight"] = found["weight"] + 0.01 * torch.randn(VOCABULARY, WIDTH, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def loss_of(name: str, readout: Any, teacher: Any) -> torch.Tensor:
    """One of the four losses, from either readout."""
    if name == "cross-entropy":
        return readout.token_sum(cross_entropy)
    if name == "NPO":
        return readout.row_sum(lambda log_prob_B, count_B: npo(log_prob_B, count_B, log_prob_B.detach() + 1.0))
    return readout.beside_sum({"KL": kl_teacher_first, "QKL": qkl}[name], teacher)


def run_head(name: str, rows: int, size: int | None, tensors: dict[str, torch.Tensor]) -> Any:
    """Loss and gradients; with all logits at once where `size` is None."""
    inputs = inputs_of(rows)
    hidden, weight = (tensors[key].requires_grad_() for key in ("hidden", "weight"))
    if size is None:
        teacher: Any = F.linear(tensors["teacher_hidden"], tensors["teacher_weight"])
        loss = loss_of(name, WholeLogits(F.linear(hidden, weight), inputs), teacher)
    else:
        teacher = KeptHead(tensors["teacher_hidden"], tensors["teacher_weight"], None)
        loss = loss_of(name, SlicedHead(hidden, weight, None, inputs, size), teacher)
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


def head_peak(name: str, rows: int, size: int | None) -> int:
    """Bytes beyond states and heads, whose gradients count."""
    tensors = heads(rows, torch.float32)
    return peak_bytes(lambda: run_head(name, rows, size, tensors))


def losses_part(console: Console) -> tuple[list[dict[str, Any]], bool]:
    """The sliced head against the plain one."""
    found: list[dict[str, Any]] = []
    for rows, size in SIZES:
        for name in ("cross-entropy", "KL", "QKL", "NPO"):
            plain, sliced = (run_head(name, rows, cut, heads(rows, torch.float32)) for cut in (None, size))
            errors = [float((a - b).double().norm() / b.double().norm()) for a, b in zip(sliced, plain, strict=True)]
            del plain, sliced
            peaks = [head_peak(name, rows, cut) for cut in (None, size)]
            row = {
                "loss": name,
                "rows": rows,
                "slice": size,
                "error": max(errors),
                "plain": peaks[0],
                "sliced": peaks[1],
            }
            row["ratio"] = peaks[1] / peaks[0]
            row["ok"] = row["error"] <= EXACT_BOUND and (name != "KL" or row["ratio"] <= PEAK_BOUND)
            found.append(row)
    table = Table(title=f"a sliced head, V = {VOCABULARY:,}, D = {WIDTH}, fp32, gradients of states and head included")
    for column in ("loss", "label rows", "slice", "worst relative error", "plain, MiB", "sliced, MiB", "ratio", ""):
        table.add_column(column, justify="left" if column in ("loss", "") else "right")
    for row in found:
        table.add_row(
            row["loss"],
            f"{row['rows']:,}",
            f"{row['slice']:,}",
            f"{row['error']:.1e}",
            f"{row['plain'] / 2**20:.0f}",
            f"{row['sliced'] / 2**20:.0f}",
            f"{row['ratio']:.3f}",
            "ok" if row["ok"] else "over",
        )
    console.print(table)
    return found, all(row["ok"] for row in found)


def main() -> None:
    """Run the parts, print their tables, exit 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"losses": losses_part, "host": host_part, "planner": planner_part}
    parser.add_argument("--parts", nargs="+", choices=tuple(parts), default=list(parts), help="which (default: all)")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    report, fine = {}, True
    for name in arguments.parts:
        report[name], ok = parts[name](console)
        fine = fine and ok
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print("PASS" if fine else "FAIL")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
