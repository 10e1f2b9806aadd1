"""`unlearn plan`: does it fit, how long does it take, what does it cost; from the model's config alone."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipelines import completion, terminal
from pipelines.terminal import Ending
from unlearn_core.errors import UserError

EPILOG = (
    "**Examples**\n\n"
    "`unlearn plan --model Llama-2-7B --method ngdiff --gpus 1 --gpu h200-141g`\n\n"
    "`unlearn plan tofu-ngdiff --model meta-llama/Llama-3.1-8B --gpus 8 --gpu h100-80g --trials 200`\n\n"
    "`unlearn plan tofu-mean-teacher --model Llama-3.2-1B --gpus 1 --gpu rtx4090-24g --row-tokens 120 --labels 60 "
    "--json`\n\n"
    "Bytes come from formulas that are compared with counted bytes on CPU (docs/planner.md); seconds and dollars are "
    "estimates from the GPU's datasheet, `--mfu` and `--price`. Exit code 1: it does not fit."
)
_REMEDIES = 6


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A training recipe or YAML file; none for the default settings of a method.",
            autocompletion=completion.training_recipes,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder, hub name, or a built-in shape such as Llama-2-7B; no weights are read.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Unlearning method, by name.", autocompletion=completion.method_names)
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Workers, one GPU each; default the recipe's.", min=1)] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, such as h100-80g; an unknown name lists them.")] = "h100-80g",
    row_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a row; default data.max_length, which is the most.", min=2)
    ] = None,
    labels: Annotated[int | None, typer.Option(help="Label tokens of a row; default all but the first.", min=1)] = None,
    trials: Annotated[int, typer.Option(help="Trials of a search, each as long as the run.", min=1)] = 200,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the run; default the recipe's.", min=1)] = None,
    mfu: Annotated[
        float, typer.Option(help="Assumed share of the GPU's matrix rate that is reached.", min=0.01, max=1)
    ] = 0.40,
    price: Annotated[
        float | None, typer.Option(help="Dollars a GPU-hour; default an assumption of 2026-11.", min=0)
    ] = None,
    host_gib: Annotated[
        float | None, typer.Option(help="Host memory of a node, GiB: then what goes to the host must fit too.", min=1)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override one key: --set zero.stage=3. Repeatable.")
    ] = None,
) -> Any:
    """Peak memory by item, step time, hours and cost of a run and of a search; what to change when it does not fit."""
    from pipelines.plan import Question, answer

    if recipe is None and (model is None or method is None):
        raise UserError("give a recipe, or both --model and --method; `unlearn recipes` and docs/methods.md list them")
    question = Question(
        recipe, model, method, gpus, gpu, row_tokens, labels, trials, steps, mfu, price, host_gib, tuple(set_ or ())
    )
    found = answer(question)
    _print(terminal.out, found)
    return Ending(found.as_json(), 0 if found.fits else 1)


def _print(out: Any, found: Any) -> None:
    for line in found.headline():
        out.print(escape(line), highlight=False)
    out.print(f"\nPeak of one GPU, at [bold]{escape(found.best.memory.peak.name)}[/]", highlight=False)
    items = Table()
    items.add_column("item")
    items.add_column("GiB", justify="right")
    for name, size in found.items():
        items.add_row(name, f"{size:.2f}")
    verdict = "fits" if found.fits else "[bold red]does not fit[/]"
    items.add_section()
    items.add_row("[bold]together[/]", f"[bold]{found.gib:.2f}[/]")
    items.add_row("of this GPU's", f"{found.gpu_gib:.2f}")
    out.print(items)
    out.print(f"It {verdict}." + (f" Host memory of a node: {found.host_gib:.1f} GiB." if found.host_gib else ""))
    out.print("\nThe step, moment by moment")
    moments = Table()
    moments.add_column("moment")
    moments.add_column("GiB of tensors", justify="right")
    for name, size in found.moments():
        moments.add_row(name, f"{size:.2f}")
    out.print(moments)
    out.print("\nOne step, estimated")
    times = Table()
    times.add_column("what it goes to")
    times.add_column("seconds", justify="right")
    for name, seconds in found.best.time.parts.items():
        times.add_row(name, f"{seconds:.3f}")
    times.add_section()
    times.add_row("[bold]together[/]", f"[bold]{found.best.time.seconds:.3f}[/]")
    out.print(times)
    for line in found.costs():
        out.print(escape(line), highlight=False)
    if not found.fits:
        _print_remedies(out, found)
    _print_layouts(out, found)


def _print_remedies(out: Any, found: Any) -> None:
    if not found.remedies:
        out.print("[bold]Nothing that was tried fits.[/] Take a larger GPU, more of them, or a smaller model.")
        return
    out.print("\nWhat would fit, the least GPU time first")
    table = Table()
    for name in ("change", "GiB", "seconds a step", "GPUs"):
        table.add_column(name, justify="left" if name == "change" else "right")
    for one in found.remedies[:_REMEDIES]:
        changes = " ".join(f"--set {key}={_plain(value)}" for key, value in one.changes.items())
        table.add_row(changes, f"{one.memory.total / 2**30:.1f}", f"{one.time.seconds:.2f}", str(one.setting.workers))
    out.print(table)
    if any("optimizer.name" in one.changes for one in found.remedies[:_REMEDIES]):
        out.print("adamw_8bit changes the result a little; every other change keeps it but for rounding.")


def _print_layouts(out: Any, found: Any) -> None:
    out.print("\nThe run at other layouts")
    table = Table()
    for name in ("ZeRO", "optimizer on the host", "8-bit state", "checkpointing", "fits", "GiB", "host GiB", "seconds"):
        table.add_column(name, justify="right" if name in ("ZeRO", "GiB", "host GiB", "seconds") else "left")
    for row in found.layouts():
        flags = ["yes" if row[key] else "" for key in ("offload", "eight_bit", "checkpointing")]
        style = "" if row["fits"] else "dim"
        numbers = [f"{row['gib']:.1f}", f"{row['host_gib']:.1f}", f"{row['seconds']:.2f}"]
        table.add_row(str(row["stage"]), *flags, "yes" if row["fits"] else "no", *numbers, style=style)
    out.print(table)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
