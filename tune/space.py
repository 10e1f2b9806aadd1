"""The search space: which config keys vary, over what, and when they matter. Plain data in, plain data out.

    method.name: {choice: [ngdiff, mean_teacher]}
    optimizer.learning_rate:
      - {log_uniform: [1.0e-6, 1.0e-3], when: {method.name: [ngdiff]}}
      - {log_uniform: [1.0e-5, 1.0e-1], when: {method.name: [mean_teacher]}}
    optimizer.name: {fixed: sgd, when: {method.name: [mean_teacher]}}

A key is a dotted key of a run's config. A domain is one of `log_uniform`, `uniform`, `int_uniform` (both ends
included), `choice` and `fixed`. A domain with `when` is active only in configs whose earlier keys have one of the
values listed; an inactive key is absent from the config. Each domain that varies is one coordinate of the unit cube.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from unlearn_core.errors import UserError

Config = dict[str, Any]
"""Dotted key to value: one point of the space."""
Kind = Literal["log_uniform", "uniform", "int_uniform", "choice", "fixed"]
KINDS: tuple[Kind, ...] = ("log_uniform", "uniform", "int_uniform", "choice", "fixed")
INACTIVE = 0.5
"""Coordinate of a domain that its config does not use: the middle, so that it tells a model nothing."""


@dataclass(frozen=True)
class Domain:
    """What one key may be, and when.

    Attributes:
        key: dotted config key.
        kind: how `values` is read.
        values: (low, high) of a range, the options of a choice, the one value of `fixed`.
        when: earlier key to the values under which this domain is active; empty for always.
    """

    key: str
    kind: Kind
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """Whether it is a coordinate of the search."""
        return self.kind != "fixed"

    @property
    def label(self) -> str:
        """The key, and in brackets when it is active: unique within a space."""
        conditions = " ".join("|".join(map(str, values)) for values in self.when.values())
        return f"{self.key} [{conditions}]" if conditions else self.key

    def active(self, config: Config) -> bool:
        """Whether a config that holds all earlier keys uses this domain."""
        return all(config.get(key) in values for key, values in self.when.items())

    def at(self, unit: float) -> Any:
        """The value at a coordinate in [0, 1]."""
        unit = min(max(float(unit), 0.0), 1.0)
        if self.kind == "fixed":
            return self.values[0]
        if self.kind == "choice":
            return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "log_uniform":
            if unit in (0.0, 1.0):  # both ends exactly: exp(log(x)) is not x
                return high if unit else low
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
            return min(max(value, low), high)
        if self.kind == "int_uniform":
            return min(int(low + unit * (high - low + 1)), high)
        return low + unit * (high - low)

    def coordinate(self, value: Any) -> float:
        """The coordinate of a value: the inverse of `at`, the middle of its cell for a choice or whole number.

        Raises:
            UserError: the value is outside the domain.
        """
        if self.kind == "choice":
            if value not in self.values:
                raise UserError(f"{self.key}={value!r} is none of the space's choices: {list(self.values)}")
            return (self.values.index(value) + 0.5) / len(self.values)
        low, high = self.values
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{self.key}={value!r} is outside the space's range [{low:g}, {high:g}]")
        if self.kind == "log_uniform":
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        if self.kind == "int_uniform":
            return (value - low + 0.5) / (high - low + 1)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Space:
    """Domains in an order in which every `when` looks back.

    Attributes:
        domains: all of them, fixed ones included.
    """

    domains: tuple[Domain, ...]

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Space":
        """Read the plain form (see the top of this file); order follows the `when`s.

        Raises:
            UserError: an unknown kind, an empty or reversed range, a `when` that names no earlier key or a value that
                key cannot have, two domains of a key that can be active at once, or nothing that varies.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"A search space is keys and domains, such as {_EXAMPLE}; got {data!r}.")
        read = [
            _domain(str(key), one)
            for key, given in data.items()
            for one in (given if isinstance(given, Sequence) and not isinstance(given, str) else [given])
        ]
        space = cls(tuple(_ordered(read)))
        space._check()
        return space

    def to_data(self) -> dict[str, Any]:
        """The plain form, ready for YAML."""
        data: dict[str, list[Any]] = {}
        for domain in self.domains:
            plain: dict[str, Any] = {domain.kind: domain.values[0] if domain.kind == "fixed" else list(domain.values)}
            if domain.when:
                plain["when"] = {key: list(values) for key, values in domain.when.items()}
            data.setdefault(domain.key, []).append(plain)
        return {key: plains[0] if len(plains) == 1 else plains for key, plains in data.items()}

    @property
    def varying(self) -> tuple[Domain, ...]:
        """The domains that are coordinates."""
        return tuple(domain for domain in self.domains if domain.varies)

    @property
    def dimension(self) -> int:
        """D: coordinates of the unit cube."""
        return len(self.varying)

    def decode(self, unit_D: ArrayLike) -> Config:
        """The config at a point of the unit cube: active keys only."""
        units = iter(np.asarray(unit_D, dtype=float).reshape(-1))
        config: Config = {}
        for domain in self.domains:
            unit = float(next(units)) if domain.varies else 0.0
            if domain.active(config):
                config[domain.key] = domain.at(unit)
        return config

    def encode(self, config: Config) -> NDArray[np.float64]:
        """Coordinates of a config, `INACTIVE` where a domain is not used; shape (D,).

        Raises:
            UserError: a key is missing, unknown to the space, or outside its domain.
        """
        unit_D, used = [], set()
        for domain in self.domains:
            active = domain.active(config)
            if active:
                if domain.key not in config:
                    raise UserError(f"the config lacks {domain.key}, which the space varies: {config}")
                used.add(domain.key)
            if domain.varies:
                unit_D.append(domain.coordinate(config[domain.key]) if active else INACTIVE)
        unknown = sorted(set(config) - used)
        if unknown:
            raise UserError(f"the space does not vary {', '.join(unknown)} in this config: {config}")
        return np.array(unit_D)

    def features(self, units_ND: ArrayLike) -> NDArray[np.float64]:
        """What a model of the objectives sees: ranges as coordinates, choices one-hot, all in [0, 1]; shape (N, F).

        Inactive ranges stand at `INACTIVE`, inactive choices at 0 in every column, so configs that decode alike have
        the same features.
        """
        rows = [self._features(unit_D) for unit_D in np.atleast_2d(np.asarray(units_ND, dtype=float))]
        return np.array(rows)

    def _features(self, unit_D: NDArray[np.float64]) -> list[float]:
        config = self.decode(unit_D)
        units = iter(unit_D)
        row: list[float] = []
        for domain in self.varying:
            unit = float(next(units))
            active = domain.active(config)
            if domain.kind == "choice":
                row += [float(active and config[domain.key] == option) for option in domain.values]
            elif domain.kind == "int_uniform":
                row.append(domain.coordinate(config[domain.key]) if active else INACTIVE)
            else:
                row.append(unit if active else INACTIVE)
        return row

    def _check(self) -> None:
        if not self.varying:
            raise UserError("The search space varies nothing; give at least one key a range or a choice.")
        seen: dict[str, list[Domain]] = {}
        for domain in self.domains:
            for key, values in domain.when.items():
                earlier = seen.get(key)
                if not earlier:
                    raise UserError(f"{domain.key}: its `when` names {key}, which is no other key of the space.")
                options = [option for one in earlier if one.kind in ("choice", "fixed") for option in one.values]
                strange = [value for value in values if value not in options]
                if strange:
                    raise UserError(
                        f"{domain.key}: its `when` wants {key} = {strange[0]!r}, which it cannot be; choices: {options}"
                    )
            for other in seen.get(domain.key, []):
                if not _apart(domain, other):
                    raise UserError(
                        f"{domain.key} has two domains that can be active at once; give their `when`s values of one "
                        "key that differ."
                    )
            seen.setdefault(domain.key, []).append(domain)


_EXAMPLE = "{optimizer.learning_rate: {log_uniform: [1e-6, 1e-3]}}"


def _domain(key: str, plain: Any) -> Domain:
    if not isinstance(plain, Mapping):
        raise UserError(f"{key}: {plain!r} is no domain; write {{fixed: {plain!r}}} or a range such as {_EXAMPLE}.")
    kinds = [kind for kind in plain if kind != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise UserError(f"{key}: expected one of {', '.join(KINDS)} and perhaps `when`; got {', '.join(plain)}.")
    kind: Kind = kinds[0]
    when = plain.get("when", {})
    if not isinstance(when, Mapping):
        raise UserError(f"{key}: `when` is keys and lists of values, such as {{method.name: [npo]}}; got {when!r}.")
    conditions = {
        str(name): tuple(values) if isinstance(values, list | tuple) else (values,) for name, values in when.items()
    }
    if kind == "fixed":
        return Domain(key, kind, (plain[kind],), conditions)
    values = plain[kind]
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{key}: {kind} needs a list; got {values!r}.")
    if kind == "choice":
        if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
            raise UserError(f"{key}: the choices {list(values)} repeat a value; each may stand once.")
        return Domain(key, kind, tuple(values), conditions)
    return Domain(key, kind, _range(key, kind, values), conditions)


def _range(key: str, kind: Kind, values: Sequence[Any]) -> tuple[float, float]:
    try:
        # YAML 1.1 reads 1e-6 as text.
        low, high = (int(value) if kind == "int_uniform" else float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {kind} needs two numbers [low, high]; got {list(values)}.") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "log_uniform" and low <= 0):
        above = " above 0" if kind == "log_uniform" else ""
        raise UserError(f"{key}: {kind} needs low < high, both finite{above}; got [{low:g}, {high:g}].")
    return low, high


def _ordered(domains: list[Domain]) -> list[Domain]:
    """Each after the keys that its `when` names, else in the order given; what waits for ever comes last."""
    rest, done = list(domains), []
    while rest:
        waiting = {domain.key for domain in rest}
        ready = next((one for one in rest if not (set(one.when) & (waiting - {one.key}))), rest[0])
        rest.remove(ready)
        done.append(ready)
    return done


def _apart(one: Domain, other: Domain) -> bool:
    return any(
        not set(map(str, one.when[key])) & set(map(str, other.when[key])) for key in one.when.keys() & other.when
    )


def space_of_methods(names: Sequence[str]) -> dict[str, Any]:
    """The joint space of several methods as plain data, from their own files.

    Each method's ranges and its paper's optimizer hold where `method.name` is that method. Data and batch are the
    recipe's.

    Args:
        names: methods, such as ngdiff and mean_teacher; each once.

    Raises:
        UserError: no name, an unknown one, or one without a search space.
    """
    from unlearn_core.method import find_method  # torch: not needed where trials start

    if not names or len(set(names)) < len(names):
        raise UserError(f"Name each method to search once, at least one; got {list(names)}.")
    data: dict[str, Any] = {"method.name": {"choice": list(names)} if len(names) > 1 else {"fixed": names[0]}}
    for name in names:
        method = find_method(name)
        if not method.search_space:
            raise UserError(f"{name} has no search space in its file; give one with `space`.")
        paper = {key: value for key, value in method.paper_settings.items() if key.startswith("optimizer.")}
        fixed = {
            key: {"fixed": list(value) if isinstance(value, tuple) else value}
            for key, value in paper.items()
            if key not in method.search_space
        }
        for key, plain in (dict(method.search_space) | fixed).items():
            when = {"method.name": [name]} | dict(plain.get("when", {})) if len(names) > 1 else plain.get("when")
            domain = {kind: value for kind, value in plain.items() if kind != "when"} | ({"when": when} if when else {})
            data.setdefault(key, []).append(domain)
    return {key: one[0] if isinstance(one, list) and len(one) == 1 else one for key, one in data.items()}


def space_yaml(data: Mapping[str, Any]) -> str:
    """The plain form as YAML text to edit: a domain a line, numbers as YAML 1.1 reads them back."""
    lines = []
    for key, given in data.items():
        if isinstance(given, list):
            lines.append(f"{key}:")
            lines += [f"  - {_flow(one)}" for one in given]
        else:
            lines.append(f"{key}: {_flow(given)}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
