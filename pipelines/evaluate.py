"""The Ray Data stage: score many models on a whole suite in one job, keep per-item records, write one table.

    OUTPUT/records/<model id>/<group>.parquet   per-item records (`record_store`)
    OUTPUT/records/<model id>/lm_eval.json      values of lm-evaluation-harness tasks (`lm_eval_job`)
    OUTPUT/metrics.csv                          one row per model
    OUTPUT/evaluation.json                      settings, fingerprints, versions; written last, so its presence means
                                                that the table is whole

The same call on the same output scores only the rows that are missing or were scored under other settings, rows or
weights. OUTPUT is written by the calling process alone; model folders must be reachable under the same path from every
node. The only importer of `ray.data`.
"""

import csv
import gc
import io
import json
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError
from rich.console import Console

from pipelines.lm_eval_job import LmEvalActor, LmEvalTasks, fingerprint, keep_result, read_result
from pipelines.model_points import ModelPoint, Role, absolute, check_models, discover_run, identity, weight_bytes
from pipelines.ray_session import start_ray
from pipelines.record_store import UnitWriter, units_of
from pipelines.row_progress import RowProgress
from pipelines.scoring_actor import ScoringActor
from unlearn_core.errors import UserError
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.records import ItemRecord, from_table, read_parquet
from unlearn_core.evaluation.suite import Records, Suite, near_ties, non_finite
from unlearn_core.publish import write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EvaluationConfig", "LmEvalTasks", "ModelPoint", "Role", "discover_run", "evaluate"]

EVALUATION = "evaluation.json"
METRICS = "metrics.csv"

# A row that kills its actor is retried for ever by Ray Data's defaults; here its fourth death ends the job.
_MAX_RESTARTS = 3
_MAX_TASK_RETRIES = 3
# The rows of a task: enough for full batches, few enough that 800 rows keep two actors busy to the end.
_ROWS_PER_TASK = {"cpu": 256, "gpu": 512}


def evaluate(
    models: Sequence[ModelPoint],
    suite: Suite,
    output: str | Path,
    config: EvaluationConfig | None = None,
    *,
    actors: int | None = None,
    use_gpu: bool = False,
    require_reference: bool = False,
    rows_per_task: int | None = None,
    lm_eval: LmEvalTasks | None = None,
    console: Console | None = None,
) -> "pd.DataFrame":
    """Score models on a suite.

    Numbers do not depend on `actors`, `use_gpu` or `rows_per_task` except by rounding.

    Args:
        models: what to score. If one has the role `reference`, whatever compares with the retrained model does so with
            it; if one has the role `target`, divergences are from it.
        suite: what is measured and aggregated.
        output: the evaluation's folder.
        config: settings that change numbers; None for the defaults.
        actors: models in memory at once. None for one per GPU, or one per CPU as far as memory holds them.
        use_gpu: give each actor one GPU.
        require_reference: a missing reference is an error before any work, not missing columns.
        rows_per_task: rows handed to an actor at a time; None for 256 on CPU, 512 on GPU.
        lm_eval: tasks of lm-evaluation-harness to run too; None for none.
        console: where to draw progress; None for silence.

    Returns:
        What metrics.csv holds: a row per model in the order given, columns `model`, `run`, `method`, `step`, `role`,
        `path`, `variant`, then `suite.columns` and those of `lm_eval`. NaN where an aggregate is missing or the
        model's losses are not finite; evaluation.json says why.

    Raises:
        UserError: a mistake in the arguments, found before Ray starts where it can be; more actors than GPUs; a row
            too long for `config.max_length`; a reference whose losses are not finite.
        RayError: an actor died more often than it is restarted.
    """
    config = config or EvaluationConfig()
    output = Path(output)
    if (actors is not None and actors < 1) or (rows_per_task is not None and rows_per_task < 1):
        raise UserError(f"actors is {actors} and rows_per_task {rows_per_task}; expected at least 1, or None")
    check_models(models, require_reference)
    if lm_eval is not None:
        from unlearn_core.evaluation.lm_eval_tasks import check_tasks

        check_tasks(lm_eval.tasks, lm_eval.include_path)
    units = units_of(models, suite, output, config)
    (output / EVALUATION).unlink(missing_ok=True)
    device = "gpu" if use_gpu else "cpu"
    pending = [writer for writer in (UnitWriter(unit) for unit in units if not unit.whole) if writer.missing]
    if pending:
        start_ray()
        chunks = _chunks(pending, rows_per_task or _ROWS_PER_TASK[device])
        count = _actor_count(models, suite, config, actors, use_gpu, len(chunks))
        _score(pending, chunks, suite, models, config, count, use_gpu, console)
    records: dict[str, dict[str, list[ItemRecord]]] = defaultdict(dict)
    for unit in units:
        records[unit.model.model_id][unit.group] = read_parquet(unit.path)
    rows, missing = _table(models, suite, records, config)
    columns = list(suite.columns)
    if lm_eval is not None:
        values = _run_lm_eval(models, suite, lm_eval, output, config, actors, use_gpu, console)
        more = list(dict.fromkeys(name for point in models for name in values[point.model_id]))
        rows = [row | {name: values[row["model"]].get(name) for name in more} for row in rows]
        columns += more
    _write_metrics(output / METRICS, rows)
    about = {
        "status": "complete",
        "suite": suite.name,
        "benchmark": suite.source,
        "forget_split": suite.forget,
        "benchmark_fingerprint": suite.fingerprint,
        "compat": config.compat,
        "config": config.model_dump(mode="json"),
        "reference": next((p.model_id for p in models if p.role == "reference" and not p.variant), None),
        "target": next((p.model_id for p in models if p.role == "target" and not p.variant), None),
        "models": {point.model_id: identity(point) for point in models},
        "records": {f"{unit.model.model_id}/{unit.group}": unit.fingerprint for unit in units},
        "missing": missing,
        "near_ties": {model_id: near for model_id, groups in records.items() if (near := near_ties(groups))},
        "notes": list(suite.notes),
        "device": device,
        "versions": {name: version(name) for name in ("torch", "transformers", "ray", "rouge-score", "scipy")},
    }
    write_json(output / EVALUATION, about)
    import pandas as pd

    return pd.DataFrame(rows).astype(dict.fromkeys(columns, float))


def _chunks(writers: Sequence[UnitWriter], rows: int) -> list[pa.Table]:
    """Tasks of at most `rows` missing rows of one unit, long prompts first, so that the last tasks are short ones."""
    tables = []
    for writer in writers:
        unit = writer.unit
        order = sorted(writer.missing, key=lambda i: -len(unit.items[i].prompt) - len(unit.items[i].answer))
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            tables.append(
                pa.table(
                    {
                        "model_id": [unit.model.model_id] * len(part),
                        "path": [absolute(unit.model)] * len(part),
                        "quantisation": [unit.model.quantisation] * len(part),
                        "group": [unit.group] * len(part),
                        "index": part,
                    }
                )
            )
    return tables


def _actor_count(
    models: Sequence[ModelPoint],
    suite: Suite,
    config: EvaluationConfig,
    actors: int | None,
    use_gpu: bool,
    tasks: int,
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
    held = 2 if any(item.kl for item in suite.items) else 1
    need = max(1, max(weight_bytes(point) for point in models)) * copies * held * 1.25
    return max(1, min(int(cluster["CPU"]), int(cluster.get("memory", math.inf) // need), tasks))


def _score(
    writers: Sequence[UnitWriter],
    chunks: Sequence[pa.Table],
    suite: Suite,
    models: Sequence[ModelPoint],
    config: EvaluationConfig,
    actors: int,
    use_gpu: bool,
    console: Console | None,
) -> None:
    """One Ray Data job over all missing rows; each arriving block is kept on disk."""
    cpus = ray.cluster_resources()["CPU"]
    target = next((absolute(point) for point in models if point.role == "target" and not point.variant), None)
    rows = sum(len(writer.missing) for writer in writers)
    kept = sum(len(writer.unit.items) for writer in writers) - rows
    if kept and console is not None:
        console.print(
            f"evaluate: {kept} rows were scored before an interruption and are kept", highlight=False, soft_wrap=True
        )
    with _ray_data_settings(), RowProgress("evaluate", rows, console) as progress:
        arguments = [suite.groups, config, max(1, int(cpus) // actors), use_gpu, target]
        _collect(writers, _mapped(chunks, ScoringActor, arguments, actors, use_gpu), progress)


def _run_lm_eval(
    models: Sequence[ModelPoint],
    suite: Suite,
    tasks: LmEvalTasks,
    output: Path,
    config: EvaluationConfig,
    actors: int | None,
    use_gpu: bool,
    console: Console | None,
) -> dict[str, dict[str, float]]:
    """Values by model; a model whose values are there is not run again."""
    wanted = {point.model_id: fingerprint(point, tasks, config) for point in models}
    kept = {point.model_id: read_result(output, point, wanted[point.model_id]) for point in models}
    found = {model_id: values for model_id, values in kept.items() if values is not None}
    pending = {point.model_id: point for point in models if point.model_id not in found}
    if not pending:
        return found
    start_ray()
    count = _actor_count(models, suite, config, actors, use_gpu, len(pending))
    names = ("model_id", "path", "quantisation")
    tables = [
        pa.table(dict(zip(names, ([point.model_id], [absolute(point)], [point.quantisation]), strict=True)))
        for point in pending.values()
    ]
    threads = max(1, int(ray.cluster_resources()["CPU"]) // count)
    with _ray_data_settings(), RowProgress(f"lm-eval {', '.join(tasks.tasks)}", len(pending), console) as progress:
        for table in _mapped(tables, LmEvalActor, [tasks, config, threads, use_gpu], count, use_gpu):
            for row in table.to_pylist():
                model_id = row["model_id"]
                found[model_id] = json.loads(row["values"])
                keep_result(output, pending[model_id], wanted[model_id], found[model_id])
                progress.advance(1, model_id)
    return found


def _mapped(
    tables: Sequence[pa.Table], actor: type, arguments: list[Any], actors: int, use_gpu: bool
) -> Iterator[pa.Table]:
    """Each table through an actor of a pool, in the order in which they are done."""
    cpus = ray.cluster_resources()["CPU"]
    options: dict[str, Any] = {
        # Half of the logical CPUs stay free whatever the machine, so the job cannot wait for itself.
        "num_cpus": min(0.5, math.floor(1e4 * cpus / (2 * actors)) / 1e4),
        "num_gpus": 1 if use_gpu else None,
        "max_restarts": _MAX_RESTARTS,
        "max_task_retries": _MAX_TASK_RETRIES,
    }
    with warnings.catch_warnings():
        # Finite retries have no other way in than the free keywords, which Ray 2.60 announces to drop in 2.64.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        mapped = ray.data.from_arrow(list(tables)).map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            **options,
        )
    return _tables(mapped)


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


def _collect(writers: Sequence[UnitWriter], tables: Iterator[pa.Table], progress: RowProgress) -> None:
    """Hand arriving rows to their units."""
    open_units = {(writer.unit.model.model_id, writer.unit.group): writer for writer in writers}
    for table in tables:
        model_ids = table["model_id"].to_pylist()
        arrived: dict[tuple[str, str], list[ItemRecord]] = defaultdict(list)
        for model_id, record in zip(model_ids, from_table(table), strict=True):
            arrived[model_id, record.group].append(record)
        for key, records in arrived.items():
            # A unit that is whole already gets nothing more: its rows would be a task that was run twice.
            if key in open_units and open_units[key].add(records):
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


def _table(
    models: Sequence[ModelPoint], suite: Suite, records: Mapping[str, Records], config: EvaluationConfig
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of metrics.csv, and per model the aggregates that are missing with the reason."""
    reference = None
    for point in models:
        if point.role == "reference" and not point.variant:
            problem = non_finite(records[point.model_id])
            if problem:
                raise UserError(f"the reference '{point.model_id}' cannot be compared with: {problem}")
            reference = records[point.model_id]
    rows, missing = [], {}
    for point in models:
        problem = non_finite(records[point.model_id])
        if problem:
            values = dict.fromkeys(suite.columns, math.nan)
            missing[point.model_id] = dict.fromkeys(suite.columns, problem)
        else:
            result = suite.aggregate(records[point.model_id], reference, config.compat)
            values, missing[point.model_id] = result.values, result.missing
        rows.append(
            {
                "model": point.model_id,
                "run": point.run,
                "method": point.method,
                "step": point.step,
                "role": point.role,
                "path": absolute(point),
                "variant": point.variant,
                **{name: values.get(name) for name in suite.columns},
            }
        )
    return rows, missing


def _write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table as CSV: full double precision, an empty cell for a missing value, `nan` for a diverged model's."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
