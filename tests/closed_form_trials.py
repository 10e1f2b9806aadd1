"""A trial without a model: utility falls and forgetting rises with rate x step. It can be told to go wrong."""

import math
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tune.objectives import Constraint, Goal, Objective
from tune.space import Space
from tune.trainable import Assignment, Ending, Report
from unlearn_core.errors import DivergedError

STEPS = 6
SPACE = Space.from_data({"rate": {"log_uniform": [0.01, 1.0]}, "kind": {"choice": ["plain", "slow"]}})
GOAL = Goal((Objective("utility", ("u",), "higher", 0.0, 1.0), Objective("forgetting", ("f",), "target", 0.0, 0.8)))
CONSTRAINED = Goal(GOAL.objectives, (Constraint("f", high=0.9),))


def metrics_of(config: dict, step: int) -> dict[str, float]:
    """What the trial measures after so many steps."""
    pace = config["rate"] * (0.5 if config["kind"] == "slow" else 1.0) * step
    return {"u": math.exp(-0.3 * pace), "f": 1 - math.exp(-pace)}


@dataclass
class ClosedFormTrial:
    """`tune.trainable.TrialRunner`.

    Attributes:
        wrong: trial number to how it goes wrong at step 2: diverge, memory, killed, hang or error.
        pause: seconds a step takes.
        touched: folder in which every evaluated step leaves a file, to count evaluations over kills.
    """

    wrong: dict[int, str]
    pause: float = 0.0
    touched: Path | None = None

    def run(self, assignment: Assignment, report: Report) -> Ending:
        for step in range(1, STEPS + 1):
            if step in assignment.scored:
                continue
            time.sleep(self.pause)
            if step == 2:
                self._go_wrong(self.wrong.get(assignment.number))
            if assignment.origin == "rerun" and step != assignment.parent_step:
                continue
            if self.touched is not None:
                name = f"{assignment.number}-{step}-{time.time_ns()}"
                (self.touched / name).write_text("")
            jitter = 0.0 if assignment.seed == 0 else 0.01 * assignment.seed
            metrics = metrics_of(assignment.config, step)
            report(step, metrics | {"u": metrics["u"] - jitter})
            if assignment.origin == "rerun":
                break
        return Ending()

    def _go_wrong(self, how: str | None) -> None:
        if how == "diverge":
            raise DivergedError("the loss is NaN")
        if how == "memory":
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, hard))
            try:
                bytearray(2**31)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(3600)
        if how == "error":
            raise RuntimeError("a wheel came off")

    def stop(self) -> None:
        pass
