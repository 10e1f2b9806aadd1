"""Real TOFU text on a small model: does NGDiff forget real benchmark authors, beside GradDiff at equal steps?

    TOFU_DIR=/path/to/tofu python -m benchmarks.tofu_small

A 5M-parameter Llama with a 4,096-token BPE, trained from scratch on two cores in about ten minutes a model, cannot hold
the 200 authors of TOFU. It is taught what the metrics ask about:

    forget05                     200 rows: 10 authors; the target only
    retain_perturbed             400 rows: the 20 authors of the retain metrics
    real_authors, world_facts    217 rows, to target and reference alike, so that utility measures *keeping* them;
                                 a pretrained model knows them beforehand, this one only from here

Before unlearning it checks that both axes mean something: the target has memorised the forget rows (mean probability at
least 0.8), the reference has not (forget quality of the target below 0.01, extraction strength at least 0.3 apart), and
none of the nine terms of the target's utility is below 0.1. Exits 1 when a premise fails. The outcome of NGDiff against
GradDiff is printed whichever way it falls.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from pipelines.demo import stars
from pipelines.evaluate import EvaluationConfig, discover_run, evaluate
from pipelines.finetune import finetune
from pipelines.frontier import frontier, summary_table
from pipelines.runs import resolve_model
from pipelines.train import train
from unlearn_core.config import FinetuneConfig, RunConfig, build_config
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.evaluation.tofu import suite as tofu_suite

UTILITY_TERMS = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
FORGETTING = ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio", "extraction_strength", "forget_quality")
KEPT = ["retain_perturbed", "real_authors", "world_facts"]
FORGET = "forget05"
MAX_LENGTH = 256


def pair_config(tofu: str, epochs: float) -> FinetuneConfig:
    """Target and reference."""
    values = {
        "name": "tofu-small",
        "model": {
            "dtype": "fp32",
            "build": {
                **{"hidden_size": 256, "layers": 4, "heads": 8, "mlp_size": 688},
                **{"vocab_size": 4096, "max_positions": MAX_LENGTH},
            },
        },
        "benchmark": tofu,
        "target": [*KEPT, FORGET],
        "reference": KEPT,
        "format": "plain",
        "max_length": MAX_LENGTH,
        "epochs": epochs,
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 20},
        "batch": {"rows": 16, "micro": 8},
        "workers": {"count": 2},
    }
    return build_config(FinetuneConfig, values)


def run_config(tofu: str, method: str, model: str, learning_rate: float, steps: int) -> RunConfig:
    """One unlearning run; NGDiff and GradDiff differ in the method's name alone."""
    values = {
        "name": method,
        "model": {"path": model, "dtype": "fp32"},
        "data": {
            **{"benchmark": tofu, "forget": [FORGET], "retain": KEPT, "format": "plain", "max_length": MAX_LENGTH}
        },
        "method": {"name": method},
        "optimizer": {"learning_rate": learning_rate},
        "batch": {"rows": 16, "micro": 8},
        "steps": steps,
        "export_every": steps // 4,
        "workers": {"count": 2},
    }
    return build_config(RunConfig, values)


def premises(target: dict[str, float], reference: dict[str, float]) -> dict[str, tuple[bool, str]]:
    """What must hold before the comparison means anything: name -> (holds, numbers)."""
    lowest = min(UTILITY_TERMS, key=lambda name: target[name])
    apart = target["extraction_strength"] - reference["extraction_strength"]
    return {
        "target memorised forget05 (mean probability >= 0.8)": (
            target["forget_Q_A_Prob"] >= 0.8,
            f"{target['forget_Q_A_Prob']:.4f}, reference {reference['forget_Q_A_Prob']:.4f}",
        ),
        "forget quality of the target < 0.01": (target["forget_quality"] < 0.01, f"{target['forget_quality']:.3g}"),
        "extraction strength >= 0.3 apart": (
            apart >= 0.3,
            f"{target['extraction_strength']:.3f} against {reference['extraction_strength']:.3f}",
        ),
        "no utility term of the target below 0.1": (target[lowest] >= 0.1, f"lowest {lowest} {target[lowest]:.3f}"),
    }


def metrics_table(rows: pd.DataFrame, columns: tuple[str, ...], title: str) -> Table:
    """Models down, metrics across."""
    table = Table(title=title)
    for name in ("run", "step", *columns):
        short = name.removesuffix("alised").replace("Q_A_", "").replace("extraction", "extract.")
        table.add_column(short.replace("_", " "), overflow="fold")  # spaces, so that names can wrap
    for row in rows.to_dict("records"):
        run = row["run"] if row["role"] == "checkpoint" else row["role"]
        table.add_row(str(run), str(row["step"]), *(f"{row[name]:.2g}" for name in columns))
    return table


def main() -> None:
    """Train the pair, check the premises, unlearn, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/tofu_small"), help="resumes there")
    parser.add_argument("--epochs", type=float, default=26.0, help="of each fine-tune")
    parser.add_argument("--steps", type=int, default=60, help="unlearning steps of each method, a multiple of 4")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of both methods")
    arguments = parser.parse_args()
    tofu = os.environ.get("TOFU_DIR")
    if not tofu:
        sys.exit("TOFU_DIR is not set: give the folder that holds forget05.json and the other TOFU files.")
    console = Console(width=None if sys.stdout.isatty() else 120)
    started = time.perf_counter()
    tofu, output = str(Path(tofu).resolve()), arguments.output

    def score(points: list[Any]) -> pd.DataFrame:
        settings = EvaluationConfig(style="plain", max_length=MAX_LENGTH, max_new_tokens=96)
        suite = tofu_suite(open_benchmark(tofu), FORGET)
        return evaluate(points, suite, output / "evaluation", settings, console=console)

    console.rule("target and reference")
    pair = finetune(pair_config(tofu, arguments.epochs), output / "pair", console)
    points = stars(pair.target, pair.reference)
    rows = score(points)
    target, reference = rows.to_dict("records")
    taught = "taught forget05 (target only), retain_perturbed, real_authors and world_facts"
    console.print(metrics_table(rows, UTILITY_TERMS, f"nine terms of model utility; models {taught}"))
    checks = premises(target, reference)
    for name, (holds, numbers) in checks.items():
        console.print(f"{'ok  ' if holds else 'FAIL'}  {name}: {numbers}", highlight=False)
    if not all(holds for holds, _ in checks.values()):
        sys.exit("FAIL: a premise does not hold, so nothing was unlearned")

    console.rule("unlearning")
    for method in ("ngdiff", "grad_diff"):
        config = run_config(tofu, method, resolve_model(str(pair.target)), arguments.learning_rate, arguments.steps)
        outcome = train(config, output / "runs" / method, console)
        console.print(f"{method}: {outcome.status} after {outcome.step} steps {outcome.reason}", highlight=False)
        points += discover_run(output / "runs" / method)
    rows = score(points)
    console.print(metrics_table(rows, (*FORGETTING, "model_utility"), f"equal steps and rate; models {taught}"))
    console.print(metrics_table(rows, UTILITY_TERMS, f"nine terms of model utility; models {taught}"))
    summary = frontier([output / "evaluation"], output / "frontier")
    console.print(summary_table(summary))
    console.print(f"picture: {output / 'frontier' / 'frontier.png'}")
    print(f"PASS: premises hold; {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
