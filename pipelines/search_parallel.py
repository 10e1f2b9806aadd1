"""Trials as lines over their hyper-parameters and objectives: the numbers behind a picture of parallel coordinates."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.search_plots import ParallelGroup
from tune.history import History, Point, best_contribution, values_of
from tune.objectives import Goal
from tune.space import Domain, Space


def parallel_groups(searches: Sequence[tuple[History, Space]], goal: Goal) -> list[ParallelGroup]:
    """A group for each set of hyper-parameters that trials use, such as those of one method.

    A trial stands at its step of best contribution to its own search.

    Args:
        searches: histories and their spaces.
        goal: what the values mean.
    """
    found: dict[tuple[str, tuple[str, ...]], list[tuple[Space, dict, Point, bool]]] = {}
    for history, space in searches:
        front = {(point.trial, point.step) for point in history.front()}
        for trial in history.searched():
            others = history.points(leave_out=trial.number)
            point = best_contribution(trial, values_of(others) if others else np.zeros((0, 0)))
            if point is None:
                continue
            used = tuple(domain.label for domain in space.varying if domain.active(trial.config))
            title = str(trial.config.get("method.name", ""))
            best = any((trial.number, step.step) in front for step in trial.points)
            found.setdefault((title, used), []).append((space, trial.config, point, best))
    return [_group(title, used, trials, goal) for (title, used), trials in sorted(found.items())]


def _group(
    title: str, used: tuple[str, ...], trials: Sequence[tuple[Space, dict, Point, bool]], goal: Goal
) -> ParallelGroup:
    space = trials[0][0]
    domains = [domain for domain in space.varying if domain.label in used and domain.key != "method.name"]
    values_NM = values_of(point for _, _, point, _ in trials)
    tops_M = np.maximum(values_NM.max(axis=0), 1.0)
    rows = [
        [*(domain.coordinate(config[domain.key]) for domain in domains), *(values_M / tops_M)]
        for (_, config, _, _), values_M in zip(trials, values_NM, strict=True)
    ]
    ticks = [*(_ticks(domain) for domain in domains), *({0.0: "0", 1.0: f"{top:.2g}"} for top in tops_M)]
    return ParallelGroup(
        title=title or f"{len(trials)} trials",
        columns=[*(domain.key for domain in domains), *(one.name for one in goal.objectives)],
        rows_NC=np.array(rows),
        ticks=ticks,
        worth_N=np.prod(values_NM, axis=1),
        front_N=np.array([best for _, _, _, best in trials]),
    )


def _ticks(domain: Domain) -> Mapping[float, str]:
    if domain.kind == "choice":
        return {domain.coordinate(option): str(option) for option in domain.values}
    return {0.0: f"{domain.values[0]:.3g}", 1.0: f"{domain.values[1]:.3g}"}
