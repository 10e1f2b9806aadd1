"""The training loop, the same under Ray Train and in a plain process.

    for each step:  a gradient for each objective -> Gram matrix -> weights -> combined gradient -> optimizer step
    every so often: export a model, save what a restart needs

It reads top to bottom and knows no framework: what differs between a cluster and one process is behind `Context`.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from unlearn_core.combine import clip_factor, combined_norm, cosine
from unlearn_core.config import RunConfig
from unlearn_core.data.batches import PairedBatches
from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.method import Method, find_method, method_settings
from unlearn_core.models import load_model
from unlearn_core.publish import publish_folder, write_text

if TYPE_CHECKING:
    from unlearn_core.zero.engine import ZeroEngine

METRICS = "metrics.jsonl"
"""A line for each step, written by rank 0."""


class Context(Protocol):
    """What the loop asks of the world around it."""

    rank: int
    world_size: int
    output: Path
    """The run's folder, the same on every rank."""

    def restore(self) -> AbstractContextManager[Path | None]:
        """The newest whole checkpoint as a local folder, or None at the start. Every rank enters it."""
        ...

    def checkpoint(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Commit a checkpoint: every rank writes its files into the folder it is given; whole or not at all."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Literal["finished", "diverged"]
    step: int
    """Optimizer steps taken."""
    reason: str = ""
    """Why it diverged."""


def run(config: RunConfig, context: Context) -> Outcome:
    """Train as `config` says; every rank calls it, torch.distributed is initialised.

    Writes OUTPUT/metrics.jsonl and OUTPUT/models/step-NNNNN/. The result does not depend on the number of ranks beyond
    rounding. A non-finite loss, gradient or weight ends the run on all ranks together, before the optimizer step.
    """
    from unlearn_core.zero.checkpoint import load_checkpoint, save_checkpoint  # deepspeed: only where training runs
    from unlearn_core.zero.engine import ZeroEngine

    method = find_method(config.method.name)
    settings = method_settings(method, config.method.settings)
    tokenizer = load_tokenizer(config.model.path)
    batches = _batches(config, method, tokenizer, context)
    model = load_model(config.model.path, config.model.dtype, config.model.attention)
    engine = ZeroEngine(model, config.zero, config.optimizer, config.model.dtype == "bf16", config.batch.micro)
    first = 0
    with context.restore() as folder:
        if folder is not None:
            first = load_checkpoint(engine, folder, config.fingerprint())
    log = _StepLog(context, first)

    for step in range(first, config.steps):
        started = time.perf_counter()
        gradients = []
        for objective in method.objectives:
            if gradients:
                gradients[-1] = engine.take(gradients[-1])
            micro_batches = batches.micro_batches(step, objective.rows)
            label_tokens = batches.label_tokens(step, objective.rows)
            gradients.append(engine.gradient(objective.loss, micro_batches, label_tokens))
        losses = [gradient.loss for gradient in gradients]
        shards = [gradient.shard for gradient in gradients]
        gram_KK = engine.gram(shards)
        if not (np.isfinite(gram_KK).all() and np.isfinite(losses).all()):
            return _diverged(engine, step, f"non-finite loss or gradient at step {step + 1}: losses {losses}")

        weights_K = method.combine(gram_KK, settings)
        weights_K = weights_K * clip_factor(gram_KK, weights_K, config.optimizer.gradient_clipping)
        engine.combine(shards, weights_K)
        rate = config.optimizer.rate(step, config.steps)
        engine.step(rate)

        done = step + 1
        metrics = {
            "step": done,
            **{f"loss_{name}": loss for name, loss in zip(method.rows, losses, strict=True)},
            **{f"norm_{name}": math.sqrt(gram_KK[k, k]) for k, name in enumerate(method.rows)},
            **({"cosine": cosine(gram_KK, 0, 1)} if len(losses) == 2 else {}),
            "update_norm": combined_norm(gram_KK, weights_K),
            "learning_rate": rate,
            "seconds": time.perf_counter() - started,
        }
        log.add(metrics)
        exports, checkpoints = config.exports_at(done), config.checkpoints_at(done)
        if (exports or checkpoints) and not engine.weights_are_finite():
            return _diverged(engine, done, f"non-finite weights after step {done}")
        if exports:
            _export(config, context, engine, tokenizer, done)
        if checkpoints:
            context.checkpoint(
                metrics, lambda folder, done=done: save_checkpoint(engine, folder, done, config.fingerprint())
            )
    engine.close()
    return Outcome("finished", config.steps)


def model_folder(output: Path, step: int) -> Path:
    """Where the model after `step` optimizer steps is exported."""
    return output / "models" / f"step-{step:05d}"


def _batches(config: RunConfig, method: Method, tokenizer: Any, context: Context) -> PairedBatches:
    pad_id = Formatter(tokenizer, config.data.format, config.data.max_length, config.data.system_prompt).pad_id
    return PairedBatches(
        training_sets(config.data, method, tokenizer),
        global_batch=config.batch.rows,
        micro_batch=config.batch.micro,
        rank=context.rank,
        world_size=context.world_size,
        seed=config.seed,
        pad_id=pad_id,
    )


def _export(config: RunConfig, context: Context, engine: "ZeroEngine", tokenizer: Any, step: int) -> None:
    """A Hugging Face folder of the current weights; every rank takes part, rank 0 publishes it whole."""
    from unlearn_core.zero.export import export_weights

    final = model_folder(context.output, step)
    if context.rank != 0:
        export_weights(engine, final)
        return

    def fill(folder: Path) -> None:
        export_weights(engine, folder)
        tokenizer.save_pretrained(folder)

    publish_folder(final, fill, {"step": step, "method": config.method.name, "run": config.name})


def _diverged(engine: "ZeroEngine", step: int, reason: str) -> Outcome:
    engine.close()
    return Outcome("diverged", step, reason)


class _StepLog:
    """Appends a JSON line a step, on rank 0; a restart first drops the lines of steps that will be done again."""

    def __init__(self, context: Context, first: int):
        self.path = context.output / METRICS if context.rank == 0 else None
        if self.path is None:
            return
        kept: list[str] = []
        if first and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= first:
                        kept.append(line + "\n")
                except json.JSONDecodeError:  # a line cut off by a kill
                    continue
        write_text(self.path, "".join(kept))

    def add(self, metrics: dict[str, Any]) -> None:
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
