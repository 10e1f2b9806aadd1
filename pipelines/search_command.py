"""`unlearn search` and `unlearn space`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import completion, terminal
from pipelines.locations import output_place
from unlearn_core.errors import UserError

EPILOG = (
    "**Examples**\n\n"
    "`unlearn search demo-search --target outputs/demo/finetune/target --reference outputs/demo/finetune/reference "
    "-o outputs/search`\n\n"
    "`unlearn search tofu-search --target outputs/tofu/target --reference outputs/tofu/reference --hours 12 "
    "-o outputs/tofu-search`\n\n"
    "`unlearn search tofu-search --target T --reference R --trials 60 --searcher sobol --set methods=[npo,simnpo] "
    "-o outputs/preferences`\n\n"
    "The same command again goes on where it was killed; with a larger budget it adds trials. `unlearn frontier "
    "outputs/search -o outputs/frontier` draws it, alone or beside other searches and runs."
)


def search(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A search recipe (see `unlearn recipes`) or a YAML file.", autocompletion=completion.search_recipes
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=output_place, help="Folder of the search; the same command resumes."),
    ],
    target: Annotated[str, typer.Option(help="The model to unlearn: run or model folder, or hub name.")],
    reference: Annotated[
        str | None, typer.Option(help="The model retrained without the forget data, which forgetting aims at.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Budget: configurations to try.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Budget: optimizer steps of all trials.", min=1)] = None,
    hours: Annotated[float | None, typer.Option(help="Budget: hours over all calls.")] = None,
    searcher: Annotated[
        str | None, typer.Option(help="trajectory, random, sobol, tpe, nsga2 or qlognehvi; the recipe's by default.")
    ] = None,
    search_seed: Annotated[int | None, typer.Option(help="Seed of the searcher's draws.", min=0)] = None,
    at_once: Annotated[int | None, typer.Option(help="Trials at the same time; default what fits.", min=1)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key: --set reruns=0, --set set.steps=100. Repeatable."),
    ] = None,
) -> Any:
    """Search hyper-parameters: every scored step of every trial is a point of the trade-off."""
    from pipelines.claim import claimed
    from pipelines.runs import recipe_path
    from pipelines.search import search as run_search
    from pipelines.search_config import SearchConfig
    from pipelines.watch_command import one_star
    from unlearn_core.config import load_config, parse_overrides

    given: dict[str, Any] = {"budget.trials": trials, "budget.steps": steps, "budget.hours": hours}
    given = {key: value for key, value in given.items() if value is not None}
    if given:  # a budget on the command line replaces the recipe's, or the smaller of the two would end the search
        given = {"budget.trials": None, "budget.steps": None, "budget.hours": None} | given
    given |= {"searcher.name": searcher} if searcher else {}
    given |= {"searcher.seed": search_seed} if search_seed is not None else {}
    given |= {"at_once": at_once} if at_once else {}
    config = load_config(SearchConfig, recipe_path(recipe), parse_overrides(set_ or []) | given)
    star = one_star("target", target)
    assert star is not None
    with claimed(output, f"unlearn search {config.name}"):
        summary = run_search(config, star, one_star("reference", reference), output, terminal.work)
    terminal.out.print(
        f"hypervolume {summary['hypervolume']:.4f} of {len(summary['front'])} non-dominated points; "
        f"{summary['points']} points of {sum(summary['trials'].values())} trials, {summary['steps_spent']} steps\n"
        f"all points: {output / 'archive.parquet'}   front: {output / 'summary.json'}\n"
        f"draw it: unlearn frontier {output} -o {output}-frontier",
        highlight=False,
        soft_wrap=True,
    )
    return summary | {"output": output}


def draw_searches(folders: list[Path], output: Path) -> dict[str, Any]:
    """`unlearn frontier` where at least one folder is a search's."""
    from pipelines.search_frontier import FILES, search_frontier, summary_table

    summary = search_frontier(folders, output)
    terminal.out.print(summary_table(summary))
    drawn = ", ".join(f"{name}.png" for name in FILES if (output / f"{name}.png").is_file())
    said = f"pictures: {output}/ {drawn}   points: {output / 'frontier.csv'}"
    terminal.out.print(said, highlight=False, soft_wrap=True)
    return summary


def space(
    methods: Annotated[
        list[str], typer.Argument(help="Methods whose spaces are joined.", autocompletion=completion.method_names)
    ],
) -> Any:
    """Print the search space of methods as YAML, to edit and put under `space:` of a search recipe."""
    from tune.space import Space, space_of_methods, space_yaml

    data = space_of_methods(methods)
    if Space.from_data(data).dimension == 0:
        raise UserError(f"{', '.join(methods)} vary nothing")
    if not terminal.out.quiet:
        sys.stdout.write(space_yaml(data))
    return data
