"""The six criteria of MUSE (Shi et al. 2024, arXiv 2407.06460, section 3) from finished evaluations.

    C1 VerbMem, C2 KnowMem on forgotten texts, C3 PrivLeak, C4 utility = KnowMem on kept texts    of every model
    C5 scalability      utility after forgetting sets of growing size      of runs over scal/forget_1 to forget_4
    C6 sustainability   utility after each of several requests in a row    of one run over sust/forget_1 to forget_4

The first four are columns of the evaluation. The other two need to know what each run was asked to forget, which its
run.json says: data.forget, or data.sequential with `steps` steps for each request. Runs whose configs differ in nothing
but the forget set, the number of steps and names belong to one curve of C5; each counts with its last evaluated model.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from unlearn_core.data.muse import MuseTexts
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.publish import write_json
from unlearn_core.storage import is_uri, uri_of
from unlearn_core.storage_places import parent_uris

if TYPE_CHECKING:
    from pandas import DataFrame

UTILITY = "retain_knowmem_ROUGE"
"""Column that C5 and C6 follow."""

CRITERIA = {
    "C1": ("VerbMem lower", "forget_verbmem_ROUGE"),
    "C2": ("KnowMem lower", "forget_knowmem_ROUGE"),
    "C3": ("PrivLeak near 0", "privleak"),
    "C4": ("utility higher", UTILITY),
    "C5": ("utility by size", UTILITY),
    "C6": ("utility by request", UTILITY),
}
"""Name of each criterion, what it is with its better direction, and its column."""

_NESTED = re.compile(r"scal/forget_(\d+)")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point of C5 or C6.

    Attributes:
        at: forget set (C5) or request (C6), counted from 1; 0 is the target, before anything is forgotten.
        split: what was forgotten last; "" for the target.
        documents: size of that split; None where it cannot be read.
        model: the evaluated model.
        utility: its `UTILITY`, in [0, 1].
    """

    at: int
    split: str
    documents: int | None
    model: str
    utility: float


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion of one model.

    Attributes:
        name: `C1` to `C6`.
        column: what it is computed from.
        value: the column's value; for C5 and C6 that of the curve's last point. None where it is missing.
        curve: of C5 and C6, the target first where it was evaluated.
        reason: why it is missing, or what a curve lacks; "" for nothing.
    """

    name: str
    column: str
    value: float | None
    curve: tuple[CurvePoint, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelCriteria:
    """The six criteria of one evaluated model.

    Attributes:
        model: its id in the evaluation.
        run: name of the run that made it.
        method: unlearning method.
        step: optimizer steps of that run; 0 where the evaluation has none.
        role: target, reference or checkpoint.
        last: whether no later model of its run was evaluated.
        criteria: C1 to C6, in order.
    """

    model: str
    run: str
    method: str
    step: int
    role: str
    last: bool
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """A training run and its evaluated models, in step order."""

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def data(self) -> dict[str, Any]:
        return self.config["data"]

    @property
    def forgets(self) -> str:
        return ", ".join(self.data.get("sequential") or self.data.get("forget") or ()) or "nothing"


def criteria(
    table: "DataFrame", runs: Iterable[str | Path], missing: Mapping[str, Mapping[str, str]] | None = None
) -> list[ModelCriteria]:
    """The criteria of every evaluated model.

    Args:
        table: an evaluation's metrics: columns model, run, method, step, role, path and those of the MUSE suite.
        runs: run folders that the models come from; folders of anything else are passed over.
        missing: model to column to the reason why it has no value, as evaluation.json keeps it.

    Returns:
        One entry a row of the table, in its order.

    Raises:
        UserError: the table is of no MUSE evaluation, a run.json is not readable, or two runs that differ in nothing
            else forget the same scal split.
    """
    absent = sorted({column for _, column in CRITERIA.values()} - set(table.columns))
    if absent:
        raise UserError(f"the evaluation has no column {', '.join(absent)}; the six criteria are MUSE's")
    rows = [_row(row) for row in table.to_dict("records")]
    target = next((row for row in rows if row["role"] == "target"), None)
    trained = _read_runs(runs, rows)
    scaled, sustained = _scaled(trained, target), _sustained(trained, target)
    run_of = {row["model"]: run for run in trained for row in run.rows}
    found = []
    for row in rows:
        reasons = (missing or {}).get(row["model"], {})
        run = run_of.get(row["model"])
        measured = [_measured(name, row, reasons) for name in ("C1", "C2", "C3", "C4")]
        later = [_following(name, row, run, curves) for name, curves in (("C5", scaled), ("C6", sustained))]
        found.append(
            ModelCriteria(
                model=row["model"],
                run=row["run"],
                method=row["method"],
                step=row["step"],
                role=row["role"],
                last=run is None or run.rows[-1]["model"] == row["model"],
                criteria=(*measured, *later),
            )
        )
    return found


def print_criteria(found: Sequence[ModelCriteria], console: Console) -> None:
    """Print a table: a row for the target, the reference and the last model of every run, a column a criterion.

    Args:
        found: from `criteria`.
        console: where it goes.
    """
    headings = (f"{name} {what}".replace(" ", "\n") for name, (what, _) in CRITERIA.items())
    # Seven columns in the 80 of a plain terminal.
    columns = (Column(heading, justify="right") for heading in headings)
    table = Table(Column("model", overflow="fold", min_width=16), *columns, title="MUSE", padding=(0, 0, 0, 1))
    notes: dict[str, int] = {}
    for entry in found:
        if entry.last:
            table.add_row(entry.model, *(_cell(criterion, notes) for criterion in entry.criteria))
    console.print(table)
    for reason, number in notes.items():
        console.print(f"({number}) {reason}", highlight=False, markup=False)
    hidden = sum(not entry.last for entry in found)
    if hidden:
        console.print(f"Earlier models of these runs that are left out here: {hidden}.", highlight=False)


def write_criteria(path: str | Path, found: Sequence[ModelCriteria]) -> None:
    """Write everything that `criteria` found as JSON: a list, one object a model; NaN becomes null."""
    write_json(path, [_without_nan(asdict(entry)) for entry in found])


def _row(values: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the table with a step of 0 and a variant of "" where it has none: both may be NaN."""
    row = {str(key): value for key, value in values.items()}
    step, variant = row["step"], row.get("variant")
    row["step"] = 0 if step is None or step != step else int(step)
    row["variant"] = variant if isinstance(variant, str) else ""
    return row


def _read_runs(folders: Iterable[str | Path], rows: Sequence[dict[str, Any]]) -> list[_Run]:
    """Training runs among the folders, with their rows of the table."""
    found = []
    for folder in sorted({Path(folder).expanduser().resolve() for folder in folders}):
        path = folder / "run.json"
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8")).get("config")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"cannot read {path} ({error}); run the training again, or leave the run out") from error
        # A variant, such as a quantised one, is another model than the one that the run left.
        models = [row for row in rows if not row["variant"]]
        own = [row for row in models if _lies_in(row["path"], folder)]
        own.sort(key=lambda row: row["step"])
        # An edit's run has no data of its own: it makes models of other models.
        if own and isinstance(config, dict) and isinstance(config.get("data"), dict) and "steps" in config:
            found.append(_Run(folder, config, own))
    return found


def _lies_in(model: str, folder: Path) -> bool:
    """Whether a model's path or URI is below a run's folder."""
    if is_uri(model):
        return uri_of(folder) in {above for above, _ in parent_uris(model)}
    return folder in Path(model).expanduser().resolve().parents


_Curves = dict[Path, tuple[tuple[CurvePoint, ...], str]]
"""Run folder to the curve that the run belongs to, and what that curve lacks."""


def _scaled(runs: Sequence[_Run], target: dict[str, Any] | None) -> _Curves:
    """C5: runs over nested forget sets, those that are alike together."""
    series: dict[str, dict[int, _Run]] = defaultdict(dict)
    for run in runs:
        forget = list(run.data.get("forget") or ())
        match = _NESTED.fullmatch(forget[0]) if len(forget) == 1 else None
        if match is None:
            continue
        alike = series[_likeness(run.config)]
        size = int(match[1])
        if size in alike:
            raise UserError(
                f"{alike[size].folder} and {run.folder} both forget {forget[0]} and their configs differ in nothing "
                "else, so scalability has two values there; leave one of them out"
            )
        alike[size] = run
    curves: _Curves = {}
    for alike in series.values():
        points = [_point(size, f"scal/forget_{size}", alike[size], alike[size].rows[-1]) for size in sorted(alike)]
        without = [f"scal/forget_{size}" for size in range(1, 5) if size not in alike]
        reason = f"the curve has no run over {', '.join(without)}" if without else ""
        curve = _curve(points, target)
        for run in alike.values():
            curves[run.folder] = (curve, reason)
    return curves


def _sustained(runs: Sequence[_Run], target: dict[str, Any] | None) -> _Curves:
    """C6: the last model of every request of a sequential run."""
    curves: _Curves = {}
    for run in runs:
        requests = run.data.get("sequential") or ()
        if len(requests) < 2:
            continue
        after = {row["step"]: row for row in run.rows}
        ends = {number: number * run.config["steps"] for number in range(1, len(requests) + 1)}
        points = [_point(n, requests[n - 1], run, after[step]) for n, step in ends.items() if step in after]
        without = [str(number) for number, step in ends.items() if step not in after]
        reason = f"no model was evaluated after request {', '.join(without)} of {len(requests)}" if without else ""
        curves[run.folder] = (_curve(points, target), reason)
    return curves


def _likeness(config: Mapping[str, Any]) -> str:
    """Hash of what two runs of one curve have in common."""
    own = ("name", "steps", "export_every", "checkpoint_every", "checkpoints", "workers", "diagnostics")
    alike = {name: value for name, value in config.items() if name not in own}
    alike["data"] = {name: value for name, value in config["data"].items() if name != "forget"}
    return hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()


def _point(at: int, split: str, run: _Run, row: Mapping[str, Any]) -> CurvePoint:
    return CurvePoint(at, split, _documents(run.data.get("benchmark"), split), row["model"], float(row[UTILITY]))


def _curve(points: Sequence[CurvePoint], target: Mapping[str, Any] | None) -> tuple[CurvePoint, ...]:
    before = () if target is None else (CurvePoint(0, "", 0, target["model"], float(target[UTILITY])),)
    return tuple(point for point in (*before, *points) if math.isfinite(point.utility))


def _documents(benchmark: str | None, split: str) -> int | None:
    """Documents of a forget set; None where its texts are out of reach, such as a hub's without a network."""
    try:
        return len(MuseTexts(benchmark).split(split)) if benchmark else None
    except (UserError, MissingPackageError):
        return None


def _measured(name: str, row: Mapping[str, Any], reasons: Mapping[str, str]) -> Criterion:
    column = CRITERIA[name][1]
    value = row[column]
    if value is not None and math.isfinite(value):
        return Criterion(name, column, float(value))
    return Criterion(name, column, None, reason=reasons.get(column, f"{column} has no finite value"))


def _following(name: str, row: Mapping[str, Any], run: _Run | None, curves: _Curves) -> Criterion:
    """C5 or C6 of a model: the curve that its run belongs to."""
    if run is not None and run.folder in curves:
        curve, lacks = curves[run.folder]
        measured = [point for point in curve if point.at > 0]
        if measured:
            return Criterion(name, UTILITY, measured[-1].utility, curve, lacks)
        return Criterion(name, UTILITY, None, reason=lacks or f"{UTILITY} has no finite value on this curve")
    about, splits = ("scalability", "scal") if name == "C5" else ("sustainability", "sust")
    how = "a run for each of" if name == "C5" else "one run with data.sequential"
    if row["role"] != "checkpoint":
        reason = f"{about} is of unlearned models"
    elif run is None:
        reason = f"{about} needs the run folder of the model, with its config"
    else:
        reason = f"{about} needs {how} {splits}/forget_1 to forget_4; this run forgets {run.forgets}"
    return Criterion(name, UTILITY, None, reason=reason)


def _cell(criterion: Criterion, notes: dict[str, int]) -> str:
    mark = f" ({notes.setdefault(criterion.reason, len(notes) + 1)})" if criterion.reason else ""
    if criterion.value is None:
        return f"-{mark}"
    if not criterion.curve:
        return f"{criterion.value:.1f}" if criterion.name == "C3" else f"{criterion.value:.3f}"
    return " > ".join(f"{point.utility:.2f}" for point in criterion.curve) + mark


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
