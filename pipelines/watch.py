"""Evaluate a run's exports while it trains, and keep the best.

    EVAL/metrics.csv, evaluation.json   an ordinary evaluation that gains rows as exports appear
    RUN/best.json                       the best export by the chosen criterion, written after each round

Training goes on meanwhile and never waits: evaluation takes only CPUs and GPUs that the training workers leave free,
and where they leave none, it waits for the run's end.
"""

import math
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.best_checkpoint import Choice
from pipelines.evaluate import ModelPoint
from pipelines.ray_session import start_ray
from pipelines.run_watcher import Keep, RunWatcher
from unlearn_core.config import RunConfig
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.suite import Suite
from unlearn_core.loop import Outcome

POLL_SECONDS = 5.0
APPEARS_SECONDS = 300.0
"""How long a run that is not there yet is waited for, without a `stop` to end the waiting."""


def watch(
    run_folder: str | Path,
    suite: Suite,
    output: str | Path,
    config: EvaluationConfig | None = None,
    *,
    target: ModelPoint | None = None,
    reference: ModelPoint | None = None,
    criterion: str | None = None,
    among: Sequence[str] = (),
    keep: Keep = "all",
    actors: int | None = None,
    use_gpu: bool = False,
    poll_s: float = POLL_SECONDS,
    stop: threading.Event | None = None,
    console: Console | None = None,
) -> Choice | None:
    """Score each export of a run as it appears, until the run has ended and all are scored.

    A watch that was killed and is called again continues. On a Ray cluster that is connected already or named by
    `RAY_ADDRESS`, the CPUs and GPUs of the run's workers (`run.json`) are left alone while the run is on.

    Args:
        run_folder: the run's folder; it may be made after the call, within five minutes (or until `stop`).
        suite: what is measured.
        output: the evaluation's folder. Do not hand it to `unlearn evaluate` as well: that rewrites the table for its
            own models.
        config: settings of the evaluation that change numbers.
        target: the model before unlearning, for divergences and constraints; a row of the table.
        reference: the model retrained without the forget data; a row of the table.
        criterion: column that the best export is best in (`best_checkpoint.parse_rule`); None chooses none.
        among: constraints that the best export meets.
        keep: `all` deletes nothing. `best` deletes scored exports that miss a constraint or are worse than the best,
            but never the newest one or one whose columns are missing; their rows and records stay.
        actors: models in memory at once. None for one beside the training on CPUs, all free GPUs with `use_gpu`, and
            after the run's end as `evaluate` chooses.
        use_gpu: give each actor one GPU.
        poll_s: seconds between looks at the run's folder.
        stop: when set, what is exported by then is scored and the watch ends, whatever the run's status.
        console: where to report; None for silence.

    Returns:
        The choice as in RUN/best.json; None without a criterion.

    Raises:
        UserError: a mistake in the arguments, found before Ray starts; no run within five minutes; an evaluation
            folder of other settings; another watch on the same run or evaluation.
    """
    stop_or_never = stop or threading.Event()
    with RunWatcher(
        run_folder, suite, output, config, target, reference, criterion, among, keep, actors, use_gpu, console, console
    ) as watcher:
        limit = math.inf if stop else APPEARS_SECONDS
        return watcher.follow(lambda _: True, stop_or_never, threading.Event(), poll_s, limit)


@dataclass(frozen=True)
class Watched:
    """How a watched training ended.

    Attributes:
        outcome: of the training.
        choice: the best export; None without a criterion or when its evaluation failed.
        error: what ended the evaluation before its time; None if nothing did.
    """

    outcome: Outcome
    choice: Choice | None
    error: Exception | None


def train_and_watch(
    run: RunConfig,
    output: Path,
    suite: Suite,
    evaluation: str | Path,
    config: EvaluationConfig | None = None,
    *,
    target: ModelPoint | None = None,
    reference: ModelPoint | None = None,
    criterion: str | None = None,
    among: Sequence[str] = (),
    keep: Keep = "all",
    actors: int | None = None,
    use_gpu: bool = False,
    poll_s: float = POLL_SECONDS,
    console: Console | None = None,
) -> Watched:
    """`pipelines.train.train`, with a `watch` on its exports in the same process and Ray session.

    Args:
        run: the run.
        output: its folder.
        suite: as of `watch`, like all that follows.
        evaluation: the evaluation's folder.
        config: settings of the evaluation.
        target: the model before unlearning.
        reference: the model retrained without the forget data.
        criterion: column of the best export.
        among: constraints.
        keep: `all` or `best`.
        actors: models in memory at once.
        use_gpu: give each actor one GPU.
        poll_s: seconds between looks.
        console: where to report.

    Returns:
        Both results. An error of the evaluation is returned, not raised: the training does not end for it.

    Raises:
        UserError: as `train` and `watch`, before any worker starts where it can be found.
        Exception: whatever ended the training; the watch ends after the models that it is scoring.
    """
    from pipelines.train import train

    error: Exception | None = None
    choice: Choice | None = None
    ended, abandoned = threading.Event(), threading.Event()
    # No bar of rows: the console draws the training's, and two cannot be drawn at once.
    with RunWatcher(
        output, suite, evaluation, config, target, reference, criterion, among, keep, actors, use_gpu, console, None
    ) as watcher:
        start_ray()  # here, for two threads must not start it at once
        watcher.shares_cluster = True
        watcher.room(run.workers)  # says so before the start if there is none

        def follow() -> None:
            nonlocal error, choice
            try:
                choice = watcher.follow(
                    # Another run's folder is an error of `train`, and none of its exports is to be touched.
                    lambda record: record.get("fingerprint") == run.fingerprint(), ended, abandoned, poll_s
                )  # fmt: skip
            except Exception as failure:
                _free_frames(failure)
                error = failure
                watcher.say(f"evaluation ended with an error, the training is left alone: {failure}")

        follower = threading.Thread(target=follow, daemon=True, name="watch")
        follower.start()
        try:
            outcome = train(run, output, console)
        except BaseException as failure:
            abandoned.set()
            ended.set()  # wakes it up
            if isinstance(failure, Exception):  # an interrupt does not wait for a round
                follower.join()
            raise
        ended.set()
        follower.join()
        return Watched(outcome, choice, error)


def _free_frames(error: BaseException | None) -> None:
    """Empty the frames of an error that is kept: they hold a failed Ray job's actors, and those their CPUs."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
