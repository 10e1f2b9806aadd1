"""The Ray Data stage: score many models on the whole suite in one job, keep per-item records, write one table.

    OUTPUT/records/<model id>/<group>.parquet   per-item records, each file written when its last row has arrived
    OUTPUT/metrics.csv                          one row per model
    OUTPUT/evaluation.json                      settings, fingerprints, versions; written last, so its presence means
                                                that the table is whole

The same call on the same output scores only what is missing or was scored under other settings, rows or weights. OUTPUT
is written by the calling process alone; model folders must be reachable under the same path from every node. The only
importer of `ray.data`.
"""

import csv
import gc
import hashlib
import io
import json
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError
from rich.console import Console

from pipelines.model_points import ModelPoint, Role, absolute, check_models, discover_run, identity, weight_bytes
from pipelines.ray_session import start_ray
from pipelines.row_progress import RowProgress
from pipelines.scoring_actor import ScoringActor
from unlearn_core.data.tofu import Benchmark, open_benchmark
from unlearn_core.errors import UserError
from unlearn_core.evaluation import tofu
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.records import (
    SCHEMA_VERSION,
    ItemRecord,
    from_table,
    read_metadata,
    read_parquet,
    write_parquet,
)
from unlearn_core.publish import write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EvaluationConfig", "ModelPoint", "Role", "discover_run", "evaluate"]

EVALUATION = "evaluation.json"
METRICS = "metrics.csv"

# A row that kills its actor is retried for ever by Ray Data's defaults; here its fourth death ends the job.
_MAX_RESTARTS = 3
_MAX_TASK_RETRIES = 3
# The rows of a task: enough for full batches, few enough that 800 rows keep two actors busy to the end.
_ROWS_PER_TASK = {"cpu": 32, "gpu": 256}


@dataclass(frozen=True)
class _Unit:
    """All rows of one group, scored by one model: what is written and skipped as a whole."""

    model: ModelPoint
    group: str
    path: Path
    fingerprint: str
    items: tuple[tofu.Item, ...]


def evaluate(
    models: Sequence[ModelPoint],
    benchmark_source: str,
    forget_split: str,
    output: str | Path,
    config: EvaluationConfig | None = None,
    *,
    actors: int | None = None,
    use_gpu: bool = False,
    require_forget_quality: bool = False,
    rows_per_task: int | None = None,
    console: Console | None = None,
) -> "pd.DataFrame":
    """Score models on the TOFU suite.

    Numbers do not depend on `actors`, `use_gpu` or `rows_per_task` except by rounding.

    Args:
        models: what to score. If one has the role `reference`, forget quality of all is computed against it.
        benchmark_source: as for `open_benchmark`.
        forget_split: such as `forget10`.
        output: the evaluation's folder.
        config: settings that change numbers; None for the defaults.
        actors: models in memory at once. None for one per GPU, or one per CPU as far as memory holds them.
        use_gpu: give each actor one GPU.
        require_forget_quality: a missing reference is an error before any work, not a missing column.
        rows_per_task: rows handed to an actor at a time; None for 32 on CPU, 256 on GPU.
        console: where to draw progress; None for silence.

    Returns:
        What metrics.csv holds: a row per model in the order given, columns `model`, `run`, `method`, `step`, `role`,
        `path`, then `tofu.NAMES`. NaN where an aggregate is missing or the model's losses are not finite;
        evaluation.json says why.

    Raises:
        UserError: a mistake in the arguments, found before Ray starts where it can be; more actors than GPUs; a row
            too long for `config.max_length`; a reference whose losses are not finite.
        RayError: an actor died more often than it is restarted.
    """
    config = config or EvaluationConfig()
    output = Path(output)
    if (actors is not None and actors < 1) or (rows_per_task is not None and rows_per_task < 1):
        raise UserError(f"actors is {actors} and rows_per_task {rows_per_task}; expected at least 1, or None")
    check_models(models, require_forget_quality)
    benchmark = open_benchmark(benchmark_source)
    units = _units(models, benchmark, forget_split, output, config)
    pending = [unit for unit in units if read_metadata(unit.path).get("fingerprint") != unit.fingerprint]
    (output / EVALUATION).unlink(missing_ok=True)
    device = "gpu" if use_gpu else "cpu"
    if pending:
        start_ray()
        chunks = _chunks(pending, rows_per_task or _ROWS_PER_TASK[device])
        count = _actor_count(models, config, actors, use_gpu, len(chunks))
        _score(pending, chunks, config, count, use_gpu, console)
    rows, missing = _table(models, units)
    _write_metrics(output / METRICS, rows)
    about = {
        "status": "complete",
        "benchmark": benchmark_source,
        "forget_split": forget_split,
        "splits": tofu.splits(forget_split),
        "benchmark_fingerprint": benchmark.fingerprint(tofu.splits(forget_split).values()),
        "config": config.model_dump(mode="json"),
        "reference": next((point.model_id for point in models if point.role == "reference"), None),
        "models": {point.model_id: identity(point) for point in models},
        "records": {f"{unit.model.model_id}/{unit.group}": unit.fingerprint for unit in units},
        "missing": missing,
        "device": device,
        "versions": {name: version(name) for name in ("torch", "transformers", "ray", "rouge-score", "scipy")},
    }
    write_json(output / EVALUATION, about)
    import pandas as pd

    return pd.DataFrame(rows).astype(dict.fromkeys(tofu.NAMES, float))


def _units(
    models: Sequence[ModelPoint], benchmark: Benchmark, forget_split: str, output: Path, config: EvaluationConfig
) -> list[_Unit]:
    """Every (model, group), models outermost, so that an actor meets one model after another."""
    groups: dict[str, list[tofu.Item]] = defaultdict(list)
    for item in tofu.tasks(benchmark, forget_split):
        groups[item.group].append(item)
    contents = {group: benchmark.fingerprint([split]) for group, split in tofu.splits(forget_split).items()}
    # The token budget moves numbers by rounding only, so changing it must not throw records away.
    settings = config.model_dump(mode="json", exclude={"token_budget"})
    units = []
    for point in models:
        model = identity(point)
        for group, items in groups.items():
            facts = [SCHEMA_VERSION, settings, model, group, contents[group]]
            fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
            path = output / "records" / point.model_id / f"{group}.parquet"
            units.append(_Unit(point, group, path, fingerprint, tuple(items)))
    return units


def _chunks(units: Sequence[_Unit], rows: int) -> list[pa.Table]:
    """Tasks of at most `rows` rows of one unit, long questions first so that the last tasks are the short ones."""
    tables = []
    for unit in units:
        order = sorted(range(len(unit.items)), key=lambda i: -len(unit.items[i].row.question))
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            tables.append(
                pa.table(
                    {
                        "model_id": [unit.model.model_id] * len(part),
                        "path": [absolute(unit.model)] * len(part),
                        "group": [unit.group] * len(part),
                        "index": part,
                    }
                )
            )
    return tables


def _actor_count(
    models: Sequence[ModelPoint], config: EvaluationConfig, actors: int | None, use_gpu: bool, tasks: int
) -> int:
    cluster = ray.cluster_resources()
    if use_gpu:
        gpus = int(cluster.get("GPU", 0))
        if gpus < (actors or 1):
            raise UserError(
                f"{actors or 1} actors need as many GPUs and the cluster has {gpus}; ask for fewer actors, or none "
                "with a GPU"
            )
        return min(actors or gpus, tasks)
    if actors is not None:
        return min(actors, tasks)
    # A file may hold bf16 and be read as fp32; a quarter on top for activations and the interpreter.
    copies = 2 if config.dtype == "fp32" else 1
    need = max(1, max(weight_bytes(point) for point in models)) * copies * 1.25
    return max(1, min(int(cluster["CPU"]), int(cluster.get("memory", math.inf) // need), tasks))


def _score(
    units: Sequence[_Unit],
    chunks: Sequence[pa.Table],
    config: EvaluationConfig,
    actors: int,
    use_gpu: bool,
    console: Console | None,
) -> None:
    """One Ray Data job over all units; writes each unit's file when its last row has arrived."""
    cpus = ray.cluster_resources()["CPU"]
    items = {unit.group: unit.items for unit in units}
    with _ray_data_settings(), RowProgress("evaluate", sum(len(unit.items) for unit in units), console) as progress:
        actor_options: dict[str, Any] = {
            # Half of the logical CPUs stay free whatever the machine, so the job cannot wait for itself.
            "num_cpus": min(0.5, math.floor(1e4 * cpus / (2 * actors)) / 1e4),
            "num_gpus": 1 if use_gpu else None,
            "max_restarts": _MAX_RESTARTS,
            "max_task_retries": _MAX_TASK_RETRIES,
        }
        with warnings.catch_warnings():
            # Finite retries have no other way in than the free keywords, which Ray 2.60 announces to drop in 2.64.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            scored = ray.data.from_arrow(list(chunks)).map_batches(
                ScoringActor,
                fn_constructor_args=[items, config, max(1, int(cpus) // actors), use_gpu],
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
                **actor_options,
            )
        _collect(units, _tables(scored), progress)


def _tables(scored: Any) -> Iterator[pa.Table]:
    """Result blocks as they arrive; a user's mistake found in an actor is raised as such."""
    try:
        yield from scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        return
    except RayError as error:
        cause = getattr(error, "cause", None)
        if not isinstance(cause, UserError):
            raise
        mistake = str(cause)
    # Raised out here, without the Ray error as its context: that one's frames hold the failed job's actors, and those
    # their CPUs, so that a training started next in this process would wait for ever.
    del cause
    gc.collect()
    raise UserError(mistake)


def _collect(units: Sequence[_Unit], tables: Iterator[pa.Table], progress: RowProgress) -> None:
    """Sort arriving rows into units and write each unit that is whole, rows in the order of its split."""
    open_units = {(unit.model.model_id, unit.group): unit for unit in units}
    arrived: dict[tuple[str, str], dict[str, ItemRecord]] = defaultdict(dict)
    for table in tables:
        model_ids = table["model_id"].to_pylist()
        for model_id, record in zip(model_ids, from_table(table), strict=True):
            key = (model_id, record.group)
            # Keyed by item: a row delivered twice counts once.
            if key in open_units:
                arrived[key][record.item_id] = record
        for key in set(zip(model_ids, table["group"].to_pylist(), strict=True)):
            unit = open_units.get(key)
            if unit is not None and len(arrived[key]) == len(unit.items):
                records = arrived.pop(key)
                ordered = [records[item.row.item_id] for item in unit.items]
                write_parquet(unit.path, ordered, {"fingerprint": unit.fingerprint, "model_id": unit.model.model_id})
                del open_units[key]
        progress.advance(table.num_rows, model_ids[-1])
    assert not open_units, f"Ray Data ended without all rows of {sorted(open_units)}"


@contextmanager
def _ray_data_settings() -> Iterator[None]:
    """For a while: no bars or messages of Ray Data's own (its log file keeps them), actors' exceptions unwrapped."""
    context = ray.data.DataContext.get_current()
    ours = {"enable_progress_bars": False, "print_on_execution_start": False, "raise_original_map_exception": True}
    before = {name: getattr(context, name) for name in ours}
    consoles = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    levels = [handler.level for handler in consoles]
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        for handler in consoles:
            handler.setLevel(logging.CRITICAL)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


def _table(models: Sequence[ModelPoint], units: Sequence[_Unit]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of metrics.csv, and per model the aggregates that are missing with the reason."""
    records: dict[str, dict[str, list[ItemRecord]]] = defaultdict(dict)
    for unit in units:
        records[unit.model.model_id][unit.group] = read_parquet(unit.path)
    reference = None
    for point in models:
        if point.role == "reference":
            problem = _non_finite(records[point.model_id])
            if problem:
                raise UserError(f"the reference '{point.model_id}' cannot be compared with: {problem}")
            reference = tofu.truth_ratios(records[point.model_id]["forget"])
    rows, missing = [], {}
    for point in models:
        groups = records[point.model_id]
        problem = _non_finite(groups)
        if problem:
            values, missing[point.model_id] = dict.fromkeys(tofu.NAMES, math.nan), dict.fromkeys(tofu.NAMES, problem)
        else:
            result = tofu.aggregate(groups, reference)
            values, missing[point.model_id] = result.values, result.missing
        rows.append(
            {
                "model": point.model_id,
                "run": point.run,
                "method": point.method,
                "step": point.step,
                "role": point.role,
                "path": absolute(point),
                **{name: values.get(name) for name in tofu.NAMES},
            }
        )
    return rows, missing


def _non_finite(groups: Mapping[str, Sequence[ItemRecord]]) -> str | None:
    """What is wrong with a model whose losses are NaN or infinite (it has diverged); None if all are finite."""
    rows = [record for records in groups.values() for record in records]
    bad = [
        record.item_id
        for record in rows
        if not all(
            math.isfinite(loss)
            for loss in (record.avg_loss or 0.0, record.paraphrased_loss or 0.0, *record.perturbed_losses)
        )
    ]
    return f"{len(bad)} of {len(rows)} rows have a NaN or infinite loss, the first is {bad[0]}" if bad else None


def _write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table as CSV: full double precision, an empty cell for a missing value, `nan` for a diverged model's."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
