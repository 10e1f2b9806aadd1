"""What a named method is: a composition of parts, with the paper's settings and where we differ.

    method = objectives + gradient combiner + teacher (or none) + which parameters train

The step-size rule is the optimizer's (`optimizer.schedule`, `auto` for AutoLR), so that every method can have each.
The names in the papers are presets; each is one file in `unlearn_core/methods/`, and that folder is the registry.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_core.combiners.combiner import Combiner
from unlearn_core.errors import UserError
from unlearn_core.objective import Objective


class Settings(BaseModel):
    """Hyper-parameters of a method; a method without any uses this as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class TeacherRule:
    """A second set of weights v beside the student's w, kept as this rank's shards."""

    rate: float = 0.0
    """delta of v <- v + delta (w - v) after each step, in [0, 1]; 0 for a frozen copy of the start model."""
    damping: float = 0.0
    """mu of the damping gradient mu (w - v), from 0."""


@dataclass(frozen=True)
class ProjectionRule:
    """Gradients of chosen weights are projected away from the retain rows' activations (PGU)."""

    layers: tuple[str, ...]
    """Regular expressions of the weights' names."""
    retained: float
    """Share of the summed singular values that the protected directions hold, in [0, 1]."""


@dataclass(frozen=True)
class Composition:
    """The parts of a method, its settings filled in; made anew for each run."""

    objectives: tuple[Objective, ...]
    """In the order of the Gram matrix: retain first."""
    combiner: Combiner
    teacher: TeacherRule | None = None
    """Needed by objectives of kind `teacher`, and by hidden ones that steer to the teacher."""
    freeze: tuple[str, ...] = ()
    """Parts that do not train: any of embeddings, head, norms."""
    train_only: tuple[str, ...] = ()
    """Regular expressions; when given, only parameters whose name matches one of them train."""
    projection: ProjectionRule | None = None

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        assert len(set(names)) == len(names), f"objectives share a name: {names}"
        assert self.teacher or not any(objective.needs_teacher for objective in self.objectives), "no teacher"

    @property
    def sets(self) -> tuple[str, ...]:
        """Row sets it trains on, each once."""
        return tuple(dict.fromkeys(name for objective in self.objectives for name in objective.sets))

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Row sets it reads: those it trains on, and the retain rows that a projection protects."""
        return tuple(dict.fromkeys((*self.sets, *(("retain",) if self.projection else ()))))

    @property
    def reference_sets(self) -> tuple[str, ...]:
        """Row sets whose start-model log-probabilities are cached."""
        return tuple(dict.fromkeys(name for objective in self.objectives for name in objective.reference_sets))

    @property
    def retain_objective(self) -> int | None:
        """Number of the first objective on retain rows, whose loss AutoLR probes; None without one."""
        return next((k for k, objective in enumerate(self.objectives) if objective.rows == "retain"), None)

    @property
    def extra_gradient_shards(self) -> int:
        """Gradient shards kept beyond the live one: stored objectives and tracking buffers."""
        stored = len(self.objectives) - 1 if self.combiner.needs_gradients else 0
        return stored + len(self.combiner.tracked)

    @property
    def extra_weight_shards(self) -> int:
        """Shards of weights beside the student's: fp32 for a moving teacher, the model's dtype for a frozen one."""
        return 1 if self.teacher else 0


@dataclass(frozen=True)
class Method:
    """A named method."""

    name: str
    """As in configs; equal to its file's name."""
    title: str
    """As in tables and pictures."""
    paper: str
    """Where it comes from."""
    equation: str
    """The update or loss in one line, as in tables."""
    compose: Callable[[Any], Composition]
    """settings -> parts."""
    settings: type[Settings] = Settings
    deviations: tuple[str, ...] = ()
    """Where it differs from the paper or the leading implementation, in sentences."""
    search_space: Mapping[str, Any] = field(default_factory=dict)
    """Dotted config key -> range, as plain data."""
    paper_settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted config key -> what the paper or its code uses outside the method's own settings (optimizer, rate)."""


def methods() -> dict[str, Method]:
    """Every method, by name: one for each file in `unlearn_core/methods/`."""
    import unlearn_core.methods as folder

    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        method = importlib.import_module(f"unlearn_core.methods.{module.name}").METHOD
        assert method.name == module.name, f"{module.name}.py defines a method called {method.name}"
        found[method.name] = method
    return dict(sorted(found.items()))


def find_method(name: str) -> Method:
    """The method of this name; `UserError` lists the known ones."""
    known = methods()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"Unknown method '{name}'.{hint} Known methods: {', '.join(known)}.")
    return known[name]


def method_settings(method: Method, values: Mapping[str, Any]) -> Settings:
    """Validated settings of a method; `UserError` lists the valid keys."""
    try:
        return method.settings(**values)
    except ValidationError as error:
        valid = ", ".join(method.settings.model_fields) or "none"
        details = "; ".join(_told(method, item) for item in error.errors())
        raise UserError(f"method.settings of {method.name}: {details}. Valid keys: {valid}.") from error


def _told(method: Method, item: Any) -> str:
    """One mistake: where, what was given, what is expected."""
    where = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, method.settings.model_fields, n=1)
        return f"{where}: unknown setting" + (f", did you mean '{close[0]}'?" if close else "")
    if item["type"] == "missing":
        return f"{where}: missing, and it has no default; set method.settings.{where}"
    return f"{where}: {item['msg']} (got {item['input']!r})"


def compose(name: str, values: Mapping[str, Any]) -> Composition:
    """The parts of a named method with these settings; `UserError` for an unknown name or setting."""
    method = find_method(name)
    return method.compose(method_settings(method, values))
