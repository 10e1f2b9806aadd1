"""The robustness suite: attack every model and the retrained reference alike, score all of them in one job, compare.

    models -> fine-tuned and quantised versions -> one evaluation -> ratios (unlearn_core.evaluation.robustness)

    OUTPUT/relearned/          the fine-tuned models (`robustness_relearn`)
    OUTPUT/evaluation/         scores of all versions; column `variant` of its metrics.csv says which
    OUTPUT/robustness.csv      a row for each model, attack and measure
    OUTPUT/leakage.csv         bounds on what sampled answers leak; only where answers were sampled
    OUTPUT/robustness.png, .svg, .pdf
    OUTPUT/robustness.json     settings, ratios, R, Q; written last

The same call on the same output goes on where it stopped.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from pipelines.evaluate import EVALUATION, EvaluationConfig, ModelPoint, evaluate
from pipelines.frontier_plot import save
from pipelines.model_points import Quantisation, check_models
from pipelines.robustness_plot import draw
from pipelines.robustness_relearn import Lessons, RelearnConfig, plan_relearning, relearn
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.evaluation.robustness import (
    ATTACKS,
    Attack,
    Leakage,
    Measured,
    Recovery,
    Score,
    attacks_named,
    knowledge_metrics,
    leakages,
    recoveries,
    scores,
    variant_id,
)
from unlearn_core.evaluation.suite import Suite
from unlearn_core.publish import write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "robustness.json"


@dataclass(frozen=True, slots=True)
class Robustness:
    """What `robustness` found; robustness.json holds the same.

    Attributes:
        metric: the leading measure of knowledge, of R, Q and the picture.
        reference: id of the retrained model.
        attacks: names of the attacks that were run.
        skipped: those that were not, with the reason.
        rows: every model under every attack by every measure.
        scores: each model in short, by each measure, the leading one first.
        leakage: upper confidence bounds on what sampled answers leak; empty where the suite samples none.
    """

    metric: str
    reference: str
    attacks: tuple[str, ...]
    skipped: dict[str, str]
    rows: tuple[Recovery, ...]
    scores: tuple[Score, ...]
    leakage: tuple[Leakage, ...]


def robustness(
    models: Sequence[ModelPoint],
    suite: Suite,
    output: str | Path,
    config: EvaluationConfig | None = None,
    *,
    taught: Lessons,
    relearning: RelearnConfig | None = None,
    attacks: Sequence[str] = tuple(ATTACKS),
    metric: str | None = None,
    actors: int | None = None,
    use_gpu: bool = False,
    console: Console | None = None,
) -> Robustness:
    """Attack and compare.

    Args:
        models: checkpoints and one model of the role `reference`; of the role `target` at most one, which is scored
            and neither fine-tuned nor quantised.
        suite: what is measured; a prompt attack that it does not hold is left out, with a reason.
        output: the folder of everything.
        config: how models are scored; None for the defaults.
        taught: rows of the relearning attacks (`robustness_relearn.lessons`).
        relearning: how models are fine-tuned; None for the defaults.
        attacks: names of `ATTACKS`.
        metric: leading measure of knowledge; None for the suite's first of `KNOWLEDGE`.
        actors: as for `evaluate`.
        use_gpu: one GPU for each scoring actor; `relearning.workers.gpu` is for the fine-tunes.
        console: where progress is drawn; None for silence.

    Returns:
        The ratios.

    Raises:
        UserError: no reference or no checkpoint, an unknown attack or measure, and what `plan_relearning` and
            `evaluate` find; all before a worker starts, but for what only a loaded model shows.
        MissingPackageError: quantisation without bitsandbytes, a picture without matplotlib; before a worker starts.
    """
    config, relearning, output = config or EvaluationConfig(), relearning or RelearnConfig(), Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    checkpoints, reference = _roles(models)
    chosen = attacks_named(attacks)
    metrics = knowledge_metrics(suite.columns, metric)
    skipped = {name: reason for name, reason in taught.skipped.items() if name in attacks}
    skipped |= {
        attack.name: f"the suite '{suite.name}' has no column {attack.column}"
        for attack in chosen
        if attack.kind == "prompt" and not {attack.column, attack.plain} <= set(suite.columns)
    }
    skipped |= {
        attack.name: "it has no rows"
        for attack in chosen
        if attack.kind == "relearning" and attack.name not in {*taught.rows, *skipped}
    }
    run = [attack for attack in chosen if attack.name not in skipped]
    if not run:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"none of the attacks can be run ({why}); name others by --attack")
    attacked = [*checkpoints, reference]
    _check_packages(run)
    _check_ids(models, attacked, run)
    rows = {attack.name: taught.rows[attack.name] for attack in run if attack.kind == "relearning"}
    plans = plan_relearning(attacked, reference, Lessons(rows), output, relearning, config)
    (output / SUMMARY).unlink(missing_ok=True)

    relearned, absent = relearn(plans, console)
    points = [*models, *_quantised(attacked, run), *relearned]
    table = evaluate(
        points,
        suite,
        output / "evaluation",
        config,
        actors=actors,
        use_gpu=use_gpu,
        require_reference=True,
        console=console,
    )
    missing = json.loads((output / "evaluation" / EVALUATION).read_text(encoding="utf-8"))["missing"]
    measured = Measured(_values(table, suite.columns), missing, absent)
    ids = [point.model_id for point in checkpoints]
    found = recoveries(ids, reference.model_id, run, metrics, measured)
    result = Robustness(
        metric=metrics[0],
        reference=reference.model_id,
        attacks=tuple(attack.name for attack in run),
        skipped=skipped,
        rows=tuple(found),
        scores=tuple(score for name in metrics for score in scores(found, name)),
        leakage=tuple(leakages(ids, reference.model_id, suite.columns, measured)),
    )
    methods = {point.model_id: point.method for point in checkpoints}
    target = next((point.model_id for point in models if point.role == "target"), None)
    known = None if target is None else measured.value(target, metrics[0])[0]
    save(draw(result.rows, result.metric, methods, known), output / "robustness")
    write_text(output / "robustness.csv", _csv(result.rows))
    if result.leakage:
        write_text(output / "leakage.csv", _csv(result.leakage))
    about = {
        "status": "complete",
        "benchmark": suite.source,
        "forget_split": suite.forget,
        "target": target,
        "knows_before_unlearning": known,
        **asdict(result),
        "what": {attack.name: attack.what for attack in run},
        "rows_taught": {name: len(taught_rows) for name, taught_rows in rows.items()},
        "relearning": relearning.model_dump(mode="json"),
        "evaluation": config.model_dump(mode="json"),
    }
    write_json(output / SUMMARY, about)
    return result


def robustness_table(result: Robustness) -> Table:
    """For the terminal: a row a model, the ratio under each attack, R, Q and their harmonic mean."""
    prompts = [name for name in result.attacks if ATTACKS[name].kind == "prompt"]
    lines = [
        "ratio under each attack: 1 = nothing comes back that the retrained model does not gain as well",
        *([f"{', '.join(prompts)}: by their own ROUGE-L"] if prompts else []),
        *(f"{name} left out: {reason}" for name, reason in result.skipped.items()),
        *sorted({f"{row.attack}, {row.model}: {row.reason}" for row in result.rows if row.ratio is None}),
    ]
    table = Table(title=f"Recovery by {result.metric}", caption="\n".join(lines), caption_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("knows\nbefore", justify="right")
    for name in (*result.attacks, "robust-\nness"):
        table.add_column(name.replace("-", "-\n") if name in ATTACKS else name, justify="right")
    for score in result.scores:
        if score.metric != result.metric:
            continue
        ratios = {
            row.attack: row.ratio
            for row in result.rows
            if row.model == score.model and (row.kind == "prompt" or row.metric == result.metric)
        }
        table.add_row(
            score.model,
            _number(score.before),
            *(_number(ratios.get(name)) for name in result.attacks),
            _number(score.robustness),
        )
    return table


def leakage_table(result: Robustness) -> Table | None:
    """Upper confidence bounds on sampled leakage for the terminal; None where no answers were sampled."""
    if not result.leakage:
        return None
    columns = list(dict.fromkeys(row.column for row in result.leakage))
    table = Table("model", title="Sampled answers: upper confidence bounds on leakage")
    for column in columns:
        table.add_column(column.removeprefix("sampled_").replace("_", " "), justify="right")
    values = {(row.model, row.column): row.value for row in result.leakage}
    for model in dict.fromkeys(row.model for row in result.leakage):
        table.add_row(model, *(_number(values.get((model, column))) for column in columns))
    return table


def _roles(models: Sequence[ModelPoint]) -> tuple[list[ModelPoint], ModelPoint]:
    """Checkpoints and the reference."""
    for point in models:
        if point.variant or point.quantisation != "none":
            raise UserError(f"{point.model_id} is an attacked version already; give the models as they are")
    references = [point for point in models if point.role == "reference"]
    if not references:
        raise UserError(
            "recovery ratios compare with the model retrained without the forget data, and none was given; give it "
            "by --reference"
        )
    check_models(models, require_reference=True)
    checkpoints = [point for point in models if point.role == "checkpoint"]
    if not checkpoints:
        raise UserError("no unlearned model was given; give at least one run or model folder beside the reference")
    return checkpoints, references[0]


def _check_packages(attacks: Sequence[Attack]) -> None:
    if any(attack.kind == "quantisation" for attack in attacks) and find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "int8 and nf4 need bitsandbytes: pip install 'unlearn[quantisation]'; or name other attacks by --attack"
        )
    if find_spec("matplotlib") is None:
        raise MissingPackageError("the picture needs matplotlib: pip install matplotlib")


def _check_ids(models: Sequence[ModelPoint], attacked: Sequence[ModelPoint], attacks: Sequence[Attack]) -> None:
    given = {point.model_id for point in models}
    for point in attacked:
        for attack in attacks:
            made = variant_id(point.model_id, attack)
            if attack.kind != "prompt" and made in given:
                raise UserError(f"model id '{made}' is what {attack.name} of '{point.model_id}' is called; rename it")


def _quantised(points: Sequence[ModelPoint], attacks: Sequence[Attack]) -> list[ModelPoint]:
    return [
        replace(
            point,
            model_id=variant_id(point.model_id, attack),
            quantisation=cast(Quantisation, attack.name),
            variant=attack.name,
        )
        for point in points
        for attack in attacks
        if attack.kind == "quantisation"
    ]


def _values(table: "pd.DataFrame", columns: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    rows = cast("list[dict[str, Any]]", table.to_dict("records"))
    return {row["model"]: {name: row[name] for name in columns if not math.isnan(row[name])} for row in rows}


def _csv(rows: Sequence[Recovery | Leakage]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
