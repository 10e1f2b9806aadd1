"""Look at a run's folder again and again: score new exports, choose the best, delete what can go."""

import fcntl
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import ray
from rich.console import Console

from pipelines.best_checkpoint import Checkpoint, Choice, choose, parse_rule
from pipelines.evaluate import ModelPoint, discover_run
from pipelines.growing_evaluation import GrowingEvaluation
from pipelines.model_points import check_models, same_place
from pipelines.ray_session import start_ray
from unlearn_core.config import WorkersConfig
from unlearn_core.errors import UserError
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.suite import Suite
from unlearn_core.publish import is_complete, write_json

Keep = Literal["all", "best"]

BEST = "best.json"
RUN = "run.json"

_CPUS_EACH = 0.5  # of an evaluation actor on a cluster of two CPUs or more, see pipelines/evaluate.py


def room_beside(cluster: Mapping[str, float], workers: WorkersConfig, actors: int | None, use_gpu: bool) -> int:
    """How many evaluation actors fit beside training workers, so that neither ever waits for the other.

    The arithmetic is over the whole cluster: with several nodes, a worker that is restarted may still find its place
    split over nodes and wait for the end of a round.

    Args:
        cluster: all resources of the cluster, as `ray.cluster_resources()`.
        workers: the training's.
        actors: how many are wanted. None for one on CPUs (memory is shared with the training), all free GPUs else.
        use_gpu: whether each takes a GPU.

    Returns:
        The number, at most `actors`; 0 if there is no room.
    """
    cpus = cluster.get("CPU", 0.0)
    left = cpus - workers.count * workers.cpus_per_worker
    gpus = int(cluster.get("GPU", 0.0)) - (workers.count if workers.gpu else 0)
    wanted = min(gpus if actors is None else actors, gpus) if use_gpu else actors or 1
    while wanted > 0 and min(_CPUS_EACH * wanted, cpus / 2) > left + 1e-9:
        wanted -= 1
    return max(0, wanted)


class RunWatcher:
    """A watch on one run; use as a context manager, which keeps other watches off the run and the evaluation.

    Args:
        run_folder: as of `pipelines.watch.watch`, like all but the last two.
        suite: what is measured.
        output: the evaluation's folder.
        config: settings of the evaluation.
        target: the model before unlearning.
        reference: the model retrained without the forget data.
        criterion: column of the best export.
        among: constraints.
        keep: `all` or `best`.
        actors: models in memory at once.
        use_gpu: give each actor one GPU.
        console: where to print lines.
        rows_console: where to draw the progress of rows.

    Raises:
        UserError: a mistake in the arguments.
    """

    def __init__(
        self,
        run_folder: str | Path,
        suite: Suite,
        output: str | Path,
        config: EvaluationConfig | None,
        target: ModelPoint | None,
        reference: ModelPoint | None,
        criterion: str | None,
        among: Sequence[str],
        keep: Keep,
        actors: int | None,
        use_gpu: bool,
        console: Console | None,
        rows_console: Console | None,
    ) -> None:
        if keep not in get_args(Keep):
            raise UserError(f"keep is '{keep}'; expected 'all' or 'best'")
        if criterion is None and (keep == "best" or among):
            raise UserError("keep 'best' and constraints need a criterion; give the column to choose by (--best-by)")
        if actors is not None and actors < 1:
            raise UserError(f"actors is {actors}; expected at least 1, or None")
        self.stars = [point for point in (target, reference) if point is not None]
        for point, role in ((target, "target"), (reference, "reference")):
            if point is not None and point.role != role:
                raise UserError(f"'{point.model_id}' is given as {role} and has the role '{point.role}'")
        if self.stars:
            check_models(self.stars, require_reference=False)
        roles = [str(point.role) for point in self.stars]
        self.rule = None if criterion is None else parse_rule(criterion, among, suite.columns, roles)
        self.run, self.output = Path(run_folder), Path(output)
        self.suite, self.config = suite, config or EvaluationConfig()
        self.keep, self.actors, self.use_gpu = keep, actors, use_gpu
        self.console, self.rows_console = console, rows_console
        self.shares_cluster = ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))
        self._said: set[str] = set()
        self._locks = ExitStack()

    def __enter__(self) -> "RunWatcher":
        with ExitStack() as locks:
            locks.enter_context(_alone(self.output))
            self.evaluation = GrowingEvaluation(self.output, self.suite, self.config, self.stars)
            self._locks = locks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def follow(
        self,
        mine: Callable[[dict[str, Any]], bool],
        stop: threading.Event,
        abandoned: threading.Event,
        poll_s: float,
        appears_s: float = math.inf,
    ) -> Choice | None:
        """Round after round, until the run has ended and all is scored.

        Args:
            mine: whether a run.json is the run's that is meant; it is waited for until it is.
            stop: when set, the run counts as ended.
            abandoned: when set, nothing more is begun.
            poll_s: seconds between looks.
            appears_s: how long the run is waited for.

        Returns:
            The choice; None without a criterion, or when abandoned before the first round.

        Raises:
            UserError: no run in `appears_s`, another watch on it, or what `evaluate` raises.
        """
        record, waited = self._record(), 0.0
        while record is None or not mine(record):
            if stop.is_set() or abandoned.is_set():
                return None
            if waited >= appears_s:
                raise UserError(f"no run at {self.run} after {waited:.0f} s: there is no {self.run / RUN}")
            self.say(f"waiting for the run {self.run}")
            stop.wait(poll_s)
            waited, record = waited + poll_s, self._record()
        self._locks.enter_context(_alone(self.run))
        for leftover in self.run.glob("models/.*.dropped"):  # a deletion that a kill cut off
            shutil.rmtree(leftover)
        # What an earlier watch scored, which may have been killed before it chose.
        settled = bool(self.evaluation.rows)
        choice = self._settle(record) if settled else None
        while not abandoned.is_set():
            record = self._record() or record
            # Asked before looking for exports: what was published before the end is seen then.
            over = stop.is_set() or record.get("status") != "running"
            points = self._exports()
            fresh = [point for point in [*self.stars, *points] if not self.evaluation.holds(point)]
            actors = self.actors if over or not fresh else self._actors_now(record)
            if fresh and actors != 0:
                self._score(fresh, actors)
                choice = self._settle(record)
                settled = True
            elif over:
                break
            else:
                stop.wait(poll_s)
        return choice if settled or abandoned.is_set() else self._settle(record)

    def room(self, workers: WorkersConfig) -> int:
        """`room_beside` these workers; says once if there is none."""
        cluster = ray.cluster_resources()
        found = room_beside(cluster, workers, self.actors, self.use_gpu)
        if not found:
            kind = "GPU" if self.use_gpu else "CPU"
            self.say(
                f"evaluation: {workers.count} training workers leave no {kind} of the cluster's "
                f"{cluster.get(kind, 0.0):g} free for it, so exports are scored when the run has ended. To have them "
                "scored meanwhile, lower workers.count or workers.cpus_per_worker, or connect to a larger cluster"
            )
        return found

    def say(self, text: str) -> None:
        """Print a line, each text once."""
        if self.console is not None and text not in self._said:
            self._said.add(text)
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _actors_now(self, record: Mapping[str, Any]) -> int | None:
        """Actors for a round while the run is on; 0 to wait, None for `evaluate`'s choice."""
        workers = record.get("config", {}).get("workers")
        if not self.shares_cluster or workers is None:
            return self.actors
        start_ray()
        return self.room(WorkersConfig.model_validate(workers))

    def _record(self) -> dict[str, Any] | None:
        path = self.run / RUN
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _exports(self) -> list[ModelPoint]:
        whole = [path for path in (*self.run.glob("models/step-*"), self.run / "model") if is_complete(path)]
        return discover_run(self.run, role="checkpoint") if whole else []

    def _score(self, fresh: Sequence[ModelPoint], actors: int | None) -> None:
        points = [point for point in fresh if point not in self.stars]
        self.evaluation.add(points, actors=actors, use_gpu=self.use_gpu, console=self.rows_console)
        for point in fresh:
            row = next(row for row in self.evaluation.rows if row["model"] == point.model_id)
            first = [self.rule.column] if self.rule else []
            shown = first + [name for name in self.suite.headline if name not in first]
            numbers = "  ".join(f"{name} {float(row[name]):.4g}" for name in shown if row.get(name))
            self.say(f"evaluated {point.model_id}: {numbers or 'no aggregate has a value'}")

    def _settle(self, record: Mapping[str, Any]) -> Choice | None:
        """Choose the best of what is scored, say so in best.json, and delete what can go."""
        if self.rule is None:
            return None
        exports = {point.model_id: point for point in self._exports()}
        run_name = str(record.get("run", self.run.name))
        of_run, stars = [], {}
        for row in self.evaluation.rows:
            checkpoint = self._checkpoint(row, row["model"] in exports)
            if row["variant"]:
                continue
            if row["role"] in ("target", "reference"):
                stars[row["role"]] = checkpoint
            elif row["run"] == run_name:
                of_run.append(checkpoint)
        choice = choose(self.rule, of_run, stars)
        best = choice.best
        about = {
            "status": "found" if best else "none",
            "model": os.path.relpath(exports[best.model_id].path, self.run) if best else None,
            "model_id": best.model_id if best else None,
            "step": best.step if best else None,
            "reason": choice.reason,
            "criterion": self.rule.criterion,
            "among": [constraint.text for constraint in self.rule.among],
            "metrics": {name: _finite(value) for name, value in best.metrics.items()} if best else {},
            "evaluated": len(of_run),
            "evaluation": str(self.output.resolve()),
        }
        write_json(self.run / BEST, about)
        if best:
            self.say(f"best so far: {best.model_id} ({self.rule.column} {best.metrics[self.rule.column]:.4g})")
        elif of_run:
            self.say(f"best: none yet, {choice.reason}")
        if self.keep == "best":
            self._drop(choice, exports, record)
        return choice

    def _checkpoint(self, row: Mapping[str, str], present: bool) -> Checkpoint:
        missing = self.evaluation.about["missing"].get(row["model"], {})
        metrics = {name: float(row[name]) if row[name] else None for name in self.suite.columns}
        return Checkpoint(row["model"], int(row["step"] or 0), metrics, missing, present)

    def _drop(self, choice: Choice, exports: Mapping[str, ModelPoint], record: Mapping[str, Any]) -> None:
        """Delete exports that cannot be the best any more; the newest stays, for `last_model` names it."""
        newest = max((point.step for point in exports.values()), default=0)
        needed: list[str | Path] = [point.path for point in self.stars]
        if record.get("last_model"):
            needed.append(self.run / record["last_model"])
        for point in exports.values():
            folder = Path(point.path)
            if (
                point.model_id in choice.beaten
                and point.step < newest
                and not any(same_place(folder, other) for other in needed)
                and self.evaluation.holds(point)
            ):
                aside = folder.with_name(f".{folder.name}.dropped")
                os.replace(folder, aside)  # first, so that nobody meets a half-deleted model
                shutil.rmtree(aside)
                self.say(f"deleted {folder}; its row and records stay")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system frees when the process ends, however it does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".watch.lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another watch is at work on {folder}; wait for it, or give each its own --output"
            ) from error
        yield


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
