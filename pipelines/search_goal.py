"""From the objectives of a search's config to numbers: the target's and the reference's scores fix scale and origin.

OUTPUT/baseline/     the evaluation of both, by `unlearn evaluate`'s own stage, on the search's own rows
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.evaluate import ModelPoint, evaluate
from pipelines.model_scoring import ROBUSTNESS, ScoringPlan, knowledge_column
from pipelines.search_config import ConstraintConfig, ObjectiveConfig, SearchConfig
from tune.objectives import Constraint, Goal, Objective
from unlearn_core.errors import UserError
from unlearn_core.evaluation.leakage import quantisation_robustness
from unlearn_core.evaluation.suite import Suite

BASELINE = "baseline"
TOFU_UTILITY = (
    *("retain_Q_A_Prob", "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised"),
    *("retain_Truth_Ratio", "ra_Truth_Ratio", "wf_Truth_Ratio"),
)
"""Six of the nine terms of TOFU's model_utility: those that need no generated answers."""

Scores = Mapping[str, Mapping[str, float]]
"""Role, `target` or `reference`, to column to value."""


def score_baseline(
    plan: ScoringPlan, points: Sequence[ModelPoint], output: Path, console: Console | None
) -> tuple[ScoringPlan, dict[str, dict[str, float]]]:
    """Score target and reference as every step of the search will be.

    Args:
        plan: what is measured.
        points: the target, and the reference if there is one.
        output: the search's folder.
        console: where progress is drawn.

    Returns:
        The plan with the reference's records, and the scores.
    """
    rounded = [
        replace(point, model_id=f"{point.model_id}-{bits}", quantisation=bits, variant=bits)
        for bits in plan.quantised
        for point in points
    ]
    suite = plan.build()
    folder = output.resolve() / BASELINE
    table = evaluate([*points, *rounded], suite, folder, plan.config, use_gpu=plan.gpu, console=console)
    scores: dict[str, dict[str, float]] = {point.role: {} for point in points}
    known = knowledge_column(suite.columns)
    for row in table.to_dict("records"):
        suffix = f"@{row['variant']}" if row["variant"] else ""
        found = {name: float(row[name]) for name in suite.columns if name in row and math.isfinite(row[name])}
        scores[str(row["role"])] |= {name + suffix: value for name, value in found.items()}
    for role in scores.values():
        for bits in plan.quantised:
            if known in role and f"{known}@{bits}" in role:
                role[f"{ROBUSTNESS}@{bits}"] = quantisation_robustness(role[known], role[f"{known}@{bits}"])
    reference = next((point for point in points if point.role == "reference"), None)
    records = None if reference is None else folder / "records" / reference.model_id
    return replace(plan, reference=records), scores


def goal_of(config: SearchConfig, suite: Suite, scores: Scores) -> Goal:
    """Objectives with their scale.

    Raises:
        UserError: a metric that the scoring does not give, or a scale that spans nothing.
    """
    objectives = config.objectives or _usual(suite, scores, config.scoring.generate)
    found = [_objective(name, one, scores) for name, one in objectives.items()]
    constraints = [_constraint(one, scores) for one in config.constraints]
    return Goal(tuple(found), tuple(constraints))


def _usual(suite: Suite, scores: Scores, generate: bool) -> dict[str, ObjectiveConfig]:
    """Utility and forgetting of a suite; forgetting is nearness to the reference's extraction strength."""
    have = scores["target"]
    utility: str | tuple[str, ...]
    if suite.name == "tofu":
        utility = "model_utility" if generate else tuple(name for name in TOFU_UTILITY if name in have)
    elif suite.name == "muse":
        utility = "retain_knowmem_ROUGE"
    else:
        utility = "retain_utility" if generate else "retain_Q_A_Prob"
    forgetting = knowledge_column(suite.columns)
    if not utility or forgetting is None:
        raise UserError(
            f"the suite {suite.name} has no usual objectives on these rows; name `objectives`. Columns: "
            f"{', '.join(sorted(have))}"
        )
    return {
        "utility": ObjectiveConfig(metric=utility, direction="higher"),
        "forgetting": ObjectiveConfig(metric=forgetting, direction="target" if "reference" in scores else "lower"),
    }


def _objective(name: str, config: ObjectiveConfig, scores: Scores) -> Objective:
    columns = (config.metric,) if isinstance(config.metric, str) else config.metric
    for column in columns:
        _check(f"objectives.{name}", column, scores["target"])
    plain = Objective(name, columns, "higher", 0.0, 1.0)
    start = plain.raw(scores["target"])
    worst, best = config.worst, config.best
    if worst is None:
        worst = 0.0 if config.direction == "higher" else start
    if best is None and config.direction == "target":
        if "reference" not in scores:
            raise UserError(
                f"objectives.{name}: direction target aims at the reference's {', '.join(columns)}; give --reference, "
                "or set `best`"
            )
        best = plain.raw(scores["reference"])
    if best is None:
        best = start if config.direction == "higher" else 0.0
    if math.isnan(worst) or math.isnan(best):
        raise UserError(f"objectives.{name}: the target or the reference has no finite {', '.join(columns)}")
    return Objective(name, columns, config.direction, worst, best)


def _constraint(config: ConstraintConfig, scores: Scores) -> Constraint:
    _check("constraints", config.metric, scores["target"])
    low = -math.inf if config.low is None else config.low
    return Constraint(config.metric, low, math.inf if config.high is None else config.high)


def _check(where: str, column: str, have: Mapping[str, Any]) -> None:
    if column in have:
        return
    remedy = "name one of these"
    if "ROUGE" in column or column in ("model_utility", "retain_utility"):
        remedy = "set scoring.generate: true for columns that need answers, or name one of these"
    elif "@" in column:
        remedy = f"set scoring.quantised: [{column.partition('@')[2]}], or name one of these"
    raise UserError(f"{where}: the scoring gives no '{column}'; {remedy}: {', '.join(sorted(have))}")
