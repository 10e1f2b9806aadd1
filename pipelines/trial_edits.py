"""Trials without training: SLUG's single-layer edits before a search, and lines back to the target after it.

A step is the number of an edit. Each is a point of the archive like a trained step, and its weights go the same way.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.model_scoring import ModelScorer, ScoringPlan
from tune.archive import trial_folder
from tune.trainable import Assignment, Ending, Report
from unlearn_core.edits.interpolation import write_interpolation
from unlearn_core.edits.streamed_weights import StreamedWeights
from unlearn_core.loop import model_folder
from unlearn_core.publish import MARKER, is_complete


def interpolate_towards(target: str, plan: ScoringPlan, assignment: Assignment, report: Report) -> Ending:
    """Points theta(a) = (1 - a) theta_member + a theta_target, one for each weight of the assignment's config.

    Args:
        target: model at a = 1.
        plan: what is measured.
        assignment: `interpolation.weights` in its config; its parent and parent step are the member.
        report: told of each point; step k is the k-th weight.
    """
    assert assignment.parent is not None and assignment.parent_step is not None, assignment
    weights = assignment.config["interpolation.weights"]
    folders = [(step, model_folder(assignment.folder, step)) for step in range(1, len(weights) + 1)]
    # All are written before the first is reported: a point that dominates the member would free its weights.
    for (step, folder), weight in zip(folders, weights, strict=True):
        if step not in assignment.scored and not is_complete(folder):
            parent = trial_folder(assignment.folder.parents[1], assignment.parent)
            marker = {"step": step, "method": "interpolation", "weight": weight}
            member = StreamedWeights(str(model_folder(parent, assignment.parent_step)))
            write_interpolation(member, StreamedWeights(target), weight, folder, marker)
    return _score_each(folders, plan, assignment, report)


def slug_points(
    target: str,
    base: dict[str, Any],
    plan: ScoringPlan,
    options: dict[str, Any],
    assignment: Assignment,
    report: Report,
) -> Ending:
    """Every (layer, scale) that SLUG tries, in the order tried.

    Args:
        target: the model that is edited.
        base: the training recipe's values; its splits give SLUG's gradients.
        plan: what is measured.
        options: of `pipelines.edit.SlugConfig`: threshold, layers, iterations.
        assignment: its folder takes SLUG's own.
        report: told of each point.
    """
    from pipelines.edit import SlugConfig, search_slug
    from unlearn_core.config import build_config

    data = base["data"]
    values = {
        "name": f"trial-{assignment.number:04d}",
        "model": target,
        "benchmark": data["benchmark"],
        "forget": list(data["forget"]),
        "retain": list(data["retain"]),
        "format": data.get("format", "chat"),
        "max_length": data.get("max_length", 512),
        "export": "all",
    } | options
    edits = search_slug(build_config(SlugConfig, values, source="search's warm start"), assignment.folder)
    steps = [point["step"] for point in edits.points if point["exported"]]
    models = ((step, model_folder(assignment.folder, step)) for step in steps)
    return _score_each(models, plan, assignment, report)


def _score_each(
    models: Iterable[tuple[int, Path]], plan: ScoringPlan, assignment: Assignment, report: Report
) -> Ending:
    scorer = ModelScorer(plan)
    count = 0
    for step, folder in models:
        count += 1
        if step not in assignment.scored and (folder / MARKER).is_file():
            report(step, scorer.score(folder))
    return Ending("finished", f"{count} edited models", 0)
