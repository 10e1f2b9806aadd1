"""What the rows of `benchmarks.faults` share: a small run, the command that makes it, and a hand on its processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.exactness import distance, make_config, make_model, norm
from unlearn_core.config import RunConfig, build_config
from unlearn_core.events import read_events
from unlearn_core.loop import METRICS, model_folder

STEPS, EVERY, EXPORT = 120, 10, 60
"""Optimizer steps, steps between checkpoints, steps between exports: 2 to 4 s of training on two cores."""
BOUND = 1e-6
"""Largest relative difference of the final weights from the undisturbed run's."""
PATIENCE = 240.0
"""Seconds after which whatever was waited for counts as a hang."""


@dataclass(frozen=True)
class Row:
    """What one fault did."""

    fault: str
    happened: str
    passed: bool
    recovery: float | None = None
    """Seconds from the fault to the next new step; None where nothing goes on."""
    lost: int | None = None
    """Steps done again."""
    result: str = ""
    """How far the final weights are from the undisturbed run's, or the error that the user gets."""


@dataclass
class Workspace:
    """A folder with a small taught model, and the weights that an undisturbed run ends with.

    Args:
        folder: empty or of an earlier call.
    """

    folder: Path
    undisturbed: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        if not (self.model / "config.json").is_file():
            make_model(self.model)

    @property
    def model(self) -> Path:
        """The taught model's folder."""
        return self.folder / "model"

    def config(self, workers: int = 2, stage: int = 2, **changes: Any) -> RunConfig:
        """The run; `__` in a key stands for a dot."""
        config = make_config(self.model, stage, workers, 1, "fp32")
        overrides = {"steps": STEPS, "checkpoint_every": EVERY, "export_every": EXPORT, "name": "faults"}
        overrides |= {key.replace("__", "."): value for key, value in changes.items()}
        return build_config(RunConfig, config.model_dump(mode="json"), overrides)

    def recipe(self, name: str, **changes: Any) -> Path:
        """The run as a YAML file."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.config(**changes).model_dump(mode="json")), encoding="utf-8")
        return path

    def train(
        self,
        name: str,
        env: dict[str, str] | None = None,
        again: bool = False,
        output: Path | None = None,
        **changes: Any,
    ) -> "Command":
        """`unlearn train` of it, started and not waited for; `again` goes on in its output folder."""
        output = output or self.folder / name
        if not again:
            shutil.rmtree(output, ignore_errors=True)
        arguments = ["train", str(self.recipe(name, **changes)), "--output", str(output)]
        return Command(arguments, output, self.folder / f"{name}.log", env or {})

    def difference(self, output: Path) -> float:
        """Relative L2 distance of a run's final weights from the undisturbed run's."""
        found = load_file(model_folder(output, STEPS) / "model.safetensors")
        return distance(found, self.undisturbed) / norm(self.undisturbed)

    def ended_equal(self, fault: str, command: "Command", moment: "Moment | None" = None) -> Row:
        """The row of a run that goes on to its end."""
        code = command.wait()
        if code:
            return Row(fault, f"exit code {code}", False, result=command.said()[-300:])
        difference = self.difference(command.output)
        steps = [line["step"] for line in step_lines(command.output)]
        whole = steps == list(range(1, STEPS + 1))
        happened = "; ".join(event["text"] for event in read_events(command.output)) or "went on"
        return Row(
            fault,
            happened,
            difference <= BOUND and whole,
            None if moment is None else moment.recovery,
            None if moment is None else moment.lost,
            f"equal to {difference:.1e}" + ("" if whole else ", steps missing in the log"),
        )


class Command:
    """An `unlearn` command in a process of its own, with a Ray cluster of its own unless `RAY_ADDRESS` names one.

    Args:
        arguments: after `unlearn`.
        output: of the command.
        log: file that it prints to.
        env: environment variables to add.
    """

    def __init__(self, arguments: list[str], output: Path, log: Path, env: dict[str, str]):
        self.output, self._log = output, log
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", **env}
        if "RAY_ADDRESS" not in env:
            surroundings.pop("RAY_ADDRESS", None)
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", *arguments],
                stdout=file, stderr=subprocess.STDOUT, env=surroundings, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code; one that takes longer is killed and counts as 124."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            return 124

    def said(self) -> str:
        """All that it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip()

    def children(self, name: str = "ray::RayTrainWo") -> list[psutil.Process]:
        """Its live descendants whose name starts with `name`; the system keeps 15 letters."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if process.name().startswith(name[:15]) and process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def end(self) -> None:
        """Kill it with all that it started."""
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


class Moment:
    """The moment of a fault: how far the run was, and how long it took to get further."""

    def __init__(self, output: Path):
        self._output = output
        self.step = steps_done(output)
        self.checkpoint = newest_checkpoint(output)
        self._at = time.monotonic()
        self.recovery: float | None = None

    @property
    def lost(self) -> int:
        """Steps that must be done again."""
        return self.step - self.checkpoint

    def until_further(self, command: Command) -> None:
        """Wait for the first step beyond those that a restart keeps."""
        start = (self._output / METRICS).stat().st_ino
        log = self._output / METRICS
        wait_for(lambda: _other_file(log, start) and steps_done(self._output) > self.checkpoint, command)
        self.recovery = time.monotonic() - self._at


def _other_file(path: Path, inode: int) -> bool:
    """A run that starts again writes its log anew."""
    return path.is_file() and path.stat().st_ino != inode


def wait_for(condition: Callable[[], Any], command: Command | None = None, seconds: float = PATIENCE) -> Any:
    """Poll until it holds; `RuntimeError` when the command ends or the time is over before."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if command is not None and command.process.poll() is not None:
            raise RuntimeError(f"the command ended before: {command.said()[-500:]}")
        if time.monotonic() > end:
            raise RuntimeError("nothing happened in time")
        time.sleep(0.002)
    return answer


def step_lines(output: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    lines = []
    with suppress(OSError):
        for line in (output / METRICS).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def steps_done(output: Path) -> int:
    """Steps in the log."""
    try:
        return (output / METRICS).read_bytes().count(b"\n")
    except OSError:
        return 0


def newest_checkpoint(output: Path) -> int:
    """Step of the newest checkpoint with a manifest; 0 for none."""
    whole = [int(path.parent.name[5:]) for path in (output / "checkpoints").glob("step-*/manifest.json")]
    return max(whole, default=0)


def stop_all(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to each that still lives."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def freeze_when(command: Command, condition: Callable[[], bool]) -> list[psutil.Process]:
    """Wait for a moment that passes quickly and stop the workers in it: they are frozen while it still holds."""
    while True:
        wait_for(condition, command)
        workers = command.children()
        stop_all(workers, signal.SIGSTOP)
        if workers and condition():
            return workers
        stop_all(workers, signal.SIGCONT)
