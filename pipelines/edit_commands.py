"""The sub-commands of `unlearn edit`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines import terminal
from pipelines.locations import output_place
from pipelines.terminal import ScriptableTyper

edit_app = ScriptableTyper(
    name="edit",
    help="Make new models from old ones in one shot, without training; `unlearn evaluate` takes the result as a run.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Output = Annotated[Path, typer.Option("--output", "-o", parser=output_place, help="The run's folder.")]
Name = Annotated[str | None, typer.Option(help="Name in tables and pictures; default: the output folder's.")]
Model = Annotated[str, typer.Option(help="Model to edit: a run folder, a Hugging Face folder or a hub name.")]


@edit_app.command(
    epilog="**Examples**\n\n"
    "`unlearn edit interpolate --unlearned outputs/ngdiff --target outputs/pair/target -o outputs/line`\n\n"
    "`unlearn edit interpolate --unlearned outputs/npo/models/step-00060 --target outputs/pair/target "
    "-a 0.1 -a 0.2 -a 0.4 -o outputs/npo-line`\n\n"
    "Then `unlearn evaluate outputs/line ...`: one unlearned model becomes a curve of the trade-off."
)
def interpolate(
    output: Output,
    unlearned: Annotated[str, typer.Option(help="Model at weight 0: a run folder, a model folder or a hub name.")],
    target: Annotated[str, typer.Option(help="Model at weight 1: the one before unlearning.")],
    weight: Annotated[
        list[float] | None, typer.Option("--weight", "-a", help="From 0 to 1. Repeatable. Default: 0.25, 0.5, 0.75.")
    ] = None,
    name: Name = None,
) -> Any:
    """Mix an unlearned model back towards its target: (1 - a) unlearned + a target."""
    from pipelines.edit import InterpolationConfig, run_name
    from pipelines.edit import interpolate as run_interpolate

    values = {"unlearned": _model(unlearned), "target": _model(target), "weights": weight or [0.25, 0.5, 0.75]}
    config = _build(InterpolationConfig, values | {"name": run_name(name, output, "interpolation")}, "interpolate")
    return _print_line(run_interpolate(config, output, terminal.work))


@edit_app.command(
    epilog="**Examples**\n\n"
    "Reinforce what is to be forgotten, then step the other way:\n\n"
    "`unlearn finetune tofu-finetune --set model.path=outputs/tofu/target/models/step-00625 "
    "--set target=[forget10] -o outputs/more`\n\n"
    "`unlearn edit task-vector --model outputs/tofu/target --reinforced outputs/more/target -a 0.5 -a 1 -o outputs/tv`"
)
def task_vector(
    output: Output,
    model: Model,
    reinforced: Annotated[str, typer.Option(help="The same model, trained further on the forget rows.")],
    weight: Annotated[
        list[float] | None, typer.Option("--weight", "-a", help="0 or more. Repeatable. Default: 0.5, 1.")
    ] = None,
    name: Name = None,
) -> Any:
    """Subtract a task vector: model - a (reinforced - model)."""
    from pipelines.edit import TaskVectorConfig, run_name
    from pipelines.edit import task_vector as run_task_vector

    values = {"model": _model(model), "reinforced": _model(reinforced), "weights": weight or [0.5, 1.0]}
    config = _build(TaskVectorConfig, values | {"name": run_name(name, output, "task_vector")}, "task-vector")
    return _print_line(run_task_vector(config, output, terminal.work))


@edit_app.command(
    epilog="**Examples**\n\n"
    "`unlearn edit slug --model outputs/pair/target --reference outputs/pair/reference "
    "--benchmark synthetic:small --format plain -o outputs/slug`\n\n"
    "`unlearn edit slug --model outputs/tofu/target --forget forget05 --threshold 0.15 --export all -o outputs/slug05`"
    "\n\nThen `unlearn evaluate outputs/slug ...`; points.json says which step is which layer and scale."
)
def slug(
    output: Output,
    model: Model,
    reference: Annotated[
        str | None,
        typer.Option(help="Model retrained without the forget data; its forget probability is the threshold."),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Or the forget probability to come down to, 0 to 1.")] = None,
    benchmark: Annotated[str, typer.Option(help="synthetic:SIZE, a TOFU folder, or a hub name.")] = "locuslab/TOFU",
    forget: Annotated[list[str] | None, typer.Option(help="Split to forget. Repeatable. Default: forget10.")] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Split to keep. Repeatable. Default: the partner.")] = None,
    format_: Annotated[str, typer.Option("--format", help="chat or plain, as in training.")] = "chat",
    max_length: Annotated[int, typer.Option(help="Tokens a row may have.")] = 512,
    layers: Annotated[int, typer.Option(help="Search so many layers, the most important of the Pareto set.")] = 5,
    iterations: Annotated[int, typer.Option(help="Models tried for each layer.")] = 10,
    micro: Annotated[int, typer.Option(help="Rows of one forward and backward pass.")] = 4,
    score_rows: Annotated[int, typer.Option(help="Rows of each set to score a tried model on; 0 for all.")] = 400,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; default: as the model's files.")] = None,
    export: Annotated[str, typer.Option(help="Models to write: layers (best of each), best, or all.")] = "layers",
    name: Name = None,
) -> Any:
    """Take one step along the forget gradient of one layer, and search layer and length (SLUG)."""
    from pipelines.edit import SlugConfig, retain_splits, run_name, search_slug

    splits = forget or ["forget10"]
    values = {
        "name": run_name(name, output, "slug"),
        "model": _model(model),
        "benchmark": benchmark,
        "forget": splits,
        "retain": retain_splits(splits, retain or []),
        "format": format_,
        "max_length": max_length,
        "reference": None if reference is None else _model(reference),
        "threshold": threshold,
        "layers": layers,
        "iterations": iterations,
        "micro": micro,
        "score_rows": score_rows,
        "dtype": dtype,
        "export": export,
    }
    return _print_slug(search_slug(_build(SlugConfig, values, "slug"), output, terminal.work))


def _model(name: str) -> str:
    from pipelines.runs import resolve_model

    return resolve_model(name)


def _build(kind: Any, values: dict[str, Any], command: str) -> Any:
    from unlearn_core.config import build_config

    return build_config(kind, values, source=f"What was given to `edit {command}`")


def _print_line(edits: Any) -> Any:
    table = Table("step", "weight", "model")
    for point in edits.points:
        table.add_row(str(point["step"]), f"{point['weight']:g}", f"models/step-{point['step']:05d}")
    terminal.out.print(table)
    terminal.out.print(f"run: {edits.output}", highlight=False)
    return edits


def _print_slug(edits: Any) -> Any:
    table = Table("step")
    table.add_column("layer", overflow="fold")
    for title in ("scale", "forget\nprobability", "retain\nloss", ""):
        table.add_column(title, justify="right")
    for point in edits.points:
        if point["exported"]:
            numbers = (f"{point[key]:.3g}" for key in ("scale", "forget", "retain_loss"))
            table.add_row(str(point["step"]), point["layer"], *numbers, "best" if point["best"] else "")
    terminal.out.print(table)
    threshold = edits.points[0]["threshold"]
    if not any(point["meets"] for point in edits.points):
        terminal.out.print(
            f"No model came down to a forget probability of {threshold:.3g}; 'best' is the one that forgot most. "
            "Search more --layers or --iterations."
        )
    tried = f"{len(edits.points)} models tried, threshold {threshold:.3g}"
    terminal.out.print(f"{tried}; all of them: {edits.output / 'points.json'}", highlight=False)
    return edits
