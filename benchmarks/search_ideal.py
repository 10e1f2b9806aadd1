"""Ideal hypervolumes of the closed-form problems, and what the problems are like.

    python -m benchmarks.search_ideal        # some minutes on one core; prints what search_problems.py holds

A dense grid over everything that matters, for every combination of choices, at every step that has a point; its front
is then moved by normal steps of the unit cube, smaller and smaller, which only ever adds points that exist. So the
number comes from below; how near it is to the truth shows where two grids with two seeds agree.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_problems import CLOSED_FORMS, ClosedForm
from tune.objectives import hypervolume
from tune.random_search import uniform_units
from tune.space import Config, Domain

CHUNK = 20_000
"""Configurations at a time: 20,000 x 20 points x 2 values are 6 MB."""
FRONT = 4000
"""Members of a front that are moved: so many leave a staircase that misses about 1e-4 of the area."""


def grid_points(ranges: int, cells: int) -> int:
    """Values a range on a grid of about `cells` configurations."""
    return max(3, round(cells ** (1 / max(ranges, 1))))


def branches(problem: ClosedForm) -> Iterator[tuple[Config, list[Domain]]]:
    """Every combination of choices that can be, and the ranges that matter under it."""
    choices = [domain for domain in problem.space.domains if domain.kind == "choice"]
    seen: set[str] = set()
    for options in product(*(domain.values for domain in choices)):
        config: Config = {}
        for domain in problem.space.domains:
            if domain.active(config):
                if domain.kind == "choice":
                    config[domain.key] = options[choices.index(domain)]
                elif domain.kind == "fixed":
                    config[domain.key] = domain.values[0]
        if repr(config) not in seen:
            seen.add(repr(config))
            active = [one for one in problem.space.domains if one.kind not in ("choice", "fixed")]
            yield config, [one for one in active if one.active(config) and one.key not in problem.irrelevant]


def values_at(domain: Domain, units_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """`Domain.at` of many coordinates of a range."""
    low, high = domain.values
    if domain.kind == "log_uniform":
        return np.exp(np.log(low) + units_N * (np.log(high) - np.log(low)))
    return low + units_N * (high - low)


def front_rows(values_N2: NDArray[np.float64], most: int | None = None) -> NDArray[np.intp]:
    """Rows of the non-dominated points with a second value above 0, by falling first value.

    With `most`, the first in each of so many equal stretches of the front's length, so that no gap opens in it.
    """
    order_N = np.lexsort((-values_N2[:, 1], -values_N2[:, 0]))
    second_N = values_N2[order_N, 1]
    before_N = np.concatenate([[0.0], np.maximum.accumulate(second_N)[:-1]])
    rows = order_N[second_N > before_N]
    if most is None or len(rows) <= most:
        return rows
    length_N = np.concatenate([[0.0], np.abs(np.diff(values_N2[rows], axis=0)).sum(axis=1).cumsum()])
    _, first = np.unique((length_N / length_N[-1] * most).astype(int), return_index=True)
    return rows[first]


Branch = tuple[Config, list[Domain]]
Members = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Units (N, D) of one branch and the values (N, 2) of their best points, a row a point."""


def _played(problem: ClosedForm, branch: Branch, units_ND: NDArray[np.float64]) -> Members:
    """Every point of configurations that is on their common front."""
    choices, ranges = branch
    found_units, found_values = [np.zeros((0, units_ND.shape[1]))], [np.zeros((0, 2))]
    for start in range(0, len(units_ND), CHUNK):
        part_ND = units_ND[start : start + CHUNK]
        config: dict[str, Any] = dict(choices)
        config |= {one.key: values_at(one, part_ND[:, k])[:, None] for k, one in enumerate(ranges)}
        values_N2 = problem.curve(config, problem.shares).reshape(-1, 2)
        rows = front_rows(values_N2)
        found_units.append(part_ND[rows // len(problem.shares)])
        found_values.append(values_N2[rows])
    units_ND, values_N2 = np.concatenate(found_units), np.concatenate(found_values)
    rows = front_rows(values_N2)
    return units_ND[rows], values_N2[rows]


def dense_hypervolume(problem: ClosedForm, cells: int = 200_000, rounds: int = 60, seed: int = 0) -> float:
    """Hypervolume that a dense search finds; from below.

    Args:
        problem: any closed form.
        cells: configurations of the grid of each combination of choices.
        rounds: of moving the front, by 0.05 of the cube at first and half of that six rounds later.
        seed: of the moves.
    """
    draws = np.random.default_rng(seed)
    found: list[tuple[Branch, Members]] = []
    for branch in branches(problem):
        axis = np.linspace(0, 1, grid_points(len(branch[1]), cells))
        grid_ND = np.stack(np.meshgrid(*[axis] * len(branch[1]), indexing="ij"), axis=-1).reshape(-1, len(branch[1]))
        found.append((branch, _played(problem, branch, grid_ND)))
    for number in range(rounds):
        found = _only_front(found)
        moved = []
        for branch, (units_ND, values_N2) in found:
            step = 0.05 * 0.5 ** (number / 6) * draws.standard_normal(units_ND.shape)
            new_units_ND, new_N2 = _played(problem, branch, np.clip(units_ND + step, 0, 1))
            moved.append((branch, (np.concatenate([units_ND, new_units_ND]), np.concatenate([values_N2, new_N2]))))
        found = moved
    return hypervolume(np.concatenate([values_N2 for _, (_, values_N2) in found]))


def _only_front(found: list[tuple[Branch, Members]]) -> list[tuple[Branch, Members]]:
    """Members on the front of all branches together."""
    rows = front_rows(np.concatenate([values_N2 for _, (_, values_N2) in found]), FRONT)
    owner = np.concatenate([np.full(len(values_N2), k) for k, (_, (_, values_N2)) in enumerate(found)])
    first = np.cumsum([0, *(len(values_N2) for _, (_, values_N2) in found)])
    kept = []
    for k, (branch, (units_ND, values_N2)) in enumerate(found):
        mine = np.sort(rows[owner[rows] == k]) - first[k]
        kept.append((branch, (units_ND[mine], values_N2[mine])))
    return kept


def describe(problem: ClosedForm, count: int = 2000, trials: int = 40) -> dict[str, float]:
    """What random configurations are like.

    Returns:
        `best_not_last`: share of configurations whose step with the greatest product of values is not the last;
        `overshoots`: share whose forgetting falls again after its best step; `best_step_10`, `_50` and `_90`: quantiles
        of the best step; `random_share`: median share of the ideal that `trials` random trajectories cover.
    """
    units_ND = uniform_units(count, problem.space.dimension, 0)
    values_NT2 = np.array([problem.trajectory(problem.space.decode(unit_D)) for unit_D in units_ND])
    products_NT = values_NT2.prod(axis=-1)
    alive_N = products_NT.max(axis=1) > 0
    best_N = products_NT[alive_N].argmax(axis=1)
    forgetting_NT = values_NT2[:, :, 1]
    groups = [values_NT2[k : k + trials].reshape(-1, 2) for k in range(0, count - trials + 1, trials)]
    quantiles = {f"best_step_{q}": float(np.percentile((best_N + 1) * problem.every, q)) for q in (10, 50, 90)}
    return {
        "best_not_last": float(np.mean(best_N < values_NT2.shape[1] - 1)),
        "overshoots": float(np.mean(forgetting_NT.max(axis=1) > forgetting_NT[:, -1])),
        **quantiles,
        "random_share": float(np.median([hypervolume(group) for group in groups]) / problem.ideal),
    }


def main() -> None:
    """Print each problem's numbers."""
    for problem in CLOSED_FORMS.values():
        about = ", ".join(f"{name} {value:.3g}" for name, value in describe(problem).items())
        print(f"{problem.name}: {about}", flush=True)
        coarse, fine = (dense_hypervolume(problem, cells, seed=seed) for seed, cells in enumerate((50_000, 500_000)))
        print(f"{problem.name}: ideal {coarse:.6f} and {fine:.6f}; held {problem.ideal:.4f}", flush=True)


if __name__ == "__main__":
    main()
