"""The training loop, the same under Ray Train and in a plain process.

    for each request:  read its rows; the model as it now is becomes the start model
    for each step:     rows -> one update (unlearn_core/update.py) -> a line in the log
    every so often:    export a model, save what a restart needs

It reads top to bottom and knows no framework: what differs between a cluster and one process is behind `Context`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from transformers import PreTrainedTokenizerBase

from unlearn_core import storage
from unlearn_core.config import RunConfig
from unlearn_core.data.batches import PairedBatches
from unlearn_core.data.tokenization import Example, Formatter, load_tokenizer
from unlearn_core.errors import StorageError, UserError, storage_problem
from unlearn_core.kernels import speed_up
from unlearn_core.method import Composition, ProjectionRule, compose
from unlearn_core.model_card import data_facts, training_record, write_card
from unlearn_core.preflight import check_composition, request_sets
from unlearn_core.publish import publish_folder, write_text
from unlearn_core.trainable import choose_trainable

if TYPE_CHECKING:
    from unlearn_core.update import StepRows, Update
    from unlearn_core.zero.engine import ZeroEngine

StopReason = Literal["", "preempted", "stopped"]
STOP_REASONS: tuple[StopReason, ...] = ("", "preempted", "stopped")
"""Not asked to end; its machine is about to go, so go on elsewhere; its user wants it ended. The strongest counts."""

CHECKPOINTS = "checkpoints"
"""Folder of what a restart needs."""
METRICS = "metrics.jsonl"
"""A line for each step, written by rank 0."""
REFERENCES = "references"
"""Folder of what is measured once on the start model, a file a request: log-probabilities, bases of a projection."""


class Context(Protocol):
    """What the loop asks of the world around it."""

    rank: int
    world_size: int
    output: Path
    """The run's folder, the same on every rank."""

    def restore(self) -> Path | None:
        """The newest whole checkpoint as a local folder, or None at the start. Every rank calls it."""
        ...

    def checkpoint(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Commit a checkpoint: every rank writes its files into the folder it is given; whole or not at all."""
        ...

    def stop_reason(self) -> StopReason:
        """Whether this rank has been asked to end, asked after each step; one rank's yes is enough."""
        ...

    def stalled(self, seconds: float) -> AbstractContextManager[Callable[[], None]]:
        """Watch over progress while entered: what it gives is called at each sign of it."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Literal["finished", "diverged", "preempted", "stopped"]
    step: int
    """Optimizer steps taken."""
    reason: str = ""
    """Why it diverged or ended early. `preempted` and `stopped` leave a checkpoint of their last step."""


def run(config: RunConfig, context: Context) -> Outcome:
    """Train as `config` says; every rank calls it, torch.distributed is initialised.

    Writes OUTPUT/metrics.jsonl and OUTPUT/models/step-NNNNN/. The result does not depend on the number of ranks beyond
    rounding. A non-finite loss, gradient or weight ends the run on all ranks together, before the optimizer step.
    """
    from unlearn_core.update import NonFiniteError, Update  # deepspeed: only where training runs
    from unlearn_core.zero.checkpoint import load_checkpoint, save_checkpoint
    from unlearn_core.zero.engine import ZeroEngine
    from unlearn_core.zero.loading import load_for_training

    composition = compose(config.method.name, config.method.settings)
    check_composition(config, composition)
    tokenizer = load_tokenizer(config.model.path)
    requests = _Requests(config, composition, tokenizer, context)
    model = choose_trainable(load_for_training(config), config, composition)
    speed_up(model, config.model)
    engine = ZeroEngine(model, config.zero, config.optimizer, config.model.dtype == "bf16", config.batch)
    update = Update(engine, composition, config)
    folder = context.restore()
    first = 0 if folder is None else load_checkpoint(engine, update, folder, config.fingerprint())
    if folder is None and not engine.weights_are_finite():
        raise UserError(f"{config.model.path} has NaN or infinite weights. Export or download it again.")
    log = _StepLog(context, first)

    with context.stalled(config.workers.stall_seconds) as engine.progress:
        for step in range(first, config.total_steps):
            request, request_step = divmod(step, config.steps)
            if request_step == 0 or step == first:
                requests.begin(request, engine, update, fresh=request_step == 0)
            try:
                metrics = update.step(requests.take(step, request_step), step, request_step)
            except NonFiniteError as error:
                return _diverged(engine, step, f"non-finite loss or gradient at step {step + 1}: {error}")
            done = step + 1
            log.add(metrics)
            stop = STOP_REASONS[engine.largest(STOP_REASONS.index(context.stop_reason()))]
            stop = stop if done < config.total_steps else ""
            exports, checkpoints = config.exports_at(done), config.checkpoints_at(done) or bool(stop)
            if (exports or checkpoints) and not engine.weights_are_finite():
                return _diverged(engine, done, f"non-finite weights after step {done}")
            if exports:
                _export(config, context, engine, tokenizer, done, requests)
            if checkpoints:
                context.checkpoint(
                    metrics,
                    lambda folder, done=done: save_checkpoint(engine, update, folder, done, config.fingerprint()),
                )
            if stop:
                engine.close()
                return Outcome(stop, done, f"{stop} after step {done}, with a checkpoint")
    engine.close()
    return Outcome("finished", config.total_steps)


def model_folder(output: Path, step: int) -> Path:
    """Where the model after `step` optimizer steps is exported."""
    return output / "models" / f"step-{step:05d}"


class _Requests:
    """The rows of each forget request; without `data.sequential` there is one."""

    def __init__(
        self, config: RunConfig, composition: Composition, tokenizer: PreTrainedTokenizerBase, context: Context
    ):
        self.config, self.composition, self.context = config, composition, context
        self.formatter = Formatter(tokenizer, config.data.format, config.data.max_length, config.data.system_prompt)
        # All at once: a mistake in the last request's file is found before the first one's training.
        self.all_sets = request_sets(config, composition, tokenizer)
        self.sets: Mapping[str, Sequence[Example]] = self.all_sets[0]
        self.projection: Any = None
        self._thread = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[Any]] | None = None

    def begin(self, request: int, engine: "ZeroEngine", update: "Update", fresh: bool) -> None:
        """Turn to the request's rows; when it is `fresh`, the model as it is now becomes the one to compare with."""
        from unlearn_core.references import references_for

        config, pad_id = self.config, self.formatter.pad_id
        self.sets, self.packs = self.all_sets[request], engine.packs
        self.batches = PairedBatches(
            self.sets,
            global_batch=config.batch.rows,
            micro_batch=config.batch.micro,
            rank=self.context.rank,
            world_size=self.context.world_size,
            seed=config.seed,
            pad_id=pad_id,
        )
        path = self.context.output / REFERENCES / f"request-{request}.json"
        needed = {name: self.sets[name] for name in self.composition.reference_sets}
        references = references_for(engine, needed, config.batch.micro, pad_id, path, fresh)
        update.begin_request(references, fresh)
        if self.composition.projection:
            self._protect(engine, self.composition.projection, request, fresh)

    def _protect(self, engine: "ZeroEngine", rule: ProjectionRule, request: int, fresh: bool) -> None:
        """Project gradients away from the present model's activations on retain rows."""
        from unlearn_core.gradient_projection import projection_for

        if self.projection is not None:
            self.projection.remove()
        path = self.context.output / REFERENCES / f"projection-{request}.safetensors"
        micro, pad_id = self.config.batch.micro, self.formatter.pad_id
        self.projection = projection_for(engine, rule, self.sets["retain"], micro, pad_id, path, fresh)

    @cached_property
    def facts(self) -> list[dict[str, Any]]:
        """Number and fingerprint of the rows of each set, for model cards."""
        return data_facts(self.all_sets)

    def take(self, step: int, request_step: int) -> "StepRows":
        """The rows of a step, prepared while the one before it ran; begins with those of the next one."""
        ahead, self._ahead = self._ahead, None
        rows = ahead[1].result() if ahead and ahead[0] == step else self.rows(step, request_step)
        if request_step + 1 < self.config.steps:  # the next request's rows are other ones
            self._ahead = step + 1, self._thread.submit(self.rows, step + 1, request_step + 1)
        return rows

    def rows(self, step: int, request_step: int) -> "StepRows":
        """This rank's micro-batches of a step. Forget rows start anew with each request, the others go on."""
        from unlearn_core.update import StepRows, step_inputs

        at = {name: step if name in ("retain", "generic") else request_step for name in self.composition.sets}
        counted = {(objective.rows, objective.skip_first) for objective in self.composition.objectives}
        batches = {name: self.batches.micro_batches(at[name], name) for name in self.composition.sets}
        return StepRows(
            inputs=step_inputs(self.composition, batches, self.packs),
            label_tokens={(name, skip): self.batches.label_tokens(at[name], name, skip) for name, skip in counted},
            rows=self.config.batch.rows,
        )


def _export(
    config: RunConfig, context: Context, engine: "ZeroEngine", tokenizer: Any, step: int, requests: _Requests
) -> None:
    """A Hugging Face folder of the current weights; every rank takes part, rank 0 publishes it whole."""
    from unlearn_core.zero.export import export_weights

    final = model_folder(context.output, step)
    if context.rank != 0:
        export_weights(engine, final)
        return

    def fill(folder: Path) -> None:
        export_weights(engine, folder)
        tokenizer.save_pretrained(folder)
        write_card(folder, training_record(config), step, requests.facts)

    try:
        publish_folder(final, fill, {"step": step, "method": config.method.name, "run": config.name})
        storage.push(final)
    except Exception as error:
        problem = storage_problem(error, final.parent)
        raise (StorageError(problem) if problem else error) from error


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
