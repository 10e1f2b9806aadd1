"""The sub-commands of `unlearn logs`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from pipelines import terminal
from pipelines.locations import input_place, output_place
from pipelines.terminal import ScriptableTyper
from unlearn_core.errors import UserError

logs_app = ScriptableTyper(
    name="logs",
    help="Exchange results with open-unlearning: check its per-item logs, import them as an evaluation, write ours.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Compat = Annotated[
    bool,
    typer.Option(
        "--compat",
        help="Compute as open-unlearning does where it differs: MUSE's ROUGE with stemmer, and without a retrained "
        "model's log privleak against a constant AUC of 0.5.",
    ),
]
RetainLog = Annotated[
    Path | None,
    typer.Option(
        parser=input_place,
        help="Log of the model retrained without the forget data, for forget quality and privleak.",
    ),
]


@logs_app.command(
    epilog="**Examples**\n\n"
    "`unlearn logs check saves/npo/evals/TOFU_EVAL.json --retain-log saves/retain90/TOFU_EVAL.json`\n\n"
    "`unlearn logs check saves/retrain/MUSE_EVAL.json --compat`  (made without a reference)\n\n"
    "Every aggregate is computed again from the log's items; where texts are there, so is each ROUGE."
)
def check(
    log: Annotated[Path, typer.Argument(parser=input_place, help="TOFU_EVAL.json or MUSE_EVAL.json.")],
    retain_log: RetainLog = None,
    compat: Compat = False,
) -> Any:
    """Recompute a log's aggregates from its items and compare with what it says."""
    return print_log_check(log, retain_log, compat)


@logs_app.command(
    name="import",
    epilog="**Examples**\n\n"
    "`unlearn logs import full=saves/full/TOFU_EVAL.json retain=saves/retain90/TOFU_EVAL.json "
    "npo=saves/npo/checkpoint-60/evals/TOFU_EVAL.json npo=saves/npo/evals/TOFU_EVAL.json@120 "
    "--target full --reference retain -o outputs/published`\n\n"
    "`unlearn logs import gd=saves/gd/MUSE_EVAL.json@1020 --benchmark muse-bench/MUSE-News "
    "--retain-log saves/retrain/MUSE_EVAL.json -o outputs/news`\n\n"
    "Then `unlearn frontier outputs/evaluation outputs/published -o outputs/frontier` draws both in one picture. "
    "Benchmark and forget split must be those of the other evaluation.",
)
def import_(
    logs: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=FILE[@STEP]",
            help="A log under the name of its run, saved after STEP optimizer steps; checkpoint-60 in FILE says 60.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", parser=output_place, help="The evaluation's folder.")],
    target: Annotated[str | None, typer.Option(help="NAME of the model before unlearning: a star.")] = None,
    reference: Annotated[str | None, typer.Option(help="NAME of the retrained model: a star.")] = None,
    retain_log: RetainLog = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME=METHOD", help="Method of a run; default: its name. Repeatable.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="As given to `unlearn evaluate`; default: locuslab/TOFU for logs of TOFU.")
    ] = None,
    forget_split: Annotated[
        str | None, typer.Option(help="Default: forget10 for logs of TOFU, raw/forget of MUSE.")
    ] = None,
    compat: Compat = False,
) -> Any:
    """Make an evaluation folder from logs, for `unlearn frontier`."""
    from pipelines.import_logs import import_logs, log_point

    methods = dict(_pair(text) for text in method or [])
    names = {text.partition("=")[0] for text in logs}
    for option, name in (("--target", target), ("--reference", reference), *(("--method", name) for name in methods)):
        if name is not None and name not in names:
            raise UserError(f"{option} {name} is none of the logs; expected one of {', '.join(sorted(names))}")
    points = [log_point(text, target, reference, methods) for text in logs]
    rows = import_logs(
        points, output, benchmark=benchmark, forget_split=forget_split, retain_log=retain_log, compat=compat
    )
    out = terminal.out
    table = Table("model", "role", "method", title="imported")
    columns = [name for name in _HEADLINE if any(row.get(name) is not None for row in rows)]
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        numbers = ("" if row.get(name) is None else f"{row[name]:.3g}" for name in columns)
        table.add_row(row["model"], row["role"], row["method"], *numbers)
    out.print(table)
    out.print(f"all metrics: {output / 'metrics.csv'}", highlight=False)
    return {"output": output, "metrics": output / "metrics.csv", "models": rows}


@logs_app.command(
    epilog="**Examples**\n\n"
    "`unlearn logs export outputs/evaluation --model npo-step-00060 -o saves/npo/TOFU_EVAL.json`\n\n"
    "`unlearn logs export outputs/evaluation --model reference -o saves/retain90/TOFU_EVAL.json`  "
    "(then open-unlearning's `retain_logs_path`)"
)
def export(
    evaluation: Annotated[Path, typer.Argument(parser=input_place, help="Folder that `unlearn evaluate` wrote.")],
    model: Annotated[str, typer.Option(help="The model's id, the first column of metrics.csv.")],
    output: Annotated[Path, typer.Option("--output", "-o", parser=output_place, help="The log, or a folder for it.")],
) -> Any:
    """Write one model's records as an open-unlearning log."""
    from pipelines.import_logs import export_log

    written = export_log(evaluation, model, output)
    out = terminal.out
    out.print(f"{len(written.metrics)} metrics: {written.path}", highlight=False)
    reasons: dict[str, list[str]] = {}
    for name, reason in written.left_out.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        out.print(f"left out, since {reason}: {', '.join(names)}", highlight=False)
    return written


def print_log_check(log: Path, retain_log: Path | None, compat: bool) -> Any:
    """Print a log's aggregates: recomputed, as logged, and how they differ.

    Args:
        log: the model's log.
        retain_log: the retrained model's, or None.
        compat: as for `evaluate_log`.

    Returns:
        The `LogEvaluation`.

    Raises:
        UserError: as `evaluate_log`.
    """
    from unlearn_core.evaluation.open_unlearning_log import evaluate_log

    console = terminal.out
    result = evaluate_log(log, retain_log, compat=compat)
    # Digits are what this table is for: a narrow terminal folds the names instead.
    numbers = (Column(name, no_wrap=True) for name in ("recomputed", "logged"))
    table = Table(Column("aggregate", overflow="fold"), *numbers, "relative difference", title=log.name)
    for name, value in result.recomputed.items():
        logged, difference = result.logged.get(name), result.relative_difference.get(name)
        table.add_row(
            name,
            repr(value),
            "" if logged is None else repr(logged),
            "" if difference is None else f"{difference:.1e}",
        )
    console.print(table)
    for name, reason in result.missing.items():
        console.print(f"{name} is missing: {reason}", highlight=False)
    for note in result.notes:
        console.print(note, highlight=False)
    if result.rouge_items:
        compared = f"{len(result.rouge_mismatches)} differ" if result.rouge_compared else "none compared with the log"
        console.print(f"ROUGE recomputed from texts: {result.rouge_items} items, {compared}", highlight=False)
    console.print(f"largest relative difference of an aggregate: {result.largest_difference:.1e}", highlight=False)
    if result.not_read:
        console.print(f"not part of this suite, left alone: {', '.join(result.not_read)}", highlight=False)
    return result


_HEADLINE = (
    *("extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_quality", "model_utility"),
    *("forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "privleak"),
)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UserError(f"--method {text}: expected NAME=METHOD, such as --method run1=npo")
    return name, value
