"""An evaluation folder that grows: models are scored a few at a time and readers find it whole at any time.

`evaluate` rewrites its folder for exactly the models that it is given and takes evaluation.json away meanwhile. Here it
works in OUTPUT/.round, which shares OUTPUT/records, and the rows it made are merged into OUTPUT's table: metrics.csv
first, evaluation.json last, each in one rename. Rows stay when their model's folder has gone.
"""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.evaluate import EVALUATION, METRICS, ModelPoint, evaluate
from pipelines.evaluated_models import IDENTITY
from pipelines.model_points import identity
from unlearn_core.errors import UserError
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.suite import Suite
from unlearn_core.publish import write_json, write_text

Row = dict[str, str]

_ROUNDING_ONLY = {"token_budget", "generation_gib"}
_BY_MODEL = ("models", "missing", "near_ties")


class GrowingEvaluation:
    """Adds models to an evaluation folder.

    Args:
        output: the folder; what it holds of the same evaluation is kept.
        suite: what is measured.
        config: settings that change numbers.
        stars: target and reference; they take part in every round, for others are compared with them.

    Raises:
        UserError: the folder holds an evaluation of another suite, other settings or other stars.
    """

    def __init__(self, output: Path, suite: Suite, config: EvaluationConfig, stars: Sequence[ModelPoint]) -> None:
        self.output, self._suite, self._config, self._stars = output, suite, config, list(stars)
        self.rows: list[Row] = []
        self.about: dict[str, Any] = {}
        if (output / EVALUATION).is_file():
            rows, about = _read(output)
            self._check_same(rows, about)
            # A kill between the two files leaves a row that evaluation.json does not know: it is made again.
            self.rows, self.about = [row for row in rows if row["model"] in about["models"]], about

    def holds(self, point: ModelPoint) -> bool:
        """Whether this very model, told by its files, has a row."""
        known = self.about.get("models", {}).get(point.model_id)
        return known is not None and known == identity(point)

    def add(
        self,
        points: Sequence[ModelPoint],
        *,
        actors: int | None = None,
        use_gpu: bool = False,
        console: Console | None = None,
    ) -> None:
        """Score models and add their rows, or replace rows of the same id. Arguments as of `evaluate`.

        A call that is cut off changes nothing for readers; the next one continues with the rows already scored.
        """
        round_folder = self.output / ".round"
        (self.output / "records").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(round_folder, ignore_errors=True)
        round_folder.mkdir()
        (round_folder / "records").symlink_to(Path("..") / "records", target_is_directory=True)
        models = [*self._stars, *points]
        evaluate(models, self._suite, round_folder, self._config, actors=actors, use_gpu=use_gpu, console=console)
        self._merge(*_read(round_folder))
        shutil.rmtree(round_folder)  # the link goes, not what it leads to

    def _merge(self, rows: list[Row], about: dict[str, Any]) -> None:
        new = {row["model"]: row for row in rows}
        self.rows = [new.pop(row["model"], row) for row in self.rows] + [row for row in rows if row["model"] in new]
        fresh = {row["model"] for row in rows}
        earlier = self.about
        self.about = dict(about)
        for key in _BY_MODEL:
            known = {m: value for m, value in earlier.get(key, {}).items() if m not in fresh} | about[key]
            self.about[key] = {row["model"]: known[row["model"]] for row in self.rows if row["model"] in known}
        # Keys are <model>/<group>; a model id holds no slash.
        records = {k: v for k, v in earlier.get("records", {}).items() if k.partition("/")[0] not in fresh}
        self.about["records"] = records | about["records"]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.output / METRICS, text.getvalue())
        write_json(self.output / EVALUATION, self.about)

    def _check_same(self, rows: Sequence[Row], about: dict[str, Any]) -> None:
        """Rows of models that are gone cannot be made again under other settings, so none is mixed in."""
        stars = {point.role: identity(point) for point in self._stars}
        now: dict[str, Any] = {
            "suite": self._suite.name,
            "benchmark": self._suite.source,
            "forget split": self._suite.forget,
            "rows of the benchmark": self._suite.fingerprint,
            "reference": stars.get("reference"),
            **self._config.model_dump(mode="json", exclude=_ROUNDING_ONLY),
        }
        models = about.get("models", {})
        was: dict[str, Any] = {
            "suite": about.get("suite"),
            "benchmark": about.get("benchmark"),
            "forget split": about.get("forget_split"),
            "rows of the benchmark": about.get("benchmark_fingerprint"),
            "reference": models.get(about.get("reference")),
            **{name: about.get("config", {}).get(name) for name in self._config.model_dump(exclude=_ROUNDING_ONLY)},
        }
        if any(item.kl for item in self._suite.items):
            now["target"], was["target"] = stars.get("target"), models.get(about.get("target"))
        if rows:
            now["columns"] = list(self._suite.columns)
            was["columns"] = [name for name in rows[0] if name not in (*IDENTITY, "variant")]
        different = [name for name in now if now[name] != was[name]]
        if different:
            shown = "; ".join(_difference(name, _short(was[name]), _short(now[name])) for name in different)
            raise UserError(
                f"{self.output} holds another evaluation ({shown}). Choose another --output, or delete its "
                f"{EVALUATION} to score anew what still exists"
            )


def _read(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    try:
        about = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        with open(folder / METRICS, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no readable evaluation ({error}); choose another --output") from error
    if not isinstance(about, dict) or not isinstance(about.get("models"), dict):
        raise UserError(f"{folder / EVALUATION} was not written by `unlearn evaluate`; choose another --output")
    return rows, about


def _difference(name: str, was: str, now: str) -> str:
    return f"{name} {now} has changed" if was == now else f"{name} was {was}, now {now}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("path") or value.get("hub"))
    return "none" if value is None else str(value)[:60]
