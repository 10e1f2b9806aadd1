"""The command line: `unlearn SUB-COMMAND --help` teaches each step with examples.

Exit codes: 0 done; 2 the user's mistake, told without a traceback before any worker starts; 3 a run diverged.
"""

import itertools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from pipelines.edit_commands import edit_app
from unlearn_core.errors import DivergedError, MissingPackageError, UserError

app = typer.Typer(
    name="unlearn",
    help="Make a language model forget chosen training data, on a Ray cluster, and see what it cost.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(edit_app)
out = Console()
err = Console(stderr=True)

Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `unlearn recipes`) or a YAML file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key: --set optimizer.learning_rate=1e-4. Repeatable.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; the same command resumes there.")]


@app.command(
    epilog="**Examples**\n\n"
    "`unlearn finetune demo-finetune -o outputs/pair`\n\n"
    "`unlearn finetune tofu-finetune --set model.path=meta-llama/Llama-3.2-1B-Instruct -o outputs/tofu`"
)
def finetune(recipe: Recipe, output: Output, set_: Set = None) -> None:
    """Make a target model, which learned everything, and a retain-only reference model."""
    from pipelines.finetune import finetune as run_finetune
    from unlearn_core.config import FinetuneConfig

    pair = run_finetune(_load(FinetuneConfig, recipe, set_, {}), output, out)
    out.print(f"target     {pair.target}\nreference  {pair.reference}", highlight=False)


SEQUENTIAL = "--sequential"


def one_value_each(arguments: list[str], option: str) -> list[str]:
    """`--option a b c` as `--option a --option b --option c`: all up to the next argument that starts with a dash.

    Raises:
        UserError: nothing follows the option.
    """
    spread: list[str] = []
    taking = False
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        if argument == option:
            if following.startswith("-"):
                raise UserError(
                    f"{option} has no name after it; expected the splits or files of the requests, all of them, "
                    f"such as {option} forget01 forget05. The recipe comes before it."
                )
            taking = True
        elif argument.startswith(f"{option}="):
            taking = True
            spread.append(argument)
        elif taking and not argument.startswith("-"):
            spread += [option, argument]
        else:
            taking = False
            spread.append(argument)
    return spread


class _ManyRequests(TyperCommand):
    """A command whose `--sequential` takes all the names that follow it; the parser knows one value an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from pipelines.runs import recipes as all_recipes

        spread = one_value_each(args, SEQUENTIAL)
        known = all_recipes()
        for option, name in itertools.pairwise(spread):
            if option == SEQUENTIAL and (name in known or name.endswith((".yaml", ".yml"))):
                raise UserError(
                    f"{SEQUENTIAL} took '{name}', which is a recipe; expected splits or files. The recipe comes "
                    f"before {SEQUENTIAL}, such as unlearn train {name} {SEQUENTIAL} ..."
                )
        return super().parse_args(ctx, spread)


@app.command(
    cls=_ManyRequests,
    epilog="**Examples**\n\n"
    "`unlearn train demo-ngdiff --model outputs/pair/target -o outputs/ngdiff`\n\n"
    "`unlearn train tofu-ngdiff --model outputs/tofu/target --set optimizer.learning_rate=2e-5 -o outputs/run2`\n\n"
    "`unlearn train own-files --model outputs/tofu/target --set data.forget=[mine.jsonl] "
    "--set data.retain=[keep.jsonl] -o outputs/own`\n\n"
    "`unlearn train muse-news-ngdiff --model muse-bench/MUSE-News_target --sequential sust/forget_1 sust/forget_2 "
    "sust/forget_3 -o outputs/requests`  (the recipe comes before `--sequential`)\n\n"
    "Exit code 3 means that the run diverged; its last good checkpoint is kept and named.",
)
def train(
    recipe: Recipe,
    output: Output,
    model: Annotated[
        str | None, typer.Option(help="Model to unlearn: a run folder, a Hugging Face folder or a hub name.")
    ] = None,
    sequential: Annotated[
        list[str] | None,
        typer.Option(
            SEQUENTIAL,
            metavar="<split or file> ...",
            help="Forget requests served one after the other, each for the recipe's `steps`, in place of data.forget: "
            "all names up to the next option.",
        ),
    ] = None,
    set_: Set = None,
) -> None:
    """Unlearn: run a method on Ray Train workers and export its checkpoints."""
    from pipelines.runs import probe_summary, resolve_model
    from pipelines.train import train as run_train
    from unlearn_core.config import RunConfig

    extra: dict[str, Any] = {} if model is None else {"model.path": resolve_model(model)}
    if sequential:
        extra |= {"data.sequential": sequential, "data.forget": []}
    config = _load(RunConfig, recipe, set_, extra)
    outcome = run_train(config, output, out)
    if outcome.status == "diverged":
        err.print(f"[bold red]Diverged:[/] {outcome.reason}. Models exported before that are in {output / 'models'}.")
        raise typer.Exit(3)
    out.print(f"{config.name}: {outcome.step} steps done, models in {output / 'models'}", highlight=False)
    if config.optimizer.schedule == "auto":
        out.print(probe_summary(output), highlight=False)


@app.command(
    epilog="**Examples**\n\n"
    "`unlearn evaluate outputs/ngdiff outputs/grad_diff --target outputs/pair/target "
    "--reference outputs/pair/reference --benchmark synthetic:small --forget-split forget10 --format plain "
    "-o outputs/evaluation`\n\n"
    "`unlearn evaluate --from-log TOFU_EVAL.json --retain-log RETAIN_EVAL.json`  (an open-unlearning per-item log)"
)
def evaluate(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders: every exported model is scored.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for records and metrics.")] = None,
    target: Annotated[str | None, typer.Option(help="The model before unlearning: run or model folder.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The model retrained without the forget data; forget quality needs it.")
    ] = None,
    benchmark: Annotated[str, typer.Option(help="synthetic:SIZE, a TOFU folder, or a hub name.")] = "locuslab/TOFU",
    forget_split: Annotated[str, typer.Option(help="The split that was forgotten.")] = "forget10",
    format_: Annotated[str, typer.Option("--format", help="chat or plain, as in training.")] = "chat",
    max_length: Annotated[int, typer.Option(help="Tokens a row may have.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(help="Longest greedy answer, in tokens.")] = 200,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    actors: Annotated[int | None, typer.Option(help="Models in memory at once; default by CPUs, GPUs, memory.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU for each actor.")] = False,
    from_log: Annotated[Path | None, typer.Option(help="Recompute an open-unlearning per-item log instead.")] = None,
    retain_log: Annotated[Path | None, typer.Option(help="Log of the retrained model, for forget quality.")] = None,
) -> None:
    """Score models on TOFU in one Ray Data job, or recompute the aggregates of a published log."""
    if from_log is not None:
        _from_log(from_log, retain_log)
        return
    if output is None or not (runs or target or reference):
        raise UserError("Give --output and at least one run folder, --target or --reference; or --from-log FILE.")
    from pipelines.evaluate import EvaluationConfig, discover_run
    from pipelines.evaluate import evaluate as run_evaluate
    from unlearn_core.config import build_config

    values = {"style": format_, "max_length": max_length, "max_new_tokens": max_new_tokens, "dtype": dtype}
    settings = build_config(EvaluationConfig, values, source="evaluate's options")
    points = [*_star("target", target), *_star("reference", reference)]
    for run in runs or []:
        points += discover_run(run)
    table = run_evaluate(
        points, benchmark, forget_split, output, settings, actors=actors, use_gpu=gpu, console=out
    )  # fmt: skip
    if reference is None:
        out.print("forget quality is missing: it needs --reference, a model retrained without the forget data")
    _print_metrics(table)
    out.print(f"all metrics: {output / 'metrics.csv'}", highlight=False)


@app.command(
    epilog="**Examples**\n\n"
    "`unlearn frontier outputs/evaluation -o outputs/frontier`\n\n"
    "`unlearn frontier eval1 eval2 --forgetting forget_Q_A_ROUGE -o outputs/rouge`"
)
def frontier(
    evaluations: Annotated[list[Path], typer.Argument(help="Evaluation folders.")],
    output: Output,
    forgetting: Annotated[str, typer.Option(help="Column of the forgetting axis.")] = "extraction_strength",
    utility: Annotated[str, typer.Option(help="Column of the utility axis.")] = "model_utility",
    reference_point: Annotated[
        tuple[float, float] | None, typer.Option(help="Hypervolume's reference point: forgetting utility.")
    ] = None,
) -> None:
    """Draw utility against forgetting: table, non-dominated set, hypervolume, PNG and SVG."""
    from pipelines.frontier import frontier as run_frontier
    from pipelines.frontier import summary_table

    summary = run_frontier(evaluations, output, forgetting, utility, reference_point)
    out.print(summary_table(summary))
    out.print(f"picture: {output / 'frontier.png'}   points: {output / 'frontier.csv'}", highlight=False)


@app.command(epilog="**Example**\n\n`unlearn demo -o outputs/demo`")
def demo(
    output: Output = Path("outputs/demo"),
    workers: Annotated[int | None, typer.Option(help="Ray Train workers of each run.", min=1)] = None,
) -> None:
    """The whole line in minutes: train, unlearn with NGDiff and GradDiff, evaluate, draw the frontier."""
    import pandas as pd

    from pipelines.demo import demo as run_demo
    from pipelines.frontier import summary_table

    result = run_demo(output, out, workers)
    _print_metrics(pd.read_csv(result.metrics))
    out.print(summary_table(result.summary))
    out.print(f"picture: {result.plot}\ntable:   {result.metrics}", highlight=False)


@app.command(epilog="**Examples**\n\n`unlearn recipes`\n\n`unlearn recipes tofu-ngdiff > my-run.yaml`")
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe's YAML.")] = None) -> None:
    """List the recipes that come with the package, or print one to start from."""
    from pipelines.runs import recipe_path, recipe_summary
    from pipelines.runs import recipes as all_recipes

    if name is not None:
        sys.stdout.write(recipe_path(name).read_text(encoding="utf-8"))
        return
    table = Table("recipe", "command", "what it does")
    for recipe, path in all_recipes().items():
        command, summary = recipe_summary(path)
        table.add_row(recipe, f"unlearn {command}", summary)
    out.print(table)


def _load(kind: Any, recipe: str, pairs: list[str] | None, extra: dict[str, Any]) -> Any:
    from pipelines.runs import recipe_path
    from unlearn_core.config import load_config, parse_overrides

    return load_config(kind, recipe_path(recipe), parse_overrides(pairs or []) | extra)


def _star(role: Any, name: str | None) -> list[Any]:
    """A run's final model, or a plain model folder or hub name, as target or reference."""
    from pipelines.evaluate import ModelPoint, discover_run

    if name is None:
        return []
    if (Path(name) / "run.json").is_file():
        return discover_run(name, role=role)
    return [ModelPoint(model_id=role, path=name, run=role, method="finetune", step=0, role=role)]


def _from_log(log: Path, retain_log: Path | None) -> None:
    from unlearn_core.evaluation.open_unlearning_log import evaluate_log

    result = evaluate_log(log, retain_log)
    table = Table("aggregate", "recomputed", "logged", "relative difference", title=log.name)
    for name, value in result.recomputed.items():
        logged, difference = result.logged.get(name), result.relative_difference.get(name)
        table.add_row(
            name,
            repr(value),
            "" if logged is None else repr(logged),
            "" if difference is None else f"{difference:.1e}",
        )
    out.print(table)
    for name, reason in result.missing.items():
        out.print(f"{name} is missing: {reason}", highlight=False)
    if result.rouge_items:
        out.print(f"ROUGE recomputed from texts: {result.rouge_items} items, {len(result.rouge_mismatches)} differ")
    out.print(f"largest relative difference of an aggregate: {result.largest_difference:.1e}", highlight=False)
    if result.not_read:
        out.print(f"not part of this suite, left alone: {', '.join(result.not_read)}", highlight=False)


def _print_metrics(rows: Any) -> None:
    """The columns that tell the story, under names that fit a terminal; everything is in metrics.csv."""
    columns = {
        "forget_Q_A_Prob": "forget\nprob.",
        "forget_Q_A_ROUGE": "forget\nROUGE-L",
        "extraction_strength": "extraction\nstrength",
        "forget_quality": "forget\nquality",
        "model_utility": "model\nutility",
    }
    table = Table("run")
    for title in ("step", *columns.values()):
        table.add_column(title, justify="right")
    for _, row in rows.iterrows():
        run = row["run"] if row["role"] == "checkpoint" else f"{row['run']} ({row['role']})"
        table.add_row(run, str(row["step"]), *(f"{row[name]:.3g}" for name in columns))
    out.print(table)


def main() -> None:
    """Entry point of the `unlearn` command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (UserError, MissingPackageError) as error:
        err.print(f"[bold red]Error:[/] {error}", markup=True, highlight=False, soft_wrap=True)
        sys.exit(2)
    except DivergedError as error:
        err.print(f"[bold red]Diverged:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(3)


if __name__ == "__main__":
    main()
