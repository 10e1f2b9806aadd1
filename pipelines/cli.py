"""The command line: `unlearn SUB-COMMAND --help` teaches each step with examples.

Exit codes: 0 done; 1 a check failed, a plan does not fit, a job failed; 2 the user's mistake, told without a traceback
before any worker starts; 3 a run diverged; 4 the run is done and the evaluation beside it failed; 130 interrupted; 143
asked to stop by SIGTERM, with a checkpoint.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines import (
    card_commands,
    completion,
    doctor_command,
    evaluate_command,
    plan_command,
    report_command,
    robustness_command,
    search_command,
    show_command,
    submit_command,
    terminal,
    train_command,
    watch_command,
)
from pipelines.cluster_command import cluster_app
from pipelines.edit_commands import edit_app
from pipelines.locations import RefusedPlace, input_place, synced
from pipelines.log_commands import logs_app
from pipelines.terminal import ScriptableTyper, fail
from pipelines.train_command import Output
from unlearn_core.errors import DivergedError, MissingPackageError, StoppedError, UserError

app = ScriptableTyper(
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

app.command(epilog=train_command.FINETUNE_EPILOG)(train_command.finetune)
app.command(cls=train_command.ManyRequests, epilog=train_command.TRAIN_EPILOG)(train_command.train)
app.command(name="robustness", epilog=robustness_command.EPILOG)(robustness_command.robustness)
app.command(epilog=submit_command.EPILOG, context_settings=submit_command.SETTINGS)(submit_command.submit)
app.command(epilog=doctor_command.EPILOG)(doctor_command.doctor)
app.command(epilog=plan_command.EPILOG)(plan_command.plan)
app.command(epilog=report_command.EPILOG)(report_command.report)
app.command(name="watch", epilog=watch_command.EPILOG)(watch_command.watch)
app.command(epilog=show_command.EPILOG)(show_command.show)
app.command(epilog=card_commands.CARD_EPILOG)(card_commands.card)
app.command(epilog=card_commands.PUSH_EPILOG)(card_commands.push)
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
        list[Path], typer.Argument(metavar="FOLDERS", parser=input_place, help="Evaluations and searches.")
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
) -> Any:
    """Draw utility against forgetting: table, non-dominated set, hypervolume, PNG and SVG. Searches: all they show."""
    from pipelines.frontier import frontier as run_frontier
    from pipelines.frontier import summary_table

    if any((folder / "search.json").is_file() for folder in evaluations):
        if forgetting or utility or reference_point:
            raise UserError("A search's own objectives are its axes: leave --forgetting, --utility, --reference-point.")
        return search_command.draw_searches(evaluations, output)
    summary = run_frontier(evaluations, output, forgetting or "extraction_strength", utility, reference_point)
    terminal.out.print(summary_table(summary))
    terminal.out.print(
        f"picture: {output / 'frontier.png'}   points: {output / 'frontier.csv'}", highlight=False, soft_wrap=True
    )
    return summary


@app.command(epilog="**Example**\n\n`unlearn demo -o outputs/demo`")
def demo(
    output: Output = Path("outputs/demo"),
    workers: Annotated[int | None, typer.Option(help="Ray Train workers of each run.", min=1)] = None,
) -> Any:
    """The whole line in minutes: train, unlearn with NGDiff and GradDiff, evaluate, write frontier and report."""
    import pandas as pd

    from pipelines.demo import demo as run_demo
    from pipelines.frontier import summary_table
    from unlearn_core.evaluation import tofu

    result = run_demo(output, terminal.work, workers)
    table = pd.read_csv(result.metrics)
    evaluate_command.print_headline(table, tofu.HEADLINE, terminal.out)
    terminal.out.print(summary_table(result.summary))
    terminal.out.print(
        f"picture: {result.plot}\ntable:   {result.metrics}\nreport:  {result.page}  (open it in a browser)",
        highlight=False,
    )
    return {
        "report": result.page,
        "picture": result.plot,
        "table": result.metrics,
        "models": table,
        "frontier": result.summary,
    }


@app.command(epilog="**Examples**\n\n`unlearn recipes`\n\n`unlearn recipes tofu-ngdiff > my-run.yaml`")
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe's YAML.", autocompletion=completion.recipe_names)
    ] = None,
) -> Any:
    """List the recipes that come with the package, or print one to start from."""
    from pipelines.runs import recipe_path, recipe_summary
    from pipelines.runs import recipes as all_recipes

    if name is not None:
        text = recipe_path(name).read_text(encoding="utf-8")
        if not terminal.out.quiet:
            sys.stdout.write(text)
        return {"recipe": name, "yaml": text}
    table, found = Table("recipe", "command", "what it does"), []
    for recipe, path in all_recipes().items():
        command, summary = recipe_summary(path)
        table.add_row(recipe, f"unlearn {command}", summary)
        found.append({"recipe": recipe, "command": command, "summary": summary})
    terminal.out.print(table)
    return found


def main() -> None:
    """Entry point of the `unlearn` command."""
    os.umask(0o077)  # models and records of private texts: what is made here is for its maker's eyes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    terminal.settle(as_json=False, quiet=False)
    try:
        with synced(terminal.out):
            app()
    except (UserError, MissingPackageError, RefusedPlace) as error:
        kind = "UserError" if isinstance(error, RefusedPlace) else type(error).__name__
        fail(kind, str(error), 2)
        sys.exit(2)
    except StoppedError as error:
        fail("StoppedError", f"Stopped. {error}", 143, title="")
        sys.exit(143)
    except KeyboardInterrupt:
        fail("Interrupted", "Interrupted. The same command goes on from here.", 130, title="")
        sys.exit(130)
    except DivergedError as error:
        fail("DivergedError", str(error), 3, title="Diverged")
        sys.exit(3)


if __name__ == "__main__":
    main()
