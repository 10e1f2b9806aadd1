"""One search of `benchmarks.search`, in this process: propose, play the trajectory point by point, stop or go on.

Steps are what is paid for. Each point of a trajectory costs `every` steps and is seen by everyone: hypervolume counts
all points of all trials, whatever the searcher itself learns from. Trials run one after the other.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_problems import CLOSED_FORMS, Problem, steps_of
from benchmarks.search_recorded import load_recorded
from tune.history import History, Point, Trial
from tune.objectives import hypervolume
from tune.random_search import RandomSearcher
from tune.searcher import TrajectorySearcher
from tune.space import Space
from tune.stopping import MultiObjectiveAsha, StopRule
from tune.told import How

PROBLEMS = (*CLOSED_FORMS, "recorded")
SAME = 1e-12
"""A hypervolume counts as reached so near to it: sums of the same points in another order differ in the last digits."""
Built = tuple[TrajectorySearcher, list[StopRule]]
Make = Callable[[Space, History, int, int, int], Built]
"""Space, history, seed, total steps and the least steps of a trial, to a searcher and its stop rules."""


def find_problem(name: str) -> Problem:
    """A problem by name.

    Raises:
        UserError: the recorded one's files are missing.
    """
    return load_recorded() if name == "recorded" else CLOSED_FORMS[name]


@dataclass(frozen=True)
class Contestant:
    """A searcher with its stop rules.

    Attributes:
        name: on the command line.
        label: in tables and pictures.
        make: builds it.
    """

    name: str
    label: str
    make: Make


def _random(kind: Any, asha: bool = False) -> Make:
    def make(space: Space, history: History, seed: int, total: int, least: int) -> Built:
        return RandomSearcher(space, history, seed, total, kind), [MultiObjectiveAsha(least)] if asha else []

    return make


def _optuna(sampler: Any, told: How) -> Make:
    def make(space: Space, history: History, seed: int, total: int, least: int) -> Built:
        from tune.optuna_search import OptunaSearcher

        return OptunaSearcher(space, history, seed, total, sampler=sampler, told=told), []

    return make


def _qlognehvi(told: How) -> Make:
    def make(space: Space, history: History, seed: int, total: int, least: int) -> Built:
        from tune.botorch_search import NoisyHypervolumeSearcher

        return NoisyHypervolumeSearcher(space, history, seed, total, told=told), []

    return make


def _trajectory(stops: bool) -> Make:
    def make(space: Space, history: History, seed: int, total: int, least: int) -> Built:
        from tune.trajectory_search import TrajectoryBayesSearcher

        searcher = TrajectoryBayesSearcher(space, history, seed, total)
        if not stops:
            return searcher, []
        from tune.optimistic_stop import OptimisticStop

        # Shared, as `unlearn search` does it.
        return searcher, [OptimisticStop(searcher.models, least)]

    return make


CONTESTANTS: dict[str, Contestant] = {
    one.name: one
    for one in (
        Contestant("random", "random", _random("random")),
        Contestant("sobol", "Sobol", _random("sobol")),
        Contestant("tpe", "TPE, final", _optuna("tpe", "final")),
        Contestant("nsga2", "NSGA-II, final", _optuna("nsga2", "final")),
        Contestant("qlognehvi", "qLogNEHVI, final", _qlognehvi("final")),
        Contestant("tmobo", "TMOBO-style", _trajectory(True)),
        Contestant("tmobo_whole", "TMOBO-style, no stops", _trajectory(False)),
        Contestant("tpe_best", "TPE, best", _optuna("tpe", "best")),
        Contestant("nsga2_best", "NSGA-II, best", _optuna("nsga2", "best")),
        Contestant("qlognehvi_best", "qLogNEHVI, best", _qlognehvi("best")),
        Contestant("random_asha", "random, ASHA", _random("random", asha=True)),
    )
}
ELSEWHERE = ("search", "trainable", "archive", "kept_models", "attainment", "importance")
"""Modules of tune/ that no search here goes through."""
TRAJECTORIES = ("trajectory_search", "trajectory_model", "trajectory_gp", "improvement", "optimistic_stop")
"""Those of the TMOBO-style searcher alone."""
USUAL = ("random", "sobol", "tpe", "nsga2", "qlognehvi", "tmobo")


class Covered:
    """Hypervolume of all points seen, kept up to date point by point."""

    def __init__(self) -> None:
        self.front_N2: NDArray[np.float64] = np.zeros((0, 2))
        self.hypervolume = 0.0

    def add(self, values: tuple[float, ...]) -> bool:
        """Take in a point; whether it adds area."""
        value_2 = np.array(values)
        if not (np.isfinite(value_2).all() and (value_2 > 0).all()) or (self.front_N2 >= value_2).all(axis=1).any():
            return False
        kept_N2 = self.front_N2[~(self.front_N2 <= value_2).all(axis=1)]
        self.front_N2 = np.vstack([kept_N2, value_2])
        self.hypervolume = hypervolume(self.front_N2)
        return True


@dataclass
class Run:
    """What came of a search.

    Attributes:
        spent: steps.
        curve: (steps spent, hypervolume) at each improvement, in order.
        trials: configurations proposed.
        stopped: trials that a rule ended early.
        proposing: seconds of each proposal.
        ruling: seconds of the stop rules, by trial.
        history: all of it.
    """

    spent: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    trials: int = 0
    stopped: int = 0
    proposing: list[float] = field(default_factory=list)
    ruling: list[float] = field(default_factory=list)
    history: History = field(default_factory=History)

    def at(self, steps: int) -> float:
        """Hypervolume after so many steps; 0 before the first point."""
        return max((volume for spent, volume in self.curve if spent <= steps), default=0.0)

    def reached(self, volume: float) -> int | None:
        """Steps at which it first had so much hypervolume; None for never."""
        return next((spent for spent, found in self.curve if found >= volume - SAME), None)


def least_steps(problem: Problem) -> int:
    """What every trial gets before a rule may end it: a fifth, rounded up to a point, like `unlearn search`."""
    return -(-(problem.total_steps // 5) // problem.every) * problem.every


def play(
    problem: Problem, contestant: Contestant, seed: int, budget: int, bound: int, goal: float | None = None
) -> Run:
    """Search until the steps are spent.

    Args:
        problem: what is searched.
        contestant: who searches.
        seed: of the searcher.
        budget: steps that are spent in any case.
        bound: steps that are spent at most; beyond the budget only while `goal` is not reached.
        goal: hypervolume; None to stop at the budget.
    """
    run = Run()
    searcher, rules = contestant.make(problem.space, run.history, seed, problem.total_steps, least_steps(problem))
    covered = Covered()

    def over() -> bool:
        done = goal is None or covered.hypervolume >= goal - SAME
        return run.spent >= (budget if done else bound)

    while not over():
        number = run.history.next_number
        begin = time.perf_counter()
        config = searcher.propose(number)
        run.proposing.append(time.perf_counter() - begin)
        trial = Trial(number, problem.settled(config, [one.config for one in run.history]))
        run.history.add(trial)
        run.trials += 1
        _play_trial(problem, rules, run, trial, covered, over)
    return run


def _play_trial(
    problem: Problem, rules: list[StopRule], run: Run, trial: Trial, covered: Covered, over: Callable[[], bool]
) -> None:
    """One trajectory, point by point; the trial has an end afterwards."""
    begun = run.spent
    run.ruling.append(0.0)
    for step, values_2 in zip(steps_of(problem), problem.trajectory(trial.config), strict=True):
        run.spent = begun + step
        if not np.isfinite(values_2).all():
            run.history.end(trial.number, "diverged", f"no values at step {step}", steps_done=step)
            return
        point = Point(trial.number, step, (float(values_2[0]), float(values_2[1])))
        run.history.record(point)
        if covered.add(point.values):
            run.curve.append((run.spent, covered.hypervolume))
        if step == problem.total_steps:
            break
        if over():
            run.history.end(trial.number, "budget", "steps used up")
            return
        begin = time.perf_counter()
        reason = next((text for rule in rules if (text := rule.reason(run.history, trial))), None)
        run.ruling[-1] += time.perf_counter() - begin
        if reason is not None:
            run.history.end(trial.number, "pruned", reason)
            run.stopped += 1
            return
    run.history.end(trial.number, "finished")


def run_task(problem_name: str, name: str, seed: int, trials: int, bound_factor: float) -> dict[str, Any]:
    """One line of the results: a contestant on a problem with a seed, against random search of the same seed.

    Args:
        problem_name: of `PROBLEMS`.
        name: of `CONTESTANTS`.
        seed: of both.
        trials: budget in whole trajectories.
        bound_factor: how many budgets a search may spend to reach what random search ends with.
    """
    _one_thread()
    problem = find_problem(problem_name)
    budget = trials * problem.total_steps
    bound = int(bound_factor * budget)
    random = play(problem, CONTESTANTS["random"], seed, budget, budget)
    goal = random.at(budget)
    begin = time.perf_counter()
    run = random if name == "random" else play(problem, CONTESTANTS[name], seed, budget, bound, goal)
    return {
        "problem": problem_name,
        "searcher": name,
        "seed": seed,
        "trials_budget": trials,
        "bound_factor": bound_factor,
        "budget": budget,
        "bound": bound,
        "ideal": problem.ideal,
        "goal": goal,
        "random_reached": random.reached(goal),
        "reached": run.reached(goal),
        "at_budget": run.at(budget),
        "curve": [[steps, round(volume, 9)] for steps, volume in run.curve],
        "spent": run.spent,
        "trials": run.trials,
        "stopped": run.stopped,
        "propose_median": round(statistics.median(run.proposing), 5),
        "propose_max": round(max(run.proposing), 5),
        "rules_median": round(statistics.median(run.ruling), 5),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def measure_overhead(problem_name: str, name: str, filled: int, repetitions: int) -> dict[str, Any]:
    """Seconds of a proposal, and of the stop rules over a whole trial, after so many whole random trajectories.

    A proposal on a small history comes first, so that imports are not counted. Each repetition has one more trial in
    its history than the one before, so that nothing of the last proposal can be used again. Processor time stands
    beside the clock's, which other work on the machine disturbs more.
    """
    _one_thread()
    problem = find_problem(problem_name)
    make, seed, total, least = CONTESTANTS[name].make, 0, problem.total_steps, least_steps(problem)
    small = _filled(problem, 20)
    make(problem.space, small, seed, total, least)[0].propose(small.next_number)
    history = _filled(problem, filled)
    searcher, rules = make(problem.space, history, seed, total, least)
    run, covered, processor = Run(history=history), Covered(), []
    for _ in range(repetitions):
        number = history.next_number
        begin, begin_processor = time.perf_counter(), time.process_time()
        config = searcher.propose(number)
        run.proposing.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
        trial = Trial(number, config)
        history.add(trial)
        _play_trial(problem, rules, run, trial, covered, lambda: False)
    return {
        "searcher": name,
        "problem": problem_name,
        "points": len(steps_of(problem)),
        "proposing": run.proposing,
        "processor": processor,
        "ruling": run.ruling,
    }


def _filled(problem: Problem, trials: int) -> History:
    history = History()
    searcher = RandomSearcher(problem.space, history, 1_000_003, problem.total_steps)
    run, covered = Run(history=history), Covered()
    for number in range(trials):
        trial = Trial(number, searcher.propose(number))
        history.add(trial)
        _play_trial(problem, [], run, trial, covered, lambda: False)
    return history


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def sources(name: str) -> list[Path]:
    """Files that decide a contestant's result: the searchers, without those it has no part in, and these benchmarks."""
    here = Path(__file__).parent
    names = ("search_problems.py", "search_recorded.py", "search_runs.py", "recorded_trajectories.parquet")
    apart = ELSEWHERE if name.startswith("tmobo") else (*ELSEWHERE, *TRAJECTORIES)
    searchers = [path for path in sorted((here.parent / "tune").glob("*.py")) if path.stem not in apart]
    return [*searchers, *(here / name for name in names)]
