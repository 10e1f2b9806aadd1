"""`unlearn watch`: evaluate a run's exports while it trains, and keep the best."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import terminal
from pipelines.evaluate_command import (
    Benchmark,
    Compat,
    Forget,
    ForgetSplit,
    Format,
    Holdout,
    Legacy,
    MaxLength,
    Reference,
    Retain,
    Target,
    for_suite,
    print_missing,
    star,
)
from pipelines.locations import followed_place, output_place
from unlearn_core.errors import UserError

EPILOG = (
    "**Examples**\n\n"
    "`unlearn train tofu-ngdiff --model outputs/tofu/target --set export_every=20 -o outputs/ngdiff &`\n\n"
    "`unlearn watch outputs/ngdiff --target outputs/tofu/target --reference outputs/tofu/reference "
    "--best-by model_utility --among 'extraction_strength<=0.1' -o outputs/ngdiff-evaluation`\n\n"
    "`unlearn watch outputs/news --benchmark muse-bench/MUSE-News --reference muse-bench/MUSE-News_retrain "
    "--best-by max:retain_knowmem_ROUGE --among 'forget_knowmem_ROUGE<=reference' --keep best -o outputs/scores`\n\n"
    "It ends with the run; killed and called again it continues. With `RAY_ADDRESS` set it works on that cluster "
    "beside the training, on what its workers leave free; otherwise on a cluster of its own on this machine: with "
    "--gpu, let `CUDA_VISIBLE_DEVICES` then name a GPU that the training does not use."
)

BestBy = Annotated[
    str | None,
    typer.Option(
        "--best-by", help="Column that the best export is best in; max:COLUMN, min:COLUMN or zero:COLUMN for others."
    ),
]
Among = Annotated[
    list[str] | None,
    typer.Option(help="Only exports with COLUMN<=VALUE (>=, <, >); VALUE may be reference or target. Repeatable."),
]
KeepExports = Annotated[
    str, typer.Option("--keep", help="all, or best: delete scored exports that are neither the best nor the newest.")
]


def watch(
    run: Annotated[Path, typer.Argument(parser=followed_place, help="The run's folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=output_place, help="Evaluation folder, which grows.")
    ],
    target: Target = None,
    reference: Reference = None,
    best_by: BestBy = None,
    among: Among = None,
    keep: KeepExports = "all",
    benchmark: Benchmark = None,
    forget_split: ForgetSplit = "forget10",
    forget: Forget = None,
    retain: Retain = None,
    holdout: Holdout = None,
    compat: Compat = False,
    legacy: Legacy = False,
    format_: Format = None,
    max_length: MaxLength = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer where the suite sets none, in tokens.")] = 200,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    actors: Annotated[int | None, typer.Option(help="Models in memory at once; one beside a training on CPUs.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU for each actor.")] = False,
    poll: Annotated[float, typer.Option(help="Seconds between looks at the run's folder.", min=0.1)] = 5.0,
) -> Any:
    """Score each export of a run as it appears, without stopping the training, and keep the best."""
    from pipelines.suites import build_suite
    from pipelines.watch import watch as run_watch
    from unlearn_core.config import build_config
    from unlearn_core.evaluation.config import EvaluationConfig

    values = {"max_new_tokens": max_new_tokens, "dtype": dtype, "compat": compat}
    settings = build_config(EvaluationConfig, values, source="watch's options")
    stars = one_star("target", target), one_star("reference", reference)
    suite = build_suite(
        benchmark, forget_split, forget=forget or (), retain=retain or (), holdout=holdout or (), compat=compat,
        legacy=legacy,
    )  # fmt: skip
    settings = for_suite(settings, suite, format_, max_length)
    for note in suite.notes:
        terminal.work.print(f"note: {note}", highlight=False, soft_wrap=True)
    choice = run_watch(
        run, suite, output, settings, target=stars[0], reference=stars[1], criterion=best_by, among=among or (),
        keep=keep, actors=actors, use_gpu=gpu, poll_s=poll, console=terminal.work,  # type: ignore[arg-type]  (checked there)
    )  # fmt: skip
    if (output / "evaluation.json").is_file():
        print_missing(output)
    best = print_choice(choice, run)
    terminal.out.print(f"all metrics: {output / 'metrics.csv'}", highlight=False)
    return {"run": run, "output": output, "metrics": output / "metrics.csv", "best": best}


def one_star(role: Any, name: str | None) -> Any:
    """The target or reference as one model; None when not given.

    Raises:
        UserError: a run with several exports: which of them is meant?
    """
    points = star(role, name)
    if len(points) > 1:
        raise UserError(
            f"--{role} {name} has {len(points)} exports; name one of its folders, such as {points[-1].path}"
        )
    return points[0] if points else None


def print_choice(choice: Any, run: Path) -> dict[str, Any] | None:
    """Print what the criterion came to, in a line.

    Args:
        choice: a `pipelines.best_checkpoint.Choice`; None prints nothing.
        run: the run's folder.

    Returns:
        The same as a document: model, step and reason; None without a criterion.
    """
    if choice is None:
        return None
    if choice.best is None:
        text = f"no best export: {choice.reason}"
    else:
        more = f" ({choice.reason})" if choice.reason else ""
        text = f"best export: {choice.best.model_id}, step {choice.best.step}{more}; see {run / 'best.json'}"
    terminal.out.print(text, highlight=False, markup=False, soft_wrap=True)
    best = choice.best
    return {
        "model": None if best is None else best.model_id,
        "step": None if best is None else best.step,
        "reason": choice.reason or None,
    }
