"""TensorBoard, MLflow and Weights & Biases as places that steps are logged to, each through its own package.

A sink knows the last step that it holds (`last`), takes steps after it, one call each, and is closed with the run's
status. What it needs to find its own run again lies in OUTPUT/logging.json; how far it has come, the place itself is
asked (event files, server, run files), so a kill between logging a step and noting it neither loses nor repeats it.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipelines.wandb_files import history
from unlearn_core.config import RunConfig
from unlearn_core.errors import MissingPackageError
from unlearn_core.logging_config import LoggingConfig
from unlearn_core.publish import write_json

STATE = "logging.json"
_PACKAGES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases"}
_MARK = "learning_rate"
"""A number that every step has: the last step with it is the last one that was logged."""
_LETTING_GO_SECONDS = 60.0


class Sink(Protocol):
    """Where steps are logged."""

    name: str
    last: int
    """The last step that it holds; 0 for none."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log a step, whole or not at all."""
        ...

    def add_scores(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log what an evaluation measured on the model of a step, after all steps."""
        ...

    def close(self, status: str) -> None:
        """The run has ended (`finished`, `diverged`) or this process stops here (`running`)."""
        ...


def check_packages(config: LoggingConfig) -> None:
    """`MissingPackageError` for a place whose package is not installed."""
    for name, title in _PACKAGES.items():
        if getattr(config, name) and find_spec(name) is None:
            raise MissingPackageError(
                f"logging.{name} needs the package of {title}: pip install 'unlearn[{name}]', or take logging.{name} "
                "out of the config."
            )


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """What of a line of metrics.jsonl can be logged: its finite numbers; AutoLR's counts under their names."""
    flat = {key: value for key, value in line.items() if key != "step"}
    probes = flat.pop("auto_probes", {})
    flat |= {f"auto_probes/{name}": count for name, count in probes.items()}
    return {
        name: float(value)
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def open_sinks(config: RunConfig, output: Path) -> list[Sink]:
    """All that the config names, ready to go on after the last step that each holds."""
    wanted, sinks = config.logging, []
    if wanted.tensorboard:
        sinks.append(TensorBoard(output))
    if wanted.mlflow is not None:
        sinks.append(Mlflow(config, output))
    if wanted.wandb is not None:
        sinks.append(Wandb(config, output))
    return sinks


def last_steps(config: RunConfig, output: Path) -> list[int]:
    """How far each place has come according to logging.json, without asking any; 0 where nothing is noted."""
    noted, wanted = state(output), config.logging
    if wanted.mlflow is not None and noted.get("mlflow", {}).get("uri") != wanted.mlflow.uri:
        noted.pop("mlflow", None)  # another server knows nothing of it
    return [noted.get(name, {}).get("step", 0) for name in _PACKAGES if getattr(wanted, name)]


def state(output: Path) -> dict[str, dict[str, Any]]:
    """What OUTPUT/logging.json holds: a dict for each place, and one for scores; empty before anything is logged."""
    with suppress(FileNotFoundError):
        return json.loads((output / STATE).read_text(encoding="utf-8"))
    return {}


def note(output: Path, name: str, **values: Any) -> None:
    """Add to one of them."""
    held = state(output)
    write_json(output / STATE, held | {name: held.get(name, {}) | values})


class TensorBoard:
    """Event files in OUTPUT/tensorboard; a step is one record, which a kill leaves whole or unreadable.

    Args:
        output: the run's folder.
    """

    name = "tensorboard"

    def __init__(self, output: Path):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.output, folder = output, output / "tensorboard"
        self.last = _last_in_event_files(folder)
        self._writer = EventFileWriter(str(folder), flush_secs=5)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One event with a value for each number."""
        self.add_scores(step, numbers)
        self.last = step

    def add_scores(self, step: int, numbers: Mapping[str, float]) -> None:
        """The same, which steps do not count."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        event: Any = event_pb2  # the classes of both are made when they are imported
        summary: Any = summary_pb2
        values = [summary.Summary.Value(tag=_tag(name), simple_value=value) for name, value in numbers.items()]
        self._writer.add_event(event.Event(wall_time=time.time(), step=step, summary=summary.Summary(value=values)))
        self._writer.flush()

    def close(self, status: str) -> None:
        """Write what is buffered."""
        self._writer.close()
        note(self.output, self.name, step=self.last)


class Mlflow:
    """A run of a tracking server; a step is one batch.

    Args:
        config: the run.
        output: its folder.
    """

    name = "mlflow"

    def __init__(self, config: RunConfig, output: Path):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        assert config.logging.mlflow is not None
        _patience()
        self.output, place = output, config.logging.mlflow
        self._client, self._unsure = MlflowClient(tracking_uri=place.uri), False
        known = state(output).get(self.name, {})
        if known.get("uri") == place.uri:
            self.run_id: str = known["run_id"]
            self.last = self._held()
            self._client.update_run(self.run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(place.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(place.experiment)
        tags = {"unlearn.fingerprint": config.fingerprint(), "unlearn.output": str(output), "mlflow.user": "unlearn"}
        self.run_id = self._client.create_run(experiment, tags=tags, run_name=config.name).info.run_id
        note(output, self.name, uri=place.uri, run_id=self.run_id)
        params = [Param(key, value[:500]) for key, value in _flat(config).items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(self.run_id, params=params[start : start + 100])
        self.last = 0

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One batch. After one that failed, which the server may have taken all the same, it is asked first."""
        if self._unsure:
            self.last, self._unsure = self._held(), False
        if step <= self.last:
            return
        self._unsure = True
        self.add_scores(step, numbers)
        self.last, self._unsure = step, False

    def add_scores(self, step: int, numbers: Mapping[str, float]) -> None:
        """One batch."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_tag(name), value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, status: str) -> None:
        """The server's run has the run's status."""
        if status != "running":
            self._client.set_terminated(self.run_id, "FINISHED" if status == "finished" else "FAILED")
        note(self.output, self.name, step=self.last)

    def _held(self) -> int:
        logged = self._client.get_metric_history(self.run_id, _MARK)
        return max((metric.step for metric in logged), default=0)


class Wandb:
    """A run of Weights & Biases, by default offline: files in OUTPUT/wandb for `wandb sync`.

    No code, no git state, no console output and nothing about the machine is logged; the host is called "unlearn".
    What a kill keeps from reaching the file is logged again from metrics.jsonl, into a second file of the same run.

    Args:
        config: the run.
        output: its folder.
    """

    name = "wandb"

    def __init__(self, config: RunConfig, output: Path):
        import wandb

        place = config.logging.wandb
        assert place is not None
        self.output = output
        run_id = state(output).get(self.name, {}).get("run_id") or uuid.uuid4().hex[:8]
        self._run_id, self._offline = run_id, place.mode == "offline"
        note(output, self.name, run_id=run_id)
        settings: dict[str, Any] = {"console": "off", "silent": True, "disable_git": True, "disable_code": True}
        settings |= {"save_code": False, "host": "unlearn", "username": "unlearn", "email": ""}
        settings |= {"x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True}
        held = history(output, run_id)
        _leave_service_of_another_process()
        self._run: Any = _patient_init(
            project=place.project,
            entity=place.entity,
            name=config.name,
            id=run_id,
            resume="allow" if place.mode == "online" else None,
            dir=str(output),
            config={**_flat(config), "fingerprint": config.fingerprint()},
            mode=place.mode,
            settings=wandb.Settings(**settings),
            reinit="create_new",
        )
        self._run.define_metric("eval/*", step_metric="eval/step")
        if not self._offline:  # the service says where to go on, offline the files do
            self.last = self._newest = self._run.starting_step - 1
        else:
            self.last = max((line["_step"] for line in held if _MARK in line), default=0)
            self._newest = max((line["_step"] for line in held), default=0)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One record."""
        self._run.log({_tag(name): value for name, value in numbers.items()}, step=step, commit=True)
        self.last = self._newest = step

    def add_scores(self, step: int, numbers: Mapping[str, float]) -> None:
        """One record after the newest, since W&B drops what counts backwards; `eval/step` is its axis."""
        self._newest += 1
        self._run.log({"eval/step": step, **numbers}, step=self._newest, commit=True)

    def close(self, status: str) -> None:
        """Finish the files."""
        self._run.finish(exit_code=1 if status == "diverged" else 0)
        if self._offline:
            self._await_files()
        note(self.output, self.name, step=self.last)

    def _await_files(self) -> None:
        """Until the newest record lies in a file: `finish` comes back before the service has written the last ones."""
        deadline = time.monotonic() + _LETTING_GO_SECONDS
        while self._newest > max((line["_step"] for line in history(self.output, self._run_id)), default=0):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the files of run {self._run_id} end before its newest record, {self._newest}")
            time.sleep(0.1)


def _leave_service_of_another_process() -> None:
    """Have W&B start a service of this process, not use the one of a process above, which it finds in the environment.

    That one outlives a kill of this process and would hold the run as "in use" until it ends itself.
    """
    token = os.environ.get("WANDB_SERVICE", "")  # version-pid-kind-address
    if token.split("-")[1:2] != [str(os.getpid())]:
        os.environ.pop("WANDB_SERVICE", None)


def _patient_init(**arguments: Any) -> Any:
    """`wandb.init`, which refuses a run that this process finished a moment ago until its service has let go of it."""
    import wandb
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    deadline = time.monotonic() + _LETTING_GO_SECONDS
    while True:
        try:
            return wandb.init(**arguments)
        except ServerResponseError as error:
            if "is in use" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def check_reachable(config: LoggingConfig) -> str:
    """Why MLflow's server cannot be used; "" if it can, or none is asked for."""
    if config.mlflow is None:
        return ""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    _patience()
    try:
        MlflowClient(tracking_uri=config.mlflow.uri).search_experiments(max_results=1)
    except MlflowException as error:
        return str(error).splitlines()[0]
    return ""


def _patience() -> None:
    """MLflow's own client would try for minutes; the run's log asks again by itself."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def _last_in_event_files(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    held.Reload()
    scalars = held.Scalars(_MARK) if _MARK in held.Tags()["scalars"] else []
    return max((scalar.step for scalar in scalars), default=0)


def _tag(name: str) -> str:
    """`loss_retain` becomes `loss/retain`, which all three show as a group."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in ("loss", "norm") and rest else name


def _flat(config: RunConfig) -> dict[str, str]:
    """The config as dotted keys; lists as JSON."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                walk(f"{prefix}.{key}" if prefix else key, one)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", config.model_dump(mode="json", exclude={"logging"}))
    return flat
