"""The optimistic stop: a trial ends when even a hopeful view of the rest of its trajectory adds next to nothing.

After TMOBO's conservative early stopping (arXiv 2405.15303); the rule is our reconstruction, see
`tune.trajectory_search`. With P all points so far, those of the trial among them, t the trial's last step, and mu and
sd of the model given its points up to t, the trial stops if

    u_s = mu(x, s) + sqrt(beta) sd(x, s),  s > t
    HV(P u {u_s}) - HV(P) <= epsilon HV(P)

holds at its last point and held at the one before, as judged by what is known of the other trials now. A point whose
slack is negative even so adds nothing. The hyper-parameters are those of the trials that have ended, so a question
costs a factorisation and no fit, and the answer is a function of the history alone.

It ends trials that are good, too, once what they can still add is next to nothing.
"""

import logging
import math
from dataclasses import dataclass

from tune.history import History, Point, Trial, values_of
from tune.improvement import Front
from tune.trajectory_gp import ModelError
from tune.trajectory_model import TrajectoryModels, thinned
from unlearn_core.errors import UserError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimisticStop:
    """See the top of this file.

    Attributes:
        models: shared with the searcher, or of its own.
        minimum: never stops before this step; 1 or more.
        beta: of the optimism, 0 or more; 4 is two standard deviations.
        epsilon: share of the front's hypervolume that is next to nothing, from 0 to below 1.
        after: trials that must have ended before any is stopped.

    Raises:
        UserError: a number outside these bounds.
    """

    models: TrajectoryModels
    minimum: int
    beta: float = 4.0
    epsilon: float = 1e-3
    after: int = 5

    def __post_init__(self) -> None:
        if self.minimum < 1 or not 0 <= self.beta < math.inf or not 0 <= self.epsilon < 1:
            raise UserError(
                f"optimistic stop with minimum={self.minimum}, beta={self.beta:g} and epsilon={self.epsilon:g}: "
                "expected a minimum of 1 step or more, a finite beta of 0 or more, and an epsilon from 0 to below 1."
            )

    def reason(self, history: History, trial: Trial) -> str | None:
        """See `tune.stopping.StopRule`."""
        points = [point for point in trial.points if point.scored]
        ended = sum(one.status != "running" for one in history.searched())
        if trial.last_step < self.minimum or len(points) < 2 or ended < self.after:
            return None
        try:
            gain = self._gain(history, trial, points[-1])
            if gain is None or gain > self.epsilon or self._earlier(history, trial, points[-2]) > self.epsilon:
                return None
        except ModelError as error:
            LOG.warning("trial %d goes on, there is no model of its trajectory (%s)", trial.number, error)
            return None
        return (
            f"at step {trial.last_step} an optimistic rest would add {gain:.1e} of the hypervolume (least: "
            f"{self.epsilon:g})"
        )

    def _earlier(self, history: History, trial: Trial, last: Point) -> float:
        gain = self._gain(history, trial, last)
        return math.inf if gain is None else gain

    def _gain(self, history: History, trial: Trial, last: Point) -> float | None:
        """What the optimistic rest after one of the trial's points adds, as a share of HV(P); None without a model."""
        import torch

        rest = remaining(history, trial, last, self.models.total_steps)
        model = self.models.model(history, last)
        points = [one for one in history.points() if one.trial != trial.number or one.step <= last.step]
        if model is None or not rest or not points:
            return None
        front = Front(values_of(points))
        if front.hypervolume <= 0:
            return None
        mean_O1T, covariance_O1TT = model.posterior(torch.tensor(self.models.features(trial))[None], rest)
        deviation_O1T = covariance_O1TT.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
        hopeful_1TM = model.points(mean_O1T + math.sqrt(self.beta) * deviation_O1T)
        return float(front.improvement(hopeful_1TM)) / front.hypervolume


def remaining(history: History, trial: Trial, last: Point, total_steps: int) -> list[int]:
    """Steps after a point at which the trial may be scored, thinned: recorded ones, and its own stride to the end.

    Args:
        history: whose recorded steps count.
        trial: of the point.
        last: the point.
        total_steps: of a whole trial.
    """
    recorded = {point.step for one in history.searched() for point in one.points}
    before = max((point.step for point in trial.points if point.step < last.step), default=0)
    own = range(last.step, total_steps + 1, last.step - before)
    return thinned(sorted(step for step in recorded.union(own, [total_steps]) if last.step < step <= total_steps))
