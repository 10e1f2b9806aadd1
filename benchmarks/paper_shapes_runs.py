"""Short unlearning runs through the real loop, watched step by step.

`watched` calls `unlearn_core.loop.run` and looks at the model after chosen steps: forget probability, generic KL. It
changes nothing but when to stop: a run that has passed the forget probability it was to reach is ended there.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.paper_shapes_model import Probe, data_config
from unlearn_core.config import RunConfig, build_config
from unlearn_core.local import LocalContext
from unlearn_core.loop import run
from unlearn_core.update import StepRows, Update

ROWS = 8
"""Forget rows, and retain or generic rows, of a step."""


@dataclass
class Curve:
    """What was seen along a run; one number in each list for each look, the first at the start model."""

    name: str
    settings: dict[str, Any]
    steps: list[int] = field(default_factory=list)
    forget: list[float] = field(default_factory=list)
    retain: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    """The loop's own line for each step, but the first."""
    outcome: str = ""

    def steps_to(self, level: float) -> float | None:
        """Steps at which the forget probability first falls to `level`, interpolated; None if it never does."""
        return _first_crossing(self.forget, self.steps, level)

    def kl_at(self, level: float) -> float | None:
        """Generic KL where the forget probability first falls to `level`, interpolated; None if it never does."""
        return _first_crossing(self.forget, self.kl, level)

    def retain_at(self, level: float) -> float | None:
        """Retain probability at that place."""
        return _first_crossing(self.forget, self.retain, level)

    def as_data(self) -> dict[str, Any]:
        """For JSON: without the loop's lines."""
        return {name: value for name, value in vars(self).items() if name != "logs"}


@dataclass(frozen=True)
class Watch:
    """When to look and when to end a run."""

    every: int
    """Steps between looks."""
    stop_below: float = 0.0
    """End the run when the forget probability is below this."""
    looks: tuple[str, ...] = ("forget", "kl")
    """What is measured: any of forget, retain, kl."""


class _ReachedError(Exception):
    """The run has gone as far as it was to go."""


def run_config(
    folder: Path, method: str, settings: Mapping[str, Any], optimizer: Mapping[str, Any], steps: int, **more: Any
) -> RunConfig:
    """One run on the subject model; only method, optimizer and steps differ between runs."""
    values = {
        "name": method,
        "model": {"path": str(folder), "dtype": "fp32", **more.pop("model", {})},
        "data": data_config(folder).model_dump(mode="json"),
        "method": {"name": method, "settings": dict(settings)},
        "optimizer": dict(optimizer),
        "batch": {"rows": ROWS, "micro": ROWS},
        "steps": steps,
        "zero": {"stage": 0},
        **more,
    }
    return build_config(RunConfig, values)


def watched(config: RunConfig, name: str, probe: Probe, watch: Watch) -> Curve:
    """Run the loop as `config` says and look at the model on the way."""
    settings = {
        "method": config.method.name,
        **config.method.settings,
        **config.optimizer.model_dump(mode="json", include={"name", "learning_rate", "momentum", "gradient_clipping"}),
    }
    curve = Curve(name, settings)

    def look(model: Any, step: int) -> None:
        measures = {"forget": probe.forget_probability, "retain": probe.retain_probability, "kl": probe.generic_kl}
        curve.steps.append(step)
        for key in watch.looks:
            getattr(curve, key).append(measures[key](model))

    def after(update: Update, step: int, metrics: dict[str, Any]) -> None:
        curve.logs.append(metrics)
        if (step + 1) % watch.every == 0 or step + 1 == config.steps:
            look(update.engine.module, step + 1)
            if curve.forget[-1] < watch.stop_below:
                raise _ReachedError

    curve.outcome = run_loop(
        config, before=lambda update, _rows, step: step or look(update.engine.module, 0), after=after
    )
    return curve


def run_loop(
    config: RunConfig,
    before: Callable[[Update, StepRows, int], Any],
    after: Callable[[Update, int, dict[str, Any]], Any],
) -> str:
    """`unlearn_core.loop.run` in a folder of its own, with a call before and after each step; how it ended."""
    step_of_update = Update.step

    def step(self: Update, rows: StepRows, step: int, request_step: int) -> dict[str, Any]:
        before(self, rows, step)
        metrics = step_of_update(self, rows, step, request_step)
        try:
            after(self, step, metrics)
        except _ReachedError:
            self.engine.close()
            raise
        return metrics

    folder = Path(tempfile.mkdtemp())
    Update.step = step
    try:
        outcome = run(config, LocalContext(folder))
        return " ".join((outcome.status, outcome.reason)).strip()
    except _ReachedError:
        return "stopped"
    finally:
        Update.step = step_of_update
        shutil.rmtree(folder)


def _first_crossing(falling: Sequence[float], other: Sequence[float], level: float) -> float | None:
    """`other` where `falling` first goes from above `level` to it or below, linear in between."""
    for k in range(1, len(falling)):
        if falling[k] <= level < falling[k - 1]:
            share = (falling[k - 1] - level) / (falling[k - 1] - falling[k])
            return other[k - 1] + share * (other[k] - other[k - 1])
    return None
