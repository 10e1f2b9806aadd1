"""Measure training steps of one case: seconds, their parts, memory, the matrix rate beside which they stand.

Methods of a case share model, engine and optimizer and take turns step by step, so a drift of the machine cancels in
their ratios. A method that probes (AutoLR) has two kinds of steps, and both are measured.
"""

import contextlib
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_7b_shapes import PROBE_EVERY, Case, Contender, Shape, run_config, step_flops, step_tokens
from benchmarks.gpu_7b_text import TextRows, batch_of
from benchmarks.one_gpu import Deadline, synchronise
from unlearn_core.data.tokenization import collate
from unlearn_core.method import compose
from unlearn_core.references import compute_references
from unlearn_core.update import StepRows, Update, step_inputs
from unlearn_core.zero.engine import ZeroEngine

WARM_UPS, ROUNDS, LEAST_ROUNDS, PART_STEPS = 3, 15, 3, 3
RESERVE = 45.0
"""Seconds before the deadline at which no new step is begun."""
MATRIX = {"cuda": 8192, "cpu": 256}
"""Side of the square matrices that are multiplied."""
GIB = 2**30
Note = Callable[[Mapping[str, Any]], None]
"""Takes fields of the row, and writes the row."""


def matrix_rate(device: torch.device, repetitions: int = 20) -> float:
    """Median FLOP/s of bf16 products of two square matrices: what the GPU gives to the best kernel there is."""
    side = MATRIX[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    for _ in range(5):
        torch.mm(left, right, out=out)
    seconds = []
    for _ in range(repetitions):
        clock = Clock()
        torch.mm(left, right, out=out)
        clock.stop()
        seconds.append(clock)
    synchronise()
    return 2.0 * side**3 / statistics.median(one.seconds for one in seconds)


class Clock:
    """Runs from its making to `stop`: by the GPU's own events, so that nothing waits; by the wall on a CPU."""

    def __init__(self) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if torch.cuda.is_available() else []
        if self._events:
            self._events[0].record()
        self._started, self._ended = time.perf_counter(), 0.0

    def stop(self) -> None:
        """The end."""
        if self._events:
            self._events[1].record()
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """After the GPU has been waited for."""
        if self._events:
            return self._events[0].elapsed_time(self._events[1]) / 1000
        return self._ended - self._started


ENGINE_PARTS = {
    "gradient": "forward and backward",
    "take": "gradient kept aside",
    "gram": "norms",
    "combine": "combination",
    "step": "optimizer",
}
"""The engine's methods, and how their part of a step is called."""


class PartTimes:
    """Seconds of a step's parts: the outermost calls of the engine's and the teacher's methods are timed.

    Args:
        update: whose parts are timed, until `remove`.
    """

    def __init__(self, update: Update):
        self._clocks: list[tuple[str, Clock]] = []
        self._busy = False
        self._wrapped: list[tuple[Any, str]] = []
        for method, part in ENGINE_PARTS.items():
            self._wrap(update.engine, method, part)
        swapped = update.engine.swapped
        part = "teacher's passes" if update.teacher else "probes"

        @contextlib.contextmanager
        def timed_swap(source: Any) -> Iterator[None]:
            with self._timed(part), swapped(source):
                yield

        self._set(update.engine, "swapped", timed_swap)
        if update.teacher:
            for method in ("damp", "follow"):
                self._wrap(update.teacher, method, "teacher's update")

    def _wrap(self, owner: Any, method: str, part: str) -> None:
        inner = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self._timed(part):
                return inner(*arguments, **named)

        self._set(owner, method, timed)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        setattr(owner, name, value)
        self._wrapped.append((owner, name))

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        if self._busy:
            yield
            return
        self._busy, clock = True, Clock()
        try:
            yield
        finally:
            clock.stop()
            self._busy = False
            self._clocks.append((part, clock))

    def remove(self) -> None:
        """Leave engine and teacher as they were."""
        for owner, name in self._wrapped:
            delattr(owner, name)

    def totals(self) -> dict[str, float]:
        """Part -> seconds so far."""
        synchronise()
        found: dict[str, float] = {}
        for part, clock in self._clocks:
            found[part] = found.get(part, 0.0) + clock.seconds
        return found


@dataclass
class Entrant:
    """A method on the case's engine."""

    contender: Contender
    update: Update
    rows: TextRows
    shape: Shape
    number: int = field(default=0, init=False)

    def inputs(self) -> StepRows:
        """The next step's rows, on the host; the training loop prepares them in a thread meanwhile."""
        sets = {"forget": self.rows.forget, "retain": self.rows.retain, "generic": self.rows.retain}
        size, composition = self.shape.rows, self.update.composition
        batches = {
            name: [collate(batch_of(sets[name], self.number, size), self.rows.pad_id)] for name in composition.sets
        }
        self.number += 1
        labels = {(name, 0): size * (self.shape.length - 1) for name in composition.sets}
        return StepRows(step_inputs(composition, batches, self.update.engine.packs), labels, size)

    def step(self, probing: bool) -> tuple[float, dict[str, Any]]:
        """Seconds of one optimizer step, and what it logs."""
        inputs = self.inputs()
        number = PROBE_EVERY * self.number + (0 if probing else 1)
        synchronise()
        started = time.perf_counter()
        metrics = self.update.step(inputs, number, 0)
        synchronise()
        return time.perf_counter() - started, metrics

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Whether a step probes, for each kind of step that it has."""
        return (False, True) if self.update.auto else (False,)


@dataclass
class Bench:
    """One case being measured.

    Args:
        shape: of the model.
        case: what is measured.
        overrides: dotted config keys that differ from the layout's.
        rows: of the steps.
        device: where.
    """

    shape: Shape
    case: Case
    overrides: Mapping[str, Any]
    rows: TextRows
    device: torch.device
    entrants: list[Entrant] = field(init=False, default_factory=list)
    engine: Any = field(init=False, default=None)

    def build(self) -> dict[str, Any]:
        """Model, engine and every method's update; seconds of each."""
        started = time.perf_counter()
        configs = [run_config(self.shape, self.case, one, self.overrides) for one in self.case.contenders]
        model = self.shape.model(self.device)
        synchronise()
        made = time.perf_counter()
        first = configs[0]
        self.engine = ZeroEngine(model, first.zero, first.optimizer, first.model.dtype == "bf16", first.batch)
        del model
        referred = 0.0
        for contender, config in zip(self.case.contenders, configs, strict=True):
            composition = compose(contender.method, contender.settings)
            update = Update(self.engine, composition, config)
            self.entrants.append(Entrant(contender, update, self.rows, self.shape))
            if composition.reference_sets:
                before = time.perf_counter()
                sets = {name: getattr(self.rows, name) for name in composition.reference_sets}
                update.begin_request(compute_references(self.engine, sets, self.shape.rows, self.rows.pad_id), True)
                referred += time.perf_counter() - before
        synchronise()
        return {
            "model_seconds": made - started,
            "engine_seconds": time.perf_counter() - made - referred,
            "reference_seconds": referred,
        }

    def kinds(self) -> list[tuple[str, Entrant, bool]]:
        """(name of the kind of step, whose, whether it probes); those that are compared stand next to each other."""
        return [
            (one.contender.label + (" probing" if probing else ""), one, probing)
            for one in self.entrants
            for probing in one.kinds
        ]

    def time_steps(self, deadline: Deadline, note: Note, rounds: int = ROUNDS) -> dict[str, list[float]]:
        """Seconds of every kind of step, a number a round; even rounds go forth, odd ones back.

        The peak of memory is counted from the first warm-up on. Ends early when the deadline is near.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds: dict[str, list[float]] = {name: [] for name, _, _ in self.kinds()}
        logs: dict[str, Any] = {}
        for number in range(WARM_UPS + rounds):
            began = deadline.spent
            order = self.kinds() if number % 2 == 0 else self.kinds()[::-1]
            for name, entrant, probing in order:
                taken, logs[name] = entrant.step(probing)
                if number >= WARM_UPS:
                    seconds[name].append(taken)
            note({"seconds": seconds, "memory": self.memory(), "log": _numbers(logs)})
            if deadline.left < RESERVE + 2 * (deadline.spent - began):
                break
        return seconds

    def parts(self) -> dict[str, dict[str, float]]:
        """Mean seconds of each part of each kind of step, in steps of their own; what is left is `rest`."""
        found = {}
        for name, entrant, probing in self.kinds():
            watch = PartTimes(entrant.update)
            total = sum(entrant.step(probing)[0] for _ in range(PART_STEPS))
            parts = watch.totals()
            watch.remove()
            parts["rest"] = total - sum(parts.values())
            found[name] = {part: seconds / PART_STEPS for part, seconds in parts.items()}
        return found

    def memory(self) -> dict[str, int]:
        """Peak bytes so far; empty on a CPU, where torch does not count them."""
        if self.device.type != "cuda":
            return {}
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}

    def profile(self, path: Path) -> None:
        """A table of the kernels that take most of a step's time, of three steps of every kind."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, record_shapes=True) as recorded:
            for _, entrant, probing in self.kinds():
                for _ in range(PART_STEPS):
                    entrant.step(probing)
        order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(recorded.key_averages().table(sort_by=order, row_limit=40), encoding="utf-8")

    def close(self) -> None:
        """Give everything back."""
        if self.engine is not None:
            self.engine.close()
        self.entrants.clear()
        self.engine = None


def figures(shape: Shape, case: Case, seconds: Mapping[str, list[float]], rate: float) -> dict[str, Any]:
    """What follows from seconds: tokens a second and model FLOPs utilisation of each method, and ratios.

    A method that probes every k steps counts k - 1 plain steps and a probing one.
    """
    found: dict[str, Any] = {}
    for contender in case.contenders:
        composition = compose(contender.method, contender.settings)
        plain, flops = statistics.median(seconds[contender.label]), step_flops(shape, composition, False)
        probes = seconds.get(f"{contender.label} probing")
        if probes:
            share = 1 / PROBE_EVERY
            plain += share * (statistics.median(probes) - plain)
            flops += share * (step_flops(shape, composition, True) - flops)
        tokens = step_tokens(shape, composition)
        found[contender.label] = {
            "step_seconds": plain,
            "tokens_a_second": tokens / plain,
            "mfu": flops / plain / rate,
        }
    return found


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Of each round: a method's step over GradDiff's, and the share of a step that AutoLR's probes cost."""
    found: dict[str, list[float]] = {}
    for top, bottom in (("ngdiff", "grad_diff"), ("mean_teacher", "grad_diff")):
        if top in seconds and bottom in seconds:
            pairs = zip(seconds[top], seconds[bottom], strict=False)
            found[f"{top} / {bottom}"] = [a / b for a, b in pairs]
    if "ngdiff_autolr probing" in seconds:
        pairs = zip(seconds["ngdiff_autolr probing"], seconds["ngdiff_autolr"], strict=False)
        found["autolr"] = [(a / b - 1) / PROBE_EVERY for a, b in pairs]
    return found


def planned(shape: Shape, case: Case, overrides: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What the planner says of the case's peak; empty where there is no planner.

    Bytes are those of tensors, to stand beside what torch has allocated, and of the largest of several methods.
    """
    try:
        plan: Any = importlib.import_module("unlearn_core.memory_plan")
        rows: Any = importlib.import_module("unlearn_core.activation_plan").RowShape(shape.length, shape.length - 1)
        shapes: Any = importlib.import_module("unlearn_core.model_shapes")
    except ModuleNotFoundError:
        return {}
    found = []
    for contender in case.contenders:
        config = run_config(shape, case, contender, overrides)
        composition = compose(contender.method, contender.settings)
        whole = shapes.model_shape(shape.llama(), shape.title, config, composition)
        found.append(plan.plan_memory(plan.Setting(whole, config, rows, device)))
    worst = max(found, key=lambda one: one.peak.total)
    return {"tensors": worst.peak.total, "moment": worst.peak.name, "total": worst.total, "host": worst.host_total}


def _numbers(logs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    kept = ("loss_", "norm_", "update_norm", "cosine", "auto_rate", "teacher_gap")
    return {
        name: {key: value for key, value in log.items() if key.startswith(kept) and isinstance(value, float)}
        for name, log in logs.items()
    }
