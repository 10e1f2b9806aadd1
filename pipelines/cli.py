"""The command line: `unlearn SUB-COMMAND --help` teaches each step with examples.

Exit codes: 0 done; 2 the user's mistake, told without a traceback before any worker starts; 3 a run diverged; 130
interrupted; 143 asked to stop by SIGTERM, with a checkpoint.
"""

import itertools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from pipelines import (
    doctor_command,
    evaluate_command,
    robustness_command,
    search_command,
    submit_command,
    watch_command,
)
from pipelines.cluster_command import cluster_app
from pipelines.edit_commands import edit_app
from pipelines.locations import RefusedPlace, followed_place, input_place, output_place, synced
from pipelines.log_commands import logs_app
from unlearn_core.errors import DivergedError, MissingPackageError, StoppedError, UserError

app = typer.Typer(
    name="unlearn",
    help="Make a language model forget chosen training data, on a Ray cluster, and see what it cost.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(edit_app)
app.add_typer(logs_app)
app.add_typer(cluster_app)
app.add_typer(submit_command.jobs_app)
out = Console()
err = Console(stderr=True)

_BESIDE = "Evaluation beside the training"
Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `unlearn recipes`) or a YAML file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key: --set optimizer.learning_rate=1e-4. Repeatable.")
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", parser=output_place, help="Folder for the results; the same command resumes there."),
]

RunOutput = Annotated[
    Path,
    typer.Option("--output", "-o", parser=followed_place, help="The run's folder; the same command goes on there."),
]


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
    "`unlearn train tofu-ngdiff --model outputs/tofu/target --evaluate outputs/scores --reference "
    "outputs/tofu/reference --best-by model_utility --among 'extraction_strength<=0.1' -o outputs/run3`\n\n"
    "Exit code 3 means that the run diverged; its last good checkpoint is kept and named. 4: the run is done, the "
    "evaluation beside it failed.",
)
def train(
    recipe: Recipe,
    output: RunOutput,
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
    evaluate: Annotated[
        Path | None,
        typer.Option(
            parser=output_place,
            help="Score each export meanwhile, into this evaluation folder.",
            rich_help_panel=_BESIDE,
        ),
    ] = None,
    target: evaluate_command.Target = None,
    reference: evaluate_command.Reference = None,
    best_by: watch_command.BestBy = None,
    among: watch_command.Among = None,
    keep: watch_command.KeepExports = "all",
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
    watched = None
    if evaluate is None:
        if best_by or among or target or reference or keep != "all":
            raise UserError("--target, --reference, --best-by, --among and --keep belong to --evaluate FOLDER; give it")
        outcome = run_train(config, output, out)
    else:
        watched = _train_and_watch(config, output, evaluate, target, reference, best_by, among, keep)
        outcome = watched.outcome
    if outcome.status == "diverged":
        err.print(
            f"[bold red]Diverged:[/] {escape(outcome.reason)}. Models exported before that are in {output / 'models'}."
        )
        raise typer.Exit(3)
    out.print(f"{config.name}: {outcome.step} steps done, models in {output / 'models'}", highlight=False)
    if config.optimizer.schedule == "auto":
        out.print(probe_summary(output), highlight=False)
    if watched is not None:
        watch_command.print_choice(watched.choice, output, out)
        if watched.error is not None:
            err.print(
                f"[bold red]The evaluation failed:[/] {escape(str(watched.error))}. `unlearn watch` scores the rest."
            )
            raise typer.Exit(4)


app.command(name="robustness", epilog=robustness_command.EPILOG)(robustness_command.robustness)
app.command(epilog=submit_command.EPILOG, context_settings=submit_command.SETTINGS)(submit_command.submit)
app.command(epilog=doctor_command.EPILOG)(doctor_command.doctor)
app.command(name="watch", epilog=watch_command.EPILOG)(watch_command.watch)


app.command(epilog=evaluate_command.EPILOG)(evaluate_command.evaluate)
app.command(epilog=search_command.EPILOG)(search_command.search)
app.command(epilog="**Example**\n\n`unlearn space ngdiff mean_teacher > space.yaml`")(search_command.space)


@app.command(
    epilog="**Examples**\n\n"
    "`unlearn frontier outputs/evaluation -o outputs/frontier`\n\n"
    "`unlearn frontier eval1 eval2 --forgetting forget_Q_A_ROUGE -o outputs/rouge`\n\n"
    "`unlearn frontier outputs/search-seed0 outputs/search-seed1 outputs/evaluation -o outputs/searches`  (searches of "
    "one goal, with attainment bands over their seeds, and evaluated runs beside them)"
)
def frontier(
    evaluations: Annotated[
        list[Path], typer.Argument(metavar="FOLDERS...", parser=input_place, help="Evaluations and searches.")
    ],
    output: Output,
    forgetting: Annotated[
        str | None, typer.Option(help="Column of the forgetting axis; extraction_strength by default.")
    ] = None,
    utility: Annotated[
        str | None, typer.Option(help="Column of the utility axis; by default the suite's own, such as model_utility.")
    ] = None,
    reference_point: Annotated[
        tuple[float, float] | None, typer.Option(help="Hypervolume's reference point: forgetting utility.")
    ] = None,
) -> None:
    """Draw utility against forgetting: table, non-dominated set, hypervolume, PNG and SVG. Searches: all they show."""
    from pipelines.frontier import frontier as run_frontier
    from pipelines.frontier import summary_table

    if any((folder / "search.json").is_file() for folder in evaluations):
        if forgetting or utility or reference_point:
            raise UserError("A search's own objectives are its axes: leave --forgetting, --utility, --reference-point.")
        search_command.draw_searches(evaluations, output, out)
        return
    summary = run_frontier(evaluations, output, forgetting or "extraction_strength", utility, reference_point)
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
    from unlearn_core.evaluation import tofu

    result = run_demo(output, out, workers)
    evaluate_command.print_headline(pd.read_csv(result.metrics), tofu.HEADLINE, out)
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


def _train_and_watch(
    config: Any,
    output: Path,
    evaluation: Path,
    target: str | None,
    reference: str | None,
    best_by: str | None,
    among: list[str] | None,
    keep: str,
) -> Any:
    """Train, and score the exports on the run's own benchmark meanwhile."""
    from pipelines.suites import build_suite, suite_arguments
    from pipelines.watch import train_and_watch
    from unlearn_core.evaluation.config import EvaluationConfig

    data = config.data
    suite = build_suite(**suite_arguments(data))
    settings = evaluate_command.for_suite(EvaluationConfig(), suite, data.format, None)
    settings = settings.model_copy(
        update={"system_prompt": data.system_prompt, "max_length": max(settings.max_length, data.max_length)}
    )
    stars = (watch_command.one_star(role, name) for role, name in (("target", target), ("reference", reference)))
    star, retrained = stars
    return train_and_watch(
        config, output, suite, evaluation, settings, target=star, reference=retrained, criterion=best_by,
        among=among or (), keep=keep, console=out,  # type: ignore[arg-type]  (checked there)
    )  # fmt: skip


def _load(kind: Any, recipe: str, pairs: list[str] | None, extra: dict[str, Any]) -> Any:
    from pipelines.runs import recipe_path
    from unlearn_core.config import load_config, parse_overrides

    return load_config(kind, recipe_path(recipe), parse_overrides(pairs or []) | extra)


def main() -> None:
    """Entry point of the `unlearn` command."""
    os.umask(0o077)  # models and records of private texts: what is made here is for its maker's eyes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with synced(out):
            app()
    except (UserError, MissingPackageError, RefusedPlace) as error:
        err.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except StoppedError as error:
        err.print(f"Stopped. {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(143)
    except KeyboardInterrupt:
        err.print("Interrupted. The same command goes on from here.")
        sys.exit(130)
    except DivergedError as error:
        err.print(f"[bold red]Diverged:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(3)


if __name__ == "__main__":
    main()
