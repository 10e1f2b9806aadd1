"""The tables of docs/scaling.md, from the planner: `python -m benchmarks.scaling_tables [--write docs/scaling.md]`.

NGDiff with AdamW in bf16, activation checkpointing, eight rows of 512 tokens of each set on every GPU, so a larger
cluster takes a larger global batch. H100 80 GB, eight to a node. No GPU was measured.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearn_core.activation_plan import RowShape
from unlearn_core.config import RunConfig, build_config
from unlearn_core.gpus import NODE, find_gpu
from unlearn_core.memory_plan import plan_memory
from unlearn_core.method import compose
from unlearn_core.model_shapes import ModelShape, find_config, model_shape
from unlearn_core.plan_setting import GIB, Setting
from unlearn_core.step_time_plan import Rates, message_bytes, plan_step_time

MODELS = ("Llama-2-7B", "Llama-2-13B", "Llama-2-70B")
NODES = (1, 2, 4, 8, 16, 32, 64)
STAGES = (1, 2, 3)
GPU = "h100-80g"
ROWS = RowShape(512, 511)
ROWS_PER_GPU, STEPS, TRIALS = 8, 63, 200
BEGIN, END = "<!-- begin: python -m benchmarks.scaling_tables -->", "<!-- end -->"


def setting_of(shape: ModelShape, model: str, stage: int, workers: int) -> Setting:
    """The run that the tables are about."""
    values: dict[str, Any] = {
        "name": "scaling",
        "model": {"path": model},
        "data": {"benchmark": "locuslab/TOFU", "forget": ["forget10"], "retain": ["retain90"]},
        "method": {"name": "ngdiff"},
        "batch": {"rows": ROWS_PER_GPU * workers, "micro": ROWS_PER_GPU},
        "steps": STEPS,
        "zero": {"stage": stage, "activation_checkpointing": True},
        "workers": {"count": workers, "gpu": True},
    }
    return Setting(shape, build_config(RunConfig, values), ROWS)


def shape_of(model: str) -> ModelShape:
    """Of a built-in model."""
    first = build_config(
        RunConfig,
        {
            "name": "scaling",
            "model": {"path": model},
            "data": {"benchmark": "locuslab/TOFU", "forget": ["forget10"], "retain": ["retain90"]},
            "method": {"name": "ngdiff"},
            "batch": {"rows": 8, "micro": 8},
            "steps": 1,
        },
    )
    return model_shape(*find_config(model), first, compose("ngdiff", {}))


def cells(setting: Setting, rates: Rates) -> dict[str, float]:
    """Figures of one layout."""
    memory, time = plan_memory(setting), plan_step_time(setting, rates)
    return {
        "gib": memory.total / GIB,
        "fits": memory.total <= rates.gpu.memory,
        "sent": sum(message_bytes(setting).values()) / 1e9,
        "seconds": time.seconds,
        "tokens": time.tokens_per_second,
    }


def _rank(one: dict[str, float]) -> tuple[float, float]:
    """The faster one, of two equally fast ones the smaller."""
    return round(one["seconds"], 2), one["gib"]


def model_table(model: str, rates: Rates) -> Iterator[str]:
    """Markdown of one model: a line for a number of nodes, three columns for a stage."""
    shape = shape_of(model)
    yield f"## {model}, {shape.numel / 1e9:.2f}B parameters\n"
    heads = [f"ZeRO-{stage}: GiB | GB sent | s" for stage in STAGES]
    yield "| nodes | GPUs | " + " | ".join(heads) + " | fastest that fits | tokens/s |"
    yield "|" + "---:|" * (2 + 3 * len(STAGES)) + "---|---:|"
    for nodes in NODES:
        found = {stage: cells(setting_of(shape, model, stage, nodes * NODE), rates) for stage in STAGES}
        line = []
        for one in found.values():
            gib = f"{one['gib']:.1f}" if one["fits"] else f"({one['gib']:.1f})"
            line += [gib, f"{one['sent']:.1f}", f"{one['seconds']:.2f}"]
        fitting = {stage: one for stage, one in found.items() if one["fits"]}
        best = min(fitting, key=lambda stage: _rank(fitting[stage]), default=None)
        last = ["none", ""] if best is None else [f"ZeRO-{best}", f"{fitting[best]['tokens']:,.0f}"]
        yield f"| {nodes} | {nodes * NODE} | " + " | ".join(line + last) + " |"
    yield ""


def search_table(rates: Rates) -> Iterator[str]:
    """Markdown: what a search costs, each trial on one node."""
    yield f"## A search of {TRIALS} trials of {STEPS} steps, each trial on one node of {NODE} GPUs\n"
    yield "| model | layout | GiB | s a step | hours on one node | GPU-hours | $ |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for model in MODELS:
        shape = shape_of(model)
        found = {stage: cells(setting_of(shape, model, stage, NODE), rates) for stage in STAGES}
        fitting = {stage: one for stage, one in found.items() if one["fits"]}
        if not fitting:
            yield f"| {model} | none fits one node | | | | | |"
            continue
        stage = min(fitting, key=lambda stage: _rank(fitting[stage]))
        one = fitting[stage]
        hours = TRIALS * STEPS * one["seconds"] / 3600
        dollars = hours * NODE * rates.gpu.price
        yield (
            f"| {model} | ZeRO-{stage} | {one['gib']:.1f} | {one['seconds']:.2f} | {hours:.1f} | {hours * NODE:.0f} | "
            f"{dollars:,.0f} |"
        )
    yield ""


def tables() -> str:
    """All of them."""
    rates = Rates(find_gpu(GPU))
    lines = [line for model in MODELS for line in model_table(model, rates)]
    return "\n".join([*lines, *search_table(rates)])


def main() -> None:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page, in whose marked part they are put")
    arguments = parser.parse_args()
    found = tables()
    if arguments.write is None:
        print(found)
        return
    text = arguments.write.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    arguments.write.write_text(f"{before}{BEGIN}\n\n{found}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
