"""`unlearn robustness`: attack unlearned models and the retrained one alike, and compare what comes back."""

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
    MaxLength,
    Retain,
    Target,
    build_points,
)
from pipelines.locations import input_place, output_place
from unlearn_core.errors import UserError

_ATTACKS, _SETTINGS = "Attacks", "Settings"

EPILOG = (
    "**Examples**\n\n"
    "`unlearn robustness outputs/ngdiff outputs/npo --target outputs/pair/target --reference outputs/pair/reference "
    "--benchmark synthetic:small --format plain --max-length 256 --samples 16 -o outputs/robustness`\n\n"
    "`unlearn robustness outputs/npo --reference outputs/tofu/reference --forget-rows 40 --correlated biographies.txt "
    "--gpu --set batch.micro=8 -o outputs/robustness`\n\n"
    "`unlearn robustness outputs/npo --reference outputs/tofu/reference --attack nf4 --attack opening -o outputs/quick`"
    "  (no fine-tuning)\n\n"
    "The same command again goes on where it stopped. docs/robustness.md defines every number."
)


def robustness(
    models: Annotated[
        list[Path],
        typer.Argument(
            parser=input_place, help="Run folders: every exported model is attacked. Or whole model folders."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=output_place, help="Folder for models, scores and ratios.")
    ],
    reference: Annotated[
        str | None, typer.Option(help="The model retrained without the forget data: ratios compare with it.")
    ] = None,
    target: Target = None,
    benchmark: Benchmark = None,
    forget_split: ForgetSplit = "forget10",
    forget: Forget = None,
    retain: Retain = None,
    holdout: Holdout = None,
    compat: Compat = False,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="relearn-forget, relearn-correlated, relearn-unrelated, int8, nf4, opening or paraphrase; repeatable. "
            "All that can be run by default.",
            rich_help_panel=_ATTACKS,
        ),
    ] = None,
    forget_rows: Annotated[
        int | None,
        typer.Option(help="Forget rows that relearn-forget gets; all by default.", rich_help_panel=_ATTACKS),
    ] = None,
    correlated: Annotated[
        str | None,
        typer.Option(
            help="File or split of harmless text about the forgotten subjects, for relearn-correlated.",
            rich_help_panel=_ATTACKS,
        ),
    ] = None,
    unrelated: Annotated[
        str | None,
        typer.Option(
            help="File or split of other text, for relearn-unrelated; TOFU's world_facts by default.",
            rich_help_panel=_ATTACKS,
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            help="Sampled answers to each forget question, for upper bounds on leakage.",
            min=0,
            rich_help_panel=_ATTACKS,
        ),
    ] = 0,
    temperature: Annotated[float, typer.Option(help="Of sampled answers.", rich_help_panel=_ATTACKS)] = 1.0,
    metric: Annotated[
        str | None,
        typer.Option(help="Measure of knowledge of R, Q and the picture; extraction_strength by default."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the fine-tunes: --set optimizer.learning_rate=1e-5, epochs, batch.rows, workers.count, "
            "... Repeatable.",
            rich_help_panel=_ATTACKS,
        ),
    ] = None,
    format_: Format = None,
    max_length: MaxLength = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer where the suite sets none, in tokens.", rich_help_panel=_SETTINGS)
    ] = 200,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.", rich_help_panel=_SETTINGS)] = "fp32",
    actors: Annotated[int | None, typer.Option(help="Models in memory at once; default by CPUs, GPUs, memory.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU for each scoring actor and training worker.")] = False,
) -> Any:
    """Relearning, quantisation and prompt attacks on models and the retrained reference, as recovery ratios."""
    from pipelines.evaluate import EvaluationConfig
    from pipelines.evaluate_command import for_suite, print_missing
    from pipelines.robustness import leakage_table, robustness_table
    from pipelines.robustness import robustness as run_robustness
    from pipelines.robustness_relearn import CORRELATED, RelearnConfig, lessons
    from pipelines.suites import TOFU
    from unlearn_core.config import build_config, parse_overrides
    from unlearn_core.evaluation.robustness import ATTACKS, attacks_named

    out = terminal.out
    if reference is None:
        raise UserError("ratios compare with the model retrained without the forget data; give it by --reference")
    attacks = [found.name for found in attacks_named(attack or list(ATTACKS))]
    if attack and CORRELATED in attacks and correlated is None:
        raise UserError(f"{CORRELATED} needs --correlated FILE or SPLIT: harmless text about the forgotten subjects")
    relearning = build_config(
        RelearnConfig, {"workers": {"gpu": gpu}}, parse_overrides(set_ or []), source="robustness' --set"
    )
    values = {
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "compat": compat,
        "samples": samples,
        "temperature": temperature,
    }
    settings = build_config(EvaluationConfig, values, source="robustness' options")
    points = build_points([], target, reference)
    for number, model in enumerate(models):
        points += _points(model, number)
    suite = _suite(benchmark, forget_split, forget or [], retain or [], holdout or [], compat, attacks, samples)
    settings = for_suite(settings, suite, format_, max_length)
    own = bool(forget)
    taught = lessons(
        None if own else benchmark or TOFU,
        [str(file) for file in forget or []] or [suite.forget],
        attacks=attacks,
        forget_rows=forget_rows,
        seed=relearning.seed,
        correlated=correlated,
        unrelated=unrelated,
    )
    for note in suite.notes:
        terminal.work.print(f"note: {note}", highlight=False, soft_wrap=True)
    result = run_robustness(
        points, suite, output, settings, taught=taught, relearning=relearning, attacks=attacks, metric=metric,
        actors=actors, use_gpu=gpu, console=terminal.work,
    )  # fmt: skip
    print_missing(output / "evaluation")
    out.print(robustness_table(result))
    bounds = leakage_table(result)
    if bounds is not None:
        out.print(bounds)
    out.print(f"picture: {output / 'robustness.png'}   all ratios: {output / 'robustness.csv'}", highlight=False)
    return result


def _points(model: Path, number: int) -> list[Any]:
    """A run's exported models, or one plain model folder under its own name."""
    from pipelines.evaluate import ModelPoint, discover_run

    if (model / "run.json").is_file() or not (model / "config.json").is_file():
        return discover_run(model)
    name = model.resolve().name or f"model-{number}"
    return [ModelPoint(model_id=name, path=str(model), run=name, method="unknown", step=0)]


def _suite(
    benchmark: str | None,
    forget_split: str,
    forget: list[Path],
    retain: list[Path],
    holdout: list[Path],
    compat: bool,
    attacks: list[str],
    samples: int,
) -> Any:
    """The suite of the data, with the prompt attacks where it has questions to attack."""
    from pipelines.suites import build_suite
    from unlearn_core.evaluation import prompt_attacks

    base = build_suite(benchmark, forget_split, forget=forget, retain=retain, holdout=holdout, compat=compat)
    asked = any(item.group == "forget" and item.kind == "question" for item in base.items)
    opening, paraphrase = "opening" in attacks, "paraphrase" in attacks
    if samples and not asked:
        raise UserError(f"--samples {samples}: the suite '{base.name}' has no forget question to sample answers to")
    if not asked or not (opening or paraphrase or samples):
        return base
    more = prompt_attacks.suite(
        base,
        openings=(prompt_attacks.OPENING,) if opening else (),
        paraphrased_questions=paraphrase,
        sampled=samples > 0,
    )
    return base.with_more(more)
