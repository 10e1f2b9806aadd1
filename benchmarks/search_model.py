"""The search that `benchmarks.search_real` runs: NGDiff and mean teacher on a small model that knows its rows by heart.

    utility      mean probability of the retain answers           0.9 of the target's -> 0,  the target's -> 1
    forgetting   nearness of extraction strength to the reference's      the target's -> 0,  the reference's -> 1

The model is that of `benchmarks.paper_shapes` (0.23M parameters, taught 40 fictional authors and generic sentences);
the reference was taught the same but the four authors to be forgotten. The scale of utility began at 0 at first; then a
hundred random trials already fill 0.996 of the unit square, so it was moved to 0.9 of the target's before any searcher
but Sobol had been run on this model.
"""

import os
from pathlib import Path
from typing import Any

from benchmarks.paper_shapes_model import BENCHMARK, CHUNK, MAX_LENGTH, make_model
from pipelines.model_scoring import ModelScorer, ScoringPlan
from pipelines.trial import TrainedTrial
from tune.objectives import Goal, Objective
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.publish import is_complete, publish_folder

STEPS, EVERY = 60, 4
SPACE: dict[str, Any] = {
    "method.name": {"choice": ["ngdiff", "mean_teacher"]},
    "optimizer.learning_rate": [
        {"log_uniform": [1e-5, 1e-2], "when": {"method.name": ["ngdiff"]}},
        {"log_uniform": [1e-4, 1e-1], "when": {"method.name": ["mean_teacher"]}},
    ],
    "optimizer.schedule": {"choice": ["constant", "auto"], "when": {"method.name": ["ngdiff"]}},
    "optimizer.name": {"fixed": "sgd", "when": {"method.name": ["mean_teacher"]}},
    "optimizer.momentum": {"fixed": 0.95, "when": {"method.name": ["mean_teacher"]}},
    "optimizer.gradient_clipping": {"fixed": 1.0, "when": {"method.name": ["mean_teacher"]}},
    "method.settings.teacher_rate": {"log_uniform": [1e-2, 5e-1], "when": {"method.name": ["mean_teacher"]}},
    "method.settings.forget_weight": {"log_uniform": [3e-2, 3.0], "when": {"method.name": ["mean_teacher"]}},
    "method.settings.damping": {"log_uniform": [0.1, 20.0], "when": {"method.name": ["mean_teacher"]}},
    "method.settings.penalty": {"choice": ["kl", "qkl"], "when": {"method.name": ["mean_teacher"]}},
}
"""Rates reach ten to twenty times higher than the methods' own ranges: a model of this size needs that."""


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Target and reference, taught once; a minute each."""
    made = []
    for name, split in (("target", "full"), ("reference", "retain90")):
        path = folder / name
        if not is_complete(path):

            def fill(aside: Path, split: str = split) -> None:
                make_model(aside, split)

            publish_folder(path, fill, {"split": split})
        made.append(path.resolve())
    return made[0], made[1]


def base_run(target: Path) -> dict[str, Any]:
    """What all trials share, as values of a `RunConfig`."""
    return {
        "name": "search",
        "model": {"path": str(target), "dtype": "fp32"},
        "data": {
            "benchmark": BENCHMARK,
            "forget": ["forget10"],
            "retain": ["retain90"],
            "generic": {"source": str(target / "stream.jsonl"), "length": CHUNK},
            "format": "plain",
            "max_length": MAX_LENGTH,
        },
        "method": {"name": "ngdiff"},
        "batch": {"rows": 8, "micro": 8},
        "steps": STEPS,
        "export_every": EVERY,
        "zero": {"stage": 0},
        "workers": {"count": 1},
    }


def plan() -> ScoringPlan:
    """Likelihoods of forget and retain rows, no generated answers."""
    return ScoringPlan(
        suite={"benchmark": BENCHMARK, "forget_split": "forget10"},
        config=EvaluationConfig(style="plain", max_length=MAX_LENGTH),
        groups=("forget", "retain"),
    )


def goal(target: Path, reference: Path) -> Goal:
    """The two objectives, scaled by what target and reference score."""
    scorer = ModelScorer(plan())
    start, aim = scorer.score(target), scorer.score(reference)
    kept, known = "retain_Q_A_Prob", "extraction_strength"
    return Goal(
        (
            Objective("utility", (kept,), "higher", 0.9 * start[kept], start[kept]),
            Objective("forgetting", (known,), "target", start[known], aim[known]),
        )
    )


def runner(target: Path) -> TrainedTrial:
    """Trains and scores a trial."""
    return TrainedTrial(base_run(target), plan(), str(target), os.getcwd())
