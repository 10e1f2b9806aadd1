"""The answers of `unlearn plan`, without the drawing: a recipe, a model and a GPU become bytes, seconds and dollars."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unlearn_core.activation_plan import RowShape
from unlearn_core.config import RunConfig, build_config, load_config, parse_overrides
from unlearn_core.gpus import NODE, PRICES_OF, Gpu, find_gpu
from unlearn_core.method import compose
from unlearn_core.model_shapes import find_config, model_shape
from unlearn_core.plan_remedies import Planned, layouts, planned, remedies
from unlearn_core.plan_setting import GIB, Setting
from unlearn_core.preflight import check_composition
from unlearn_core.step_time_plan import Rates


@dataclass(frozen=True)
class Question:
    """What the command line asks."""

    recipe: str | None
    model: str | None
    method: str | None
    gpus: int | None
    gpu: str
    row_tokens: int | None = None
    labels: int | None = None
    trials: int = 200
    steps: int | None = None
    mfu: float = 0.4
    price: float | None = None
    host_gib: float | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A planned run and everything around it."""

    question: Question
    best: Planned
    rates: Rates
    source: str
    """Where the model's config came from."""
    rows_given: bool
    """Whether the rows' length was given, or is the most that the config allows."""

    @property
    def gpu(self) -> Gpu:
        """The GPU."""
        return self.rates.gpu

    @property
    def _host_bytes(self) -> int | None:
        """Host memory for one worker."""
        given = self.question.host_gib
        return None if given is None else int(given * GIB / min(NODE, self.best.setting.workers))

    @property
    def fits(self) -> bool:
        """Whether the run fits."""
        return self.best.fits(self.gpu.memory, self._host_bytes)

    @property
    def gib(self) -> float:
        """Of one GPU at the peak."""
        return self.best.memory.total / GIB

    @property
    def gpu_gib(self) -> float:
        """That one GPU has."""
        return self.gpu.memory / GIB

    @property
    def host_gib(self) -> float:
        """Of one node's host memory."""
        return self.best.memory.host_total * min(NODE, self.best.setting.workers) / GIB

    @cached_property
    def remedies(self) -> list[Planned]:
        """What would fit, where the run does not."""
        if self.fits:
            return []
        return remedies(self.best.setting, self.rates, self.gpu.memory, self._host_bytes)

    def items(self) -> Iterator[tuple[str, float]]:
        """GiB of each item at the peak, the largest first, and the allowances."""
        memory = self.best.memory
        for name, size in sorted(memory.peak.items.items(), key=lambda item: -item[1]):
            yield name, size / GIB
        for name, size in memory.allowance.items():
            yield f"{name} (allowance)", size / GIB

    def moments(self) -> Iterator[tuple[str, float]]:
        """GiB of tensors at each moment of a step."""
        memory = self.best.memory
        for moment in (memory.resting, *memory.moments):
            yield moment.name, moment.total / GIB

    def headline(self) -> list[str]:
        """What was planned, in words."""
        setting = self.best.setting
        shape, run, rows = setting.shape, setting.run, setting.rows
        trained = shape.trained_numel
        share = "all train" if trained == shape.numel else f"{trained / 1e9:.3f}B train"
        kind = "" if self.rows_given else ", the most that data.max_length allows: give --row-tokens and --labels"
        return [
            f"{run.model.path}: {shape.numel / 1e9:.3f}B parameters, {share}, {run.model.dtype} "
            f"(config: {self.source})",
            f"{run.method.name}, {run.optimizer.name}, ZeRO {run.zero.stage}, {setting.workers} x {self.gpu.name}, "
            f"{run.batch.rows} rows a step in micro-batches of {run.batch.micro}",
            f"rows of {rows.tokens} tokens, {rows.labels} of them labels{kind}",
        ]

    def _cost(self, seconds: float) -> tuple[float, float]:
        """Hours and dollars of so many seconds on all GPUs."""
        price = self.gpu.price if self.question.price is None else self.question.price
        hours = seconds / 3600
        return hours, hours * self.best.setting.workers * price

    def costs(self) -> list[str]:
        """Tokens a second, hours and dollars, labelled as what they are."""
        time, run = self.best.time, self.best.setting.run
        achieved = time.flops / time.seconds / self.gpu.flops
        price = "--price" if self.question.price is not None else f"an assumed price of {PRICES_OF}"
        one, many = self._cost(run.total_steps * time.seconds), self._cost(self._search_seconds)
        return [
            f"estimated: {time.tokens_per_second:,.0f} tokens a second on all GPUs, model FLOP utilisation of the "
            f"whole step {achieved:.0%} (matrix products at {self.rates.mfu:.0%}, assumed)",
            f"estimated: {run.total_steps} steps {one[0]:.2f} h, ${one[1]:.2f}; a search of {self.question.trials} "
            f"such trials {many[0]:.1f} h, ${many[1]:.0f} ({price}; loading, exports and evaluation are not in it)",
        ]

    @property
    def _search_seconds(self) -> float:
        return self.question.trials * self.best.setting.run.total_steps * self.best.time.seconds

    def layouts(self) -> Iterator[dict[str, Any]]:
        """The run at every layout."""
        for one in layouts(self.best.setting, self.rates):
            run = one.setting.run
            yield {
                "stage": run.zero.stage,
                "offload": run.zero.offload_optimizer,
                "eight_bit": run.optimizer.name == "adamw_8bit",
                "checkpointing": run.zero.activation_checkpointing,
                "fits": one.fits(self.gpu.memory, self._host_bytes),
                "gib": one.memory.total / GIB,
                "host_gib": one.memory.host_total * min(NODE, one.setting.workers) / GIB,
                "seconds": one.time.seconds,
            }

    def as_json(self) -> dict[str, Any]:
        """Everything, for scripts: bytes as GiB, times in seconds."""
        setting, time = self.best.setting, self.best.time
        hours, dollars = self._cost(setting.run.total_steps * time.seconds)
        search_hours, search_dollars = self._cost(self._search_seconds)
        return {
            "model": setting.run.model.path,
            "config_from": self.source,
            "parameters": setting.shape.numel,
            "trained": setting.shape.trained_numel,
            "gpu": self.gpu.name,
            "gpus": setting.workers,
            "fits": self.fits,
            "gib": self.gib,
            "gpu_gib": self.gpu_gib,
            "host_gib_of_a_node": self.host_gib,
            "peak_at": self.best.memory.peak.name,
            "items_gib": dict(self.items()),
            "moments_gib": dict(self.moments()),
            "estimated": {
                "step_seconds": time.seconds,
                "parts": time.parts,
                "tokens_per_second": time.tokens_per_second,
                "run": {"steps": setting.run.total_steps, "hours": hours, "dollars": dollars},
                "search": {"trials": self.question.trials, "hours": search_hours, "dollars": search_dollars},
            },
            "remedies": [
                {"changes": one.changes, "gib": one.memory.total / GIB, "seconds": one.time.seconds}
                for one in self.remedies
            ],
            "layouts": list(self.layouts()),
        }


def answer(question: Question) -> Answer:
    """Plan what is asked.

    Raises:
        UserError: an unknown recipe, method, model or GPU, or a config that does not fit together.
    """
    gpu = find_gpu(question.gpu)
    run = _run_of(question)
    composition = compose(run.method.name, run.method.settings)
    check_composition(run, composition)
    config, source = find_config(run.model.path)
    shape = model_shape(config, source, run, composition)
    tokens = question.row_tokens or run.data.max_length
    rows = RowShape(tokens, min(question.labels or tokens - 1, tokens - 1))
    rates = Rates(gpu, question.mfu)
    best = planned(Setting(shape, run, rows), rates)
    return Answer(question, best, rates, source, question.row_tokens is not None)


def _run_of(question: Question) -> RunConfig:
    from pipelines.runs import recipe_path, resolve_model

    changes = parse_overrides(list(question.overrides))
    if question.model is not None:
        changes["model.path"] = resolve_model(question.model)
    if question.method is not None:
        changes["method.name"] = question.method
    if question.steps is not None:
        changes["steps"] = question.steps
    if question.recipe is not None:
        if question.gpus is not None:
            changes |= {"workers.count": question.gpus}
        return load_config(RunConfig, recipe_path(question.recipe), changes)
    workers = question.gpus or 1
    values = {
        "name": "plan",
        "model": {},
        # Rows are planned by their length; which they are plays no part.
        "data": {"benchmark": "locuslab/TOFU", "forget": ["forget10"], "retain": ["retain90"]},
        "batch": {"rows": 4 * workers, "micro": 4},
        "steps": 100,
        "zero": {"stage": 2},
        "workers": {"count": workers, "gpu": True},
    }
    return build_config(RunConfig, values, changes, source="the command line")
