"""Log a run's steps to TensorBoard, MLflow and Weights & Biases, from the process that the user started.

The steps are read from OUTPUT/metrics.jsonl, as the progress bar does: workers know nothing of it, and a place that is
slow or away does not hold them up. A step that is done again after a restart was logged the first time. What a place
could not take is tried again, at the next step, at the end, and when the same command is called again.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.glance import read_steps
from pipelines.log_sinks import Sink, check_packages, check_reachable, last_steps, numbers_of, open_sinks
from unlearn_core.config import RunConfig
from unlearn_core.errors import UserError
from unlearn_core.events import note_event
from unlearn_core.logging_config import LoggingConfig

POLL_SECONDS = 1.0


def check_logging(config: LoggingConfig) -> None:
    """Before any worker starts: are the packages there, does the server answer?

    Raises:
        MissingPackageError: with the extra to install.
        UserError: MLflow's server does not answer.
    """
    check_packages(config)
    problem = check_reachable(config)
    if problem:
        assert config.mlflow is not None
        raise UserError(
            f"logging.mlflow.uri {config.mlflow.uri}: {problem}. Start a server there, such as `mlflow server`, "
            "correct the address, or take logging.mlflow out of the config."
        )


@contextmanager
def logged(config: RunConfig, output: Path) -> Iterator["RunLog"]:
    """Log the run's steps while entered, each once; without a `logging` section to no place.

    Who enters sets the `status` of what it gives when the run has ended.
    """
    follower = RunLog(output, open_sinks(config, output))
    thread = threading.Thread(target=follower.follow, daemon=True)
    if follower.sinks:
        thread.start()
    try:
        yield follower
    finally:
        if follower.sinks:
            follower.ended.set()
            thread.join()
            follower.close()


def log_the_rest(config: RunConfig, output: Path, status: str) -> None:
    """Log what a run that has ended before could not; does nothing when all is logged."""
    steps = read_steps(output)
    if not config.logging.anything or not steps or min(last_steps(config, output)) >= steps[-1]["step"]:
        return
    check_logging(config.logging)
    follower = RunLog(output, open_sinks(config, output))
    follower.status = status
    follower.log_new()
    follower.close()


class RunLog:
    """Takes new steps to the places.

    Args:
        output: the run's folder.
        sinks: the places.
    """

    def __init__(self, output: Path, sinks: list[Sink]):
        self.output, self.sinks = output, sinks
        self.ended = threading.Event()
        self.status = "running"
        self._troubled: set[str] = set()

    def follow(self) -> None:
        """Until `ended` is set, and a last time after it."""
        while True:
            last_round = self.ended.wait(POLL_SECONDS)
            self.log_new()
            if last_round:
                return

    def log_new(self) -> None:
        """Log steps that are new to a place. Its failure is noted once and does not end the run."""
        steps = read_steps(self.output)
        for sink in self.sinks:
            try:
                for line in steps:
                    if line["step"] > sink.last:
                        sink.add(line["step"], numbers_of(line))
            except failures() as error:
                self._trouble(sink, error)

    def close(self) -> None:
        """Tell every place how the run stands."""
        for sink in self.sinks:
            try:
                sink.close(self.status)
            except failures() as error:
                self._trouble(sink, error)

    def _trouble(self, sink: Sink, error: Exception) -> None:
        if sink.name not in self._troubled:
            self._troubled.add(sink.name)
            said = (str(error).splitlines() or [""])[0]
            text = f"{sink.name} has the steps up to {sink.last}: {type(error).__name__}: {said}"
            note_event(self.output, "logging_failed", f"{text}; the same command logs the rest later")


def failures() -> tuple[type[Exception], ...]:
    """What a place raises when it is away or full."""
    found: list[type[Exception]] = [OSError]
    if "mlflow" in sys.modules:
        from mlflow.exceptions import MlflowException

        found.append(MlflowException)
    if "wandb" in sys.modules:
        from wandb.errors import Error

        found.append(Error)
    return tuple(found)
