"""When a trial is stopped before its last step: the rules' protocol, and multi-objective ASHA.

A rule is asked after each new point and answers from the history alone. So nothing of it is saved, and a search that is
started again decides as if it had not stopped: the rungs are in the archive.

Multi-objective ASHA follows asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934): a trial that
reaches a rung goes on if it is among the best 1 / reduction of those that have reached it so far. Trials are ranked by
non-dominated sorting, as in multi-objective ASHA (Schmucker et al., arXiv 2106.12639). Two things differ from there:

- A trial counts by the best that it had up to the rung, not by its value at the rung: forgetting is not monotone in the
  step, and the step that would be chosen counts.
- Inside a front the order is by hypervolume contribution, not by an epsilon-net.
"""

from dataclasses import dataclass
from typing import Protocol

from tune.history import History, Point, Trial, values_of
from tune.objectives import hypervolume
from tune.told import non_dominated_points, violation
from unlearn_core.errors import UserError
from unlearn_core.frontier import non_dominated


class StopRule(Protocol):
    """Whether a trial should end."""

    @property
    def minimum(self) -> int:
        """The rule never stops a trial before this step."""
        ...

    def reason(self, history: History, trial: Trial) -> str | None:
        """Why `trial` should stop, for a reader; None to go on. Asked after each of its points.

        Args:
            history: the trial's new point included.
            trial: a running trial of the history.
        """
        ...


@dataclass(frozen=True)
class MultiObjectiveAsha:
    """Multi-objective asynchronous successive halving; see the top of this file.

    Rungs stand at minimum * reduction^k steps, k = 0, 1, ... A trial reaches a rung with its first point at or after
    it, and is judged there once, at the highest rung if one point passes several. What it had up to the rung are its
    points up to that one. It is ranked among the searcher's trials that have reached the rung, in the order

    1. of the first front, by non-dominated sorting of the points that their own trials do not dominate, that holds one
       of its points;
    2. inside that front, of what the front loses in hypervolume without the trial's points;
    3. behind all of these, trials whose feasible points all have an objective at 0: a run that changes nothing is not
       dominated in utility, but adds no hypervolume;
    4. then trials with infeasible points alone, by the least sum of broken constraints;
    5. last, trials without a scored point.

    A tie is to the judged trial's good: its rank is 1 + the number of trials that are strictly better. The best
    floor(N / reduction) of N go on, at least one.

    Attributes:
        minimum: first rung, in steps; never stops before it.
        reduction: of R trials one goes on; at least 2.
        fewest: trials that must have reached a rung, the judged one included, before anyone is stopped there;
            `reduction` if None. With fewer they pass.

    Raises:
        UserError: `minimum` below 1 or `reduction` below 2.
    """

    minimum: int
    reduction: int = 3
    fewest: int | None = None

    def __post_init__(self) -> None:
        if self.minimum < 1 or self.reduction < 2:
            raise UserError(
                f"ASHA with minimum={self.minimum} and reduction={self.reduction}: expected a first rung of 1 step or "
                "more and a reduction of 2 or more."
            )

    def reason(self, history: History, trial: Trial) -> str | None:
        """See `StopRule`."""
        rung = self._rung(trial)
        if rung is None:
            return None
        reached = {one.number: points for one in history.searched() if (points := _up_to(one, rung))}
        count = len(reached)
        if count < (self.reduction if self.fewest is None else self.fewest):
            return None
        keys = _keys(reached)
        rank = 1 + sum(key < keys[trial.number] for key in keys.values())
        kept = max(1, count // self.reduction)
        return None if rank <= kept else f"rank {rank} of {count} at step {rung} (kept: {kept})"

    def _rung(self, trial: Trial) -> int | None:
        """The highest rung that the trial's last point is the first to reach; None for none."""
        before = trial.points[-2].step if len(trial.points) > 1 else 0
        rung, passed = self.minimum, None
        while rung <= trial.last_step:
            if rung > before:
                passed = rung
            rung *= self.reduction
        return passed


def _up_to(trial: Trial, rung: int) -> list[Point]:
    """Points up to the first at or after the rung, which is among them; none if the trial has not reached it."""
    first = next((point.step for point in trial.points if point.step >= rung), None)
    return [] if first is None else [point for point in trial.points if point.step <= first]


def _keys(reached: dict[int, list[Point]]) -> dict[int, tuple[float, ...]]:
    """What trials are sorted by, lowest first: their class, then front and contribution turned round, or violation."""
    keys: dict[int, tuple[float, ...]] = {}
    rest: list[Point] = []
    for number, points in reached.items():
        scored = [point for point in points if point.scored]
        volume = [point for point in non_dominated_points([p for p in points if p.candidate]) if min(point.values) > 0]
        rest += volume
        if volume:
            continue
        if any(point.feasible for point in scored):
            keys[number] = (1.0,)
        else:
            keys[number] = (2.0, min(map(violation, scored))) if scored else (3.0,)
    front = 0
    while len(keys) < len(reached):
        values_NM = values_of(rest)
        mask_N = non_dominated(values_NM, (True,) * values_NM.shape[1])
        layer = [point for point, inside in zip(rest, mask_N, strict=True) if inside]
        whole = hypervolume(values_of(layer))
        for number in {point.trial for point in layer} - keys.keys():
            without = [point for point in layer if point.trial != number]
            # Rounding of 1e-17 must not make a rank of a tie.
            lost = round(whole - (hypervolume(values_of(without)) if without else 0.0), 12)
            keys[number] = (0.0, float(front), -lost)
        rest = [point for point, inside in zip(rest, mask_N, strict=True) if not inside]
        front += 1
    return keys
