"""`unlearn evaluate`: score models on TOFU, MUSE or own files, or recompute a published log."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from pipelines import terminal
from pipelines.locations import input_place, model_or_uri, output_place
from unlearn_core.errors import UserError

_DATA, _SETTINGS, _MORE = "What is measured", "Settings", "More measurements"

EPILOG = (
    "**Examples**\n\n"
    "`unlearn evaluate outputs/ngdiff outputs/grad_diff --target outputs/pair/target "
    "--reference outputs/pair/reference --benchmark synthetic:small --forget-split forget10 --format plain "
    "-o outputs/evaluation`\n\n"
    "`unlearn evaluate outputs/npo --target muse-bench/MUSE-News_target --reference muse-bench/MUSE-News_retrain "
    "--benchmark muse-bench/MUSE-News --dtype bf16 --gpu -o outputs/news`  (MUSE's six criteria)\n\n"
    "`unlearn evaluate outputs/own --target my-model --forget mine.jsonl --retain keep.jsonl --holdout unseen.jsonl "
    "-o outputs/own-evaluation`\n\n"
    "`unlearn evaluate --from-log TOFU_EVAL.json --retain-log RETAIN_EVAL.json`  (an open-unlearning per-item log)\n\n"
    "The same command again scores only the rows that are missing."
)

Runs = Annotated[
    list[Path] | None, typer.Argument(parser=input_place, help="Run folders: every exported model is scored.")
]
Target = Annotated[str | None, typer.Option(help="The model before unlearning: run or model folder, or hub name.")]
Reference = Annotated[
    str | None,
    typer.Option(help="The model retrained without the forget data; forget quality and privleak need it."),
]
Benchmark = Annotated[
    str | None,
    typer.Option(
        help="TOFU or MUSE by folder or hub name, synthetic:SIZE or synthetic-muse:SIZE; locuslab/TOFU unless own "
        "files are given.",
        rich_help_panel=_DATA,
    ),
]
ForgetSplit = Annotated[str, typer.Option(help="The split that was forgotten (TOFU).", rich_help_panel=_DATA)]
Forget = Annotated[
    list[Path] | None, typer.Option(help="Own file of rows to forget, in place of a benchmark.", rich_help_panel=_DATA)
]
Retain = Annotated[list[Path] | None, typer.Option(help="Own file of rows to keep.", rich_help_panel=_DATA)]
Holdout = Annotated[
    list[Path] | None,
    typer.Option(help="Own file of rows that no model was trained on: membership attacks.", rich_help_panel=_DATA),
]
Compat = Annotated[
    bool,
    typer.Option(
        "--compat", help="Compute as open-unlearning does where it is wrong (docs/metrics.md).", rich_help_panel=_DATA
    ),
]
Legacy = Annotated[
    bool, typer.Option("--legacy", help="Also the original TOFU harness's aggregates.", rich_help_panel=_MORE)
]
Prompts = Annotated[
    bool,
    typer.Option(
        "--prompts",
        help="Also prompts that open the answer for the model, and paraphrased questions.",
        rich_help_panel=_MORE,
    ),
]
Generic = Annotated[
    str | None,
    typer.Option(
        help="Also perplexity on this text and divergence from the target: a file, folder or hub name.",
        rich_help_panel=_MORE,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="chat or plain, as in training; chat by default, for MUSE's raw texts plain.",
        rich_help_panel=_SETTINGS,
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Tokens a row may have; 512 by default, for MUSE what its texts need.", rich_help_panel=_SETTINGS
    ),
]


def build_points(runs: list[Path] | None, target: str | None, reference: str | None) -> list[Any]:
    """Target and reference, then every exported model of the runs."""
    from pipelines.evaluate import discover_run

    points = [*star("target", target), *star("reference", reference)]
    for run in runs or []:
        points += discover_run(run)
    return points


def star(role: Any, name: str | None) -> list[Any]:
    """A run's final model, or a plain model folder or hub name, as target or reference."""
    from pipelines.evaluate import ModelPoint, discover_run

    if name is None:
        return []
    name = model_or_uri(name)
    if (Path(name) / "run.json").is_file():
        return discover_run(name, role=role)
    return [ModelPoint(model_id=role, path=name, run=role, method="finetune", step=0, role=role)]


def evaluate(
    runs: Runs = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=output_place, help="Folder for records and metrics.")
    ] = None,
    target: Target = None,
    reference: Reference = None,
    benchmark: Benchmark = None,
    forget_split: ForgetSplit = "forget10",
    forget: Forget = None,
    retain: Retain = None,
    holdout: Holdout = None,
    compat: Compat = False,
    legacy: Legacy = False,
    prompts: Prompts = False,
    samples: Annotated[
        int, typer.Option(help="Also this many sampled answers to each forget question.", rich_help_panel=_MORE)
    ] = 0,
    temperature: Annotated[float, typer.Option(help="Of sampled answers.", rich_help_panel=_MORE)] = 1.0,
    gradient_norm: Annotated[
        bool,
        typer.Option("--gradient-norm", help="Also the gradient-norm membership attack.", rich_help_panel=_MORE),
    ] = False,
    generic: Generic = None,
    generic_subset: Annotated[
        str | None, typer.Option(help="Configuration of a hub data set of text.", rich_help_panel=_MORE)
    ] = None,
    generic_documents: Annotated[
        int, typer.Option(help="How many of its documents.", min=1, rich_help_panel=_MORE)
    ] = 200,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(help="Also a task of lm-evaluation-harness, such as mmlu; repeatable.", rich_help_panel=_MORE),
    ] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option(help="Examples of each such task; all by default.", min=1, rich_help_panel=_MORE)
    ] = None,
    lm_eval_path: Annotated[
        Path | None, typer.Option(help="Folder of own task files for it.", rich_help_panel=_MORE)
    ] = None,
    lm_eval_shots: Annotated[
        int | None, typer.Option(help="Examples in its prompts; the task's own by default.", rich_help_panel=_MORE)
    ] = None,
    format_: Format = None,
    max_length: MaxLength = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer where the suite sets none, in tokens.", rich_help_panel=_SETTINGS)
    ] = 200,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.", rich_help_panel=_SETTINGS)] = "fp32",
    attention: Annotated[
        str, typer.Option(help="sdpa, eager or flash_attention_2.", rich_help_panel=_SETTINGS)
    ] = "sdpa",
    token_budget: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of a forward pass, a bound of memory; by default 8192 on a GPU, 2048 on a CPU.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    generation_gib: Annotated[
        float, typer.Option(help="Most memory of keys and values, GiB.", rich_help_panel=_SETTINGS)
    ] = 4.0,
    actors: Annotated[int | None, typer.Option(help="Models in memory at once; default by CPUs, GPUs, memory.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU for each actor.")] = False,
    from_log: Annotated[
        Path | None, typer.Option(parser=input_place, help="Recompute an open-unlearning per-item log instead.")
    ] = None,
    retain_log: Annotated[
        Path | None, typer.Option(parser=input_place, help="Log of the retrained model, for forget quality.")
    ] = None,
) -> Any:
    """Score models on TOFU, MUSE or your own rows in one Ray Data job, or recompute a published log."""
    out = terminal.out
    if from_log is not None:
        from pipelines.log_commands import print_log_check

        return print_log_check(from_log, retain_log, compat)
    if output is None or not (runs or target or reference):
        raise UserError("Give --output and at least one run folder, --target or --reference; or --from-log FILE.")
    from pipelines.claim import claimed
    from pipelines.evaluate import EvaluationConfig, LmEvalTasks
    from pipelines.evaluate import evaluate as run_evaluate
    from pipelines.suites import build_suite
    from unlearn_core.config import build_config
    from unlearn_core.data.config import GenericConfig

    values = {
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "attention": attention,
        "compat": compat,
        "gradient_norm": gradient_norm,
        "samples": samples,
        "temperature": temperature,
        "token_budget": token_budget,
        "generation_gib": generation_gib,
    }
    settings = build_config(EvaluationConfig, values, source="evaluate's options")
    points = build_points(runs, target, reference)
    text = None
    if generic is not None:
        text = GenericConfig(source=generic, subset=generic_subset, documents=generic_documents)
    suite = build_suite(
        benchmark, forget_split, forget=forget or (), retain=retain or (), holdout=holdout or (), compat=compat,
        legacy=legacy, prompts=prompts, sampled=samples > 0, generic=text,
    )  # fmt: skip
    settings = for_suite(settings, suite, format_, max_length)
    tasks = None
    if lm_eval:
        folder = None if lm_eval_path is None else str(lm_eval_path.resolve())
        tasks = LmEvalTasks(tuple(lm_eval), lm_eval_limit, lm_eval_shots, folder)
    for note in suite.notes:
        terminal.work.print(f"note: {note}", highlight=False, soft_wrap=True)
    with claimed(output, "unlearn evaluate"):
        table = run_evaluate(
            points, suite, output, settings, actors=actors, use_gpu=gpu, lm_eval=tasks, console=terminal.work
        )  # fmt: skip
    print_headline(table, (*suite.headline, *(name for name in table.columns if name.startswith("lm_eval/"))), out)
    missing = print_missing(output)
    document = {"output": output, "metrics": output / "metrics.csv", "models": table, "missing": missing}
    if suite.name == "muse":
        from pipelines.muse_criteria import criteria, print_criteria, write_criteria

        found = criteria(table, runs or [], missing)
        print_criteria(found, out)
        write_criteria(output / "criteria.json", found)
        document["criteria"] = found
    out.print(f"all metrics: {output / 'metrics.csv'}", highlight=False)
    from pipelines.score_logging import log_scores

    for problem in log_scores(output):
        terminal.work.print(problem, style="yellow", highlight=False, markup=False, soft_wrap=True)
    return document


def for_suite(settings: Any, suite: Any, style: str | None, max_length: int | None) -> Any:
    """Settings with the defaults that depend on the suite: MUSE's texts are raw, long, and need no chat template."""
    from pipelines.suites import longest_row
    from unlearn_core.config import build_config

    usual = "plain" if suite.name == "muse" else "chat"
    values = settings.model_dump() | {"style": style or usual, "max_length": max_length or longest_row(suite)}
    return build_config(type(settings), values, source="the options")


def print_headline(rows: Any, columns: tuple[str, ...], console: Console) -> None:
    """The columns that tell the story, in as many tables as the width needs; everything is in metrics.csv."""
    # Names break at their underscores; 11 characters hold their longest parts and a number.
    fitting = max(1, (console.width - 30) // 11)
    for start in range(0, len(columns), fitting):
        part = columns[start : start + fitting]
        table = Table(Column("run", overflow="fold"))
        for title in ("step", *part):
            table.add_column(title.replace("_", " "), justify="right")
        for _, row in rows.iterrows():
            run = row["run"] if row["role"] == "checkpoint" else f"{row['run']} ({row['role']})"
            step = "" if row["step"] != row["step"] else str(int(row["step"]))
            table.add_row(run, step, *(f"{row[name]:.3g}" for name in part))
        console.print(table)


def print_missing(output: Path) -> dict[str, dict[str, str]]:
    """Print why cells are empty, once for each reason, and which greedy answers hang on a near tie.

    Returns:
        For each model the columns without a value, with the reason.
    """
    console = terminal.out
    about = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    reasons: dict[str, dict[str, None]] = {}
    for missing in about["missing"].values():
        for column, reason in missing.items():
            reasons.setdefault(reason, {})[column] = None
    for reason, columns in reasons.items():
        console.print(f"missing: {', '.join(columns)}: {reason}", highlight=False)
    near = {model: items for model, items in about["near_ties"].items() if items}
    if near:
        counts = ", ".join(f"{model} {len(items)}" for model, items in near.items())
        console.print(
            "greedy answers with two logits within 1e-4 of each other, which another batch or machine may turn: "
            f"{counts} (listed in evaluation.json)",
            highlight=False,
        )
    return about["missing"]
