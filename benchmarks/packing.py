"""Packed rows against padded ones on real TOFU text: tokens that go through the model, time, gradients.

Rows of forget10 and retain90, shuffled, in micro-batches of 16 and of 32; forward and backward of the answers'
cross-entropy, packed and padded in turn on the same rows. Useful tokens are the real ones. The bound on the gain is the
share of padding itself: (real + padding) / real.

    padding removed      at least 90 %
    gain                 at least 0.85 of the bound
    gradient             equal to 1e-6, relative

Run: TOFU_DIR=/data/tofu python -m benchmarks.packing [--pairs N] [--json FILE]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_core.data.packing import PassInputs, prepare
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Batch, Example, Formatter, collate
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.forward import Forward
from unlearn_core.objectives.likelihood import cross_entropy

BATCHES = (16, 32)
PAIRS, WARM_UPS = 21, 3
REMOVED_BOUND, GAIN_BOUND, EXACT_BOUND = 0.9, 0.85, 1e-6
MODEL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
}


def examples_of(folder: str) -> tuple[list[Example], int]:
    """Tokenised rows of both splits, in a fixed random order; and the number of ids."""
    benchmark = open_benchmark(folder)
    rows = [row for split in ("forget10", "retain90") for row in benchmark.split(split)]
    tokenizer = train_tokenizer([f"{row.question} {row.answer}" for row in rows], 4096)
    formatter = Formatter(tokenizer, "plain", 512)
    found = [formatter.example(row.item_id, row.question, row.answer) for row in rows]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order], len(tokenizer)


def batches_of(examples: Sequence[Example], size: int) -> Iterator[Batch]:
    """Micro-batches, one after the other."""
    for start in range(0, len(examples) - size + 1, size):
        yield collate(examples[start : start + size], 0)


def step_seconds(forward: Forward, inputs: PassInputs) -> float:
    """Of one forward and backward pass."""
    forward.zero_grad(set_to_none=True)
    started = time.perf_counter()
    forward(inputs, lambda readout: readout.token_sum(cross_entropy)).backward()
    return time.perf_counter() - started


def gradient_of(forward: Forward, inputs: PassInputs) -> torch.Tensor:
    """Flattened, fp64."""
    step_seconds(forward, inputs)
    return torch.cat([p.grad.double().flatten() for p in forward.parameters() if p.grad is not None])


def measure(examples: Sequence[Example], vocabulary: int, size: int, pairs: int) -> dict[str, Any]:
    """One micro-batch size."""
    models = {}
    for packed in (True, False):
        torch.manual_seed(0)
        config = LlamaConfig(
            **{"vocab_size": vocabulary, "num_attention_heads": 8, "attn_implementation": "sdpa", **MODEL}
        )
        models[packed] = Forward(LlamaForCausalLM(config).float().train(), packed)
    every = list(batches_of(examples, size))
    tokens = {packed: sum(prepare(batch, packed).tokens for batch in every) for packed in (True, False)}
    real = sum(int(batch.attention_mask_BT.sum()) for batch in every)
    first = [gradient_of(models[packed], prepare(every[0], packed)) for packed in (True, False)]
    ratios, bounds = [], []
    for number, batch in enumerate(every[: WARM_UPS + pairs]):
        inputs = {packed: prepare(batch, packed) for packed in (True, False)}
        order = (True, False) if number % 2 else (False, True)
        seconds = {packed: step_seconds(models[packed], inputs[packed]) for packed in order}
        if number >= WARM_UPS:
            ratios.append(seconds[False] / seconds[True])
            bounds.append(inputs[False].tokens / int(batch.attention_mask_BT.sum()))
    return {
        "rows": size,
        "bound": tokens[False] / real,
        "removed": 1 - (tokens[True] - real) / (tokens[False] - real),
        "timed_bound": statistics.median(bounds),
        "gain": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2],
        "share": statistics.median(ratio / bound for ratio, bound in zip(ratios, bounds, strict=True)),
        "gradient": float((first[0] - first[1]).norm() / first[1].norm()),
    }


def main() -> None:
    """Run, print the table, exit 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"timed micro-batches of each size (default {PAIRS})")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    arguments = parser.parse_args()
    folder = os.environ.get("TOFU_DIR")
    if not folder:
        parser.error("set TOFU_DIR to a folder laid out like locuslab/TOFU")
    torch.set_num_threads(1)
    examples, vocabulary = examples_of(folder)
    rows = [measure(examples, vocabulary, size, arguments.pairs) for size in BATCHES]
    table = Table(title=f"packed / padded rows of TOFU, {arguments.pairs} micro-batches, one thread")
    for column in ("rows", "bound", "padding removed", "gain (quartiles)", "of the bound", "gradient", ""):
        table.add_column(column, justify="right")
    fine = True
    for row in rows:
        row["ok"] = row["removed"] >= REMOVED_BOUND and row["share"] >= GAIN_BOUND and row["gradient"] <= EXACT_BOUND
        fine = fine and row["ok"]
        table.add_row(
            str(row["rows"]),
            f"{row['bound']:.2f}",
            f"{row['removed']:.1%}",
            f"{row['gain']:.2f} ({row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f})",
            f"{row['share']:.2f}",
            f"{row['gradient']:.1e}",
            "ok" if row["ok"] else "over",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": MODEL, "rows": rows}, indent=2), encoding="utf-8")
    print("PASS" if fine else "FAIL")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
