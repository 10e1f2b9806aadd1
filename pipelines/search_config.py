"""The typed configuration of a search: what is trained, what varies, what counts, how it is searched.

recipe: tofu-ngdiff               # a training recipe: data, batch, steps, workers of every trial
methods: [ngdiff, mean_teacher]   # their search spaces, from their own files
budget: {trials: 40}
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from unlearn_core.strict import Strict


class ObjectiveConfig(Strict):
    """One objective; what is null is taken from the target and the reference, scored before the first trial."""

    metric: str | tuple[str, ...]
    """Column of the evaluation (docs/metrics.md); of several the harmonic mean. `COLUMN@nf4` with scoring.quantised."""
    direction: Literal["higher", "lower", "target"] = "higher"
    """Which way is better; `target`: the nearer to `best` the better, from both sides."""
    worst: float | None = None
    """Raw number that is worth 0. Null: 0 for `higher`, the target model's for `lower` and `target`."""
    best: float | None = None
    """Raw number that is worth 1. Null: the target model's for `higher`, 0 for `lower`, the reference's for
    `target`."""


class ConstraintConfig(Strict):
    """A bound that a point must keep to be on the front."""

    metric: str
    """Column of the evaluation, such as extraction_strength@nf4 or robustness@nf4."""
    low: float | None = None
    """Least; null for none."""
    high: float | None = None
    """Greatest; null for none."""


class SearchScoring(Strict):
    """What is measured at each step of each trial. Whatever is left out here can be measured on the front later."""

    generate: bool = False
    """Let models answer: ROUGE columns and TOFU's model_utility need it; several times the cost."""
    rows: int = Field(default=0, ge=0)
    """Rows of each group at most, evenly spaced; 0 for all."""
    groups: tuple[str, ...] = ()
    """Groups of rows that are measured, such as [forget, retain]; empty for all."""
    quantised: tuple[Literal["int8", "nf4"], ...] = ()
    """Also score with rounded weights: columns @int8, @nf4, and robustness@... (needs bitsandbytes)."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the models while they are scored."""
    max_new_tokens: int = Field(default=200, ge=1)
    """Longest generated answer, tokens."""
    gpu: bool | None = None
    """Score on a GPU; null for as the workers train."""


class SearcherConfig(Strict):
    """Who proposes configurations."""

    name: Literal["trajectory", "random", "sobol", "tpe", "nsga2", "qlognehvi"] = "trajectory"
    """trajectory: TMOBO-style Bayesian optimisation over configuration and step. tpe, nsga2: Optuna's. qlognehvi:
    BoTorch's, one point a trial."""
    seed: int = Field(default=0, ge=0)
    """Of the searcher's draws; training has its own (`seed` of the recipe)."""
    told: Literal["best", "final"] = "best"
    """What tpe, nsga2 and qlognehvi learn of a trial: its step of best contribution, or its last one."""


class StoppingConfig(Strict):
    """Which trials end before their last step. No rule stops a trial before `minimum`."""

    minimum: int | None = Field(default=None, ge=1)
    """Steps that every trial gets; null for a fifth of the run, rounded up to an export."""
    optimistic: bool | None = None
    """End a trial whose optimistic rest (GP mean + 2 standard deviations) would not add to the hypervolume; null: with
    the searcher `trajectory`."""
    asha: bool = False
    """Multi-objective successive halving: at minimum x reduction^k steps the trials of low rank end."""
    reduction: int = Field(default=3, ge=2)
    """Of asha: one in so many goes on."""


class BudgetConfig(Strict):
    """When the search ends; at least one is set. May be raised later to add trials to a finished search."""

    trials: int | None = Field(default=None, ge=1)
    """Configurations the searcher proposes."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of all of them."""
    hours: float | None = Field(default=None, gt=0)
    """Wall-clock hours over all calls."""

    @model_validator(mode="after")
    def _one(self) -> "BudgetConfig":
        if self.trials is None and self.steps is None and self.hours is None:
            raise ValueError("a search needs an end: set budget.trials, budget.steps or budget.hours")
        return self


class SlugWarmStart(Strict):
    """SLUG's single-layer edits, scored before the first trial: points that cost no training."""

    threshold: float | None = Field(default=None, ge=0, lt=1)
    """Forget probability at which an edit is large enough; null for the reference's."""
    layers: int = Field(default=3, ge=1)
    """Layers tried."""
    iterations: int = Field(default=6, ge=1)
    """Edits tried for each layer."""


class SearchConfig(Strict):
    """One search."""

    name: str = Field(default="search", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name in tables and pictures."""
    recipe: str
    """Training recipe, by name or YAML file: what every trial shares. Its export_every gives the steps that are
    scored."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys that override the recipe's, such as {steps: 100}."""
    methods: tuple[str, ...] = ()
    """Methods whose search spaces are joined; `unlearn space NAME...` prints it."""
    space: dict[str, Any] = Field(default_factory=dict)
    """Dotted config key to domain, in place of or beside those of `methods`; see `unlearn space`."""
    objectives: dict[str, ObjectiveConfig] = Field(default_factory=dict)
    """At least two by name; empty for the suite's utility and forgetting."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """Bounds on the front's members."""
    scoring: SearchScoring = SearchScoring()
    searcher: SearcherConfig = SearcherConfig()
    stopping: StoppingConfig = StoppingConfig()
    budget: BudgetConfig
    keep: int = Field(default=10, ge=0)
    """Front members whose weights are kept, at most."""
    at_once: int | None = Field(default=None, ge=1)
    """Trials that run at the same time; null for as many as the cluster holds."""
    result_minutes: float = Field(default=60.0, gt=0)
    """A trial that reports no step for so long is ended as hung."""
    slug: SlugWarmStart | None = None
    """Warm start; null for none. Needs a TOFU benchmark."""
    densify: tuple[float, ...] = ()
    """After the search: score (1 - a) x member + a x target for these a and each kept member, such as [0.25, 0.5]."""
    reruns: int = Field(default=3, ge=0)
    """After the search: train each kept member again with so many new seeds; 0 for none."""

    @model_validator(mode="after")
    def _varies(self) -> "SearchConfig":
        if not self.methods and not self.space:
            raise ValueError("nothing varies: give `methods`, such as [ngdiff, mean_teacher], or `space`")
        if len(self.objectives) == 1:
            raise ValueError("one objective is no trade-off: give at least two, or none for utility and forgetting")
        if any(not 0 < weight < 1 for weight in self.densify):
            raise ValueError(f"densify takes weights between 0 (the member) and 1 (the target); got {self.densify}")
        return self
