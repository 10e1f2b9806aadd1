"""`unlearn finetune` and `unlearn train`."""

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import completion, evaluate_command, terminal, watch_command
from pipelines.locations import followed_place, output_place
from pipelines.terminal import Ending, ScriptableCommand
from unlearn_core.errors import UserError

_BESIDE = "Evaluation beside the training"
_RECIPE = "A recipe's name (see `unlearn recipes`) or a YAML file."
FinetuneRecipe = Annotated[str, typer.Argument(help=_RECIPE, autocompletion=completion.finetune_recipes)]
TrainRecipe = Annotated[str, typer.Argument(help=_RECIPE, autocompletion=completion.training_recipes)]
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


FINETUNE_EPILOG = (
    "**Examples**\n\n"
    "`unlearn finetune demo-finetune -o outputs/pair`\n\n"
    "`unlearn finetune tofu-finetune --set model.path=meta-llama/Llama-3.2-1B-Instruct -o outputs/tofu`"
)


def finetune(recipe: FinetuneRecipe, output: Output, set_: Set = None) -> Any:
    """Make a target model, which learned everything, and a retain-only reference model."""
    from pipelines.finetune import finetune as run_finetune
    from unlearn_core.config import FinetuneConfig

    pair = run_finetune(_load(FinetuneConfig, recipe, set_, {}), output, terminal.work)
    terminal.out.print(f"target     {pair.target}\nreference  {pair.reference}", highlight=False)
    return pair


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


class ManyRequests(ScriptableCommand):
    """A command whose `--sequential` takes all the names that follow it; the parser knows one value an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spread the names, then parse."""
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


TRAIN_EPILOG = (
    "**Examples**\n\n"
    "`unlearn train demo-ngdiff --model outputs/pair/target -o outputs/ngdiff`\n\n"
    "`unlearn train tofu-ngdiff --model outputs/tofu/target --set optimizer.learning_rate=2e-5 -o outputs/run2`\n\n"
    "`unlearn train own-files --model outputs/tofu/target --set data.forget=[mine.jsonl] "
    "--set data.retain=[keep.jsonl] -o outputs/own`\n\n"
    "`unlearn train muse-news-ngdiff --model muse-bench/MUSE-News_target --sequential sust/forget_1 sust/forget_2 "
    "sust/forget_3 -o outputs/requests`  (the recipe comes before `--sequential`)\n\n"
    "`unlearn train tofu-ngdiff --model outputs/tofu/target --evaluate outputs/scores --reference "
    "outputs/tofu/reference --best-by model_utility --among 'extraction_strength<=0.1' -o outputs/run3`\n\n"
    "Exit code 3 means that the run diverged; its last good checkpoint is kept and named. 4: the run is done, the "
    "evaluation beside it failed."
)


def train(
    recipe: TrainRecipe,
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
) -> Any:
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
        outcome = run_train(config, output, terminal.work)
    else:
        watched = _train_and_watch(config, output, evaluate, target, reference, best_by, among, keep)
        outcome = watched.outcome
    document: dict[str, Any] = {
        "run": config.name,
        "method": config.method.name,
        "status": outcome.status,
        "step": outcome.step,
        "output": output,
        "models": [str(folder) for folder in sorted((output / "models").glob("step-*"))],
    }
    if outcome.status == "diverged":
        said = f"{outcome.reason}. Models exported before that are in {output / 'models'}."
        terminal.fail("DivergedError", said, 3, title="Diverged")
        return Ending(document | {"reason": outcome.reason}, 3)
    out = terminal.out
    out.print(f"{config.name}: {outcome.step} steps done, models in {output / 'models'}", highlight=False)
    if config.optimizer.schedule == "auto":
        document["auto_rate"] = probe_summary(output)
        out.print(document["auto_rate"], highlight=False)
    if watched is None:
        return document
    document |= {"evaluation": evaluate, "best": watch_command.print_choice(watched.choice, output)}
    if watched.error is not None:
        said = f"{watched.error}. `unlearn watch` scores the rest."
        terminal.fail(type(watched.error).__name__, said, 4, title="The evaluation failed")
        return Ending(document, 4)
    return document


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
        among=among or (), keep=keep, console=terminal.work,  # type: ignore[arg-type]  (checked there)
    )  # fmt: skip


def _load(kind: Any, recipe: str, pairs: list[str] | None, extra: dict[str, Any]) -> Any:
    from pipelines.runs import recipe_path
    from unlearn_core.config import load_config, parse_overrides

    return load_config(kind, recipe_path(recipe), parse_overrides(pairs or []) | extra)
