"""What a named method is: a composition of objectives and a combiner, with the paper's settings and where we differ.

    method = forget objective + retain objective + gradient combiner

The names in the papers are presets; each is one file in `unlearn_core/methods/`, and that folder is the registry.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_core.errors import UserError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Settings(BaseModel):
    """Hyper-parameters of a method; a method without any uses this as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Objective:
    """One loss on one set of rows. Its gradient is that of the positive loss; the combiner gives the sign."""

    rows: Literal["forget", "retain"]
    loss: Loss
    """(logits_BTV, labels_BT) -> scalar sum over label tokens."""


@dataclass(frozen=True)
class Method:
    """A named method."""

    name: str
    """As in configs; equal to its file's name."""
    title: str
    """As in tables and pictures."""
    paper: str
    """Where it comes from."""
    objectives: tuple[Objective, ...]
    """In the order of the Gram matrix."""
    combine: Callable[[NDArray[np.float64], Any], NDArray[np.float64]]
    """(gram_KK, settings) -> weights_K of d = sum_k weights_k g_k."""
    settings: type[Settings] = Settings
    deviations: tuple[str, ...] = ()
    """Where it differs from the paper, in sentences."""
    search_space: Mapping[str, Any] = field(default_factory=dict)
    """Dotted config key -> range, as plain data; learning rates are searched with every method."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the row sets it needs, in Gram order."""
        return tuple(objective.rows for objective in self.objectives)


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
        details = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"method.settings of {method.name}: {details}. Valid keys: {valid}.") from error
