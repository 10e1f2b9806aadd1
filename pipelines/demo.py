"""The demo: on one machine, in minutes, the whole line from rows to a frontier and its report.

    finetune target and reference -> unlearn with NGDiff and with GradDiff -> evaluate every checkpoint -> report

Synthetic benchmark, small Llamas trained from scratch, a local Ray. Each part is the same code that a cluster runs and
is skipped when its output is whole, so the command can be repeated.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.evaluate import EvaluationConfig, ModelPoint, discover_run, evaluate
from pipelines.finetune import finetune
from pipelines.frontier import FrontierSummary, frontier
from pipelines.report.write import report
from pipelines.runs import recipe_path, resolve_model
from pipelines.train import train
from unlearn_core.config import FinetuneConfig, RunConfig, load_config
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.evaluation import tofu

RECIPES = ("demo-ngdiff", "demo-grad-diff")


@dataclass(frozen=True)
class DemoResult:
    """Where the demo's results lie."""

    metrics: Path
    plot: Path
    page: Path
    summary: FrontierSummary


def demo(output: Path, console: Console, workers: int | None = None) -> DemoResult:
    """Run the demo.

    Args:
        output: its folder.
        console: progress and headings.
        workers: Ray Train workers of each run; None for the recipes' two.
    """
    overrides = {} if workers is None else {"workers.count": workers}
    console.rule("1/4  target and reference")
    pair_config = load_config(FinetuneConfig, recipe_path("demo-finetune"), overrides)
    pair = finetune(pair_config, output / "finetune", console)
    console.rule("2/4  unlearn")
    start = {"model.path": resolve_model(str(pair.target))}
    configs = [load_config(RunConfig, recipe_path(name), overrides | start) for name in RECIPES]
    for config in configs:
        train(config, output / "runs" / config.name, console)
    console.rule("3/4  evaluate")
    points = stars(pair.target, pair.reference)
    for config in configs:
        points += discover_run(output / "runs" / config.name)
    data = configs[0].data
    assert data.benchmark is not None  # the demo's own recipe
    settings = EvaluationConfig(style=data.format, max_length=data.max_length, max_new_tokens=64)
    evaluate(
        points, tofu.suite(open_benchmark(data.benchmark), data.forget[0]), output / "evaluation", settings,
        require_reference=True, console=console,
    )  # fmt: skip
    console.rule("4/4  frontier and report")
    summary = frontier([output / "evaluation"], output / "frontier")
    page, _ = report([output / "evaluation"], output / "report")
    return DemoResult(output / "evaluation" / "metrics.csv", output / "frontier" / "frontier.png", page, summary)


def stars(target: Path, reference: Path) -> list[ModelPoint]:
    """The two models of a fine-tuned pair, as points of an evaluation."""
    return [*discover_run(target, role="target"), *discover_run(reference, role="reference")]
