"""A problem for searchers made of recorded trajectories: a proposal is run as the nearest recorded configuration.

As in tabular benchmarks (HPO-B): what a search costs here is nothing, and the curves are real ones, with their noise. A
proposal becomes the nearest recorded configuration that the search has not run yet (`settled`), and the history holds
that one, so that a searcher learns of the configuration that was measured, and measures none twice.

At first proposals kept their own configuration and could be answered by one record again and again. A searcher that
models the objectives as functions of the configuration then spends its steps near the best record without ever
measuring another; seen with the TMOBO-style searcher, and changed for all.

`benchmarks/recorded_trajectories.parquet` has a row a scored step: `trial`, `step`, `value/utility`,
`value/forgetting` and `config/KEY` for each key of the space in `benchmarks/recorded_space.yaml`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tune.objectives import hypervolume
from tune.space import Config, Domain, Space
from unlearn_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TABLE = Path(__file__).with_name("recorded_trajectories.parquet")
SPACE_FILE = Path(__file__).with_name("recorded_space.yaml")
VALUES = ["value/utility", "value/forgetting"]
REMEDY = "Make both with `python -m benchmarks.record_trajectories`, or leave `recorded` out of --problems."


@dataclass(frozen=True)
class RecordedProblem:
    """Trajectories of a table.

    Attributes:
        name: of the problem.
        space: what varied.
        configs: N recorded configurations.
        values_NT2: their values at each step, NaN where a run has none: it ended, or the step was not scored.
        total_steps: greatest recorded step.
        every: steps between points.
        ideal: hypervolume of the whole table: exact, since it holds all the points that there are.
    """

    name: str
    space: Space
    configs: tuple[Config, ...]
    values_NT2: NDArray[np.float64]
    total_steps: int
    every: int
    ideal: float

    @cached_property
    def features_NF(self) -> NDArray[np.float64]:
        """`Space.features` of the recorded configurations."""
        return self.space.features(np.array([self.space.encode(config) for config in self.configs]))

    @cached_property
    def choice_F(self) -> NDArray[np.bool_]:
        """Which features are of a choice."""
        return np.array(
            [
                domain.kind == "choice"
                for domain in self.space.varying
                for _ in (domain.values if domain.kind == "choice" else [None])
            ]
        )

    def settled(self, config: Config, run: Sequence[Config]) -> Config:
        """The recorded configuration that a proposal is run as: the nearest that is not among those run already.

        Once all have been run, the nearest.
        """
        left_N = np.array([recorded not in run for recorded in self.configs])
        return self.configs[self.nearest(config, left_N if left_N.any() else None)]

    def nearest(self, config: Config, among_N: NDArray[np.bool_] | None = None) -> int:
        """Row of the recorded configuration that differs in the fewest choices, of these the nearest one.

        Distance is Euclidean in `Space.features`; of equally near ones the first.

        Args:
            config: of the space.
            among_N: which rows may be taken, at least one; None for all.

        Raises:
            UserError: the config is not of the space.
        """
        away_NF = np.abs(self.features_NF - self.space.features(self.space.encode(config))[0])
        differ_N = away_NF[:, self.choice_F].sum(axis=1).round(6)
        distance_N = np.sqrt((away_NF[:, ~self.choice_F] ** 2).sum(axis=1))
        out_N = np.zeros(len(differ_N), dtype=bool) if among_N is None else ~among_N
        return int(np.lexsort((distance_N, differ_N, out_N))[0])

    def trajectory(self, config: Config) -> NDArray[np.float64]:
        """Values (utility, forgetting) of the nearest recorded run, shape (T, 2); NaN where it has none."""
        return self.values_NT2[self.nearest(config)]


def load_recorded(table: Path = TABLE, space_file: Path = SPACE_FILE) -> RecordedProblem:
    """Read a table and its space.

    Raises:
        UserError: a file is missing, or they do not fit each other; says what to do.
    """
    import pandas as pd

    for path in (table, space_file):
        if not path.is_file():
            raise UserError(f"The recorded problem needs {path}, which is missing. {REMEDY}")
    space = Space.from_data(yaml.safe_load(space_file.read_text(encoding="utf-8")))
    return recorded_problem(pd.read_parquet(table), space, str(table))


def recorded_problem(rows: "pd.DataFrame", space: Space, source: str = "the table") -> RecordedProblem:
    """The problem of a table with the columns at the top of this file; others are not read.

    Raises:
        UserError: a column is missing, steps are not evenly spaced from the first, or a configuration is not of the
            space.
    """
    needed = ["trial", "step", *VALUES, *dict.fromkeys(f"config/{domain.key}" for domain in space.varying)]
    missing = [column for column in needed if column not in rows.columns]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}, which its space needs. {REMEDY}")
    rows = rows.loc[rows["step"].notna()]
    steps = sorted(int(step) for step in rows["step"].unique())
    if not steps or steps != list(range(steps[0], steps[-1] + 1, steps[0])):
        raise UserError(f"{source} has the steps {_few(steps)}; expected k, 2k, 3k ... for one k. {REMEDY}")
    configs, values = [], []
    for _, run in rows.groupby("trial", sort=True):
        configs.append(_config(space, run.iloc[0].to_dict()))
        values_T2 = np.full((len(steps), 2), np.nan)
        values_T2[run["step"].to_numpy(dtype=int) // steps[0] - 1] = run[VALUES].to_numpy(dtype=np.float64)
        values.append(values_T2)
    seen_N2 = np.concatenate(values)
    ideal = hypervolume(seen_N2[np.isfinite(seen_N2).all(axis=1)])
    return RecordedProblem("recorded", space, tuple(configs), np.array(values), steps[-1], steps[0], ideal)


def _config(space: Space, row: dict[str, Any]) -> Config:
    """The configuration of a row; columns of parquet hold text for what is not a number, and NaN for what is absent."""
    config: Config = {}
    for domain in space.domains:
        if domain.active(config):
            value = domain.values[0] if domain.kind == "fixed" else row[f"config/{domain.key}"]
            config[domain.key] = _option(domain, value) if domain.kind == "choice" else value
    space.encode(config)
    return config


def _option(domain: Domain, value: Any) -> Any:
    """The option of a choice that a cell stands for; the cell itself if none, for `Space.encode` to refuse."""
    return next((option for option in domain.values if option == value or str(option) == str(value)), value)


def _few(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (" ..." if len(steps) > 8 else "")
