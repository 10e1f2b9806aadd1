"""Small training runs for tests: their config, and what rank processes do with it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.exactness import distance, make_config, norm, recorded_gradients
from unlearn_core.config import RunConfig, build_config
from unlearn_core.local import LocalContext
from unlearn_core.loop import METRICS, Outcome, model_folder, run

Weights = dict[str, torch.Tensor]


def small_run(model: Path, workers: int, accumulation: int = 1, stage: int = 2, dtype: str = "fp32", **changes: Any):
    """The exactness benchmark's run with some fields changed; `__` stands for a dot, as in optimizer__name="sgd"."""
    config = make_config(model, stage, workers, accumulation, dtype)
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return build_config(RunConfig, config.model_dump(mode="json"), overrides)


def train(rank: int, world_size: int, config: RunConfig, output: Path) -> Outcome:
    """A job for the ranks: the loop in plain processes."""
    return run(config, LocalContext(output, rank, world_size, config.checkpoints))


def train_recorded(rank: int, world_size: int, config: RunConfig, output: Path) -> list[Weights]:
    """The same; returns the whole combined gradient of each step."""
    with recorded_gradients() as gradients:
        train(rank, world_size, config, output)
    return gradients if rank == 0 else []


def exported(output: Path, step: int) -> Weights:
    """Weights of the model after `step` steps."""
    return load_file(model_folder(output, step) / "model.safetensors")


def step_lines(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (output / METRICS).read_text(encoding="utf-8").splitlines()]


def relative(found: Weights, expected: Weights) -> float:
    """|found - expected| / |expected|, over all tensors together."""
    assert found.keys() == expected.keys()
    return distance(found, expected) / norm(expected)


def assert_bit_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different
