"""One-shot edits as runs: no workers, no optimizer, and the same folder as a training run, so `evaluate` takes it.

    OUTPUT/run.json       name, method, options, fingerprint, status: running or finished
    OUTPUT/points.json    a record for each point: its step, what made it, and what was measured on the way
    OUTPUT/layers.json    SLUG only: importance and alignment of every weight matrix
    OUTPUT/models/        model folders; step-00003 is the point that points.json calls step 3

A step is the number of a point, not of an optimizer step. Models are read and written tensor by tensor; SLUG alone
loads one whole, on the GPU where there is one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from rich.console import Console

from pipelines.edit_folder import Edits, begin_edits, earlier_edits, finish_edits, model_folder
from pipelines.stage_progress import StageProgress
from unlearn_core.data.rows import Row
from unlearn_core.data.tofu import matching, open_benchmark
from unlearn_core.data.tokenization import Example, Formatter, load_tokenizer
from unlearn_core.edits.interpolation import write_interpolation
from unlearn_core.edits.slug import (
    SlugPoint,
    SlugResult,
    best_point,
    edited,
    forget_probability,
    slug,
    weight_matrices,
)
from unlearn_core.edits.streamed_weights import StreamedWeights, check_same_tensors
from unlearn_core.edits.task_vector import write_task_vector
from unlearn_core.errors import UserError
from unlearn_core.models import check_model_source, load_model
from unlearn_core.publish import write_json
from unlearn_core.strict import Strict

LAYERS = "layers.json"
TOKEN_BUDGET = 4096
"""Most tokens of a forward pass when scoring."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class InterpolationConfig(Strict):
    """Points on the line from an unlearned model to its target."""

    name: Name
    """Name in tables and pictures: letters, digits, dot, dash, underscore."""
    unlearned: str
    """Model at weight 0: folder or hub name."""
    target: str
    """Model at weight 1, before unlearning."""
    weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1)
    """One model each."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        return _refuse_repeats(self)


class TaskVectorConfig(Strict):
    """Points on the line from a model away from its reinforced version."""

    name: Name
    """As above."""
    model: str
    """The model to edit: folder or hub name."""
    reinforced: str
    """The same model, trained further on the forget rows."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)
    """One model each; 0 is the model itself."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        return _refuse_repeats(self)


class SlugConfig(Strict):
    """A search over (layer, scale) of SLUG."""

    name: Name
    """As above."""
    model: str
    """The model to edit: folder or hub name."""
    benchmark: str
    """`synthetic:SIZE`, a folder laid out like TOFU, or a hub name."""
    forget: tuple[str, ...] = Field(min_length=1)
    """Splits to forget."""
    retain: tuple[str, ...] = Field(min_length=1)
    """Splits to keep."""
    format: Literal["chat", "plain"] = "chat"
    """As in training."""
    max_length: int = Field(default=512, ge=8)
    """Tokens a row may have."""
    reference: str | None = None
    """Model whose forget probability is the threshold. Exactly one of this and `threshold`."""
    threshold: float | None = Field(default=None, ge=0, lt=1)
    """Forget probability to come down to."""
    layers: int = Field(default=5, ge=1)
    """Search the so many most important layers of the Pareto set."""
    iterations: int = Field(default=10, ge=1)
    """Models tried for each layer."""
    micro: int = Field(default=4, ge=1)
    """Rows of one forward and backward pass."""
    score_rows: int = Field(default=400, ge=0)
    """Rows of each set that a tried model is scored on, evenly spaced; 0 for all."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Dtype of the search; null for that of the model's files."""
    export: Literal["layers", "best", "all"] = "layers"
    """Which models are written: the best of each layer, the best of all, or every one tried."""

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if (self.reference is None) == (self.threshold is None):
            raise ValueError("give exactly one of reference (a model retrained without the forget data) and threshold")
        return self


def interpolate(config: InterpolationConfig, output: Path, console: Console | None = None) -> Edits:
    """Write a model folder for each weight.

    Args:
        config: the two models and the weights.
        output: the run's folder. The same call on a finished one does nothing.
        console: where progress is drawn; None for silence.

    Returns:
        The points.

    Raises:
        UserError: a missing or broken model, models that do not match, or another run's folder as output.
    """
    return _along_a_line("interpolation", config, config.unlearned, config.target, write_interpolation, output, console)


def task_vector(config: TaskVectorConfig, output: Path, console: Console | None = None) -> Edits:
    """As `interpolate`, away from the reinforced model; raises what that raises."""
    return _along_a_line("task_vector", config, config.model, config.reinforced, write_task_vector, output, console)


def search_slug(config: SlugConfig, output: Path, console: Console | None = None) -> Edits:
    """Search SLUG's layers and scales, and write the chosen models.

    Args:
        config: model, rows and threshold.
        output: the run's folder. The same call on a finished one does nothing.
        console: where progress is drawn; None for silence.

    Returns:
        The points. Where none meets the threshold, `last` is the one that forgot most.

    Raises:
        UserError: a mistake in the options, models or rows, a start model that meets the threshold already, a model
            whose weights go by other names in memory than in its files, or another run's folder as output.
    """
    output = output.resolve()
    earlier = earlier_edits(config, output)
    if earlier is not None:
        return earlier
    base = StreamedWeights(config.model)
    if config.reference is not None:
        check_model_source(config.reference)
    formatter = Formatter(load_tokenizer(config.model), config.format, config.max_length)
    forget, retain = _rows(config, formatter)
    scored_forget, scored_retain = _spaced(forget, config.score_rows), _spaced(retain, config.score_rows)
    criterion = forget_probability(scored_forget, TOKEN_BUDGET)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.dtype or ("bf16" if base.dtypes == {"BF16"} else "fp32")
    threshold = config.threshold
    if threshold is None:
        assert config.reference is not None  # SlugConfig has checked
        threshold = criterion(load_model(config.reference, dtype).to(device))  # pyright: ignore[reportArgumentType]
        if not math.isfinite(threshold):
            raise UserError(f"the reference '{config.reference}' gives no finite forget probability; check the model")
    model = load_model(config.model, dtype).to(device)  # pyright: ignore[reportArgumentType]
    _check_stored_names(model, base)
    with StageProgress(console) as stages:
        result = slug(
            model,
            forget,
            retain,
            criterion=criterion,
            threshold=threshold,
            scored_retain=scored_retain,
            pad_id=formatter.pad_id,
            most_layers=config.layers,
            iterations=config.iterations,
            micro_batch=config.micro,
            token_budget=TOKEN_BUDGET,
            report=stages,
        )
        del model
        best = result.best or _most_forgotten(result.points)
        if best is None:
            raise UserError("every model that SLUG tried was broken (non-finite); try --dtype fp32 or another model")
        chosen = [point for point in result.points if _exported(point, best, result, config.export)]
        record = begin_edits(config, "slug", output)
        points = []
        for step, point in enumerate(result.points, start=1):
            found = {"step": step} | _finite(asdict(point)) | {"exported": point in chosen, "best": point is best}
            points.append(found | {"threshold": threshold})
            if point in chosen:
                marker = {
                    "step": step,
                    "method": "slug",
                    "run": config.name,
                    "layer": point.layer,
                    "scale": point.scale,
                }
                base.write(model_folder(output, step), _layer_edit(point, result), marker)
                stages("models written", sum(p["exported"] for p in points), len(chosen))
    write_json(output / LAYERS, _layer_records(result))
    return finish_edits(record, output, points, result.points.index(best) + 1)


def run_name(name: str | None, output: Path, method: str) -> str:
    """The name given, else the output folder's where that can name a run, else the method's."""
    if name is not None:
        return name
    folder = output.resolve().name
    return folder if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", folder) else method


def retain_splits(forget: Sequence[str], retain: Sequence[str]) -> tuple[str, ...]:
    """The retain splits given, else the partner of the one forget split (retain90 of forget10).

    Raises:
        UserError: none given, and not exactly one forget split, or one that has no partner by name.
    """
    if retain:
        return tuple(retain)
    if len(forget) != 1:
        raise UserError(
            f"{len(forget)} forget splits and no retain split; give --retain, for example --retain retain90"
        )
    return (matching(forget[0]).retain,)


def _along_a_line(
    method: str,
    config: InterpolationConfig | TaskVectorConfig,
    first: str,
    second: str,
    write: Callable[..., None],
    output: Path,
    console: Console | None,
) -> Edits:
    output = output.resolve()
    earlier = earlier_edits(config, output)
    if earlier is not None:
        return earlier
    start, other = StreamedWeights(first), StreamedWeights(second)
    check_same_tensors(start, other)  # before the folder is made
    record = begin_edits(config, method, output)
    points: list[dict[str, Any]] = []
    with StageProgress(console) as stages:
        written, total = 0, start.bytes * len(config.weights)

        def advance(count: int) -> None:
            nonlocal written
            written += count
            stages(f"writing {len(config.weights)} models", written, total)

        for step, weight in enumerate(config.weights, start=1):
            marker = {"step": step, "method": method, "run": config.name, "weight": weight}
            write(start, other, weight, model_folder(output, step), marker, advance)
            points.append({"step": step, "weight": weight})
    return finish_edits(record, output, points, len(points))


def _rows(config: SlugConfig, formatter: Formatter) -> tuple[list[Example], list[Example]]:
    benchmark = open_benchmark(config.benchmark)
    forget, retain = (
        [row for split in splits for row in benchmark.split(split)] for splits in (config.forget, config.retain)
    )
    kept = {(row.question, row.answer) for row in retain}
    both = [row.item_id for row in forget if (row.question, row.answer) in kept]
    if both:
        raise UserError(
            f"{len(both)} of {len(forget)} forget rows are also retain rows (first: {both[0]}); expected splits that "
            "do not overlap, such as --forget forget10 --retain retain90"
        )

    def examples(rows: list[Row]) -> list[Example]:
        return [formatter.example(row.item_id, row.question, row.answer) for row in rows]

    return examples(forget), examples(retain)


def _spaced(examples: list[Example], most: int) -> list[Example]:
    """At most `most` of them, evenly spaced; all for 0."""
    if most == 0 or len(examples) <= most:
        return examples
    return [examples[index * len(examples) // most] for index in range(most)]


def _check_stored_names(model: Any, base: StreamedWeights) -> None:
    for name, parameter in weight_matrices(model).items():
        if name not in base.names or base.shape(name) != tuple(parameter.shape):
            raise UserError(
                f"'{base.source}' does not store the matrix '{name}' {list(parameter.shape)} under that name and "
                "shape, so it could not be written back; load the model and save_pretrained it once, then edit that"
            )


def _layer_edit(point: SlugPoint, result: SlugResult) -> Callable[[str, torch.Tensor], torch.Tensor]:
    direction = result.directions[point.layer]
    return lambda name, old: edited(old, direction, point.scale) if name == point.layer else old


def _exported(point: SlugPoint, best: SlugPoint, result: SlugResult, which: str) -> bool:
    if not (math.isfinite(point.forget) and math.isfinite(point.retain_loss)):
        return False
    if which == "all" or point is best:
        return True
    own = [other for other in result.points if other.layer == point.layer]
    return which == "layers" and point is (best_point(own) or _most_forgotten(own))


def _most_forgotten(points: Sequence[SlugPoint]) -> SlugPoint | None:
    sound = [point for point in points if math.isfinite(point.forget) and math.isfinite(point.retain_loss)]
    return min(sound, key=lambda point: (point.forget, point.retain_loss), default=None)


def _layer_records(result: SlugResult) -> list[dict[str, Any]]:
    candidates = {layer.name for layer in result.candidates}
    return [asdict(layer) | {"searched": layer.name in candidates} for layer in result.layers]


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no word for NaN and infinity: null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _refuse_repeats(config: Any) -> Any:
    if len(set(config.weights)) < len(config.weights):
        raise ValueError(f"weights {list(config.weights)} repeat a value; give each once")
    return config
